//! Segments: the pieces in which a model is streamed.
//!
//! A *side value* has no weight-bearing ancestor (masks, positions, cos/sin), also not by what an `If` takes from the graph
//! or holds in its branches: it is computed once per sample and given to every segment. A *frontier* is the set of live non-side values at a topological position. Boundaries are the
//! positions where that set is a single value: the residual stream of a plain transformer.

use crate::ir::{Graph, NodeId, ValueId, walk};

use super::reach::weight_bearing;

/// How a graph is cut.
#[derive(Clone, Debug)]
pub struct Cuts {
    /// Nodes needed for the wanted outputs, in topological order.
    pub order: Vec<NodeId>,
    /// For every value: no weight-bearing node lies behind it.
    pub side: Vec<bool>,
    /// Frontier values in order; the model's first segment begins before the first and the last ends after the last.
    pub necks: Vec<ValueId>,
    /// For every value: the index in `order` of its producer, `None` for inputs, constants and what is not needed.
    pub position: Vec<Option<usize>>,
}

/// Cuts the part of the graph that `wanted` needs.
pub fn cut(graph: &Graph, wanted: &[ValueId]) -> Result<Cuts, crate::ir::Error> {
    let needed = walk::ancestors_of(graph, wanted);
    let order: Vec<NodeId> = walk::topological(graph)?
        .into_iter()
        .filter(|id| graph.node(*id).outputs.iter().flatten().any(|v| needed[v.0 as usize]))
        .collect();
    let bearing = weight_bearing(graph)?;
    let mut side = vec![true; graph.value_bound()];
    for &id in &order {
        let heavy = bearing[id.0 as usize] || graph.reads(id).any(|v| !side[v.0 as usize]);
        for output in graph.node(id).outputs.iter().flatten() {
            side[output.0 as usize] = !heavy;
        }
    }
    let mut position = vec![None; graph.value_bound()];
    let mut last_use = vec![0; graph.value_bound()];
    for (at, &id) in order.iter().enumerate() {
        let node = graph.node(id);
        for output in node.outputs.iter().flatten() {
            position[output.0 as usize] = Some(at);
        }
        for input in graph.reads(id) {
            last_use[input.0 as usize] = at;
        }
    }
    for value in wanted {
        last_use[value.0 as usize] = usize::MAX;
    }
    let mut live: Vec<ValueId> = Vec::new();
    let mut necks = Vec::new();
    for (at, &id) in order.iter().enumerate() {
        for output in graph.node(id).outputs.iter().flatten() {
            if !side[output.0 as usize] && last_use[output.0 as usize] > at {
                live.push(*output);
            }
        }
        live.retain(|v| last_use[v.0 as usize] > at);
        if let [neck] = live[..]
            && necks.last() != Some(&neck)
        {
            necks.push(neck);
        }
    }
    Ok(Cuts { order, side, necks, position })
}

impl Cuts {
    /// The frontier from which `value` is to be computed: the last neck before it, or `None` for the first segment.
    pub fn frontier_before(&self, value: ValueId) -> Option<usize> {
        let at = self.position[value.0 as usize]?;
        self.necks.iter().rposition(|neck| self.position[neck.0 as usize].is_some_and(|p| p < at))
    }
}
