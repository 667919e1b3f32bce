"""Converts a float16 (or bfloat16) graph into float32: the same graph without half-precision rounding, an exact witness for onnxruntime.

  python to_f32.py MODEL OUT [--keep-rounding [--exact VALUE]] [--keep-accuracy-level]

Changed: initializers, constant attributes, inputs, outputs and value infos of half type; `to`/`dtype`/`output_dtype`/`softmax_precision` attributes;
the same in subgraphs and model-local functions; scales of MatMulNBits, GatherBlockQuantized and of the ops of domain ai.mbqc (they are plain inputs).
Constants keep their half-precision VALUES. A cast to half becomes a cast to float32, that is: no rounding.
--keep-rounding: a cast to half keeps rounding (cast to half, then to float32); only the explicit casts do, other arithmetic is float32.
--exact VALUE: but a cast of this value does not round.
`accuracy_level` (MatMulNBits, ai.mbqc) becomes 1, float32 accumulation, unless --keep-accuracy-level.
External data is read and written back into the one output file.
"""
import argparse
import sys

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper, numpy_helper

HALF = {TensorProto.FLOAT16, TensorProto.BFLOAT16}
F32 = TensorProto.FLOAT
TYPE_ATTRS = {"to", "dtype", "output_dtype", "softmax_precision"}


def tensor(t):
    if t.data_type in HALF:
        a = np.asarray(numpy_helper.to_array(t)).astype(np.float32)
        name = t.name
        t.CopyFrom(numpy_helper.from_array(a, name))


def type_proto(t):
    k = t.WhichOneof("value")
    if k in ("tensor_type", "sparse_tensor_type"):
        if getattr(t, k).elem_type in HALF:
            getattr(t, k).elem_type = F32
    elif k in ("sequence_type", "optional_type"):
        type_proto(getattr(t, k).elem_type)
    elif k == "map_type":
        type_proto(t.map_type.value_type)


def nodes(ns, o):
    out = []
    for n in ns:
        half = None
        for a in n.attribute:
            if a.type == AttributeProto.INT and a.name in TYPE_ATTRS and a.i in HALF:
                half, a.i = a.i, F32
            elif a.type == AttributeProto.INT and a.name == "accuracy_level" and not o.keep_accuracy_level:
                a.i = 1
            elif a.type == AttributeProto.TENSOR:
                tensor(a.t)
            elif a.type == AttributeProto.TENSORS:
                for t in a.tensors:
                    tensor(t)
            elif a.type == AttributeProto.SPARSE_TENSOR:
                tensor(a.sparse_tensor.values)
            elif a.type == AttributeProto.GRAPH:
                graph(a.g, o)
            elif a.type == AttributeProto.GRAPHS:
                for g in a.graphs:
                    graph(g, o)
            elif a.type == AttributeProto.TYPE_PROTO:
                type_proto(a.tp)
        if half and o.keep_rounding and n.input[0] not in o.exact and n.op_type == "Cast" and n.domain in ("", "ai.onnx"):
            t = n.output[0] + "/half"
            out.append(helper.make_node("Cast", [n.input[0]], [t], name=(n.name or n.output[0]) + "/half", to=half))
            n.input[0] = t
        out.append(n)
    return out


def put(target, new):
    new = [onnx.NodeProto.FromString(n.SerializeToString()) for n in new]
    del target[:]
    target.extend(new)


def graph(g, o):
    for t in g.initializer:
        tensor(t)
    for t in g.sparse_initializer:
        tensor(t.values)
    for v in list(g.input) + list(g.output) + list(g.value_info):
        type_proto(v.type)
    put(g.node, nodes(g.node, o))


def convert(m, keep_rounding=False, keep_accuracy_level=False, exact=()):
    o = argparse.Namespace(keep_rounding=keep_rounding, keep_accuracy_level=keep_accuracy_level, exact=exact)
    graph(m.graph, o)
    for f in m.functions:
        for v in f.value_info:
            type_proto(v.type)
        for a in f.attribute_proto:
            if a.type == AttributeProto.TENSOR:
                tensor(a.t)
            elif a.type == AttributeProto.INT and a.name in TYPE_ATTRS and a.i in HALF:
                a.i = F32
            elif a.type == AttributeProto.INT and a.name == "accuracy_level" and not keep_accuracy_level:
                a.i = 1
        put(f.node, nodes(f.node, o))
    return m


def main():
    ap = argparse.ArgumentParser(description="float16 graph to float32")
    ap.add_argument("model")
    ap.add_argument("out")
    ap.add_argument("--keep-rounding", action="store_true")
    ap.add_argument("--exact", action="append", default=[])
    ap.add_argument("--keep-accuracy-level", action="store_true")
    a = ap.parse_args()
    try:
        onnx.save(convert(onnx.load(a.model), a.keep_rounding, a.keep_accuracy_level, a.exact), a.out)
        return 0
    except Exception as e:
        print("error: " + " ".join(f"{type(e).__name__}: {e}".split()), file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
