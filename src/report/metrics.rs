//! How far the logits of a quantized model are from those of the original, on supervised rows.
//!
//! Cross-entropies and divergences are in nats. Per-token figures weigh every supervised token alike; their standard
//! errors are those of a ratio estimator over samples, `sqrt(sum (x_i - m t_i)^2) / sum t_i` for sums `x_i` over `t_i`
//! tokens with ratio `m`. Differences are taken sample by sample, so that their errors are paired.

use serde::{Deserialize, Serialize};

use crate::data::Error;
use crate::data::loss::Supervised;

/// The figures of one sample: sums over its supervised rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SampleMetrics {
    /// What kind of sample it is, when the set says.
    pub kind: Option<String>,
    /// Supervised rows; at least one.
    pub tokens: usize,
    /// Cross-entropy of the original, summed.
    pub ce_fp: f64,
    /// Cross-entropy of the quantized model, summed.
    pub ce_q: f64,
    /// Kullback-Leibler divergence of the quantized model from the original, KL(original || quantized), summed.
    pub kl: f64,
    /// Rows whose most probable token differs.
    pub flips: usize,
    /// Rows where the original's most probable token is the label.
    pub hits_fp: usize,
    /// Rows where the quantized model's most probable token is the label.
    pub hits_q: usize,
}

impl SampleMetrics {
    /// Compares `[T, V]` logits of the original and the quantized model; `labels` has `T` entries, aligned with the
    /// tokens. `None` when nothing is supervised.
    pub fn compare(
        fp: &[f32],
        q: &[f32],
        labels: &[i64],
        kind: Option<String>,
    ) -> Result<Option<SampleMetrics>, Error> {
        if fp.len() != q.len() {
            return Err(Error::Logits(format!("the original has {} values, the quantized {}", fp.len(), q.len())));
        }
        let (fp, q) = (Supervised::new(fp, labels)?, Supervised::new(q, labels)?);
        let tokens = fp.targets().len();
        let (ce_fp, ce_q, kl, flips, hits_fp, hits_q) = (0.0, 0.0, 0.0, 0, 0, 0);
        let mut sample = SampleMetrics { kind, tokens, ce_fp, ce_q, kl, flips, hits_fp, hits_q };
        for &(row, target) in fp.targets() {
            let (log_fp, log_q) = (fp.log_sum_exp(row)?, q.log_sum_exp(row)?);
            let (row_fp, row_q) = (fp.row(row), q.row(row));
            sample.ce_fp += log_fp - f64::from(row_fp[target]);
            sample.ce_q += log_q - f64::from(row_q[target]);
            for (&a, &b) in row_fp.iter().zip(row_q) {
                let (a, b) = (f64::from(a) - log_fp, f64::from(b) - log_q);
                if a > f64::NEG_INFINITY {
                    sample.kl += a.exp() * (a - b);
                }
            }
            let (top_fp, top_q) = (argmax(row_fp), argmax(row_q));
            sample.flips += usize::from(top_fp != top_q);
            sample.hits_fp += usize::from(top_fp == target);
            sample.hits_q += usize::from(top_q == target);
        }
        Ok((tokens > 0).then_some(sample))
    }

    /// The same figures per token, as summaries have them: cross-entropies and divergence as means, the rest as shares.
    pub fn per_token(&self) -> PerToken<'_> {
        let each = |sum: f64| sum / self.tokens as f64;
        PerToken {
            kind: self.kind.as_deref(),
            tokens: self.tokens,
            ce_fp: each(self.ce_fp),
            ce_q: each(self.ce_q),
            kl: each(self.kl),
            flips: each(self.flips as f64),
            exact_fp: self.exact().0,
            exact_q: self.exact().1,
        }
    }

    /// Every label is the most probable token, so that greedy decoding reproduces the answer: original, quantized.
    pub fn exact(&self) -> (bool, bool) {
        (self.hits_fp == self.tokens, self.hits_q == self.tokens)
    }
}

/// The figures of one sample, per supervised token.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PerToken<'a> {
    /// What kind of sample it is, when the set says.
    pub kind: Option<&'a str>,
    /// Supervised rows.
    pub tokens: usize,
    /// Mean cross-entropy of the original.
    pub ce_fp: f64,
    /// Mean cross-entropy of the quantized model.
    pub ce_q: f64,
    /// Mean KL(original || quantized).
    pub kl: f64,
    /// Share of rows whose most probable token differs.
    pub flips: f64,
    /// Whether the original answers exactly.
    pub exact_fp: bool,
    /// Whether the quantized model answers exactly.
    pub exact_q: bool,
}

