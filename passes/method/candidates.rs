//! The ladder of candidate scales, and the search at one group.

use mbqc_kernels::affine::{ScaleType, dequantize, fake_quantize_tokens};
use mbqc_kernels::{Pool, Scheme, Spec};

use crate::array::Array;
use crate::facts::modality::Class;
use crate::ir::{Model, ValueId};
use crate::ops::{Rows, Space};
use crate::run::{Feeds, Runner, Segment};
use crate::stream::over;
use crate::weights::{Matrix, Scaling};

use super::absorb::{Absorbers, Effect};
use super::driver::Error;
use super::rows::class_of;
use super::{Judge, Method, Rows as RowWeights};

/// Number of exponents on the ladder: 0, 0.05, .. 0.95.
pub(super) const LADDER: usize = 20;

/// A candidate scale: `max(m^t, 1e-4)` divided by the geometric mean of its largest and smallest entry
/// (algorithm: AWQ's and MBQ's reference code). All ones at t = 0.
pub(super) fn candidate(mean_abs: &[f32], exponent: f32) -> Vec<f32> {
    let mut s: Vec<f32> = mean_abs.iter().map(|m| m.powf(exponent).max(1e-4)).collect();
    let largest = s.iter().copied().fold(f32::MIN, f32::max);
    let smallest = s.iter().copied().fold(f32::MAX, f32::min);
    let middle = (largest * smallest).sqrt();
    for v in &mut s {
        *v /= middle;
    }
    s
}

/// What a group's search needs.
pub(super) struct Search<'a> {
    pub(super) runner: &'a dyn Runner,
    pub(super) model: &'a Model,
    pub(super) method: &'a Method,
    /// The values given besides the weights, the group's input first.
    pub(super) feeds: &'a [ValueId],
    pub(super) judge: ValueId,
    /// The arrays of `feeds` for a sample.
    pub(super) taps: &'a (dyn Fn(usize) -> Result<Vec<Array>, Error> + Sync),
    /// Per sample the class of every token.
    pub(super) classes: &'a [Vec<Class>],
    pub(super) input_rows: Option<Rows>,
    pub(super) judge_rows: Option<Rows>,
    pub(super) rho: f64,
    /// The group's weights: constant, matrix, format, scale type.
    pub(super) weights: Vec<(ValueId, Matrix, Spec, ScaleType)>,
    /// The other constants that absorb 1/s.
    pub(super) absorbers: Absorbers,
    /// Bytes of activations that may be held.
    pub(super) held_bytes: usize,
}

/// The outcome of a search.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) exponent: f32,
    pub(super) scale: Vec<f32>,
    pub(super) losses: Vec<Option<f64>>,
    pub(super) vision_share: Option<f64>,
}

/// Sums of a candidate's error over rows, and how many rows of the two classes there were.
#[derive(Clone, Copy, Default)]
struct Sums {
    vision: f64,
    answer: f64,
    all: f64,
    vision_rows: usize,
    answer_rows: usize,
}

/// Some samples in order, with what they give the group and what it makes of that unquantized.
struct Held {
    taps: Vec<Vec<Array>>,
    references: Vec<Array>,
}

/// The part of the model from the group's input to its judging point.
struct Way {
    segment: Segment,
    weights: Vec<ValueId>,
}

