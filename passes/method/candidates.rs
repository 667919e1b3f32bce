//! The ladder of candidate scales, and the search at one group.

use mbqc_kernels::affine::{ScaleType, dequantize};
use mbqc_kernels::{Pool, Spec};

use crate::array::Array;
use crate::facts::modality::Class;
use crate::ir::{Model, ValueId};
use crate::ops::{Rows, Space};
use crate::plan::RangeRule;
use crate::run::{Feeds, Runner};
use crate::weights::{Matrix, Scaling};

use super::driver::Error;
use super::measure::class_of;
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
    /// Per sample the arrays of `feeds`.
    pub(super) samples: &'a [Vec<Array>],
    /// Per sample the class of every token.
    pub(super) classes: &'a [Vec<Class>],
    pub(super) input_rows: Option<Rows>,
    pub(super) judge_rows: Option<Rows>,
    pub(super) rho: f64,
    /// The group's weights: constant, matrix, format, scale type.
    pub(super) weights: Vec<(ValueId, Matrix, Spec, ScaleType)>,
    /// Stored gain that absorbs 1/s, to be judged as stored; `None` to judge with an exact 1/s.
    pub(super) gain: Option<(Vec<f32>, ScaleType)>,
}

/// The outcome of a search.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) exponent: f32,
    pub(super) scale: Vec<f32>,
    pub(super) losses: Vec<f64>,
    pub(super) vision_share: Option<f64>,
}

/// Sums of a candidate's error over one sample's rows.
#[derive(Clone, Copy, Default)]
struct Sums {
    vision: f64,
    answer: f64,
    all: f64,
}

impl Search<'_> {
    /// Tries every exponent and keeps the best; the first of equals wins, a NaN never does.
    pub(super) fn run(&self) -> Result<Found, Error> {
        let ids: Vec<ValueId> = self.weights.iter().map(|w| w.0).collect();
        let mut fed = self.feeds.to_vec();
        fed.extend(&ids);
        let segment = self.runner.prepare(self.model, &fed, &[self.judge])?;
        let evaluate = |weights: &[Array], sample: usize| -> Result<Array, Error> {
            let mut feeds: Feeds = self.feeds.iter().copied().zip(self.samples[sample].iter().cloned()).collect();
            feeds.extend(ids.iter().copied().zip(weights.iter().cloned()));
            let mut arrays = self.runner.run(self.model, &segment, feeds, None)?;
            Ok(arrays.remove(0))
        };
        let pool = self.runner.pool();
        let full: Vec<Array> = self
            .weights
            .iter()
            .map(|(_, matrix, ..)| Ok(self.feed(matrix, matrix.rows(0..matrix.n)?)))
            .collect::<Result<_, Error>>()?;
        let count = self.samples.len();
        let references = pool.map(count, |i| evaluate(&full, i)).into_iter().collect::<Result<Vec<_>, _>>()?;
        let mean_abs = self.mean_abs()?;
        let mut found = Found { exponent: 0.0, scale: Vec::new(), losses: Vec::new(), vision_share: None };
        let mut best = f64::INFINITY;
        for step in 0..LADDER {
            let exponent = step as f32 / LADDER as f32;
            let s = candidate(&mean_abs, exponent);
            let Some(inverse) = self.inverse(&s) else {
                found.losses.push(f64::NAN);
                continue;
            };
            let weights = self
                .weights
                .iter()
                .map(|(_, matrix, spec, scale)| self.candidate_weight(matrix, *spec, *scale, &s, &inverse, pool))
                .collect::<Result<Vec<_>, _>>()?;
            let sums = pool.map(count, |i| {
                let output = evaluate(&weights, i)?;
                self.compare(&references[i], &output, &self.classes[i])
            });
            let mut total = Sums::default();
            for part in sums {
                let part = part?;
                total.vision += part.vision;
                total.answer += part.answer;
                total.all += part.all;
            }
            let loss = match self.method.rows {
                RowWeights::Uniform => total.all,
                RowWeights::Modality => total.answer + self.rho * total.vision,
            };
            found.losses.push(loss);
            if loss < best {
                best = loss;
                found.exponent = exponent;
                found.scale = s;
                found.vision_share =
                    (self.method.rows == RowWeights::Modality && loss > 0.0).then(|| self.rho * total.vision / loss);
            }
        }
        if found.scale.is_empty() {
            return Err(Error::Data(format!(
                "no candidate scale gave a finite error at `{}`: the activations hold NaN or infinite values",
                self.model.graph.name(self.judge)
            )));
        }
        Ok(found)
    }

    fn feed(&self, matrix: &Matrix, w: Vec<f32>) -> Array {
        let dims = matrix.weight.tensor.dims.clone();
        Array::f32(dims, matrix.as_stored(w)).with_dtype(matrix.weight.tensor.dtype)
    }

    /// The weight as a candidate sees it: rounded under s, with the inverse folded back so that inputs stay unscaled.
    fn candidate_weight(
        &self,
        matrix: &Matrix,
        spec: Spec,
        scale: ScaleType,
        s: &[f32],
        inverse: &[f32],
        pool: &Pool,
    ) -> Result<Array, Error> {
        let scaling = Scaling { columns: Some(s.to_vec()), ..Scaling::default() };
        let rule = match self.method.range {
            RangeRule::Search => RangeRule::IncludeZero,
            rule => rule,
        };
        let codes = matrix.quantize(&scaling, spec, rule, scale, pool)?;
        let mut w = dequantize(&codes);
        for row in w.chunks_mut(matrix.k) {
            for (v, i) in row.iter_mut().zip(inverse) {
                *v *= i;
            }
        }
        Ok(self.feed(matrix, w))
    }

    /// 1/s; as the stored gain gives it where there is one. `None` when a scaled gain leaves its type's range.
    fn inverse(&self, s: &[f32]) -> Option<Vec<f32>> {
        let Some((gain, stored)) = &self.gain else {
            return Some(s.iter().map(|v| 1.0 / v).collect());
        };
        let each = gain.iter().zip(s).map(|(&g, &s)| {
            if g == 0.0 {
                return Some(1.0 / s);
            }
            let scaled = stored.round(g / s);
            (scaled.is_finite() && scaled != 0.0).then_some(scaled / g)
        });
        each.collect()
    }

    /// Mean |x| per channel over all rows that are not padding.
    fn mean_abs(&self) -> Result<Vec<f32>, Error> {
        let k = self.weights.first().map_or(0, |w| w.1.k);
        let parts = self.runner.pool().map(self.samples.len(), |i| -> Result<(Vec<f64>, usize), Error> {
            let data = self.samples[i][0].as_f32().map_err(|e| Error::Internal(e.to_string()))?;
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
        let read = |array: &Array| array.as_f32().map(<[f32]>::to_vec).map_err(|e| Error::Internal(e.to_string()));
        let (reference, output) = (read(reference)?, read(output)?);
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
                Class::Vision => sums.vision += sum,
                Class::Answer => sums.answer += sum,
                Class::Prompt | Class::Padding => {}
            }
        }
        // Before the merge every row is a vision row and there is no answer to balance against.
        if vision_only && self.rho == 0.0 {
            sums.answer = sums.vision;
            sums.vision = 0.0;
        }
        Ok(sums)
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
