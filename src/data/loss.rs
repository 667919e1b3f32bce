//! Cross-entropy of the answer tokens, as evaluation measures it.
//!
//! Logits are `[T, V]`, row-major; `T` is the number of labels. Sums are taken in `f64`. Which rows are judged is decided
//! where calibration decides it ([`mbqc_passes::method::loss`]).

use mbqc_passes::method::loss::{log_sum_exp, targets};

pub use mbqc_passes::method::loss::IGNORED;

use super::Error;

/// The loss of one sample, in nats.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Loss {
    /// Sum over the supervised targets.
    pub sum: f64,
    /// Number of supervised targets; at least one.
    pub tokens: usize,
}

impl Loss {
    /// Mean over the supervised targets of the sample.
    pub fn mean(self) -> f64 {
        self.sum / self.tokens as f64
    }
}

/// Logits of a sequence with the rows that are judged.
#[derive(Clone, Debug)]
pub struct Supervised<'a> {
    logits: &'a [f32],
    vocab: usize,
    /// Row and target, in order of rows.
    targets: Vec<(usize, usize)>,
}

impl<'a> Supervised<'a> {
    /// Pairs `[T, V]` logits with `T` labels. Errors when the sizes do not fit or a label is not a token id.
    pub fn new(logits: &'a [f32], labels: &[i64]) -> Result<Supervised<'a>, Error> {
        let rows = labels.len();
        let vocab = logits.len().checked_div(rows).unwrap_or(0);
        if vocab * rows != logits.len() || (rows > 0 && vocab == 0) {
            return Err(Error::Logits(format!("{} values do not divide into {rows} rows", logits.len())));
        }
        let targets = targets(labels, vocab).map_err(|error| Error::Logits(error.to_string()))?;
        Ok(Supervised { logits, vocab, targets })
    }

    /// Supervised rows with their targets.
    pub fn targets(&self) -> &[(usize, usize)] {
        &self.targets
    }

    /// Entries of a row.
    pub fn vocab(&self) -> usize {
        self.vocab
    }

    /// The logits of a row, `[V]`.
    pub fn row(&self, row: usize) -> &'a [f32] {
        &self.logits[row * self.vocab..(row + 1) * self.vocab]
    }

    /// Logarithm of the sum of exponentials of a row. Errors when it is not a number.
    pub fn log_sum_exp(&self, row: usize) -> Result<f64, Error> {
        log_sum_exp(self.row(row), row).map_err(|error| Error::Logits(error.to_string()))
    }
}

/// Cross-entropy of the answer; `None` when no target is supervised.
///
/// `logits` is `[T, V]` in `f32`, `labels` has `T` entries.
pub fn answer_cross_entropy(logits: &[f32], labels: &[i64]) -> Result<Option<Loss>, Error> {
    let rows = Supervised::new(logits, labels)?;
    let mut sum = 0.0;
    for &(row, target) in rows.targets() {
        sum += rows.log_sum_exp(row)? - f64::from(rows.row(row)[target]);
    }
    let tokens = rows.targets().len();
    Ok((tokens > 0).then_some(Loss { sum, tokens }))
}

#[cfg(test)]
mod tests {
    use mbqc_passes::array::Array;
    use mbqc_passes::method::loss::answer_loss;

    use super::*;

    const LABELS: [i64; 4] = [-100, 2, -100, 0];

    fn logits() -> Vec<f32> {
        (0..12).map(|i| ((i * 37 % 11) as f32 - 5.0) * 0.5).collect()
    }

    #[test]
    fn uniform_logits_cost_the_logarithm_of_the_vocabulary() {
        let loss = answer_cross_entropy(&[7.0; 12], &LABELS).unwrap().unwrap();
        assert_eq!(loss.tokens, 2);
        assert!((loss.mean() - 3f64.ln()).abs() < 1e-12, "rounding of a few f64 operations");
    }

    #[test]
    fn large_logits_do_not_overflow() {
        let loss = answer_cross_entropy(&[3e38, -3e38, 0.0, 0.0], &[-100, 0]).unwrap().unwrap();
        assert_eq!(loss.sum, 0.0);
    }

    #[test]
    fn gradient_agrees_with_finite_differences() {
        let logits = logits();
        // What calibration uses, against differences of what evaluation uses.
        let array = Array::f32([1, 4, 3], logits.clone());
        let (mean, d_logits) = answer_loss(&array, &LABELS).unwrap().unwrap();
        let d_logits = d_logits.as_f32().unwrap();
        let loss = answer_cross_entropy(&logits, &LABELS).unwrap().unwrap();
        assert!((mean - loss.mean()).abs() < 1e-12, "the same sum in another order");
        for at in 0..logits.len() {
            let moved = |step: f32| {
                let mut moved = logits.clone();
                moved[at] += step;
                answer_cross_entropy(&moved, &LABELS).unwrap().unwrap().mean()
            };
            // The logits are multiples of 0.5, so that the step is exact in f32; its error is of second order.
            let step = 1.0 / 1024.0;
            let slope = (moved(step) - moved(-step)) / (2.0 * f64::from(step));
            assert!((slope - f64::from(d_logits[at])).abs() < 1e-6, "entry {at}: {slope} {}", d_logits[at]);
        }
        assert!(d_logits[3..6].iter().chain(&d_logits[9..]).all(|&d| d == 0.0), "rows 1 and 3 predict nothing");
    }

    #[test]
    fn nothing_supervised_is_none() {
        assert_eq!(answer_cross_entropy(&[1.0; 6], &[5, -100]).unwrap(), None);
        assert_eq!(answer_loss(&Array::f32([2, 3], vec![1.0; 6]), &[5, -100]).unwrap(), None);
    }

    #[test]
    fn misfits_are_errors() {
        let message = |logits: &[f32], labels: &[i64]| answer_cross_entropy(logits, labels).unwrap_err().to_string();
        assert!(message(&[0.0; 5], &[0, 1]).contains("do not divide"));
        assert!(message(&[0.0; 4], &[0, 2]).contains("token 1: label 2 is neither"));
        assert!(message(&[0.0; 4], &[0, -1]).contains("label -1"));
        assert!(message(&[f32::NAN; 4], &[0, 1]).contains("row 0"));
    }
}
