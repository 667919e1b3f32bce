//! Sites: the linear layers of a model, found by dataflow; and every other constant that may be a weight, with the reason
//! why it is left alone.
//!
//! The survey goes from constants to their readers. A constant *may be a weight* when it has two dimensions larger than
//! one, or is the second operand of a layer with one output channel, and a float type, or a type in which quantized weights are stored (whole numbers of up to 16 bits). It is followed
//! through what only moves it or combines it with other constants, into subgraphs and local functions, to where it ends:
//!
//! - in a weight slot of an operator that carries weights: every such pair is a site or an [`Other`];
//! - as a scale or zero point of a quantized weight: it belongs to that weight and is not listed;
//! - nowhere but in other operators: a table (positions, cosines, a mask), an [`Other`] that is listed once, whoever reads
//!   it, and only from 256 elements on.
//!
//! Vectors are no weights, and so layers of one output channel are not listed; but a vector of 256 elements or more is one
//! where a Reshape makes a matrix of it, and where an operator reads it as the bytes of a quantized weight.

use std::collections::HashMap;

use crate::ir::{DType, GraphPath, Model, Node, NodeId, Tensor, ValueId};
use crate::plan::SkipKind;

use super::linear::Surroundings;
use super::others::other;
use super::places::Places;
use super::reach::{End, Reach, Role};
use super::resolve::resolve;
use super::towers::Towers;
use super::weight_ops::{LEAST, is_matrix};

/// A linear layer `y = x W^T` with a constant weight.
#[derive(Clone, Debug)]
pub struct Site {
    /// The graph it stands in.
    pub path: GraphPath,
    /// The MatMul or Gemm.
    pub node: NodeId,
    /// The node's label: unique in practice, used in plans and messages.
    pub label: String,
    /// A name people recognise; for display and globs.
    pub name: String,
    /// Its weight.
    pub weight: Weight,
    /// Output channels.
    pub n: usize,
    /// Input channels.
    pub k: usize,
    /// The activation it reads, `[.., k]` (for [`Form::Left`] `[.., k, tokens]`).
    pub x: ValueId,
    /// Output of the node itself.
    pub y: ValueId,
    /// Output after the bias, or `y` when there is none.
    pub out: ValueId,
    /// A bias added by a node of its own.
    pub bias: Option<Bias>,
    /// Which operand is the weight, and what else the operator does.
    pub form: Form,
    /// True for a final projection onto a vocabulary or classes: nothing but views, selections, functions of single elements
    /// and choices of the largest lie between it and the graph's outputs, and it is tied to a token table, has at least
    /// twice as many outputs as inputs, gives an output called `logits`, or its largest outputs are chosen.
    pub head: bool,
    /// Which part of the model it belongs to.
    pub tower: Tower,
}

/// A constant weight and how to read it.
#[derive(Clone, Debug)]
pub struct Weight {
    /// The graph that owns the constant.
    pub owner: GraphPath,
    /// Name of the constant (of the `Constant` node's output where it is an attribute).
    pub name: String,
    /// The stored tensor.
    pub tensor: Tensor,
    /// True when it is stored `[n, k]`, false when `[k, n]`.
    pub rows_are_outputs: bool,
    /// The element type in which the layer reads it: the stored one unless a Cast lies between.
    pub read_as: DType,
}

/// A bias that a separate `Add` brings in.
#[derive(Clone, Debug)]
pub struct Bias {
    /// The `Add`.
    pub node: NodeId,
    /// The constant vector of length n.
    pub value: ValueId,
}

/// Forms of a linear layer.
#[derive(Clone, Debug, PartialEq)]
pub enum Form {
    /// `MatMul(x, W)`.
    Right,
    /// `MatMul(W, x)`: tokens along the last axis.
    Left,
    /// `Gemm(x, W, C)` with its flags.
    Gemm {
        /// Factor of the product.
        alpha: f32,
        /// Factor of `c`.
        beta: f32,
        /// True when `x` is given transposed.
        trans_a: bool,
        /// The third input.
        c: Option<ValueId>,
    },
}

/// The part of a model that a site belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tower {
    /// Sees images only, in a graph that also has a token embedding.
    Vision,
    /// Sees tokens.
    Text,
    /// The graph has only one tower.
    Only,
}

/// A constant that may be a weight, at a node where it is not one of a site.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Other {
    /// The graph the node stands in; from the function's body where it stands in one.
    pub path: GraphPath,
    /// The local function in whose body the node stands, as `domain::name`.
    pub function: Option<String>,
    /// Label of the node; the output's name for a graph output, the constant's where nothing reads it.
    pub label: String,
    /// Operator; `output` for a graph output, `constant` where nothing reads it.
    pub op: String,
    /// Name of the weight.
    pub weight: String,
    /// Stored bytes of the weight.
    pub bytes: usize,
    /// Why it is no site.
    pub reason: String,
    /// What kind of reason it is.
    pub kind: SkipKind,
    /// The part of the model that the node belongs to.
    pub tower: Tower,
}

