//! Nodes and their attributes, taken from the source or made anew.

use mbqc_passes::ir::{Attr, Graph, Node, Tensor, ValueId};

use super::emit::Emitter;
use super::generate::{entries, plain_attr};
use super::origins::{Donors, is_opaque};
use crate::onnx::Error;
use crate::onnx::proto::{AttributeProto, NodeProto, TensorProto};
use crate::onnx::read::convert::{attr_type, notes};
use crate::onnx::read::external::is_external;

impl<'a> Emitter<'a> {
    pub(super) fn nodes(&mut self, graph: &Graph, source: &'a [NodeProto]) -> Result<Vec<NodeProto>, Error> {
        let donors = Donors::of(source);
        graph.nodes().map(|(id, node)| self.node(graph, node, &graph.label(id), &donors)).collect()
    }

    fn node(&mut self, graph: &Graph, node: &Node, label: &str, donors: &Donors<'a>) -> Result<NodeProto, Error> {
        if let Some(found) = self.origins.node(graph, node) {
            self.step(0, node.origin);
            let mut proto = found.clone();
            for ((attr, kept), (_, value)) in found.attribute.iter().zip(&mut proto.attribute).zip(&node.attrs) {
                *kept = self.kept_attr(attr, value)?;
            }
            if notes(&found.metadata_props) != node.metadata {
                self.changed = true;
                proto.metadata_props = entries(&node.metadata);
            }
            return Ok(proto);
        }
        self.changed = true;
        let donor = donors.node(graph, node);
        let some = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
        let names =
            |ids: &[Option<ValueId>]| ids.iter().map(|id| id.map_or("", |id| graph.name(id)).to_owned()).collect();
        let attribute = node
            .attrs
            .iter()
            .map(|(name, attr)| {
                let donor = donor.and_then(|donor| donor.attribute.iter().find(|attr| attr.name() == name));
                self.attr(label, name, attr, donor)
            })
            .collect::<Result<_, _>>()?;
        Ok(NodeProto {
            input: names(&node.inputs),
            output: names(&node.outputs),
            name: some(&node.name),
            op_type: Some(node.op.clone()),
            domain: some(&node.domain),
            overload: some(&node.overload),
            attribute,
            doc_string: donor.and_then(|donor| donor.doc_string.clone()),
            metadata_props: entries(&node.metadata),
            device_configurations: Vec::new(),
        })
    }

    /// An attribute of the source; graphs in it are built anew, since their nodes have origins of their own.
    pub(super) fn kept_attr(&mut self, found: &'a AttributeProto, value: &Attr) -> Result<AttributeProto, Error> {
        match value {
            Attr::Graph(graph) => {
                let g = Some(self.graph(graph, found.g.as_ref())?);
                Ok(AttributeProto { g, ..without_graphs(found) })
            }
            Attr::Graphs(graphs) => {
                self.changed |= graphs.len() != found.graphs.len();
                let graphs = graphs.iter().zip(0..).map(|(graph, at)| self.graph(graph, found.graphs.get(at)));
                let graphs = graphs.collect::<Result<_, _>>()?;
                Ok(AttributeProto { graphs, ..without_graphs(found) })
            }
            Attr::Tensor(tensor) => {
                let t = found.t.as_ref().map(|t| self.kept_attr_tensor(t, tensor)).transpose()?;
                Ok(AttributeProto { t, ..found.clone() })
            }
            Attr::Tensors(tensors) if tensors.len() == found.tensors.len() => {
                let tensors = found.tensors.iter().zip(tensors).map(|(found, t)| self.kept_attr_tensor(found, t));
                let tensors = tensors.collect::<Result<_, _>>()?;
                Ok(AttributeProto { tensors, ..found.clone() })
            }
            _ => Ok(found.clone()),
        }
    }

    /// Tensors in attributes stay where they are: few runtimes load them from data files.
    fn kept_attr_tensor(&mut self, found: &TensorProto, tensor: &Tensor) -> Result<TensorProto, Error> {
        let beside = is_external(found) && self.layout.is_beside(tensor, Some(found));
        self.kept_tensor(found, tensor, beside)
    }

    /// An attribute made from the IR; `donor` is the one of that name in the node it replaces.
    pub(super) fn attr(
        &mut self,
        node: &str,
        name: &str,
        attr: &Attr,
        donor: Option<&'a AttributeProto>,
    ) -> Result<AttributeProto, Error> {
        let mut proto = match attr {
            Attr::Tensor(tensor) => AttributeProto { t: Some(self.attr_tensor(tensor)?), ..plain_attr(name, attr) },
            Attr::Tensors(tensors) => {
                let tensors = tensors.iter().map(|tensor| self.attr_tensor(tensor)).collect::<Result<_, _>>()?;
                AttributeProto { tensors, ..plain_attr(name, attr) }
            }
            Attr::Graph(graph) => {
                let g = Some(self.graph(graph, donor.and_then(|donor| donor.g.as_ref()))?);
                AttributeProto { g, ..plain_attr(name, attr) }
            }
            Attr::Graphs(graphs) => {
                let graphs = graphs.iter().zip(0..);
                let graphs = graphs.map(|(graph, at)| self.graph(graph, donor.and_then(|donor| donor.graphs.get(at))));
                let graphs = graphs.collect::<Result<_, _>>()?;
                AttributeProto { graphs, ..plain_attr(name, attr) }
            }
            Attr::Opaque => match donor.filter(|donor| is_opaque(attr_type(donor))) {
                Some(donor) => donor.clone(),
                None => {
                    return Err(Error::Malformed {
                        file: self.file.to_owned(),
                        place: format!("node `{node}`, attribute `{name}`"),
                        reason: "a sparse tensor or a type; it is kept with the node it was read with and cannot be \
                                 moved to another"
                            .to_owned(),
                    });
                }
            },
            plain => plain_attr(name, plain),
        };
        proto.doc_string = donor.and_then(|donor| donor.doc_string.clone());
        Ok(proto)
    }

    fn attr_tensor(&mut self, tensor: &Tensor) -> Result<TensorProto, Error> {
        let mut proto = self.new_tensor("", tensor, false)?;
        proto.name = None;
        Ok(proto)
    }
}

fn without_graphs(attr: &AttributeProto) -> AttributeProto {
    AttributeProto {
        name: attr.name.clone(),
        doc_string: attr.doc_string.clone(),
        r#type: attr.r#type,
        ..AttributeProto::default()
    }
}
