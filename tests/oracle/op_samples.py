#!/usr/bin/env python3
"""Expected outputs for the samples of the op table.

    MBQC_WRITE_SAMPLES=samples.json cargo test -p mbqc-passes --test ops eval
    python tests/oracle/op_samples.py samples.json passes/tests/goldens/ops.json

Every sample becomes a model of one node. onnxruntime runs it without optimisations; what it does not know, the ONNX
reference evaluator runs. Helper operators of reverse mode have closed forms in numpy, below. The witness is recorded
beside the outputs. Needs: numpy, onnx, onnxruntime.
"""

import itertools
import json
import sys

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

GRAD_DOMAIN = "ai.mbqc.grad"
TYPES = {
    "float": TensorProto.FLOAT, "double": TensorProto.DOUBLE, "int64": TensorProto.INT64, "int32": TensorProto.INT32,
    "bool": TensorProto.BOOL, "uint8": TensorProto.UINT8, "int8": TensorProto.INT8,
}
NAMES = {helper.tensor_dtype_to_np_dtype(number): name for name, number in TYPES.items()}

# Samples that onnxruntime answers differently from the specification, and why.
BY_REFERENCE = {
    "ReduceMax/not a number": "onnxruntime's answer depends on where the NaN stands",
    "ReduceMin/not a number": "onnxruntime's answer depends on where the NaN stands",
}


def array(spec):
    if spec is None:
        return None
    dtype = helper.tensor_dtype_to_np_dtype(TYPES[spec["dtype"]])
    return np.array([float(v) if isinstance(v, str) else v for v in spec["data"]], dtype=dtype).reshape(spec["shape"])


def attributes(sample):
    out = {}
    for name, given in sample["attrs"].items():
        ((kind, value),) = given.items()
        out[name] = float(value) if kind == "float" else value
    return out


def model_of(sample, inputs):
    domain, opset = sample["domain"], sample["opset"]
    names = [f"x{i}" if x is not None else "" for i, x in enumerate(inputs)]
    outputs = [f"y{i}" for i in range(sample["outputs"])]
    node = helper.make_node(sample["op"], names, outputs, domain=domain, **attributes(sample))
    # helper drops empty lists; their type has to be said.
    for name, given in sample["attrs"].items():
        if given in ({"ints": []}, {"floats": []}):
            kind = onnx.AttributeProto.INTS if "ints" in given else onnx.AttributeProto.FLOATS
            for attr in [a for a in node.attribute if a.name == name]:
                node.attribute.remove(attr)
            node.attribute.append(onnx.AttributeProto(name=name, type=kind))
    graph = helper.make_graph(
        [node],
        "sample",
        [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
         for n, x in zip(names, inputs) if x is not None],
        [onnx.ValueInfoProto(name=name) for name in outputs],
    )
    sets = [helper.make_opsetid(domain, opset)]
    if domain:
        sets.append(helper.make_opsetid("", 18))
    model = helper.make_model(graph, opset_imports=sets)
    model.ir_version = 11 if opset >= 23 else 10
    return model, {n: x for n, x in zip(names, inputs) if x is not None}


def by_onnxruntime(sample, inputs):
    model, feeds = model_of(sample, inputs)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def by_reference(sample, inputs):
    model, feeds = model_of(sample, inputs)
    return ReferenceEvaluator(model).run(None, feeds)


# Closed forms of the helper operators. Arguments: inputs, attributes.

def sum_to(inputs, attrs):
    g, x = inputs
    padded = (1,) * (g.ndim - x.ndim) + x.shape
    axes = tuple(i for i in range(g.ndim) if padded[i] == 1)
    return [g.astype(np.float64).sum(axis=axes, keepdims=True).reshape(x.shape).astype(g.dtype)]


def matmul_t(inputs, attrs):
    a, b = inputs
    a = np.swapaxes(a, -1, -2) if attrs.get("trans_a") else a
    b = np.swapaxes(b, -1, -2) if attrs.get("trans_b") else b
    return [(a.astype(np.float64) @ b.astype(np.float64)).astype(np.float32)]


def conv_grad(inputs, attrs):
    """Every output element hands its gradient to the input elements that it was made of."""
    g, w, x = inputs
    axes = x.ndim - 2
    strides, dilations = attrs.get("strides", [1] * axes), attrs.get("dilations", [1] * axes)
    pads, groups = attrs.get("pads", [0] * 2 * axes), attrs.get("group", 1)
    out = np.zeros(x.shape, np.float64)
    per_group = g.shape[1] // groups
    for n, m in itertools.product(range(g.shape[0]), range(g.shape[1])):
        for at in np.ndindex(*g.shape[2:]):
            for c in range(w.shape[1]):
                for k in np.ndindex(*w.shape[2:]):
                    place = tuple(at[i] * strides[i] + k[i] * dilations[i] - pads[i] for i in range(axes))
                    if all(0 <= p < size for p, size in zip(place, x.shape[2:])):
                        channel = m // per_group * w.shape[1] + c
                        out[(n, channel, *place)] += float(g[(n, m, *at)]) * float(w[(m, c, *k)])
    return [out.astype(np.float32)]


