"""Runs a model in stock onnxruntime (CPU, one thread) and writes every output: the second opinion of the Rust tests.

  python run_ort.py MODEL INPUTS.npz OUTPUTS.npz [--session-option k=v ...]
  python run_ort.py --version

INPUTS.npz holds one array per graph input, under the input's name; optional inputs (those with an initializer) may be left out, unknown names are an
error. OUTPUTS.npz holds one array per graph output, stored uncompressed.
--session-option: `graph_optimization_level=disable|basic|extended|layout|all` (default all), any attribute of onnxruntime.SessionOptions
(`inter_op_num_threads=1`), or, when the key contains a dot, a session configuration entry (`session.disable_prepacking=1`).
Exit code 0, or 1 and one line on stderr that begins with `error:`.
"""
import argparse
import sys
import zipfile

import numpy as np

LEVELS = {"disable": "ORT_DISABLE_ALL", "basic": "ORT_ENABLE_BASIC", "extended": "ORT_ENABLE_EXTENDED", "layout": "ORT_ENABLE_LAYOUT", "all": "ORT_ENABLE_ALL"}


def session_options(pairs=()):
    import onnxruntime as ort

    so = ort.SessionOptions()
    so.intra_op_num_threads = 1
    so.inter_op_num_threads = 1
    so.log_severity_level = 4
    for p in pairs:
        k, eq, v = p.partition("=")
        if not eq or not k:
            raise ValueError(f"session option `{p}` is not k=v")
        if k == "graph_optimization_level":
            if v not in LEVELS:
                raise ValueError(f"graph_optimization_level `{v}` is none of {', '.join(LEVELS)}")
            so.graph_optimization_level = getattr(ort.GraphOptimizationLevel, LEVELS[v])
        elif "." in k:
            so.add_session_config_entry(k, v)
        elif not hasattr(so, k):
            raise ValueError(f"onnxruntime has no session option `{k}`")
        else:
            old = getattr(so, k)
            setattr(so, k, v.lower() in ("1", "true", "yes") if isinstance(old, bool) else int(v) if isinstance(old, int) else v)
    return so


def session(model, pairs=()):
    """model: path or bytes"""
    import onnxruntime as ort

    return ort.InferenceSession(model, session_options(pairs), providers=["CPUExecutionProvider"])


def load_npz(path):
    with np.load(path, allow_pickle=False) as z:
        return {k: z[k] for k in z.files}


def save_npz(path, arrays, compressed=False):
    """like np.savez, but any name is allowed as a key and the file does not depend on the time of day"""
    with zipfile.ZipFile(path, "w") as z:
        for k, v in arrays.items():
            entry = zipfile.ZipInfo(k + ".npy", (1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
            entry.external_attr = 0o644 << 16
            with z.open(entry, "w", force_zip64=True) as f:
                np.lib.format.write_array(f, np.ascontiguousarray(v) if np.ndim(v) else np.asarray(v), allow_pickle=False)


def run(model, feed, pairs=()):
    s = session(model, pairs)
    need = [i.name for i in s.get_inputs()]
    known = set(need) | {i.name for i in s.get_overridable_initializers()}
    lost, extra = [n for n in need if n not in feed], [n for n in feed if n not in known]
    if lost:
        raise ValueError(f"no array for graph input {', '.join(lost)}")
    if extra:
        raise ValueError(f"the graph has no input {', '.join(extra)}")
    names = [o.name for o in s.get_outputs()]
    out = s.run(names, feed)
    for n, o in zip(names, out):
        if not isinstance(o, np.ndarray):
            raise ValueError(f"output {n} is not a tensor")
    return dict(zip(names, out))


def main():
    ap = argparse.ArgumentParser(description="run a model in stock onnxruntime (CPU, one thread)")
    ap.add_argument("--version", action="store_true", help="print the versions of onnxruntime and numpy and stop")
    ap.add_argument("model", nargs="?")
    ap.add_argument("inputs", nargs="?")
    ap.add_argument("outputs", nargs="?")
    ap.add_argument("--session-option", action="append", default=[], metavar="K=V")
    a = ap.parse_args()
    try:
        if a.version:
            import onnxruntime as ort

            print(f"onnxruntime {ort.__version__} numpy {np.__version__}")
            return 0
        if not a.outputs:
            raise ValueError("MODEL, INPUTS.npz and OUTPUTS.npz are needed")
        save_npz(a.outputs, run(a.model, load_npz(a.inputs), a.session_option))
        return 0
    except Exception as e:  # one line for the caller, whatever went wrong
        print("error: " + " ".join(f"{type(e).__name__}: {e}".split()), file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
