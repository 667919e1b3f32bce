//! Error of intermediate values, split by the modality of their rows.

use serde::{Deserialize, Serialize};

use crate::data::{Class, Error};

const CLASSES: usize = Class::ALL.len();

/// Sums over the rows of a value, per class (indexed by [`Class::index`]). Sums are in `f64`, in the order of adding.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct BlockError {
    /// Sum of `|quantized - original|`.
    pub sum_abs_err: [f64; CLASSES],
    /// Sum of `|original|`.
    pub sum_abs_ref: [f64; CLASSES],
    /// Sum of `(quantized - original)^2`.
    pub sum_sq_err: [f64; CLASSES],
    /// Sum of `original^2`.
    pub sum_sq_ref: [f64; CLASSES],
    /// Number of rows.
    pub rows: [u64; CLASSES],
}

impl BlockError {
    /// Adds a pair of values `[T, C]`, row-major, with the class of each of the `T` rows.
    pub fn add(&mut self, fp: &[f32], q: &[f32], classes: &[Class]) -> Result<(), Error> {
        let rows = classes.len();
        let channels = fp.len().checked_div(rows).unwrap_or(0);
        if fp.len() != q.len() || channels * rows != fp.len() {
            let (fp, q) = (fp.len(), q.len());
            return Err(Error::Logits(format!("values of {fp} and {q} elements do not belong to {rows} rows")));
        }
        for (row, class) in classes.iter().enumerate() {
            let at = class.index();
            self.rows[at] += 1;
            for (&a, &b) in fp[row * channels..(row + 1) * channels].iter().zip(&q[row * channels..]) {
                let (a, err) = (f64::from(a), f64::from(b) - f64::from(a));
                self.sum_abs_err[at] += err.abs();
                self.sum_abs_ref[at] += a.abs();
                self.sum_sq_err[at] += err * err;
                self.sum_sq_ref[at] += a * a;
            }
        }
        Ok(())
    }

    /// Adds what another accumulator has seen.
    pub fn merge(&mut self, other: &BlockError) {
        for at in 0..CLASSES {
            self.sum_abs_err[at] += other.sum_abs_err[at];
            self.sum_abs_ref[at] += other.sum_abs_ref[at];
            self.sum_sq_err[at] += other.sum_sq_err[at];
            self.sum_sq_ref[at] += other.sum_sq_ref[at];
            self.rows[at] += other.rows[at];
        }
    }

    /// Sum of absolute errors over sum of absolute values; `None` for a class without rows or with zeros only.
    pub fn relative(&self, class: Class) -> Option<f64> {
        let at = class.index();
        (self.sum_abs_ref[at] > 0.0).then(|| self.sum_abs_err[at] / self.sum_abs_ref[at])
    }

    /// Root of the squared error over the squared values; `None` for a class without rows or with zeros only.
    pub fn relative_rms(&self, class: Class) -> Option<f64> {
        let at = class.index();
        (self.sum_sq_ref[at] > 0.0).then(|| (self.sum_sq_err[at] / self.sum_sq_ref[at]).sqrt())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_by_class() {
        let classes = [Class::Vision, Class::Answer, Class::Vision];
        let mut error = BlockError::default();
        error.add(&[1.0, -2.0, 4.0, 4.0, 3.0, 0.0], &[1.5, -2.0, 4.0, 2.0, 3.0, 1.0], &classes).unwrap();
        assert_eq!(error.rows, [2, 1, 0, 0]);
        assert_eq!(error.relative(Class::Vision), Some(1.5 / 6.0));
        assert_eq!(error.relative(Class::Answer), Some(2.0 / 8.0));
        assert_eq!(error.relative(Class::Prompt), None);
        assert_eq!(error.relative_rms(Class::Answer), Some((4.0f64 / 32.0).sqrt()));
        let mut twice = error.clone();
        twice.merge(&error);
        assert_eq!((twice.rows[0], twice.relative(Class::Vision)), (4, error.relative(Class::Vision)));
    }

    #[test]
    fn misfits_are_errors() {
        let mut error = BlockError::default();
        assert!(error.add(&[1.0; 4], &[1.0; 3], &[Class::Answer]).is_err());
        assert!(error.add(&[1.0; 5], &[1.0; 5], &[Class::Answer; 2]).is_err());
        assert!(error.add(&[1.0; 2], &[1.0; 2], &[]).is_err());
        error.add(&[], &[], &[]).unwrap();
    }
}
