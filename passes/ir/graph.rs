//! Graphs of nodes and values.

use std::collections::HashMap;

use super::{Attr, DType, Error, Tensor};

/// Index of a [`Node`] in its [`Graph`]; stable across edits that keep the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub u32);

/// Index of a [`Value`] in its [`Graph`]; stable across edits that keep the value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ValueId(pub u32);

/// Where something stood in the file it was read from. Passes carry it along and never look inside; the writer uses it
/// to give back the original bytes of whatever was not changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin(pub u32);

/// One operation.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Name; may be empty, as exporters leave it.
    pub name: String,
    /// Operator domain; empty for the standard one.
    pub domain: String,
    /// Operator name.
    pub op: String,
    /// Overload of the local function that is meant; usually empty.
    pub overload: String,
    /// Inputs; `None` for an optional input left out.
    pub inputs: Vec<Option<ValueId>>,
    /// Outputs; `None` for an optional output left out.
    pub outputs: Vec<Option<ValueId>>,
    /// Attributes in file order.
    pub attrs: Vec<(String, Attr)>,
    /// Key-value notes of the exporter.
    pub metadata: Vec<(String, String)>,
    /// Set while the node is as the file has it.
    pub origin: Option<Origin>,
}

impl Node {
    /// The attribute with this name.
    pub fn attr(&self, name: &str) -> Option<&Attr> {
        self.attrs.iter().find(|(key, _)| key == name).map(|(_, attr)| attr)
    }

    /// An integer attribute, or `default` when absent.
    pub fn int(&self, name: &str, default: i64) -> i64 {
        match self.attr(name) {
            Some(Attr::Int(value)) => *value,
            _ => default,
        }
    }

    /// A float attribute, or `default` when absent.
    pub fn float(&self, name: &str, default: f32) -> f32 {
        match self.attr(name) {
            Some(Attr::Float(value)) => *value,
            _ => default,
        }
    }

    /// An integer-list attribute.
    pub fn ints(&self, name: &str) -> Option<&[i64]> {
        match self.attr(name) {
            Some(Attr::Ints(values)) => Some(values),
            _ => None,
        }
    }

    /// A string attribute.
    pub fn string(&self, name: &str) -> Option<&str> {
        match self.attr(name) {
            Some(Attr::String(bytes)) => std::str::from_utf8(bytes).ok(),
            _ => None,
        }
    }

    /// The input in this slot, when present.
    pub fn input(&self, slot: usize) -> Option<ValueId> {
        self.inputs.get(slot).copied().flatten()
    }

    /// The output in this slot, when present.
    pub fn output(&self, slot: usize) -> Option<ValueId> {
        self.outputs.get(slot).copied().flatten()
    }

    /// True for this operator of the standard domain.
    pub fn is(&self, op: &str) -> bool {
        self.op == op && (self.domain.is_empty() || self.domain == "ai.onnx")
    }

    /// `domain::op`, or `op` alone for the standard domain.
    pub fn qualified_op(&self) -> String {
        if self.domain.is_empty() { self.op.clone() } else { format!("{}::{}", self.domain, self.op) }
    }
}

/// How a value comes to be.
#[derive(Clone, Debug, PartialEq)]
pub enum Def {
    /// Given by the caller.
    Input,
    /// A constant of the graph (an initializer).
    Const(Tensor),
    /// An output slot of a node.
    Node(NodeId, u32),
    /// A value of the surrounding graph, seen from inside a subgraph.
    Outer,
}

/// A dimension of a declared shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dim {
    /// A fixed size.
    Size(usize),
    /// A named size.
    Symbol(String),
    /// Nothing is known.
    Unknown,
}

/// The declared type of a value.
#[derive(Clone, Debug, PartialEq)]
pub enum Type {
    /// A tensor of this element type; the shape is `None` when even the rank is not declared.
    Tensor(DType, Option<Vec<Dim>>),
    /// A sequence, optional, map or sparse tensor; its declaration is kept by the file layer.
    Other,
}

