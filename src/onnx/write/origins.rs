//! The numbers behind [`Origin`]: nodes and initializers of a file in the order the reader meets them.

use std::collections::HashMap;

use mbqc_passes::ir::{Graph, Node, Origin, Tensor, Value, ValueId};

use crate::onnx::proto::{
    GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto, attribute_proto::AttributeType,
};
use crate::onnx::read::convert::attr_graphs;

/// An initializer of the file.
#[derive(Clone, Copy, Debug)]
pub(super) enum Initializer<'a> {
    Dense(&'a TensorProto),
    Sparse(&'a SparseTensorProto),
}

impl<'a> Initializer<'a> {
    pub(super) fn name(self) -> &'a str {
        match self {
            Initializer::Dense(tensor) => tensor.name(),
            Initializer::Sparse(tensor) => tensor.values.as_ref().map_or("", |values| values.name()),
        }
    }

    fn dims(self) -> &'a [i64] {
        match self {
            Initializer::Dense(tensor) => &tensor.dims,
            Initializer::Sparse(tensor) => &tensor.dims,
        }
    }
}

/// Nodes and initializers of a file by number.
#[derive(Debug, Default)]
pub(super) struct Origins<'a> {
    nodes: Vec<&'a NodeProto>,
    initializers: Vec<Initializer<'a>>,
}

impl<'a> Origins<'a> {
    /// The numbering of a file. The reader counts alike: a graph's initializers, then its sparse ones, then its nodes,
    /// each node before the subgraphs it holds; the main graph first, then the functions.
    pub(super) fn of(model: &'a ModelProto) -> Origins<'a> {
        let mut origins = Origins::default();
        model.graph.iter().for_each(|graph| origins.graph(graph));
        model.functions.iter().for_each(|function| {
            origins.node_list(&function.node);
            function.attribute_proto.iter().flat_map(attr_graphs).for_each(|graph| origins.graph(graph));
        });
        origins
    }

    /// How many nodes and initializers there are.
    pub(super) fn len(&self) -> [u32; 2] {
        [self.nodes.len(), self.initializers.len()].map(|len| u32::try_from(len).unwrap_or(u32::MAX))
    }

    fn graph(&mut self, graph: &'a GraphProto) {
        self.initializers.extend(graph.initializer.iter().map(Initializer::Dense));
        self.initializers.extend(graph.sparse_initializer.iter().map(Initializer::Sparse));
        self.node_list(&graph.node);
    }

    fn node_list(&mut self, nodes: &'a [NodeProto]) {
        for node in nodes {
            self.nodes.push(node);
            node.attribute.iter().flat_map(attr_graphs).for_each(|graph| self.graph(graph));
        }
    }

    /// The node of the file that an unchanged node is. The names are compared too, so that an origin of another file
    /// does no harm.
    pub(super) fn node(&self, graph: &Graph, node: &Node) -> Option<&'a NodeProto> {
        let Origin(number) = node.origin?;
        let proto = *self.nodes.get(number as usize)?;
        let same = proto.op_type() == node.op
            && proto.domain() == node.domain
            && proto.name() == node.name
            && proto.overload() == node.overload
            && same_names(graph, &node.inputs, &proto.input)
            && same_names(graph, &node.outputs, &proto.output)
            && proto.attribute.len() == node.attrs.len()
            && proto.attribute.iter().zip(&node.attrs).all(|(proto, (name, _))| proto.name() == name);
        same.then_some(proto)
    }

    /// The initializer of the file that an unchanged constant is.
    pub(super) fn initializer(&self, value: &Value, tensor: &Tensor) -> Option<Initializer<'a>> {
        let Origin(number) = value.origin?;
        let found = *self.initializers.get(number as usize)?;
        let dims = found.dims();
        let same = found.name() == value.name
            && dims.len() == tensor.dims.len()
            && dims.iter().zip(&tensor.dims).all(|(&a, &b)| usize::try_from(a) == Ok(b));
        same.then_some(found)
    }
}

fn same_names(graph: &Graph, ids: &[Option<ValueId>], names: &[String]) -> bool {
    ids.len() == names.len() && ids.iter().zip(names).all(|(id, name)| id.map_or("", |id| graph.name(id)) == name)
}

/// Nodes of one graph by their first output, for what a changed node keeps of the one it replaces.
#[derive(Debug, Default)]
pub(super) struct Donors<'a>(HashMap<&'a str, &'a NodeProto>);

impl<'a> Donors<'a> {
    pub(super) fn of(nodes: &'a [NodeProto]) -> Donors<'a> {
        let first = |node: &'a NodeProto| node.output.iter().find(|name| !name.is_empty()).map(String::as_str);
        Donors(nodes.iter().filter_map(|node| Some((first(node)?, node))).collect())
    }

    /// The node of the file that made this node's first output with the same operator.
    pub(super) fn node(&self, graph: &Graph, node: &Node) -> Option<&'a NodeProto> {
        let first = node.outputs.iter().flatten().next()?;
        let donor = *self.0.get(graph.name(*first))?;
        (donor.op_type() == node.op && donor.domain() == node.domain).then_some(donor)
    }
}

/// True for an attribute kind the IR does not read.
pub(super) fn is_opaque(ty: AttributeType) -> bool {
    use AttributeType as T;
    matches!(ty, T::Undefined | T::SparseTensor | T::SparseTensors | T::TypeProto | T::TypeProtos)
}
