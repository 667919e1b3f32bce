//! The loss: mean cross-entropy of a sample's answer tokens, and which rows of the logits it looks at.
//!
//! Labels are aligned with the tokens: the logits of row `t` are judged against `labels[t + 1]`. Calibration and
//! evaluation both take their rows from [`targets`].

use crate::array::Array;

/// Label of a token without loss.
pub const IGNORED: i64 = -100;

/// Why labels and logits do not make a loss. The caller knows the sample's name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LossError {
    /// A label is no token.
    #[error(
        "token {position}: label {label} is neither {IGNORED} nor an id below the vocabulary of {vocabulary}; give the \
         token's id where it belongs to the answer and {IGNORED} elsewhere, with ids of this model's tokenizer"
    )]
    Label {
        /// Position of the token in the sequence, from 0.
        position: usize,
        /// Its label.
        label: i64,
        /// Columns of the logits.
        vocabulary: usize,
    },
    /// Logits and labels are of different lengths.
    #[error(
        "the logits have shape {shape:?} and there are {labels} labels; pass a label for every token of the sequence"
    )]
    Length {
        /// Shape of the logits.
        shape: Vec<usize>,
        /// Number of labels.
        labels: usize,
    },
    /// The model computed something that is no number.
    #[error("row {row} of the logits holds values that are not finite")]
    NotFinite {
        /// Which row.
        row: usize,
    },
    /// The logits are not carried in single precision.
    #[error("the logits: {0}")]
    Type(#[from] crate::array::ArrayError),
}

/// The rows of the logits that are judged, with the token that each should predict, in order of rows. A label outside of
/// the vocabulary is an error wherever it stands, except at the first token, which nothing predicts.
pub fn targets(labels: &[i64], vocabulary: usize) -> Result<Vec<(usize, usize)>, LossError> {
    let judged = labels.iter().enumerate().skip(1).filter(|(_, label)| **label != IGNORED);
    let each = judged.map(|(position, &label)| match usize::try_from(label) {
        Ok(target) if target < vocabulary => Ok((position - 1, target)),
        _ => Err(LossError::Label { position, label, vocabulary }),
    });
    each.collect()
}

/// How many rows are judged.
pub fn supervised(labels: &[i64]) -> usize {
    labels.iter().skip(1).filter(|label| **label != IGNORED).count()
}

/// Logarithm of the sum of exponentials of a row of logits, in `f64`. An error when it is not a number.
pub fn log_sum_exp(logits: &[f32], row: usize) -> Result<f64, LossError> {
    let (peak, total) = exponentials(logits, row)?;
    Ok(peak + total.ln())
}

/// The largest logit, and the sum of `exp(logit - largest)`.
fn exponentials(logits: &[f32], row: usize) -> Result<(f64, f64), LossError> {
    let peak = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let total: f64 = logits.iter().map(|&v| (f64::from(v) - peak).exp()).sum();
    if (peak + total.ln()).is_finite() { Ok((peak, total)) } else { Err(LossError::NotFinite { row }) }
}

/// Mean answer cross-entropy of a sample in nats and its gradient with respect to the logits `[.., tokens, vocabulary]`:
/// `(softmax - onehot) / count` at the judged rows, zero elsewhere. `None` when no row is judged.
pub fn answer_loss(logits: &Array, labels: &[i64]) -> Result<Option<(f64, Array)>, LossError> {
    let data = logits.as_f32()?;
    let vocabulary = logits.shape.last().copied().unwrap_or(0);
    if vocabulary * labels.len() != data.len() {
        return Err(LossError::Length { shape: logits.shape.clone(), labels: labels.len() });
    }
    let targets = targets(labels, vocabulary)?;
    if targets.is_empty() {
        return Ok(None);
    }
    let share = 1.0 / targets.len() as f64;
    let mut gradient = vec![0.0f32; data.len()];
    let mut loss = 0.0;
    for (row, target) in targets {
        let logits = &data[row * vocabulary..][..vocabulary];
        let (peak, total) = exponentials(logits, row)?;
        loss += share * (total.ln() + peak - f64::from(logits[target]));
        for (g, &v) in gradient[row * vocabulary..][..vocabulary].iter_mut().zip(logits) {
            *g = ((f64::from(v) - peak).exp() / total * share) as f32;
        }
        gradient[row * vocabulary + target] -= share as f32;
    }
    Ok(Some((loss, Array::f32(logits.shape.clone(), gradient))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_those_before_supervised_tokens() {
        assert_eq!(targets(&[7, IGNORED, 2, 0], 3), Ok(vec![(1, 2), (2, 0)]));
        assert_eq!(supervised(&[7, IGNORED, 2, 0]), 2);
        assert_eq!(targets(&[], 3), Ok(vec![]));
    }

    #[test]
    fn labels_outside_of_the_vocabulary_are_named() {
        for label in [3, -1, i64::MIN] {
            let error = targets(&[IGNORED, 1, label], 3).unwrap_err();
            assert_eq!(error, LossError::Label { position: 2, label, vocabulary: 3 });
        }
        let text = answer_loss(&Array::f32([2, 3], vec![0.0; 6]), &[IGNORED, 5]).unwrap_err().to_string();
        assert!(text.starts_with("token 1: label 5 is neither -100 nor an id below the vocabulary of 3; "), "{text}");
    }

    #[test]
    fn misfits_and_overflows_are_errors() {
        let loss = |logits: Vec<f32>| answer_loss(&Array::f32([2, 2], logits), &[IGNORED, 1]).unwrap_err();
        assert_eq!(loss(vec![f32::NAN, 0.0, 0.0, 0.0]), LossError::NotFinite { row: 0 });
        let short = answer_loss(&Array::f32([2, 2], vec![0.0; 4]), &[IGNORED, 1, 1]).unwrap_err();
        assert_eq!(short, LossError::Length { shape: vec![2, 2], labels: 3 });
    }
}
