//! Appends nodes to a graph that is being differentiated.

use crate::ir::{Attr, Edit, Graph, NewNode, Place, Tensor};

/// Domain of the helper operators that reverse-mode rules use; each has a body in standard operators.
pub const GRAD_DOMAIN: &str = "ai.mbqc.grad";

/// Collects the nodes of a backward graph. Every method appends one node and answers the name of its output.
pub struct Tape<'g> {
    graph: &'g Graph,
    edits: Vec<Edit>,
    count: usize,
}

impl<'g> Tape<'g> {
    /// A tape that extends `graph`.
    pub fn new(graph: &'g Graph) -> Tape<'g> {
        Tape { graph, edits: Vec::new(), count: 0 }
    }

    /// A name that nothing in the graph has.
    pub fn fresh(&mut self, hint: &str) -> String {
        loop {
            self.count += 1;
            let name = format!("d/{hint}_{}", self.count);
            if self.graph.find(&name).is_none() {
                return name;
            }
        }
    }

    /// A node of the standard domain with one output.
    pub fn op(&mut self, op: &str, inputs: &[&str]) -> String {
        self.node(NewNode::new(op, inputs, &[]), 1).remove(0)
    }

    /// A node of the standard domain with one output and attributes.
    pub fn op_with(&mut self, op: &str, inputs: &[&str], attrs: &[(&str, Attr)]) -> String {
        let mut node = NewNode::new(op, inputs, &[]);
        node.attrs = attrs.iter().map(|(key, attr)| ((*key).to_owned(), attr.clone())).collect();
        self.node(node, 1).remove(0)
    }

    /// A helper operator of [`GRAD_DOMAIN`] with one output and attributes.
    pub fn grad(&mut self, op: &str, inputs: &[&str], attrs: &[(&str, Attr)]) -> String {
        let mut node = NewNode::new(op, inputs, &[]).domain(GRAD_DOMAIN);
        node.attrs = attrs.iter().map(|(key, attr)| ((*key).to_owned(), attr.clone())).collect();
        self.node(node, 1).remove(0)
    }

    /// Any node; its outputs are named here.
    pub fn node(&mut self, mut node: NewNode, outputs: usize) -> Vec<String> {
        node.outputs = (0..outputs).map(|_| self.fresh(&node.op)).collect();
        node.name = node.outputs.first().cloned().unwrap_or_default();
        let names = node.outputs.clone();
        self.edits.push(Edit::AddNode(node, Place::End));
        names
    }

    /// A constant.
    pub fn constant(&mut self, tensor: Tensor) -> String {
        let name = self.fresh("const");
        self.edits.push(Edit::AddConst(name.clone(), tensor));
        name
    }

    /// A float constant of the type of the value `like`, as a scalar: a `CastLike` of an `f32` constant.
    pub fn scalar(&mut self, value: f32, like: &str) -> String {
        let constant = self.constant(Tensor::f32s([], &[value]));
        self.op("CastLike", &[&constant, like])
    }

    /// An `int64` constant vector.
    pub fn ints(&mut self, values: &[i64]) -> String {
        self.constant(Tensor::i64s([values.len()], values))
    }

    /// `g` summed down to the shape of `x`, which undoes broadcasting: helper `SumTo(g, x)`.
    pub fn sum_to(&mut self, g: &str, x: &str) -> String {
        self.grad("SumTo", &[g, x], &[])
    }

    /// The graph that is being extended.
    pub fn graph(&self) -> &'g Graph {
        self.graph
    }

    /// What was collected.
    pub fn finish(self) -> Vec<Edit> {
        self.edits
    }
}
