//! A model run piece by piece: side values once per sample, then from frontier to frontier.
//!
//! A [`Stream`] knows where the pieces begin and end, which is cheap. A piece is prepared when it is entered and dropped
//! afterwards, so that the weights of one piece are held at a time, however many there are.

use std::collections::HashSet;

use mbqc_kernels::Pool;

use crate::array::Array;
use crate::facts::segments::Cuts;
use crate::ir::{Def, Graph, Model, ValueId};
use crate::run::{Feeds, Observer, RunError, Runner, Segment};

/// The pieces of a model. Piece `i` starts at frontier `i - 1` (piece 0 at the side values alone) and ends at frontier `i`;
/// the last one ends at the outputs.
pub(crate) struct Stream<'a> {
    runner: &'a dyn Runner,
    model: &'a Model,
    cuts: &'a Cuts,
    outputs: Vec<ValueId>,
    /// Frontiers with their positions in the order of nodes.
    frontiers: Vec<(ValueId, usize)>,
    /// Side values that pieces read, each with the last piece that does.
    side_values: Vec<(ValueId, usize)>,
    sides: Segment,
}

impl<'a> Stream<'a> {
    /// Finds the pieces on the way to `outputs`, the values for which `cuts` was made.
    pub(crate) fn new(
        runner: &'a dyn Runner,
        model: &'a Model,
        cuts: &'a Cuts,
        outputs: &[ValueId],
    ) -> Result<Stream<'a>, RunError> {
        let graph = &model.graph;
        let frontiers = frontiers(graph, cuts, outputs);
        let side_values = side_values(graph, cuts, &frontiers);
        let inputs: Vec<ValueId> =
            graph.inputs().iter().copied().filter(|&v| graph.value(v).def == Def::Input).collect();
        let computed: Vec<ValueId> = side_values.iter().map(|side| side.0).filter(|v| !inputs.contains(v)).collect();
        let sides = runner.prepare(model, &inputs, &computed)?;
        Ok(Stream { runner, model, cuts, outputs: outputs.to_vec(), frontiers, side_values, sides })
    }

    /// Number of pieces.
    pub(crate) fn pieces(&self) -> usize {
        self.frontiers.len() + 1
    }

    /// The value that a piece starts at; `None` for the first.
    pub(crate) fn start(&self, piece: usize) -> Option<ValueId> {
        Some(self.frontiers[piece.checked_sub(1)?].0)
    }

    /// The frontier after a piece, or the outputs after the last.
    pub(crate) fn ends(&self, piece: usize) -> Vec<ValueId> {
        self.frontiers.get(piece).map_or_else(|| self.outputs.clone(), |(value, _)| vec![*value])
    }

    /// The piece in which a value is computed; `None` when the outputs do not need it, or it is an input or a constant.
    pub(crate) fn piece_of(&self, value: ValueId) -> Option<usize> {
        let at = self.cuts.position[value.0 as usize]?;
        Some(self.frontiers.iter().take_while(|(_, end)| *end < at).count())
    }

    /// The first piece in which all of `values` are at hand or computed; `None` when the outputs do not need one of them.
    pub(crate) fn place(&self, values: &[ValueId]) -> Option<usize> {
        let each = values.iter().map(|&value| match self.frontiers.iter().position(|(v, _)| *v == value) {
            Some(before) => Some(before + 1),
            None if self.cuts.side[value.0 as usize] => Some(0),
            None => self.piece_of(value),
        });
        each.collect::<Option<Vec<usize>>>().map(|all| all.into_iter().max().unwrap_or(0))
    }

    /// Whether a piece is given a value rather than computing it.
    pub(crate) fn gives(&self, piece: usize, value: ValueId) -> bool {
        self.side_values.iter().any(|side| side.0 == value) || self.start(piece) == Some(value)
    }

    /// Prepares the part of a piece that `wanted` needs.
    pub(crate) fn prepare(&self, piece: usize, wanted: &[ValueId]) -> Result<Segment, RunError> {
        self.prepare_in(self.model, piece, &[], wanted)
    }

    /// As [`Stream::prepare`], in a graph that extends the model's, where `seeds` are given, too.
    pub(crate) fn prepare_in(
        &self,
        model: &Model,
        piece: usize,
        seeds: &[ValueId],
        wanted: &[ValueId],
    ) -> Result<Segment, RunError> {
        let mut given: Vec<ValueId> = self.side_values.iter().map(|side| side.0).collect();
        given.extend(self.start(piece));
        given.extend(seeds);
        self.runner.prepare(model, &boundary(&model.graph, &given, wanted), wanted)
    }

    /// The side values of a sample, inputs included.
    pub(crate) fn sides(&self, feeds: &Feeds, observe: Option<&mut Observer<'_>>) -> Result<Feeds, RunError> {
        let arrays = self.runner.run(self.model, &self.sides, feeds.clone(), observe)?;
        let given = self.side_values.iter().filter_map(|(v, _)| Some((*v, feeds.get(v)?)));
        let mut sides: Feeds = given.map(|(v, array)| (v, array.clone().carried(self.runner.compute()))).collect();
        sides.extend(self.sides.wanted().iter().copied().zip(arrays));
        Ok(sides)
    }

    /// Drops the side values that no piece from `piece` on reads, but for those in `kept`.
    pub(crate) fn forget(&self, sides: &mut Feeds, piece: usize, kept: &[ValueId]) {
        for (value, last) in &self.side_values {
            if *last < piece && !kept.contains(value) {
                sides.remove(value);
            }
        }
    }

    /// Runs a prepared part of a piece on one sample. `given` is what stands beside the side values: the array of the
    /// frontier, seeds.
    pub(crate) fn run(
        &self,
        prepared: &Segment,
        sides: &Feeds,
        given: impl IntoIterator<Item = (ValueId, Array)>,
    ) -> Result<Vec<Array>, RunError> {
        self.run_in(self.model, prepared, sides, given)
    }

    /// As [`Stream::run`], in a graph that extends the model's.
    pub(crate) fn run_in(
        &self,
        model: &Model,
        prepared: &Segment,
        sides: &Feeds,
        given: impl IntoIterator<Item = (ValueId, Array)>,
    ) -> Result<Vec<Array>, RunError> {
        let mut feeds = sides.clone();
        feeds.extend(given);
        self.runner.run(model, prepared, feeds, None)
    }

    /// One sample through all pieces, seen by `observe`. Answers the bytes of every frontier and of the outputs.
    pub(crate) fn trace(&self, feeds: &Feeds, observe: &mut Observer<'_>) -> Result<(Vec<usize>, usize), RunError> {
        let sides = self.sides(feeds, Some(&mut *observe))?;
        let mut sizes = Vec::with_capacity(self.frontiers.len());
        let mut frontier: Option<(ValueId, Array)> = None;
        for piece in 0..self.pieces() {
            let prepared = self.prepare(piece, &self.ends(piece))?;
            let mut feeds = sides.clone();
            feeds.extend(frontier.take());
            let mut arrays = self.runner.run(self.model, &prepared, feeds, Some(&mut *observe))?;
            let Some((neck, _)) = self.frontiers.get(piece) else {
                return Ok((sizes, arrays.iter().map(Array::stored_bytes).sum()));
            };
            let array = arrays.swap_remove(0);
            sizes.push(array.stored_bytes());
            frontier = Some((*neck, array));
        }
        Ok((sizes, 0))
    }
}

