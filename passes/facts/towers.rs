//! Towers: which values depend on token ids.

use std::collections::HashSet;

use crate::ir::{Def, Graph, NodeId, Type, Uses, ValueId, walk};

use super::groups::constant_alone;
use super::sites::Tower;

/// Which values of a graph depend on token ids.
pub(super) struct Towers {
    has_embedding: bool,
    text: Vec<bool>,
}

impl Towers {
    /// `lookups` are the nodes that look rows of a constant table up. One is a token embedding when its indices come from
    /// a whole-number graph input through nothing but casts, views and clips, and its rows are no angles of rotary positions.
    pub(super) fn of(graph: &Graph, lookups: &[NodeId]) -> Result<Towers, crate::ir::Error> {
        let uses = graph.uses();
        let mut embeddings = Vec::new();
        for &id in lookups {
            let node = graph.node(id);
            if let (Some(indices), Some(output)) = (node.input(1), node.output(0))
                && comes_from_ids(graph, indices)
                && !are_angles(graph, &uses, output)
            {
                embeddings.push(output);
            }
        }
        Ok(Towers { has_embedding: !embeddings.is_empty(), text: walk::reached_from(graph, &embeddings)? })
    }

    /// The tower of a node that reads this value.
    pub(super) fn of_value(&self, value: ValueId) -> Tower {
        match (self.has_embedding, self.text[value.0 as usize]) {
            (false, _) => Tower::Only,
            (true, true) => Tower::Text,
            (true, false) => Tower::Vision,
        }
    }
}

/// What may lie between a table of cosines and the products with queries and keys.
const SHAPING: &[&str] =
    &["Cast", "Concat", "Expand", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"];

/// True when rows of a table do nothing but turn computed values: cosines and sines by position.
fn are_angles(graph: &Graph, uses: &Uses, rows: ValueId) -> bool {
    let mut stack = vec![rows];
    let mut seen = HashSet::new();
    let mut turned = false;
    while let Some(value) = stack.pop().filter(|_| !uses.is_output(rows)) {
        for &(reader, slot) in uses.of(value).iter().filter(|(reader, _)| seen.insert(*reader)) {
            let node = graph.node(reader);
            let other = || node.input(1 - slot.min(1)).is_some_and(|v| !constant_alone(graph, v));
            if node.op == "RotaryEmbedding" || (node.is("Mul") && other()) {
                turned = true;
            } else if SHAPING.iter().any(|op| node.is(op)) {
                stack.extend(node.outputs.iter().flatten());
            } else if !node.is("Shape") {
                return false;
            }
        }
    }
    turned
}

const VIEWS: &[&str] = &["Cast", "Identity", "Reshape", "Clip", "Unsqueeze", "Squeeze", "Flatten"];

fn comes_from_ids(graph: &Graph, mut value: ValueId) -> bool {
    loop {
        match &graph.value(value).def {
            Def::Input => {
                return match &graph.value(value).ty {
                    Some(Type::Tensor(dtype, _)) => dtype.is_int(),
                    _ => true,
                };
            }
            Def::Const(_) | Def::Outer => return false,
            Def::Node(producer, _) => {
                let node = graph.node(*producer);
                let next = if node.is("Where") {
                    node.input(2)
                } else {
                    node.input(0).filter(|_| VIEWS.iter().any(|op| node.is(op)))
                };
                match next {
                    Some(next) => value = next,
                    None => return false,
                }
            }
        }
    }
}