/// A named value. Names are unique in a graph. ONNX asks the same of a graph with its subgraphs: files that break that are
/// kept as they are, and new names are those of no graph of the model ([`fresh_name`](super::fresh_name)).
#[derive(Clone, Debug, PartialEq)]
pub struct Value {
    /// Unique name.
    pub name: String,
    /// What produces it.
    pub def: Def,
    /// Declared type, when the file declares one.
    pub ty: Option<Type>,
    /// For a constant: set while its tensor is as the file has it.
    pub origin: Option<Origin>,
}

/// A graph: nodes in file order over named values. Changed only through [`Graph::apply`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Graph {
    /// Name.
    pub name: String,
    pub(super) nodes: Vec<Option<Node>>,
    pub(super) order: Vec<NodeId>,
    pub(super) values: Vec<Option<Value>>,
    pub(super) names: HashMap<String, ValueId>,
    pub(super) inputs: Vec<ValueId>,
    pub(super) outputs: Vec<ValueId>,
}

impl Graph {
    /// Nodes in file order.
    pub fn nodes(&self) -> impl DoubleEndedIterator<Item = (NodeId, &Node)> {
        self.order.iter().map(|&id| (id, self.node(id)))
    }

    /// Number of nodes.
    pub fn node_count(&self) -> usize {
        self.order.len()
    }

    /// One past the largest node index ever given out; for tables indexed by [`NodeId`].
    pub fn node_bound(&self) -> usize {
        self.nodes.len()
    }

    /// One past the largest value index ever given out; for tables indexed by [`ValueId`].
    pub fn value_bound(&self) -> usize {
        self.values.len()
    }

    /// The node with this id.
    pub fn node(&self, id: NodeId) -> &Node {
        self.nodes[id.0 as usize].as_ref().expect("law: a NodeId held across an edit names a node the edit kept")
    }

    /// The node with this id, unless an edit removed it.
    pub fn get_node(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(id.0 as usize).and_then(Option::as_ref)
    }

    /// Values in order of creation.
    pub fn values(&self) -> impl Iterator<Item = (ValueId, &Value)> {
        self.values.iter().enumerate().filter_map(|(i, v)| Some((ValueId(u32::try_from(i).ok()?), v.as_ref()?)))
    }

    /// The value with this id.
    pub fn value(&self, id: ValueId) -> &Value {
        self.values[id.0 as usize].as_ref().expect("law: a ValueId held across an edit names a value the edit kept")
    }

    /// The value with this name.
    pub fn find(&self, name: &str) -> Option<ValueId> {
        self.names.get(name).copied()
    }

    /// The name of a value.
    pub fn name(&self, id: ValueId) -> &str {
        &self.value(id).name
    }

    /// Graph inputs in order; may include constants that a caller may override (files of IR 3).
    pub fn inputs(&self) -> &[ValueId] {
        &self.inputs
    }

    /// Graph outputs in order.
    pub fn outputs(&self) -> &[ValueId] {
        &self.outputs
    }

    /// The constant a value holds, if it is one.
    pub fn constant(&self, id: ValueId) -> Option<&Tensor> {
        match &self.value(id).def {
            Def::Const(tensor) => Some(tensor),
            Def::Input | Def::Node(..) | Def::Outer => None,
        }
    }

    /// The node and output slot that produce a value, if a node does.
    pub fn producer(&self, id: ValueId) -> Option<(NodeId, usize)> {
        match self.value(id).def {
            Def::Node(node, slot) => Some((node, slot as usize)),
            Def::Input | Def::Const(_) | Def::Outer => None,
        }
    }

    /// The subgraph at the end of a path that begins here.
    pub fn at(&self, path: &super::GraphPath) -> Option<&Graph> {
        path.iter()
            .try_fold(self, |graph, &(node, attr, index)| graph.get_node(node)?.attrs.get(attr)?.1.graphs().get(index))
    }

