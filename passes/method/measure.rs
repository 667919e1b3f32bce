//! Measured facts: activation statistics, and gradients of the answer cross-entropy.

use std::collections::HashMap;

use crate::array::Array;
use crate::facts::modality::Class;
use crate::facts::segments::Cuts;
use crate::ir::{Model, ValueId};
use crate::ops::{Rows, Space};
use crate::rewrite::reverse::{Backward, reverse};
use crate::run::{Feeds, Runner};

use super::driver::Error;
use super::stream::{Stream, boundary};

/// One calibration sample, ready to run.
#[derive(Clone, Debug)]
pub struct CalibrationSample {
    /// Every graph input.
    pub feeds: Feeds,
    /// Class of every token, `[tokens]`, answer rows as the method defines them.
    pub classes: Vec<Class>,
    /// Labels aligned with the tokens, -100 where nothing is supervised; the loss shifts them by one.
    pub labels: Vec<i64>,
}

/// A source of calibration samples. Asked again and again: samples are not kept.
pub trait Samples: Sync {
    /// How many there are.
    fn len(&self) -> usize;

    /// True when there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The sample with this index.
    fn sample(&self, index: usize) -> Result<CalibrationSample, String>;
}

/// Mean |g| and mean g^2 per class at one value, averaged over samples (each sample counts alike, as in the reference
/// code), where g is the gradient of the sample's mean answer cross-entropy.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct Sensitivity {
    /// Mean |g| by class.
    pub abs: ByClass,
    /// Mean g^2 by class.
    pub square: ByClass,
}

/// A mean per class.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct ByClass {
    /// Over vision rows.
    pub vision: f64,
    /// Over answer rows.
    pub answer: f64,
    /// Over prompt rows.
    pub prompt: f64,
}

impl ByClass {
    fn slot(&mut self, class: Class) -> Option<&mut f64> {
        match class {
            Class::Vision => Some(&mut self.vision),
            Class::Answer => Some(&mut self.answer),
            Class::Prompt => Some(&mut self.prompt),
            Class::Padding => None,
        }
    }
}

/// Rows of values, as traced on one sample: by value its rows and whether they are tokens.
pub type RowMap = HashMap<ValueId, Rows>;

/// Class of row `row` of a value whose rows are `rows`. Rows of unknown meaning count as prompt.
///
/// `rows` was traced on one sample; only what holds for every sample is used of it: the space, and (by callers) the number
/// of elements per row. The number of tokens is this sample's.
pub fn class_of(rows: Option<Rows>, row: usize, classes: &[Class]) -> Class {
    match rows {
        Some(Rows { space: Space::Tokens, .. }) => {
            classes.get(row % classes.len().max(1)).copied().unwrap_or(Class::Prompt)
        }
        Some(Rows { space: Space::Vision, .. }) => Class::Vision,
        None => Class::Prompt,
    }
}

/// Per class: sum of |x|, sum of x^2, number of elements.
pub fn sums_by_class(array: &Array, rows: Option<Rows>, classes: &[Class]) -> Result<[(f64, f64, usize); 3], Error> {
    let data = array.as_f32().map_err(|e| Error::Internal(e.to_string()))?;
    let inner = rows.map_or(array.shape.last().copied().unwrap_or(1), |r| r.inner).max(1);
    let mut sums = [(0.0, 0.0, 0); 3];
    for (row, values) in data.chunks(inner).enumerate() {
        let slot = match class_of(rows, row, classes) {
            Class::Vision => 0,
            Class::Answer => 1,
            Class::Prompt => 2,
            Class::Padding => continue,
        };
        let (mut abs, mut square) = (0.0, 0.0);
        for &v in values {
            abs += f64::from(v.abs());
            square += f64::from(v) * f64::from(v);
        }
        sums[slot].0 += abs;
        sums[slot].1 += square;
        sums[slot].2 += values.len();
    }
    Ok(sums)
}

