//! Softmax of rows.

use super::float::Float;

/// Replaces each row of `columns` elements of `x: [rows, columns]` by its softmax, `e^(x - max) / sum e^(x - max)`.
///
/// A row whose largest element is minus infinity (all masked) becomes NaN, as in PyTorch and onnxruntime; so does a row
/// that contains NaN or plus infinity.
///
/// # Panics
///
/// If `columns` does not divide the length of `x`.
pub fn softmax<T: Float>(x: &mut [T], columns: usize) {
    assert!(x.is_empty() || (columns != 0 && x.len().is_multiple_of(columns)), "x is [rows, columns]");
    for row in x.chunks_mut(columns.max(1)) {
        let max = row.iter().fold(T::NEG_INFINITY, |max, &x| if x > max { x } else { max });
        let mut sum = T::ZERO;
        for x in row.iter_mut() {
            *x = (*x - max).exp();
            sum += *x;
        }
        for x in row.iter_mut() {
            *x /= sum;
        }
    }
}