    /// Every use of every value: `uses[value]` lists (node, input slot) in node order. A use inside a subgraph counts
    /// as a use by the node that holds the subgraph, with slot `usize::MAX`.
    pub fn uses(&self) -> Uses {
        let mut uses = Uses { by_value: vec![Vec::new(); self.values.len()], outputs: vec![false; self.values.len()] };
        for (id, node) in self.nodes() {
            for (slot, input) in node.inputs.iter().enumerate() {
                if let Some(value) = input {
                    uses.by_value[value.0 as usize].push((id, slot));
                }
            }
            for name in captured(node) {
                if let Some(value) = self.find(&name) {
                    uses.by_value[value.0 as usize].push((id, usize::MAX));
                }
            }
        }
        for output in &self.outputs {
            uses.outputs[output.0 as usize] = true;
        }
        uses
    }

    /// The values that a node reads: its inputs, and what its subgraphs take from this graph. Walks that ask what a node depends
    /// on ask here, so that none forgets the second kind.
    pub fn reads(&self, id: NodeId) -> impl Iterator<Item = ValueId> + '_ {
        let node = self.node(id);
        let outer = captured(node).into_iter().filter_map(|name| self.find(&name));
        node.inputs.iter().flatten().copied().chain(outer)
    }

    /// The tensor of a constant or of a `Constant` node.
    pub fn shown_constant(&self, value: ValueId) -> Option<&Tensor> {
        match &self.value(value).def {
            Def::Node(node, _) if self.node(*node).is("Constant") => match self.node(*node).attr("value") {
                Some(Attr::Tensor(tensor)) => Some(tensor),
                _ => None,
            },
            _ => self.constant(value),
        }
    }

    /// The declared number of axes of a value.
    pub fn rank(&self, value: ValueId) -> Option<usize> {
        match &self.value(value).ty {
            Some(Type::Tensor(_, Some(dims))) => Some(dims.len()),
            _ => None,
        }
    }

    /// A text that tells which node this is: its name, or its first output when it has none.
    pub fn label(&self, id: NodeId) -> String {
        let node = self.node(id);
        if !node.name.is_empty() {
            return node.name.clone();
        }
        match node.outputs.iter().flatten().next() {
            Some(&output) => format!("{} -> {}", node.op, self.name(output)),
            None => node.op.clone(),
        }
    }
}

/// Names that the subgraphs of `node` take from the surrounding graph, in order of first appearance.
pub fn captured(node: &Node) -> Vec<String> {
    let mut names = Vec::new();
    for graph in node.attrs.iter().flat_map(|(_, attr)| attr.graphs()) {
        let own = graph.values().filter(|(_, value)| value.def == Def::Outer).map(|(_, value)| value.name.clone());
        let inner = graph.nodes().flat_map(|(_, node)| captured(node)).filter(|name| graph.find(name).is_none());
        for name in own.chain(inner) {
            if !names.contains(&name) {
                names.push(name);
            }
        }
    }
    names
}

/// Index of uses, computed by [`Graph::uses`].
#[derive(Clone, Debug)]
pub struct Uses {
    by_value: Vec<Vec<(NodeId, usize)>>,
    outputs: Vec<bool>,
}

impl Uses {
    /// The (node, input slot) pairs that read a value.
    pub fn of(&self, value: ValueId) -> &[(NodeId, usize)] {
        self.by_value.get(value.0 as usize).map_or(&[], Vec::as_slice)
    }

    /// True when the value is an output of the graph.
    pub fn is_output(&self, value: ValueId) -> bool {
        self.outputs.get(value.0 as usize).copied().unwrap_or(false)
    }

    /// Readers plus one if the value is a graph output.
    pub fn count(&self, value: ValueId) -> usize {
        self.of(value).len() + usize::from(self.is_output(value))
    }
}

/// Builds a graph from scratch, as a reader or a test does. Values may be named before they are defined.
#[derive(Debug, Default)]
pub struct GraphBuilder {
    graph: Graph,
}

impl GraphBuilder {
    /// An empty graph with this name.
    pub fn new(name: impl Into<String>) -> GraphBuilder {
        GraphBuilder { graph: Graph { name: name.into(), ..Graph::default() } }
    }