/// Counts of a gradient pass.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct GradientReport {
    /// Samples that took part.
    pub samples: usize,
    /// Samples without a supervised token, left out.
    pub without_answer: usize,
    /// Samples without vision rows: they count for the text classes only.
    pub without_vision: usize,
    /// Mean over samples of the sample's mean answer cross-entropy, in nats.
    pub cross_entropy: f64,
}

/// Mean answer cross-entropy of a sample in nats and its gradient with respect to the logits `[.., tokens, vocabulary]`:
/// `(softmax - onehot) / count` at the rows before supervised tokens, zero elsewhere. `None` without supervised tokens.
pub fn answer_loss(logits: &Array, labels: &[i64]) -> Result<Option<(f64, Array)>, Error> {
    let data = logits.as_f32().map_err(|e| Error::Internal(e.to_string()))?;
    let vocabulary = logits.shape.last().copied().unwrap_or(0);
    let tokens = data.len().checked_div(vocabulary).unwrap_or(0);
    if tokens != labels.len() {
        return Err(Error::Data(format!(
            "the logits have {tokens} rows but the labels {} tokens; pass labels for every token of the sequence",
            labels.len()
        )));
    }
    let targets: Vec<(usize, usize)> = (0..tokens.saturating_sub(1))
        .filter_map(|t| usize::try_from(labels[t + 1]).ok().filter(|&y| y < vocabulary).map(|y| (t, y)))
        .collect();
    if targets.is_empty() {
        return Ok(None);
    }
    let share = 1.0 / targets.len() as f64;
    let mut gradient = vec![0.0f32; data.len()];
    let mut loss = 0.0;
    for (row, target) in targets {
        let logits = &data[row * vocabulary..][..vocabulary];
        let peak = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        let total: f64 = logits.iter().map(|&v| (f64::from(v) - peak).exp()).sum();
        loss += share * (total.ln() + peak - f64::from(logits[target]));
        for (g, &v) in gradient[row * vocabulary..][..vocabulary].iter_mut().zip(logits) {
            *g = ((f64::from(v) - peak).exp() / total * share) as f32;
        }
        gradient[row * vocabulary + target] -= share as f32;
    }
    Ok(Some((loss, Array::f32(logits.shape.clone(), gradient))))
}

/// Gradients of the answer cross-entropy at `values`, accumulated per class. The backward pass walks the segments in
/// reverse and computes each one's forward values again from its frontier.
#[expect(clippy::too_many_arguments, reason = "what a gradient pass needs, all of it shared and read-only")]
pub fn sensitivities(
    runner: &dyn Runner,
    model: &Model,
    cuts: &Cuts,
    logits: ValueId,
    values: &[ValueId],
    rows: &RowMap,
    samples: &dyn Samples,
    limit: usize,
    progress: &dyn Fn(&str, usize, usize),
) -> Result<(Vec<Sensitivity>, GradientReport), Error> {
    let count = samples.len().min(limit);
    progress("gradients", 0, count);
    let mut wanted: Vec<ValueId> = values.to_vec();
    wanted.extend(cuts.necks.iter().copied().filter(|v| !values.contains(v)));
    let backward = reverse(model, &[logits], &wanted)?;
    let gradient_of: HashMap<ValueId, ValueId> =
        wanted.iter().zip(&backward.gradients).filter_map(|(v, g)| Some((*v, (*g)?))).collect();
    let stream = Stream::new(runner, model, cuts, &[logits])?;
    let mut report = GradientReport::default();
    let mut sums = vec![[(0.0, 0.0, 0usize); 3]; values.len()];

    // Samples pass in chunks, so that only a chunk's frontiers are held.
    let chunk = 16.max(runner.pool().threads() * 4);
    for start in (0..count).step_by(chunk) {
        let indices: Vec<usize> = (start..count.min(start + chunk)).collect();
        let results = runner.pool().map(indices.len(), |i| {
            one_sample(runner, model, &backward, &stream, &gradient_of, values, rows, samples, indices[i])
        });
        for result in results {
            let Some(sample) = result? else {
                report.without_answer += 1;
                continue;
            };
            report.samples += 1;
            report.cross_entropy += sample.loss;
            report.without_vision += usize::from(!sample.has_vision);
            for (total, part) in sums.iter_mut().zip(sample.means) {
                for (t, p) in total.iter_mut().zip(part) {
                    if let Some((abs, square)) = p {
                        t.0 += abs;
                        t.1 += square;
                        t.2 += 1;
                    }
                }
            }
        }
        progress("gradients", indices.last().map_or(0, |i| i + 1), count);
    }
    if report.samples == 0 {
        return Err(Error::Data(format!(
            "none of the {count} calibration samples has a supervised token (labels other than -100), so there is no \
             answer cross-entropy; pass `labels` or `answer_mask`, or use --method awq"
        )));
    }
    report.cross_entropy /= report.samples as f64;
    let answer = sums
        .into_iter()
        .map(|classes| {
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
        })
        .collect();
    Ok((answer, report))
}

