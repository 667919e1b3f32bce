//! The gradient pass: sensitivities of values to the answer cross-entropy.
//!
//! Samples pass in chunks whose frontiers fit into a budget. A chunk goes through the pieces of the model forward, then
//! through them in reverse, each piece's forward values computed again from its frontier; the weights of one piece are
//! held at a time. Which samples share a chunk changes no number: sums are taken sample by sample, in order.

use std::collections::{HashMap, VecDeque};

use crate::array::Array;
use crate::facts::modality::{Class, Trace};
use crate::facts::segments::Cuts;
use crate::ir::{Model, ValueId};
use crate::rewrite::reverse::{Backward, reverse};
use crate::run::{Feeds, Runner};
use crate::stream::{Stream, over};

use super::driver::Error;
use super::loss::{answer_loss, supervised};
use super::measure::{GradientReport, Samples, Sensitivity};
use super::rows::sums_by_class;

/// What a gradient pass is asked.
pub(super) struct Gradients<'a> {
    pub(super) runner: &'a dyn Runner,
    pub(super) model: &'a Model,
    pub(super) cuts: &'a Cuts,
    pub(super) logits: ValueId,
    /// Where gradients are wanted.
    pub(super) values: &'a [ValueId],
    /// Rows of values, and how large frontiers are.
    pub(super) trace: &'a Trace,
    pub(super) samples: &'a dyn Samples,
    /// At most this many samples.
    pub(super) limit: usize,
    /// Bytes of frontiers that may be held.
    pub(super) held_bytes: usize,
}

/// A sample on its way.
struct Walker {
    name: String,
    sides: Feeds,
    classes: Vec<Class>,
    labels: Vec<i64>,
    /// By frontier: its array, from the time it is computed until the piece after it has been passed in reverse.
    frontiers: Vec<Option<Array>>,
    /// The gradient at the end of the piece that comes next in reverse.
    after: Option<(ValueId, Array)>,
    loss: f64,
    means: Means,
}

/// Per value and class: mean |g| and mean g^2, `None` for a class without rows.
type Means = Vec<[Option<(f64, f64)>; 3]>;

/// Sums over samples of the means, with the number of samples that had one.
type Sums = Vec<[(f64, f64, usize); 3]>;

impl Gradients<'_> {
    /// Sensitivity at every value asked for.
    pub(super) fn run(
        &self,
        progress: &dyn Fn(&str, usize, usize),
    ) -> Result<(Vec<Sensitivity>, GradientReport), Error> {
        let count = self.samples.len().min(self.limit);
        progress("gradients", 0, count);
        let stream = Stream::new(self.runner, self.model, self.cuts, &[self.logits])?;
        let last = stream.pieces() - 1;
        // Nothing is asked of the pieces before this one.
        let first = self.values.iter().filter_map(|v| stream.piece_of(*v)).min().unwrap_or(last);
        let mut wanted: Vec<ValueId> = self.values.to_vec();
        wanted.extend((first + 1..=last).filter_map(|piece| stream.start(piece)).filter(|v| !self.values.contains(v)));
        let backward = reverse(self.model, &[self.logits], &wanted)?;
        let gradient_of: HashMap<ValueId, ValueId> =
            wanted.iter().zip(&backward.gradients).filter_map(|(v, g)| Some((*v, (*g)?))).collect();
        let pass = Pass { of: self, stream, backward, gradient_of, first, last };

        let mut report = GradientReport::default();
        let mut sums: Sums = vec![[(0.0, 0.0, 0); 3]; self.values.len()];
        let mut waiting: VecDeque<Walker> = VecDeque::new();
        let mut loaded = 0;
        while loaded < count || !waiting.is_empty() {
            let mut chunk = Vec::new();
            let mut bytes = 0;
            loop {
                if waiting.is_empty() && loaded < count {
                    let batch = (self.runner.pool().threads() * 2).min(count - loaded);
                    for walker in self.runner.pool().map(batch, |i| pass.load(loaded + i)) {
                        match walker? {
                            Some(walker) => waiting.push_back(walker),
                            None => report.without_answer += 1,
                        }
                    }
                    loaded += batch;
                    continue;
                }
                let Some(next) = waiting.front() else { break };
                bytes += pass.frontier_bytes(next);
                if bytes > self.held_bytes && !chunk.is_empty() {
                    break;
                }
                chunk.extend(waiting.pop_front());
            }
            let done = loaded - waiting.len() - chunk.len();
            let size = chunk.len();
            let step = |pieces: usize| {
                progress("gradients", done + size * pieces / (2 * last + 1 - first), count);
            };
            pass.chunk(&mut chunk, &step)?;
            for walker in chunk {
                report.samples += 1;
                report.cross_entropy += walker.loss;
                report.without_vision += usize::from(!walker.classes.contains(&Class::Vision));
                add(&mut sums, walker.means);
            }
        }
        progress("gradients", count, count);
        if report.samples == 0 {
            return Err(Error::Data(format!(
                "none of the {count} calibration samples has a supervised token (labels other than -100), so there is no \
                 answer cross-entropy; pass `labels` or `answer_mask`, or use --method awq"
            )));
        }
        report.cross_entropy /= report.samples as f64;
        Ok((sums.into_iter().map(sensitivity).collect(), report))
    }
}

