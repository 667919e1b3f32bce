//! Segments of a model, run sample by sample: side values once, then from frontier to frontier.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};

use crate::array::Array;
use crate::facts::groups::constant_alone;
use crate::facts::segments::Cuts;
use crate::ir::{Def, Graph, Model, NodeId, ValueId};
use crate::run::{Feeds, RunError, Runner, Segment};

use super::driver::Error;

/// A model cut into segments, prepared for running forward. Segment `i` starts at neck `i - 1` (segment 0 at the side
/// values alone) and ends at neck `i`; the last one ends at the outputs.
pub(super) struct Stream {
    necks: Vec<ValueId>,
    outputs: Vec<ValueId>,
    side_values: Vec<ValueId>,
    side_segment: Segment,
    forward: Vec<Segment>,
    inside: Vec<HashSet<ValueId>>,
    backward: Mutex<HashMap<usize, Arc<Segment>>>,
}

impl Stream {
    pub(super) fn new(
        runner: &dyn Runner,
        model: &Model,
        cuts: &Cuts,
        outputs: &[ValueId],
    ) -> Result<Stream, RunError> {
        let graph = &model.graph;
        let side_values = side_values(graph, cuts);
        let inputs = given(graph);
        let computed: Vec<ValueId> = side_values.iter().copied().filter(|v| !inputs.contains(v)).collect();
        let side_segment = runner.prepare(model, &inputs, &computed)?;
        // The last necks lead to the outputs themselves; a neck that is an output starts no segment.
        let necks: Vec<ValueId> = cuts.necks.iter().copied().filter(|v| !outputs.contains(v)).collect();
        let mut forward = Vec::with_capacity(necks.len() + 1);
        let mut inside = Vec::with_capacity(necks.len() + 1);
        for segment in 0..=necks.len() {
            let from = segment.checked_sub(1).map(|i| necks[i]);
            let to = match necks.get(segment) {
                Some(neck) => vec![*neck],
                None => outputs.to_vec(),
            };
            let mut fed = side_values.clone();
            fed.extend(from);
            let needed = boundary_of(graph, &fed, &to);
            let prepared = runner.prepare(model, &needed, &to)?;
            let after = from.and_then(|v| cuts.position[v.0 as usize]);
            let until = necks.get(segment).and_then(|v| cuts.position[v.0 as usize]);
            let in_span = |at: usize| after.is_none_or(|a| at > a) && until.is_none_or(|u| at <= u);
            inside.push(
                graph
                    .values()
                    .filter(|(v, _)| cuts.position[v.0 as usize].is_some_and(in_span))
                    .map(|(v, _)| v)
                    .collect(),
            );
            forward.push(prepared);
        }
        Ok(Stream {
            necks,
            outputs: outputs.to_vec(),
            side_values,
            side_segment,
            forward,
            inside,
            backward: Mutex::new(HashMap::new()),
        })
    }

    /// Number of segments.
    pub(super) fn segments(&self) -> usize {
        self.forward.len()
    }

    /// The neck before a segment and the values computed in it (the neck after it included).
    pub(super) fn span(&self, segment: usize) -> (Option<ValueId>, &HashSet<ValueId>) {
        (segment.checked_sub(1).map(|i| self.necks[i]), &self.inside[segment])
    }

    /// The neck after a segment, or the outputs after the last.
    pub(super) fn ends(&self, segment: usize) -> Vec<ValueId> {
        self.necks.get(segment).map_or_else(|| self.outputs.clone(), |neck| vec![*neck])
    }

    /// The side values of a sample, inputs included.
    pub(super) fn sides(&self, runner: &dyn Runner, model: &Model, feeds: &Feeds) -> Result<Feeds, RunError> {
        let wanted = self.side_segment.wanted().to_vec();
        let arrays = runner.run(model, &self.side_segment, feeds.clone(), None)?;
        let mut sides: Feeds = self
            .side_values
            .iter()
            .filter_map(|v| Some((*v, feeds.get(v)?.clone().carried(runner.compute()))))
            .collect();
        sides.extend(wanted.into_iter().zip(arrays));
        Ok(sides)
    }

    /// One segment forward: from the frontier before it to the one after it.
    pub(super) fn step(
        &self,
        runner: &dyn Runner,
        model: &Model,
        segment: usize,
        sides: &Feeds,
        frontier: Option<(ValueId, Array)>,
    ) -> Result<Vec<Array>, RunError> {
        let mut feeds = sides.clone();
        feeds.extend(frontier);
        runner.run(model, &self.forward[segment], feeds, None)
    }