/// The first of the largest entries.
fn argmax(row: &[f32]) -> usize {
    let mut best = 0;
    for (entry, &value) in row.iter().enumerate() {
        if value > row[best] {
            best = entry;
        }
    }
    best
}

/// A figure with its standard error.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// The figure.
    pub mean: f64,
    /// Its standard error; one sample has none.
    pub se: Option<f64>,
}

impl Estimate {
    /// Ratio of two sums over samples, (numerator, denominator) each; denominators are positive.
    fn ratio(pairs: impl Iterator<Item = (f64, f64)> + Clone) -> Estimate {
        let (top, bottom) = pairs.clone().fold((0.0, 0.0), |(top, bottom), (x, t)| (top + x, bottom + t));
        let mean = top / bottom;
        let spread: f64 = pairs.clone().map(|(x, t)| (x - mean * t).powi(2)).sum();
        Estimate { mean, se: (pairs.count() > 1).then(|| spread.sqrt() / bottom) }
    }

    /// Mean over samples.
    fn mean(values: impl Iterator<Item = f64> + Clone) -> Estimate {
        Estimate::ratio(values.map(|x| (x, 1.0)))
    }
}

/// Aggregates over samples.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Samples with supervised rows.
    pub samples: usize,
    /// Supervised rows.
    pub tokens: usize,
    /// Cross-entropy per token of the original.
    pub ce_fp: Estimate,
    /// Cross-entropy per token of the quantized model.
    pub ce_q: Estimate,
    /// Quantized minus original, paired.
    pub d_ce: Estimate,
    /// KL(original || quantized) per token.
    pub kl: Estimate,
    /// Share of rows whose most probable token differs.
    pub flips: Estimate,
    /// Share of samples that the original answers exactly.
    pub exact_fp: Estimate,
    /// Share of samples that the quantized model answers exactly.
    pub exact_q: Estimate,
    /// Quantized minus original, paired.
    pub d_exact: Estimate,
}

/// Collects samples.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    /// Samples with supervised rows, in the order in which they were added.
    pub samples: Vec<SampleMetrics>,
    /// Samples without any; counted, not averaged.
    pub unsupervised: usize,
}

impl Metrics {
    /// Adds a sample; see [`SampleMetrics::compare`].
    pub fn add(&mut self, fp: &[f32], q: &[f32], labels: &[i64], kind: Option<&str>) -> Result<(), Error> {
        match SampleMetrics::compare(fp, q, labels, kind.map(str::to_owned))? {
            Some(sample) => self.samples.push(sample),
            None => self.unsupervised += 1,
        }
        Ok(())
    }

    /// Aggregates over all samples; `None` when there is none.
    pub fn summary(&self) -> Option<Summary> {
        self.summary_where(|_| true)
    }

    /// Aggregates over the samples that are chosen; `None` when there is none.
    pub fn summary_where(&self, chosen: impl Fn(&SampleMetrics) -> bool) -> Option<Summary> {
        let samples: Vec<&SampleMetrics> = self.samples.iter().filter(|sample| chosen(sample)).collect();
        if samples.is_empty() {
            return None;
        }
        let per_token = |figure: fn(&SampleMetrics) -> f64| {
            Estimate::ratio(samples.iter().map(move |sample| (figure(sample), sample.tokens as f64)))
        };
        let per_sample = |figure: fn(&SampleMetrics) -> f64| Estimate::mean(samples.iter().map(|s| figure(s)));
        Some(Summary {
            samples: samples.len(),
            tokens: samples.iter().map(|sample| sample.tokens).sum(),
            ce_fp: per_token(|s| s.ce_fp),
            ce_q: per_token(|s| s.ce_q),
            d_ce: per_token(|s| s.ce_q - s.ce_fp),
            kl: per_token(|s| s.kl),
            flips: per_token(|s| s.flips as f64),
            exact_fp: per_sample(|s| one_if(s.exact().0)),
            exact_q: per_sample(|s| one_if(s.exact().1)),
            d_exact: per_sample(|s| one_if(s.exact().1) - one_if(s.exact().0)),
        })
    }

    /// Kinds of samples, in the order in which they first occur.
    pub fn kinds(&self) -> Vec<&str> {
        let mut kinds = Vec::new();
        for kind in self.samples.iter().filter_map(|sample| sample.kind.as_deref()) {
            if !kinds.contains(&kind) {
                kinds.push(kind);
            }
        }
        kinds
    }
}

