//! Normalisation of rows.

use super::float::Float;
use std::array;

/// Lanes of a sum. Fixed, so that a sum has one order.
const LANES: usize = 16;

/// `y = (x - mean(x)) / sqrt(var(x) + eps) * gain + bias`, each row of `x: [rows, c]` for itself, with the biased variance;
/// `gain: [c]`, `bias: [c]`, `y: [rows, c]`. `c` is the length of `gain`. (ONNX LayerNormalization on the last axis.)
///
/// # Panics
///
/// If the lengths do not fit.
pub fn layer_norm<T: Float>(x: &[T], gain: &[T], bias: Option<&[T]>, eps: T, y: &mut [T]) {
    check(x, gain, y);
    assert!(bias.is_none_or(|bias| bias.len() == gain.len()), "bias is as long as gain");
    let columns = gain.len();
    let count = T::from_f64(columns as f64);
    for (x, y) in x.chunks(columns.max(1)).zip(y.chunks_mut(columns.max(1))) {
        let mean = sum(x, |x| x) / count;
        let variance = sum(x, |x| (x - mean) * (x - mean)) / count;
        let inverse = T::ONE / (variance + eps).sqrt();
        for ((y, &x), &gain) in y.iter_mut().zip(x).zip(gain) {
            *y = (x - mean) * inverse * gain;
        }
        for (y, &bias) in y.iter_mut().zip(bias.unwrap_or(&[])) {
            *y += bias;
        }
    }
}

/// `y = x / sqrt(mean(x^2) + eps) * gain`, each row of `x: [rows, c]` for itself; `gain: [c]`, `y: [rows, c]`.
/// (ONNX RMSNormalization on the last axis.)
///
/// # Panics
///
/// If the lengths do not fit.
pub fn rms_norm<T: Float>(x: &[T], gain: &[T], eps: T, y: &mut [T]) {
    check(x, gain, y);
    let columns = gain.len();
    let count = T::from_f64(columns as f64);
    for (x, y) in x.chunks(columns.max(1)).zip(y.chunks_mut(columns.max(1))) {
        let inverse = T::ONE / (sum(x, |x| x * x) / count + eps).sqrt();
        for ((y, &x), &gain) in y.iter_mut().zip(x).zip(gain) {
            *y = x * inverse * gain;
        }
    }
}

fn check<T>(x: &[T], gain: &[T], y: &[T]) {
    assert_eq!(x.len(), y.len(), "y is as long as x");
    assert!(x.is_empty() || (!gain.is_empty() && x.len().is_multiple_of(gain.len())), "x is [rows, c], gain is [c]");
}

/// `sum f(x)`, in lanes.
fn sum<T: Float>(x: &[T], f: impl Fn(T) -> T) -> T {
    let (whole, rest) = x.as_chunks::<LANES>();
    let mut sums = [T::ZERO; LANES];
    for chunk in whole {
        sums = array::from_fn(|lane| sums[lane] + f(chunk[lane]));
    }
    sums.into_iter().sum::<T>() + rest.iter().map(|&x| f(x)).sum::<T>()
}