    /// All segments forward; answers every frontier and the outputs.
    pub(super) fn forward(
        &self,
        runner: &dyn Runner,
        model: &Model,
        sides: &Feeds,
    ) -> Result<(Feeds, Vec<Array>), RunError> {
        let mut frontiers = Feeds::new();
        let mut frontier = None;
        for segment in 0..self.segments() {
            let mut arrays = self.step(runner, model, segment, sides, frontier.take())?;
            match self.necks.get(segment) {
                Some(neck) => {
                    let array = arrays.swap_remove(0);
                    frontiers.insert(*neck, array.clone());
                    frontier = Some((*neck, array));
                }
                None => return Ok((frontiers, arrays)),
            }
        }
        Ok((frontiers, Vec::new()))
    }

    /// The prepared backward part of a segment, made on first use.
    pub(super) fn prepared_backward(
        &self,
        segment: usize,
        make: impl FnOnce() -> Result<Segment, RunError>,
    ) -> Result<Arc<Segment>, Error> {
        let mut prepared = self.backward.lock().map_err(|_| Error::Internal("a worker panicked".to_owned()))?;
        if let Some(found) = prepared.get(&segment) {
            return Ok(Arc::clone(found));
        }
        let made = Arc::new(make()?);
        prepared.insert(segment, Arc::clone(&made));
        Ok(made)
    }
}

/// Graph inputs that a caller gives (not those that are constants to be overridden).
pub(super) fn given(graph: &Graph) -> Vec<ValueId> {
    graph.inputs().iter().copied().filter(|&v| graph.value(v).def == Def::Input).collect()
}

/// Side values that non-side nodes read, inputs included.
fn side_values(graph: &Graph, cuts: &Cuts) -> Vec<ValueId> {
    let mut found: Vec<ValueId> = Vec::new();
    for &id in &cuts.order {
        let node = graph.node(id);
        let heavy = node.outputs.iter().flatten().any(|v| !cuts.side[v.0 as usize]);
        for value in node.inputs.iter().flatten().filter(|v| heavy && cuts.side[v.0 as usize]) {
            if !matches!(graph.value(*value).def, Def::Const(_)) && !found.contains(value) {
                found.push(*value);
            }
        }
    }
    found
}

/// Which of the values at hand the computation of `wanted` really reads.
pub(super) fn boundary(model: &Model, at_hand: &Feeds, wanted: &[ValueId]) -> Vec<ValueId> {
    let mut keys: Vec<ValueId> = at_hand.keys().copied().collect();
    keys.sort();
    boundary_of(&model.graph, &keys, wanted)
}

pub(super) fn boundary_of(graph: &Graph, at_hand: &[ValueId], wanted: &[ValueId]) -> Vec<ValueId> {
    let at_hand: HashSet<ValueId> = at_hand.iter().copied().collect();
    let mut seen: HashSet<ValueId> = HashSet::new();
    let mut used = Vec::new();
    let mut stack = wanted.to_vec();
    while let Some(value) = stack.pop() {
        if !seen.insert(value) {
            continue;
        }
        if at_hand.contains(&value) {
            used.push(value);
            continue;
        }
        if let Some((producer, _)) = graph.producer(value) {
            stack.extend(graph.reads(producer));
        }
    }
    used.sort();
    used
}

/// What a group's judging needs besides its weights: the values that nodes between `input` and `judge` read and that do
/// not depend on `input`, constants left out; `input` itself first.
pub(super) fn judging_feeds(graph: &Graph, input: ValueId, judge: ValueId) -> Result<Vec<ValueId>, crate::ir::Error> {
    let reached = crate::ir::walk::reached_from(graph, &[input])?;
    let needed = crate::ir::walk::ancestors_of(graph, &[judge]);
    let mut feeds = vec![input];
    let between = |id: &NodeId| {
        let node = graph.node(*id);
        node.outputs.iter().flatten().any(|v| reached[v.0 as usize] && needed[v.0 as usize] && *v != input)
    };
    for id in crate::ir::walk::topological(graph)?.into_iter().filter(between) {
        for value in graph.reads(id) {
            let computed = !constant_alone(graph, value);
            if !reached[value.0 as usize] && computed && !feeds.contains(&value) {
                feeds.push(value);
            }
        }
    }
    Ok(feeds)
}
