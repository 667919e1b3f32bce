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
        T::softmax_row(row);
    }
}