impl Search<'_> {
    /// Tries every exponent and keeps the best; the first of equals wins, a NaN never does. `Err` inside is the reason why
    /// no exponent can be chosen.
    ///
    /// Samples are held as far as the budget goes. Where that is not all of them, candidates are made anew for the next.
    pub(super) fn run(&self) -> Result<Result<Found, String>, Error> {
        let weights: Vec<ValueId> = self.weights.iter().map(|w| w.0).collect();
        let mut fed = self.feeds.to_vec();
        fed.extend(&weights);
        let way = Way { segment: self.runner.prepare(self.model, &fed, &[self.judge])?, weights };
        let pool = self.runner.pool();
        let count = self.classes.len();
        let mut held = self.hold(&way, 0)?;
        let mean_abs = self.mean_abs(&held.taps)?;
        let ladder = |step: usize| candidate(&mean_abs, step as f32 / LADDER as f32);
        let mut totals: [Option<Sums>; LADDER] = [Some(Sums::default()); LADDER];
        let mut start = 0;
        loop {
            for (step, total) in totals.iter_mut().enumerate() {
                let s = ladder(step);
                let Some(effect) = self.absorbers.effect(&s) else {
                    *total = None;
                    continue;
                };
                let weights = self
                    .weights
                    .iter()
                    .map(|(_, matrix, spec, scale)| self.candidate_weight(matrix, *spec, *scale, &s, &effect, pool))
                    .collect::<Result<Vec<_>, _>>()?;
                let parts = over(pool, held.taps.len(), |i| {
                    let output = self.evaluate(&way, &weights, &held.taps[i], Some(&effect))?;
                    self.compare(&held.references[i], &output, &self.classes[start + i])
                });
                for part in parts {
                    let part = part?;
                    if let Some(total) = total {
                        total.add(part);
                    }
                }
            }
            start += held.taps.len();
            if start >= count {
                break;
            }
            drop(held);
            held = self.hold(&way, start)?;
        }
        self.choose(&totals, ladder)
    }

    fn choose(
        &self,
        totals: &[Option<Sums>],
        ladder: impl Fn(usize) -> Vec<f32>,
    ) -> Result<Result<Found, String>, Error> {
        let weighted = self.method.rows == RowWeights::Modality;
        let name = self.model.graph.name(self.judge);
        let reached = |sums: &Sums| sums.answer_rows > 0 || (sums.vision_rows > 0 && self.rho > 0.0);
        if weighted && !totals.iter().flatten().all(reached) {
            return Ok(Err(format!(
                "no row that counts reaches `{name}`: no answer row, and no vision row with a weight"
            )));
        }
        let mut found = Found { exponent: 0.0, scale: Vec::new(), losses: Vec::new(), vision_share: None };
        let mut best = f64::INFINITY;
        for (step, total) in totals.iter().enumerate() {
            let loss = total.map(|total| if weighted { total.answer + self.rho * total.vision } else { total.all });
            let loss = loss.filter(|loss| loss.is_finite());
            found.losses.push(loss);
            if let (Some(loss), Some(total)) = (loss.filter(|loss| *loss < best), total) {
                best = loss;
                found.exponent = step as f32 / LADDER as f32;
                found.scale = ladder(step);
                found.vision_share = (weighted && loss > 0.0).then(|| self.rho * total.vision / loss);
            }
        }
        if found.scale.is_empty() {
            return Err(Error::Data(format!(
                "no candidate scale gave a finite error at `{name}`: the activations hold NaN or infinite values"
            )));
        }
        Ok(Ok(found))
    }

    /// The samples from `start` on that fit into the budget, at least one.
    fn hold(&self, way: &Way, start: usize) -> Result<Held, Error> {
        let full: Vec<Array> = self
            .weights
            .iter()
            .map(|(_, matrix, ..)| Ok(self.feed(matrix, matrix.rows(0..matrix.n)?)))
            .collect::<Result<_, Error>>()?;
        let mut held = Held { taps: Vec::new(), references: Vec::new() };
        let rest = self.classes.len() - start;
        let (mut bytes, mut largest) = (0, 1);
        while held.taps.len() < rest && bytes + largest <= self.held_bytes.max(largest) {
            // The first sample alone, to learn how large one is; then as many as should fit.
            let room = if bytes == 0 { 1 } else { ((self.held_bytes - bytes) / largest).max(1) };
            let first = start + held.taps.len();
            let batch = room.min(rest - held.taps.len());
            let made = over(self.runner.pool(), batch, |i| -> Result<_, Error> {
                let taps = (self.taps)(first + i)?;
                let reference = self.evaluate(way, &full, &taps, None)?;
                Ok((taps, reference))
            });
            for sample in made {
                let (taps, reference) = sample?;
                let size = taps.iter().chain([&reference]).map(Array::stored_bytes).sum();
                bytes += size;
                largest = largest.max(size);
                held.taps.push(taps);
                held.references.push(reference);
            }
        }
        Ok(held)
    }

    /// The judged value of a sample under these weights. A candidate's `effect` is what its scale does to the group's input:
    /// where activations are quantized, too, they are divided as they will be and rounded; elsewhere the weights hold the
    /// inverse, and only what rounded biases add is left to do.
    fn evaluate(&self, way: &Way, weights: &[Array], taps: &[Array], effect: Option<&Effect>) -> Result<Array, Error> {
        let mut feeds: Feeds = self.feeds.iter().copied().zip(taps.iter().cloned()).collect();
        if let Some(Effect { inverse, shift }) = effect.filter(|e| e.shift.is_some() || self.rounds_activations()) {
            let input = &taps[0];
            let mut moved = input.as_f32().map_err(|e| Error::Internal(e.to_string()))?.to_vec();
            let k = inverse.len();
            if let Some(shift) = shift {
                for row in moved.chunks_mut(k) {
                    row.iter_mut().zip(shift).for_each(|(v, s)| *v += s);
                }
            }
            if self.rounds_activations() {
                for row in moved.chunks_mut(k) {
                    row.iter_mut().zip(inverse).for_each(|(v, i)| *v *= i);
                }
                fake_quantize_tokens(&mut moved, k);
            }
            feeds.insert(self.feeds[0], Array::f32(input.shape.clone(), moved).with_dtype(input.dtype));
        }
        feeds.extend(way.weights.iter().copied().zip(weights.iter().cloned()));
        let mut arrays = self.runner.run(self.model, &way.segment, feeds, None)?;
        Ok(arrays.remove(0))
    }

    fn feed(&self, matrix: &Matrix, w: Vec<f32>) -> Array {
        let dims = matrix.weight.tensor.dims.clone();
        Array::f32(dims, matrix.as_stored(w)).with_dtype(matrix.weight.tensor.dtype)
    }

    /// Whether the group's layers quantize what they read ([`Search::mixed`] groups are not searched).
    pub(super) fn rounds_activations(&self) -> bool {
        self.weights.iter().any(|(_, _, spec, _)| spec.format.scheme == Scheme::WeightActivation)
    }

    /// Whether some of the group's layers quantize what they read, and others do not.
    pub(super) fn mixed(&self) -> bool {
        self.rounds_activations() && self.weights.iter().any(|(_, _, spec, _)| spec.format.scheme == Scheme::WeightOnly)
    }

    /// The weight as a candidate sees it: rounded under s as it will be written. Where activations stay floats, the inverse is
    /// folded back so that inputs stay unscaled.
    fn candidate_weight(
        &self,
        matrix: &Matrix,
        spec: Spec,
        scale: ScaleType,
        s: &[f32],
        effect: &Effect,
        pool: &Pool,
    ) -> Result<Array, Error> {
        let scaling = Scaling { columns: Some(s.to_vec()), ..Scaling::default() };
        let codes = matrix.quantize(&scaling, spec, self.method.round.rule(), scale, pool)?;
        let mut w = dequantize(&codes);
        for row in w.chunks_mut(matrix.k).filter(|_| !self.rounds_activations()) {
            for (v, i) in row.iter_mut().zip(&effect.inverse) {
                *v *= i;
            }
        }
        Ok(self.feed(matrix, w))
    }

    /// Mean |x| per channel over all rows of all samples that are not padding. `held` are the taps of the first samples;
    /// those of the others are taken here.
    fn mean_abs(&self, held: &[Vec<Array>]) -> Result<Vec<f32>, Error> {
        let k = self.weights.first().map_or(0, |w| w.1.k);
        let parts = over(self.runner.pool(), self.classes.len(), |i| -> Result<(Vec<f64>, usize), Error> {
            let input = match held.get(i) {
                Some(taps) => taps[0].clone(),
                None => (self.taps)(i)?.swap_remove(0),
            };
            let data = input.as_f32().map_err(|e| Error::Internal(e.to_string()))?;
            let rows = self.input_rows.filter(|rows| rows.inner == k);
            let mut sums = vec![0.0f64; k];
            let mut count = 0;
            for (row, values) in data.chunks(k.max(1)).enumerate() {
                if class_of(rows, row, &self.classes[i]) == Class::Padding {
                    continue;
                }
                count += 1;
                for (sum, v) in sums.iter_mut().zip(values) {
                    *sum += f64::from(v.abs());
                }
            }
            Ok((sums, count))
        });
        let mut total = vec![0.0f64; k];
        let mut count = 0;
        for part in parts {
            let (sums, rows) = part?;
            count += rows;
            for (t, s) in total.iter_mut().zip(sums) {
                *t += s;
            }
        }
        Ok(total.into_iter().map(|t| (t / count.max(1) as f64) as f32).collect())
    }

    fn compare(&self, reference: &Array, output: &Array, classes: &[Class]) -> Result<Sums, Error> {
        let internal = |e: crate::array::ArrayError| Error::Internal(e.to_string());
        let (reference, output) = (reference.as_f32().map_err(internal)?, output.as_f32().map_err(internal)?);
        let inner = self.judge_rows.map_or(1, |r| r.inner).max(1);
        let vision_only = self.judge_rows.is_some_and(|r| r.space == Space::Vision);
        let squared = self.method.judge == Judge::Squared;
        let mut sums = Sums::default();
        for (row, (a, b)) in reference.chunks(inner).zip(output.chunks(inner)).enumerate() {
            let class = class_of(self.judge_rows, row, classes);
            if class == Class::Padding {
                continue;
            }
            let mut sum = 0.0f64;
            for (&a, &b) in a.iter().zip(b) {
                let d = f64::from(a - b);
                sum += if squared { d * d } else { d.abs() };
            }
            sums.all += sum;
            match class {
                Class::Vision => {
                    sums.vision += sum;
                    sums.vision_rows += 1;
                }
                Class::Answer => {
                    sums.answer += sum;
                    sums.answer_rows += 1;
                }
                Class::Prompt | Class::Padding => {}
            }
        }
        // Before the merge every row is a vision row and there is no answer to balance against.
        if vision_only && self.rho == 0.0 {
            sums = Sums { answer: sums.vision, answer_rows: sums.vision_rows, vision: 0.0, vision_rows: 0, ..sums };
        }
        Ok(sums)
    }
}

impl Sums {
    fn add(&mut self, part: Sums) {
        self.vision += part.vision;
        self.answer += part.answer;
        self.all += part.all;
        self.vision_rows += part.vision_rows;
        self.answer_rows += part.answer_rows;
    }
}

#[cfg(test)]
mod tests {
    use super::candidate;

    /// Algorithm note, hand-checkable vector: m = [1, 4, 16], t = 0.5 gives [0.5, 1, 2].
    #[test]
    fn scale_of_three_channels() {
        assert_eq!(candidate(&[1.0, 4.0, 16.0], 0.5), [0.5, 1.0, 2.0]);
    }
}