    /// The id of the value with this name, made undefined (as [`Def::Outer`]) when new.
    pub fn value(&mut self, name: &str) -> ValueId {
        self.graph.intern(name)
    }

    /// Declares a graph input.
    pub fn input(&mut self, name: &str, ty: Option<Type>) -> Result<ValueId, Error> {
        let id = self.graph.intern(name);
        if self.graph.inputs.contains(&id) {
            return Err(Error::Duplicate(name.to_owned()));
        }
        let value = self.graph.value_mut(id);
        if value.def == Def::Outer {
            value.def = Def::Input;
        }
        value.ty = ty.or(value.ty.take());
        self.graph.inputs.push(id);
        Ok(id)
    }

    /// Declares a constant.
    pub fn constant(&mut self, name: &str, tensor: Tensor, origin: Option<Origin>) -> Result<ValueId, Error> {
        let id = self.graph.intern(name);
        let value = self.graph.value_mut(id);
        if !matches!(value.def, Def::Outer | Def::Input) {
            return Err(Error::Duplicate(name.to_owned()));
        }
        value.def = Def::Const(tensor);
        value.origin = origin;
        Ok(id)
    }

    /// Declares a graph output.
    pub fn output(&mut self, name: &str, ty: Option<Type>) {
        let id = self.graph.intern(name);
        let value = self.graph.value_mut(id);
        value.ty = ty.or(value.ty.take());
        self.graph.outputs.push(id);
    }

    /// Declares the type of a value.
    pub fn declare(&mut self, name: &str, ty: Type) {
        if let Some(id) = self.graph.find(name) {
            self.graph.value_mut(id).ty.get_or_insert(ty);
        }
    }

    /// Adds a node; an empty name stands for an absent input or output.
    pub fn node(&mut self, spec: super::NewNode, origin: Option<Origin>) -> Result<NodeId, Error> {
        let id = self.graph.push_node(spec)?;
        self.graph.nodes[id.0 as usize].as_mut().expect("just pushed").origin = origin;
        Ok(id)
    }

    /// The finished graph.
    pub fn finish(self) -> Graph {
        self.graph
    }
}

impl Graph {
    pub(super) fn intern(&mut self, name: &str) -> ValueId {
        if let Some(&id) = self.names.get(name) {
            return id;
        }
        let id = ValueId(u32::try_from(self.values.len()).expect("fewer than 2^32 values"));
        self.values.push(Some(Value { name: name.to_owned(), def: Def::Outer, ty: None, origin: None }));
        self.names.insert(name.to_owned(), id);
        id
    }

    pub(super) fn value_mut(&mut self, id: ValueId) -> &mut Value {
        self.values[id.0 as usize].as_mut().expect("law: a ValueId names a value that is there")
    }

    pub(super) fn push_node(&mut self, spec: super::NewNode) -> Result<NodeId, Error> {
        let id = NodeId(u32::try_from(self.nodes.len()).expect("fewer than 2^32 nodes"));
        let node = self.make_node(id, spec)?;
        self.nodes.push(Some(node));
        self.order.push(id);
        Ok(id)
    }

    pub(super) fn make_node(&mut self, id: NodeId, spec: super::NewNode) -> Result<Node, Error> {
        let inputs = spec.inputs.iter().map(|name| (!name.is_empty()).then(|| self.intern(name))).collect();
        let mut outputs = Vec::with_capacity(spec.outputs.len());
        for (slot, name) in spec.outputs.iter().enumerate() {
            if name.is_empty() {
                outputs.push(None);
                continue;
            }
            let value_id = self.intern(name);
            let value = self.value_mut(value_id);
            if value.def != Def::Outer {
                return Err(Error::Duplicate(name.clone()));
            }
            value.def = Def::Node(id, u32::try_from(slot).expect("fewer than 2^32 outputs"));
            outputs.push(Some(value_id));
        }
        Ok(Node {
            name: spec.name,
            domain: spec.domain,
            op: spec.op,
            overload: spec.overload,
            inputs,
            outputs,
            attrs: spec.attrs,
            metadata: spec.metadata,
            origin: None,
        })
    }
}