/// A pass in progress.
struct Pass<'a> {
    of: &'a Gradients<'a>,
    stream: Stream<'a>,
    backward: Backward,
    gradient_of: HashMap<ValueId, ValueId>,
    first: usize,
    last: usize,
}

impl Pass<'_> {
    /// A sample with its side values; `None` when it has no supervised token.
    fn load(&self, index: usize) -> Result<Option<Walker>, Error> {
        let sample = self.of.samples.sample(index).map_err(Error::Data)?;
        if supervised(&sample.labels) == 0 {
            return Ok(None);
        }
        Ok(Some(Walker {
            name: sample.name,
            sides: self.stream.sides(&sample.feeds, None)?,
            classes: sample.classes,
            labels: sample.labels,
            frontiers: vec![None; self.last],
            after: None,
            loss: 0.0,
            means: vec![[None; 3]; self.of.values.len()],
        }))
    }

    /// Bytes of the frontiers that a sample holds at the end of the forward pass, from those of the sample that was traced.
    fn frontier_bytes(&self, walker: &Walker) -> usize {
        let trace = self.of.trace;
        let held: usize = trace.frontiers.iter().skip(self.first.saturating_sub(1)).sum();
        held.saturating_mul(walker.labels.len()) / trace.tokens.max(1)
    }

    /// Samples there and back. `step` is told how many pieces have been passed.
    fn chunk(&self, chunk: &mut [Walker], step: &dyn Fn(usize)) -> Result<(), Error> {
        let pool = self.of.runner.pool();
        for piece in 0..self.last {
            let ends = self.stream.ends(piece);
            let prepared = self.stream.prepare(piece, &ends)?;
            let arrays =
                over(pool, chunk.len(), |i| self.stream.run(&prepared, &chunk[i].sides, chunk[i].given(self, piece)));
            for (walker, arrays) in chunk.iter_mut().zip(arrays) {
                walker.frontiers[piece] = arrays?.pop();
                if piece < self.first && piece > 0 {
                    walker.frontiers[piece - 1] = None;
                }
            }
            step(piece + 1);
        }
        for piece in (self.first..=self.last).rev() {
            if !self.reverse_piece(piece, chunk)? {
                break;
            }
            step(self.last + 1 + self.last - piece);
        }
        Ok(())
    }

    /// One piece in reverse; false when nothing that is wanted lies in it or before it.
    fn reverse_piece(&self, piece: usize, chunk: &mut [Walker]) -> Result<bool, Error> {
        let here: Vec<usize> = (0..self.of.values.len())
            .filter(|&i| self.stream.piece_of(self.of.values[i]) == Some(piece))
            .filter(|&i| self.gradient_of.contains_key(&self.of.values[i]))
            .collect();
        let before = self.stream.start(piece).filter(|_| piece > self.first);
        let before = before.and_then(|start| self.gradient_of.get(&start).copied());
        let mut wanted: Vec<ValueId> = here.iter().map(|&i| self.gradient_of[&self.of.values[i]]).collect();
        wanted.extend(before);
        if wanted.is_empty() {
            return Ok(false);
        }
        let seeds = match piece == self.last {
            true => self.backward.seeds.clone(),
            false => self.stream.ends(piece).iter().filter_map(|v| self.gradient_of.get(v).copied()).collect(),
        };
        let prepared = self.stream.prepare_in(&self.backward.model, piece, &seeds, &wanted)?;
        let head = match piece == self.last {
            true => Some(self.stream.prepare(piece, &[self.of.logits])?),
            false => None,
        };
        // Logits, their exponentials and their gradient are as large as nothing else: not for all samples at once.
        let logits = self.of.trace.outputs.max(1) * 4;
        let at_once = if head.is_some() { (self.of.held_bytes / logits).max(1) } else { chunk.len() };
        for part in chunk.chunks_mut(at_once.max(1)) {
            let results = over(self.of.runner.pool(), part.len(), |i| -> Result<_, Error> {
                let walker = &part[i];
                let (loss, seed) = match &head {
                    Some(head) => {
                        let logits = self.stream.run(head, &walker.sides, walker.given(self, piece))?;
                        let loss = answer_loss(&logits[0], &walker.labels)
                            .map_err(|source| Error::Loss { sample: walker.name.clone(), source })?;
                        let (loss, seed) =
                            loss.ok_or_else(|| Error::Internal("a sample lost its labels".to_owned()))?;
                        (loss, Some((self.backward.seeds[0], seed)))
                    }
                    None => (walker.loss, walker.after.clone()),
                };
                let given = walker.given(self, piece).into_iter().chain(seed);
                let mut arrays = self.stream.run_in(&self.backward.model, &prepared, &walker.sides, given)?;
                let after = before.and_then(|gradient| Some((gradient, arrays.pop()?)));
                let mut means = Vec::with_capacity(here.len());
                for (&i, array) in here.iter().zip(&arrays) {
                    let rows = self.of.trace.rows.get(&self.of.values[i]).map(|(rows, _)| *rows);
                    let sums = sums_by_class(array, rows, &walker.classes)?;
                    means.push(sums.map(|(abs, square, n)| (n > 0).then(|| (abs / n as f64, square / n as f64))));
                }
                Ok((loss, after, means))
            });
            for (walker, result) in part.iter_mut().zip(results) {
                let (loss, after, means) = result?;
                walker.loss = loss;
                walker.after = after;
                if let Some(passed) = piece.checked_sub(1) {
                    walker.frontiers[passed] = None;
                }
                for (&i, mean) in here.iter().zip(means) {
                    walker.means[i] = mean;
                }
            }
        }
        Ok(before.is_some())
    }
}

impl Walker {
    /// The frontier before a piece.
    fn given(&self, pass: &Pass<'_>, piece: usize) -> Option<(ValueId, Array)> {
        Some((pass.stream.start(piece)?, self.frontiers[piece.checked_sub(1)?].clone()?))
    }
}

fn add(sums: &mut Sums, means: Means) {
    for (total, part) in sums.iter_mut().zip(means) {
        for (t, p) in total.iter_mut().zip(part) {
            if let Some((abs, square)) = p {
                t.0 += abs;
                t.1 += square;
                t.2 += 1;
            }
        }
    }
}

fn sensitivity(classes: [(f64, f64, usize); 3]) -> Sensitivity {
    let mut s = Sensitivity::default();
    for (class, (abs, square, n)) in [Class::Vision, Class::Answer, Class::Prompt].into_iter().zip(classes) {
        if let (Some(a), true) = (s.abs.slot(class), n > 0) {
            *a = abs / n as f64;
        }
        if let (Some(q), true) = (s.square.slot(class), n > 0) {
            *q = square / n as f64;
        }
    }
    s
}
