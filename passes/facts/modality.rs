//! Modality: which token rows of which values are vision, answer, prompt or padding.

use std::collections::HashMap;

use crate::array::Array;
use crate::ir::{Def, Graph, ValueId, walk};
use crate::ops::{self, Flow, FlowCall, Rows, Space};
use crate::run::{Feeds, RunError, Runner};
use crate::stream::Stream;

use super::segments::cut;

/// The class of a token row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// Holds an image embedding.
    Vision,
    /// Its logits are supervised (or, unshifted, it carries an answer token).
    Answer,
    /// Other text.
    Prompt,
    /// Not part of the sample.
    Padding,
}

impl Class {
    /// All classes, in the order of their indices.
    pub const ALL: [Class; 4] = [Class::Vision, Class::Answer, Class::Prompt, Class::Padding];

    /// Position in [`Class::ALL`].
    pub fn index(self) -> usize {
        self as usize
    }
}

/// The node at which image features enter the token sequence, and the token id that marks their places.
#[derive(Clone, Debug, PartialEq)]
pub struct Merge {
    /// The merged value.
    pub value: ValueId,
    /// The graph input that holds the token ids.
    pub ids: ValueId,
    /// The image token id of the graph's `Equal(ids, constant)`.
    pub image_token: i64,
}

/// Finds the merge of a single graph: the first `ScatterND`, `Where` or `ScatterElements` that reads both a token
/// embedding and something that depends on an image input, with a mask that comes from `Equal(ids, constant)`.
pub fn find_merge(graph: &Graph) -> Result<Option<Merge>, crate::ir::Error> {
    let mut masks: Vec<(ValueId, ValueId, i64)> = Vec::new();
    for (_, node) in graph.nodes().filter(|(_, node)| node.is("Equal")) {
        let (Some(a), Some(b), Some(out)) = (node.input(0), node.input(1), node.output(0)) else { continue };
        for (ids, constant) in [(a, b), (b, a)] {
            let token = scalar_constant(graph, constant);
            let ids = walk::behind_views(graph, ids);
            if let (Some(token), Def::Input) = (token, &graph.value(ids).def) {
                masks.push((out, ids, token));
            }
        }
    }
    let pixels: Vec<ValueId> = graph.inputs().iter().copied().filter(|&v| looks_like_image(graph, v)).collect();
    let from_pixels = walk::reached_from(graph, &pixels)?;
    for (mask, ids, image_token) in masks {
        let from_ids = walk::reached_from(graph, &[ids])?;
        let from_mask = walk::reached_from(graph, &[mask])?;
        let mut merged = graph.nodes().filter(|(_, node)| {
            let reads = |marks: &[bool]| node.inputs.iter().flatten().any(|v| marks[v.0 as usize]);
            ["ScatterND", "Where", "ScatterElements"].iter().any(|op| node.is(op))
                && reads(&from_pixels)
                && reads(&from_ids)
                && reads(&from_mask)
        });
        if let Some(value) = merged.find_map(|(_, node)| node.output(0)) {
            return Ok(Some(Merge { value, ids, image_token }));
        }
    }
    Ok(None)
}

/// A float input of four or more dimensions that is no cache: no `Concat` reads it.
fn looks_like_image(graph: &Graph, value: ValueId) -> bool {
    use crate::ir::Type;
    let Some(Type::Tensor(dtype, shape)) = &graph.value(value).ty else { return false };
    let ranked = shape.as_ref().is_none_or(|dims| dims.len() == 2 || dims.len() >= 4);
    let uses = graph.uses();
    let cached = uses.of(value).iter().any(|(node, _)| graph.node(*node).is("Concat"));
    (dtype.is_float() || *dtype == crate::ir::DType::U8) && ranked && !cached
}

fn scalar_constant(graph: &Graph, value: ValueId) -> Option<i64> {
    let tensor = match &graph.value(value).def {
        Def::Const(tensor) => tensor.clone(),
        Def::Node(producer, _) => match graph.node(*producer).attr("value") {
            Some(crate::ir::Attr::Tensor(tensor)) => tensor.clone(),
            _ => return None,
        },
        Def::Input | Def::Outer => return None,
    };
    match tensor.to_i64()?.as_slice() {
        [token] => Some(*token),
        _ => None,
    }
}