/// `[f(0), .., f(n - 1)]`: samples spread over the pool's threads, or, when there are fewer samples than threads, one after
/// the other, each with all threads.
pub(crate) fn over<T: Send>(pool: &Pool, n: usize, f: impl Fn(usize) -> T + Sync) -> Vec<T> {
    if n < pool.threads() { (0..n).map(f).collect() } else { pool.map(n, f) }
}

/// The necks at which pieces are joined: those that lie behind a weight, seen from the neck before. The others would only be
/// copies of a frontier (a Cast of it) to hold.
fn frontiers(graph: &Graph, cuts: &Cuts, outputs: &[ValueId]) -> Vec<(ValueId, usize)> {
    let weighs = |at: usize| {
        let constants = graph.node(cuts.order[at]).inputs.iter().flatten().filter_map(|v| graph.constant(*v));
        constants.into_iter().any(|tensor| tensor.dims.len() >= 2)
    };
    let mut found: Vec<(ValueId, usize)> = Vec::new();
    // A neck that is an output ends the last piece.
    for &neck in cuts.necks.iter().filter(|v| !outputs.contains(v)) {
        let Some(at) = cuts.position[neck.0 as usize] else { continue };
        let after = found.last().map_or(0, |(_, before)| before + 1);
        if (after..=at).any(weighs) {
            found.push((neck, at));
        }
    }
    found
}

/// Side values that other nodes read, inputs included, each with the last piece that reads it. What depends on constants
/// alone is left out: a transposed weight is part of its piece.
fn side_values(graph: &Graph, cuts: &Cuts, frontiers: &[(ValueId, usize)]) -> Vec<(ValueId, usize)> {
    let mut constant: Vec<bool> = vec![false; graph.value_bound()];
    for (id, value) in graph.values() {
        constant[id.0 as usize] = matches!(value.def, Def::Const(_));
    }
    let mut found: Vec<(ValueId, usize)> = Vec::new();
    for (at, &id) in cuts.order.iter().enumerate() {
        let node = graph.node(id);
        let alone = !node.op.starts_with("Random") && graph.reads(id).all(|v| constant[v.0 as usize]);
        let heavy = node.outputs.iter().flatten().any(|v| !cuts.side[v.0 as usize]);
        for output in node.outputs.iter().flatten() {
            constant[output.0 as usize] = alone;
        }
        let piece = frontiers.iter().take_while(|(_, end)| *end < at).count();
        for value in graph.reads(id).filter(|v| heavy && cuts.side[v.0 as usize] && !constant[v.0 as usize]) {
            match found.iter_mut().find(|(v, _)| *v == value) {
                Some((_, last)) => *last = piece,
                None => found.push((value, piece)),
            }
        }
    }
    found
}

/// Which of the values at hand the computation of `wanted` really reads, sorted.
fn boundary(graph: &Graph, at_hand: &[ValueId], wanted: &[ValueId]) -> Vec<ValueId> {
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