def slice_grad(inputs, attrs):
    g, x = inputs[:2]
    starts, ends, axes, steps = (list(inputs) + [None] * 6)[2:6]
    axes = range(len(starts)) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    index = [slice(None)] * x.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps):
        end = None if step < 0 and end < -x.shape[axis] else int(end)
        index[axis] = slice(int(start), end, int(step))
    out = np.zeros(x.shape, g.dtype)
    out[tuple(index)] = g
    return [out]


def gather_grad(inputs, attrs):
    g, x, indices = inputs
    axis = attrs.get("axis", 0) % x.ndim
    out = np.zeros(x.shape, np.float64)
    moved = np.moveaxis(out, axis, 0)
    g = np.moveaxis(g, range(axis, axis + indices.ndim), range(indices.ndim))
    for at in np.ndindex(*indices.shape):
        moved[indices[at]] += g[at]
    return [out.astype(np.float32)]


def gather_nd_grad(inputs, attrs):
    g, x, indices = inputs
    batch = attrs.get("batch_dims", 0)
    out = np.zeros(x.shape, np.float64)
    for at in np.ndindex(*indices.shape[:-1]):
        out[at[:batch] + tuple(indices[at])] += g[at]
    return [out.astype(np.float32)]


def gather_elements_grad(inputs, attrs):
    g, x, indices = inputs
    axis = attrs.get("axis", 0)
    out = np.zeros(x.shape, np.float64)
    for at in np.ndindex(*indices.shape):
        to = list(at)
        to[axis] = indices[at]
        out[tuple(to)] += g[at]
    return [out.astype(np.float32)]


CLOSED_FORMS = {
    "SumTo": sum_to, "MatMulT": matmul_t, "ConvGrad": conv_grad, "SliceGrad": slice_grad, "GatherGrad": gather_grad,
    "GatherNDGrad": gather_nd_grad, "GatherElementsGrad": gather_elements_grad,
}


def witness(name, sample):
    inputs = [array(spec) for spec in sample["inputs"]]
    if sample["domain"] == GRAD_DOMAIN:
        return "numpy", CLOSED_FORMS[sample["op"]](inputs, attributes(sample))
    if (sample["domain"], sample["op"]) == ("com.microsoft", "SimplifiedLayerNormalization"):
        # Files write it in this domain too; onnxruntime knows it in the standard one.
        sample = {**sample, "domain": "", "opset": 17}
    reference = f"onnx {onnx.__version__} reference"
    if name in BY_REFERENCE:
        return f"{reference}: {BY_REFERENCE[name]}", by_reference(sample, inputs)
    try:
        return f"onnxruntime {onnxruntime.__version__}", by_onnxruntime(sample, inputs)
    except Exception as refused:
        try:
            return reference, by_reference(sample, inputs)
        except Exception as error:
            raise RuntimeError(f"onnxruntime: {refused}\nreference: {error}") from None


def number(value, dtype):
    if dtype == "bool":
        return int(value)
    if dtype in ("float", "double"):
        value = float(value)
        if not np.isfinite(value):
            return str(value)
        return float(f"{value:.9g}" if dtype == "float" else f"{value:.17g}")
    return int(value)


def main():
    samples_file, goldens_file = sys.argv[1:3]
    with open(samples_file) as file:
        samples = json.load(file)
    lines, failed, count = [], [], {}
    for name in sorted(samples):
        try:
            who, outputs = witness(name, samples[name])
        except Exception as error:
            failed.append(f"{name}: {error}")
            continue
        count[who] = count.get(who, 0) + 1
        described = []
        for y in outputs:
            y = np.asarray(y)
            dtype = NAMES[y.dtype]
            data = [number(v, dtype) for v in y.reshape(-1)]
            described.append({"dtype": dtype, "shape": list(y.shape), "data": data})
        lines.append(f"{json.dumps(name)}: {json.dumps({'witness': who, 'outputs': described})}")
    with open(goldens_file, "w") as file:
        file.write("{\n" + ",\n".join(lines) + "\n}\n")
    for who, many in sorted(count.items()):
        print(f"{many} by {who}")
    if failed:
        sys.exit("no witness for\n" + "\n".join(failed))


if __name__ == "__main__":
    main()
