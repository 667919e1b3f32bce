//! A second decoder, independent of ours: what it sees in a file.

use onnx_protobuf::{AttributeProto, GraphProto, Message, ModelProto, NodeProto, TensorProto};

/// Decodes a file.
pub(crate) fn decode(bytes: &[u8]) -> Result<ModelProto, protobuf::Error> {
    ModelProto::parse_from_bytes(bytes)
}

/// Nodes and initializers, one a line: operators with the names they connect, shapes, and a checksum of the bytes that
/// are in the file.
pub(crate) fn summary(model: &ModelProto) -> Vec<String> {
    let mut lines = Vec::new();
    graph(&model.graph, &mut lines);
    for function in &model.functions {
        lines
            .push(format!("function {} {} {:?} {:?}", function.domain, function.name, function.input, function.output));
        function.node.iter().for_each(|n| node(n, &mut lines));
    }
    lines
}

fn graph(graph: &GraphProto, lines: &mut Vec<String>) {
    let names = |infos: &[onnx_protobuf::ValueInfoProto]| infos.iter().map(|i| i.name.clone()).collect::<Vec<_>>();
    lines.push(format!("graph {} {:?} {:?}", graph.name, names(&graph.input), names(&graph.output)));
    graph.initializer.iter().for_each(|t| tensor(t, lines));
    graph.node.iter().for_each(|n| node(n, lines));
}

fn node(node: &NodeProto, lines: &mut Vec<String>) {
    lines.push(format!("{}.{} {:?} -> {:?}", node.domain, node.op_type, node.input, node.output));
    node.attribute.iter().for_each(|a| attribute(a, lines));
}

fn attribute(attr: &AttributeProto, lines: &mut Vec<String>) {
    lines.push(format!("  {} {} {} {:?} {:?} {:?}", attr.name, attr.i, attr.f, attr.s, attr.ints, attr.floats));
    attr.t.iter().chain(&attr.tensors).for_each(|t| tensor(t, lines));
    attr.g.iter().chain(&attr.graphs).for_each(|g| graph(g, lines));
}

fn tensor(tensor: &TensorProto, lines: &mut Vec<String>) {
    let sum = tensor
        .raw_data
        .iter()
        .fold(0xcbf2_9ce4_8422_2325u64, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    let typed = (&tensor.float_data, &tensor.int32_data, &tensor.int64_data, &tensor.string_data);
    lines.push(format!("  {} {} {:?} {sum:016x} {typed:?}", tensor.name, tensor.data_type, tensor.dims));
}