fn one_if(yes: bool) -> f64 {
    f64::from(u8::from(yes))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLOSE: f64 = 1e-7;

    /// Logits of a two-token vocabulary with these probabilities of token 1; the last row predicts nothing.
    fn rows(probabilities: &[f64]) -> Vec<f32> {
        let rows = probabilities.iter().flat_map(|p| [0.0, (p / (1.0 - p)).ln() as f32]);
        rows.chain([0.0, 0.0]).collect()
    }

    fn close(found: Estimate, mean: f64, se: impl Into<Option<f64>>) {
        let se = se.into();
        let near = match (found.se, se) {
            (Some(found), Some(se)) => (found - se).abs() < CLOSE,
            (found, se) => found == se,
        };
        assert!((found.mean - mean).abs() < CLOSE && near, "{found:?} {mean} {se:?}");
    }

    #[test]
    fn one_sample_in_closed_form() {
        let (fp, q) = (rows(&[0.8, 0.6]), rows(&[0.5 + 0.25, 0.4]));
        let sample = SampleMetrics::compare(&fp, &q, &[-100, 1, 1], None).unwrap().unwrap();
        let kl = |p: f64, q: f64| p * (p / q).ln() + (1.0 - p) * ((1.0 - p) / (1.0 - q)).ln();
        assert!((sample.ce_fp + 0.8f64.ln() + 0.6f64.ln()).abs() < CLOSE, "logits are f32");
        assert!((sample.ce_q + 0.75f64.ln() + 0.4f64.ln()).abs() < CLOSE, "logits are f32");
        assert!((sample.kl - kl(0.8, 0.75) - kl(0.6, 0.4)).abs() < CLOSE, "logits are f32");
        assert_eq!((sample.tokens, sample.flips, sample.hits_fp, sample.hits_q), (2, 1, 2, 1));
        assert_eq!(sample.exact(), (true, false));
        assert!((sample.per_token().ce_fp - sample.ce_fp / 2.0).abs() < CLOSE);
    }

    #[test]
    fn equal_logits_differ_in_nothing() {
        let fp = rows(&[0.3, 0.9]);
        let mut metrics = Metrics::default();
        metrics.add(&fp, &fp, &[0, 1, 1], Some("cap")).unwrap();
        metrics.add(&fp, &fp, &[0, -100, -100], Some("cap")).unwrap();
        let summary = metrics.summary().unwrap();
        assert_eq!((summary.samples, summary.tokens, metrics.unsupervised), (1, 2, 1));
        close(summary.kl, 0.0, None);
        close(summary.d_ce, 0.0, None);
        close(summary.flips, 0.0, None);
    }

    #[test]
    fn aggregates_weigh_tokens_and_pair_samples() {
        let mut metrics = Metrics::default();
        let sample = |tokens, ce_fp, ce_q, hits_q, kind: &str| SampleMetrics {
            kind: Some(kind.to_owned()),
            tokens,
            ce_fp,
            ce_q,
            kl: 0.1 * tokens as f64,
            flips: 0,
            hits_fp: tokens,
            hits_q,
        };
        metrics.samples = vec![sample(1, 1.0, 1.5, 1, "ocr"), sample(3, 3.0, 3.3, 2, "cap")];
        let summary = metrics.summary().unwrap();
        close(summary.ce_fp, 1.0, 0.0);
        // d = (0.5, 0.3), t = (1, 3): D = 0.8 / 4 = 0.2; residuals 0.3 and -0.3.
        close(summary.d_ce, 0.2, 0.18f64.sqrt() / 4.0);
        close(summary.kl, 0.1, 0.0);
        // Shares of 0 and 1 among n samples: standard deviation / sqrt(n) = 0.5 / sqrt(2).
        close(summary.exact_q, 0.5, 0.5 / 2f64.sqrt());
        close(summary.d_exact, -0.5, 0.5 / 2f64.sqrt());
        assert_eq!(metrics.kinds(), ["ocr", "cap"]);
        assert_eq!(metrics.summary_where(|s| s.kind.as_deref() == Some("cap")).unwrap().tokens, 3);
        assert_eq!(metrics.summary_where(|_| false), None);
        let text = serde_json::to_string(&metrics).unwrap();
        assert_eq!(serde_json::from_str::<Metrics>(&text).unwrap(), metrics);
    }

    #[test]
    fn masked_entries_do_not_count() {
        let masked = [f32::NEG_INFINITY, 0.0, 0.0, 0.0, 0.0, 0.0];
        let sample = SampleMetrics::compare(&masked, &masked, &[0, 1], None).unwrap().unwrap();
        assert_eq!(sample.kl, 0.0);
        let message = |fp: &[f32], q: &[f32]| {
            let result = SampleMetrics::compare(fp, q, &[0, 1], None);
            result.unwrap_err().to_string()
        };
        assert!(message(&masked, &[f32::NAN; 6]).contains("not finite"));
        assert!(message(&masked, &[0.0; 4]).contains("6 values"));
    }
}