/// What one sample shows of a model.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    /// By value its rows and its shape, of every value whose rows are known.
    pub rows: HashMap<ValueId, (Rows, Vec<usize>)>,
    /// Token positions of the sample.
    pub tokens: usize,
    /// Bytes of every frontier at which the model is streamed, in order.
    pub(crate) frontiers: Vec<usize>,
    /// Bytes of the wanted values.
    pub(crate) outputs: usize,
}

/// Rows of every value on the way to `wanted`; found by running one sample, a piece of the model at a time, and letting
/// rows flow.
///
/// `tokens` is the number of token positions. Inputs are seeded by shape: an input with an axis of that length carries
/// tokens along it (the last such axis of rank-2 inputs, the second of others); an image input starts vision rows at the
/// output of its first linear or convolution whose second-to-last axis is longer than one.
pub fn trace_rows(
    runner: &dyn Runner,
    model: &crate::ir::Model,
    feeds: Feeds,
    wanted: &[ValueId],
    tokens: usize,
) -> Result<Trace, RunError> {
    let graph = &model.graph;
    let mut rows: HashMap<ValueId, (Rows, Vec<usize>)> = HashMap::new();
    let mut fed: Vec<ValueId> = feeds.keys().copied().collect();
    fed.sort();
    for value in &fed {
        let array = &feeds[value];
        let axis = match array.rank() {
            2 => (0..2).rev().find(|&axis| array.shape[axis] == tokens),
            3 => (array.shape[1] == tokens).then_some(1),
            _ => None,
        };
        if let Some(axis) = axis {
            rows.insert(*value, (Rows::along(Space::Tokens, &array.shape, axis), array.shape.clone()));
        }
    }
    let images: Vec<ValueId> = graph.inputs().iter().copied().filter(|&v| looks_like_image(graph, v)).collect();
    let from_images = walk::reached_from(graph, &images)?;
    let mut observe = |_, node: &crate::ir::Node, inputs: &[Option<Array>], outputs: &[Array]| {
        let input_rows: Vec<Option<Rows>> =
            node.inputs.iter().map(|v| v.and_then(|v| rows.get(&v)).map(|(rows, _)| *rows)).collect();
        let call = {
            let opset = model.opset_of(&node.domain).unwrap_or(1);
            FlowCall { node, inputs, outputs, rows: &input_rows, opset }
        };
        let mut answer = match ops::find(&node.domain, &node.op).map(|op| op.flow) {
            Some(Flow::Elementwise) => ops::elementwise_flow(&call),
            Some(Flow::Keep) => outputs.iter().map(|_| input_rows.first().copied().flatten()).collect(),
            Some(Flow::Rule(rule)) => rule(&call),
            Some(Flow::Ends) | None => vec![None; outputs.len()],
        };
        // Patches begin where an image input first becomes a sequence [.., patches, channels].
        let starts = answer.iter().all(Option::is_none)
            && node.inputs.iter().flatten().any(|v| from_images[v.0 as usize])
            && !node.inputs.iter().flatten().any(|v| rows.contains_key(v))
            && matches!(node.op.as_str(), "Transpose" | "MatMul" | "Add" | "Gemm");
        if starts && let [output] = outputs {
            let rank = output.rank();
            if rank >= 2 && output.shape[rank - 2] > 1 && output.shape[rank - 1] > 1 && rank <= 3 {
                answer = vec![Some(Rows::along(Space::Vision, &output.shape, rank - 2))];
            }
        }
        for (slot, found) in answer.into_iter().enumerate() {
            if let (Some(value), Some(found), Some(array)) = (node.output(slot), found, outputs.get(slot)) {
                rows.insert(value, (found, array.shape.clone()));
            }
        }
    };
    let cuts = cut(graph, wanted)?;
    let (frontiers, outputs) = Stream::new(runner, model, &cuts, wanted)?.trace(&feeds, &mut observe)?;
    Ok(Trace { rows, tokens, frontiers, outputs })
}