struct SampleGradients {
    loss: f64,
    has_vision: bool,
    /// Per value and class: mean |g| and mean g^2, `None` for a class without rows.
    means: Vec<[Option<(f64, f64)>; 3]>,
}

#[expect(clippy::too_many_arguments, reason = "what one sample's pass needs, all of it shared and read-only")]
fn one_sample(
    runner: &dyn Runner,
    model: &Model,
    backward: &Backward,
    stream: &Stream,
    gradient_of: &HashMap<ValueId, ValueId>,
    values: &[ValueId],
    rows: &RowMap,
    samples: &dyn Samples,
    index: usize,
) -> Result<Option<SampleGradients>, Error> {
    let sample = samples.sample(index).map_err(Error::Data)?;
    let sides = stream.sides(runner, model, &sample.feeds)?;
    let (frontiers, outputs) = stream.forward(runner, model, &sides)?;
    let Some((loss, seed)) = answer_loss(&outputs[0], &sample.labels)? else { return Ok(None) };
    let mut means = vec![[None; 3]; values.len()];
    let mut d_after: Vec<(ValueId, Array)> = vec![(backward.seeds[0], seed)];
    for segment in (0..stream.segments()).rev() {
        let (from, inside) = stream.span(segment);
        let here: Vec<usize> = (0..values.len())
            .filter(|&i| inside.contains(&values[i]) && gradient_of.contains_key(&values[i]))
            .collect();
        let before = from.and_then(|neck| gradient_of.get(&neck).copied().map(|g| (neck, g)));
        let mut wanted: Vec<ValueId> = here.iter().map(|&i| gradient_of[&values[i]]).collect();
        wanted.extend(before.map(|(_, g)| g));
        if wanted.is_empty() {
            break;
        }
        let mut feeds = sides.clone();
        if let Some(neck) = from {
            feeds.insert(neck, frontiers[&neck].clone());
        }
        feeds.extend(d_after.iter().cloned());
        let prepared = stream.prepared_backward(segment, || {
            let mut fed: Vec<ValueId> = boundary(&backward.model, &feeds, &wanted);
            fed.sort();
            runner.prepare(&backward.model, &fed, &wanted)
        })?;
        let arrays = runner.run(&backward.model, &prepared, feeds, None)?;
        for (&i, array) in here.iter().zip(&arrays) {
            let sums = sums_by_class(array, rows.get(&values[i]).copied(), &sample.classes)?;
            for (mean, (abs, square, n)) in means[i].iter_mut().zip(sums) {
                *mean = (n > 0).then(|| (abs / n as f64, square / n as f64));
            }
        }
        d_after = before.map(|(_, g)| (g, arrays[arrays.len() - 1].clone())).into_iter().collect();
    }
    Ok(Some(SampleGradients { loss, has_vision: sample.classes.contains(&Class::Vision), means }))
}