impl Other {
    /// The node.
    pub fn node<'m>(&self, model: &'m Model) -> Option<&'m Node> {
        let graph = match &self.function {
            None => Some(&model.graph),
            Some(name) => {
                model.functions.iter().find(|f| format!("{}::{}", f.domain, f.name) == *name).map(|f| &f.body)
            }
        };
        let graph = graph?.at(&self.path)?;
        graph.nodes().find(|(id, _)| graph.label(*id) == self.label).map(|(_, node)| node)
    }
}

/// All constants of a model that may be weights.
#[derive(Clone, Debug, Default)]
pub struct Survey {
    /// The linear layers, in topological order within each graph.
    pub sites: Vec<Site>,
    /// The rest.
    pub others: Vec<Other>,
}

/// Finds all constants that may be weights, and what they are.
pub fn survey(model: &Model) -> Result<Survey, crate::ir::Error> {
    let places = Places::of_model(model)?;
    let sources = places.sources();
    let listed = Listed::of(&places, sources.iter().map(|s| (s.place, s.value, s.tensor)));
    let mut found = Survey::default();
    for (at, place) in places.iter() {
        let lookups: Vec<NodeId> = place
            .order
            .iter()
            .copied()
            .filter(|&id| listed.at(at, Some(id)).iter().any(Entry::is_token_table))
            .collect();
        let towers = Towers::of(place.graph, &lookups)?;
        let around = Surroundings { model, place, towers: &towers };
        for id in place.order.iter().copied().map(Some).chain([None]) {
            for Entry { source, end, tied } in listed.at(at, id) {
                let source = &sources[*source];
                let layer = end.as_ref().zip(id).filter(|(end, _)| end.may_be_site() && place.function.is_none());
                let operand = layer.and_then(|(end, id)| place.graph.node(id).input(end.slot));
                let weight = operand.and_then(|value| resolve(model, &place.path, value));
                let why = match layer.zip(weight) {
                    Some(((end, id), (weight, turned))) => match around.site(id, end.slot, &weight, turned, *tied) {
                        Ok(site) => {
                            found.sites.push(site);
                            continue;
                        }
                        Err(why) => Some(why),
                    },
                    None => None,
                };
                let mut operands = id.into_iter().flat_map(|id| place.graph.reads(id));
                let tower = operands.find(|&v| !place.is_constant(v)).map_or(Tower::Only, |v| towers.of_value(v));
                found.others.push(Other { tower, ..other(&places, source, end.as_ref(), why) });
            }
        }
    }
    Ok(found)
}

impl End {
    /// A weight of a MatMul or Gemm that is not quantized.
    fn may_be_site(&self) -> bool {
        matches!(self.role, Role::Weight(row) if row.is_linear()) && !self.is_dequantized()
    }
}

/// What is to be listed, by the node where it ends.
struct Listed {
    by_node: HashMap<(usize, Option<NodeId>), Vec<Entry>>,
}

/// A constant at one of its ends.
struct Entry {
    /// Index of the source.
    source: usize,
    /// `None` when nothing reads it.
    end: Option<End>,
    /// Rows of the constant are looked up somewhere.
    tied: bool,
}

impl Entry {
    /// True for a table whose rows are looked up, behind nothing but views.
    fn is_token_table(&self) -> bool {
        const VIEWS: &[&str] = &["Cast", "Identity", "Transpose", "Reshape", "DequantizeLinear"];
        let Some(end) = &self.end else { return false };
        matches!(end.role, Role::Weight(row) if row.is_lookup())
            && end.via.iter().all(|op| VIEWS.contains(&op.rsplit("::").next().unwrap_or(op)))
    }
}

impl Listed {
    fn of<'t>(places: &Places<'_>, sources: impl Iterator<Item = (usize, Option<ValueId>, &'t Tensor)>) -> Listed {
        let mut reach = Reach::new(places);
        let mut listed = Listed { by_node: HashMap::new() };
        for (source, (place, value, tensor)) in sources.enumerate() {
            let ends = value.map_or_else(Vec::new, |value| reach.ends(place, value));
            let is_weight = |end: &End| end.is_weight(tensor);
            let is_parameter = |end: &End| matches!(end.role, Role::Parameter);
            let tied = ends.iter().any(|end| matches!(end.role, Role::Weight(row) if row.is_lookup()));
            if ends.iter().any(is_weight) {
                for end in ends.into_iter().filter(is_weight) {
                    listed.push(end.place, end.node, Entry { source, end: Some(end), tied });
                }
            } else if is_matrix(tensor) && tensor.len() >= LEAST && !ends.iter().any(is_parameter) {
                match ends.into_iter().next() {
                    Some(end) => listed.push(end.place, end.node, Entry { source, end: Some(end), tied }),
                    None => listed.push(place, None, Entry { source, end: None, tied }),
                }
            }
        }
        listed
    }

    fn push(&mut self, place: usize, node: Option<NodeId>, entry: Entry) {
        self.by_node.entry((place, node)).or_default().push(entry);
    }

    fn at(&self, place: usize, node: Option<NodeId>) -> &[Entry] {
        self.by_node.get(&(place, node)).map_or(&[], Vec::as_slice)
    }
}
