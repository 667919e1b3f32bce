//! Activations as integers, a scale to a group: what the integer kernels multiply.

use super::LEAST_RANGE;
use super::row::{clamp, round};

/// How activations are rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Levels {
    /// `scale = max|x| / 127` of a group, `q = round(x / scale)`: the error is at most 0.4 % of the group's largest.
    Int8,
    /// `scale = max|x| / 32639`, `q = 256 high + low` with both in `-128..128`: the error is at most 1.6e-5 of the group's
    /// largest. Where that is much larger than the others ([`is_uneven`]), what is left is rounded again, to
    /// `scale / 254`.
    Int16,
    /// As [`Levels::Int8`] with `scale = max(max|x|, 1e-5) / 127`: the activations of `w8a8` and `w4a8`, where a group is a
    /// token row. This is the formula of [`quantize_symmetric`](super::quantize_symmetric).
    Token,
}

impl Levels {
    /// The largest magnitude of an integer.
    fn top(self) -> f32 {
        match self {
            Levels::Int8 | Levels::Token => 127.0,
            Levels::Int16 => 32639.0,
        }
    }
}

/// How many times the mean magnitude of its group an activation may be before [`Levels::Int16`] rounds twice.
const UNEVEN: f32 = 5.5;

/// What is left of a group is rounded to this part of its scale: half a scale, at most, is 127 of them.
const REST: f32 = 254.0;

/// Whether the largest magnitude of a group is more than 5.5 times the mean of the others, so that steps of 16 bits of the one
/// are no small part of the others: below, rounding errors that are independent of one another stay under 5e-5 of the group's
/// root mean square. (Bell-shaped activations reach 3.6 times in groups of 128, and 5.5 times in one of 300 groups.)
pub(crate) fn is_uneven(x: &[f32]) -> bool {
    let (largest, sum) = (largest_magnitude(x), sum_of_magnitudes(x));
    let others = x.len().saturating_sub(1) as f32;
    largest.is_finite() && largest * others > UNEVEN * (sum - largest)
}

/// Rounds what is left of a group: `x - scale * q` to integers of at most 127, as f32, and answers their scale.
pub(crate) fn quantize_rest(x: &[f32], scale: f32, q: &[f32], rest: &mut [f32]) -> f32 {
    let step = scale / REST;
    if step.is_nan() || step == 0.0 {
        rest.fill(0.0);
        return step;
    }
    divide_rest(x, scale, q, step, rest);
    step
}

/// Rounds a group: `x` to integers, as f32 (exact), and answers their scale. Integers of a group without a finite scale are
/// all 0, and the scale is NaN, so that what is multiplied by it is NaN, too; those of a group of zeros have scale 0.
pub(crate) fn quantize_group(x: &[f32], levels: Levels, q: &mut [f32]) -> f32 {
    let largest = largest_magnitude(x);
    let least = if levels == Levels::Token { LEAST_RANGE } else { 0.0 };
    let scale = largest.max(least) / levels.top();
    if !largest.is_finite() || scale == 0.0 {
        q.fill(0.0);
        return if largest.is_finite() { 0.0 } else { f32::NAN };
    }
    divide(x, scale, levels.top(), q);
    scale
}

/// The activations that a format with 8-bit activations multiplies: each row of `x: [rows, k]` rounded to 255 levels,
/// `t * round(x / t)` with `t = max(max|x|, 1e-5) / 127`. A row that is not finite becomes NaN.
///
/// # Panics
///
/// If the length of `x` is no multiple of `k`.
pub fn fake_quantize_tokens(x: &mut [f32], k: usize) {
    assert!(k != 0 && x.len().is_multiple_of(k), "x is [rows, k]");
    let mut q = vec![0.0; k];
    for row in x.chunks_mut(k) {
        let scale = quantize_group(row, Levels::Token, &mut q);
        for (x, q) in row.iter_mut().zip(&q) {
            *x = scale * q;
        }
    }
}

multiversion! {
    /// `max|x|`; infinite if one is NaN or infinite.
    pub(super) fn largest_magnitude(x: &[f32]) -> f32 {
        // Without the sign bit, f32 order like the integers of the same bits; NaN comes above infinity.
        let bits = x.iter().fold(0u32, |largest, x| largest.max(x.to_bits() & 0x7fff_ffff));
        let largest = f32::from_bits(bits);
        if largest.is_nan() { f32::INFINITY } else { largest }
    }
}

multiversion! {
    fn sum_of_magnitudes(x: &[f32]) -> f32 {
        let (whole, rest) = x.as_chunks::<16>();
        let mut sums = [0.0; 16];
        for chunk in whole {
            for (sum, x) in sums.iter_mut().zip(chunk) {
                *sum += x.abs();
            }
        }
        sums.iter().sum::<f32>() + rest.iter().map(|x| x.abs()).sum::<f32>()
    }
}

multiversion! {
    fn divide_rest(x: &[f32], scale: f32, q: &[f32], step: f32, rest: &mut [f32]) {
        for ((rest, &x), &q) in rest.iter_mut().zip(x).zip(q) {
            *rest = clamp(round((x - scale * q) / step), -127.0, 127.0);
        }
    }
}

multiversion! {
    fn divide(x: &[f32], scale: f32, top: f32, q: &mut [f32]) {
        for (q, &x) in q.iter_mut().zip(x) {
            *q = clamp(round(x / scale), -top, top);
        }
    }
}
