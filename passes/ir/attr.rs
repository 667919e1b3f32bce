//! Attributes of nodes.

use bytes::Bytes;

use super::{Graph, Tensor};

/// The value of an attribute.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "the variants are ONNX's attribute types")]
pub enum Attr {
    Int(i64),
    Float(f32),
    String(Bytes),
    Tensor(Tensor),
    Graph(Box<Graph>),
    Ints(Vec<i64>),
    Floats(Vec<f32>),
    Strings(Vec<Bytes>),
    Tensors(Vec<Tensor>),
    Graphs(Vec<Graph>),
    /// Inside a function body: takes the value of the named attribute of the call. The number is ONNX's attribute type.
    Ref(String, i32),
    /// A kind this compiler does not read (sparse tensor, type); the file layer keeps it.
    Opaque,
}

impl Attr {
    /// A string attribute.
    pub fn str(text: &str) -> Attr {
        Attr::String(Bytes::copy_from_slice(text.as_bytes()))
    }

    /// Subgraphs held by this attribute.
    pub fn graphs(&self) -> &[Graph] {
        match self {
            Attr::Graph(graph) => std::slice::from_ref(graph),
            Attr::Graphs(graphs) => graphs,
            _ => &[],
        }
    }

    /// Subgraphs held by this attribute, to be edited.
    pub fn graphs_mut(&mut self) -> &mut [Graph] {
        match self {
            Attr::Graph(graph) => std::slice::from_mut(graph),
            Attr::Graphs(graphs) => graphs,
            _ => &mut [],
        }
    }
}
