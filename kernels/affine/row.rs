//! The loops over one row, written so that they become vector code.

use super::{LEAST_RANGE, Range, Rounding};

/// Lanes of a reduction. Fixed, so that every instruction set sums in the same order.
pub(super) const LANES: usize = 16;

/// 1.5 * 2^23: between 2^23 and 2^24 neighbouring f32 are 1 apart.
const MAGIC: f32 = 12_582_912.0;

/// `x` to the nearest integer, half to even, in two additions (there is no rounding instruction before SSE4.1).
///
/// Equal to `f32::round_ties_even` for `|x| <= 2^22`. Beyond, the answer has the sign of `x`, a magnitude of at least
/// `2^22 - 1`, and infinities stay what they are: whoever clamps to `-2^21..2^21` afterwards gets the same value from both.
#[inline(always)]
pub(super) fn round(x: f32) -> f32 {
    (x + MAGIC) - MAGIC
}

/// `x` within `low..=high`; one instruction each, unlike `f32::clamp`, which must treat NaN.
#[inline(always)]
pub(super) fn clamp(x: f32, low: f32, high: f32) -> f32 {
    let x = if x < low { low } else { x };
    if x > high { high } else { x }
}

/// An integer in `0..256`, held as f32, as a byte: its bits end up at the bottom of the mantissa.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "the integer is below 256")]
fn to_byte(x: f32) -> u8 {
    (x + 8_388_608.0).to_bits() as u8
}

/// Smallest and largest weight, and a third number that is 0 if all are finite and NaN if not.
#[inline(always)]
fn extent(w: &[f32]) -> (f32, f32, f32) {
    let (mut min, mut max, mut taint) = ([f32::INFINITY; LANES], [f32::NEG_INFINITY; LANES], [0.0; LANES]);
    let (whole, rest) = w.as_chunks::<LANES>();
    for chunk in whole {
        for lane in 0..LANES {
            let x = chunk[lane];
            min[lane] = if x < min[lane] { x } else { min[lane] };
            max[lane] = if x > max[lane] { x } else { max[lane] };
            taint[lane] += x * 0.0;
        }
    }
    let mut all = (f32::INFINITY, f32::NEG_INFINITY, 0.0);
    for lane in 0..LANES {
        all.0 = if min[lane] < all.0 { min[lane] } else { all.0 };
        all.1 = if max[lane] > all.1 { max[lane] } else { all.1 };
        all.2 += taint[lane];
    }
    for &x in rest {
        all.0 = if x < all.0 { x } else { all.0 };
        all.1 = if x > all.1 { x } else { all.1 };
        all.2 += x * 0.0;
    }
    all
}

/// The range of a group of finite weights.
#[inline(always)]
pub(super) fn range(w: &[f32], range: Range) -> (f32, f32) {
    let (min, max, taint) = extent(w);
    let (min, max) = match range {
        Range::Reference => (min, max),
        Range::IncludeZero => (if min < 0.0 { min } else { 0.0 }, if max > 0.0 { max } else { 0.0 }),
    };
    (min + taint, max + taint)
}

/// `max(max - min, 1e-5) / top`, before it is rounded to its stored type; NaN stays NaN.
#[inline(always)]
pub(super) fn scale(min: f32, max: f32, top: f32) -> f32 {
    let width = max - min;
    (if width < LEAST_RANGE { LEAST_RANGE } else { width }) / top
}

/// `clamp(-round(min / scale), 0, top)`.
#[inline(always)]
pub(super) fn zero_point(min: f32, scale: f32, top: f32) -> f32 {
    clamp(-round(min / scale), 0.0, top)
}

/// `clamp(round(w / scale) + zp, 0, top)`, as f32.
#[inline(always)]
pub(super) fn code(w: f32, scale: f32, zero_point: f32, top: f32) -> f32 {
    clamp(round(w / scale) + zero_point, 0.0, top)
}

/// Codes one group with a given scale and zero point.
#[inline(always)]
pub(super) fn code_group(w: &[f32], scale: f32, zero_point: f32, top: f32, codes: &mut [u8]) {
    for (q, &w) in codes.iter_mut().zip(w) {
        *q = to_byte(code(w, scale, zero_point, top));
    }
}

multiversion! {
    /// Codes the row `w: [k]`: codes `[k]`, scales and zero points `[ceil(k / group)]`. A group with a weight or a scale that is
    /// not finite gets a scale that is not finite, and codes without meaning.
    pub(super) fn quantize(w: &[f32], rounding: Rounding, codes: &mut [u8], scales: &mut [f32], zero_points: &mut [u8]) {
        let top = rounding.top();
        let groups = w.chunks(rounding.group).zip(codes.chunks_mut(rounding.group));
        for ((w, codes), (stored, zero)) in groups.zip(scales.iter_mut().zip(zero_points)) {
            let (min, max) = range(w, rounding.range);
            *stored = rounding.scale.round(scale(min, max, top));
            let zero_point = zero_point(min, *stored, top);
            *zero = to_byte(zero_point);
            code_group(w, *stored, zero_point, top, codes);
        }
    }
}

multiversion! {
    /// `w^ = (q - zp) * scale` for one row of `k` codes.
    pub(super) fn dequantize(codes: &[u8], group: usize, scales: &[f32], zero_points: &[u8], w: &mut [f32]) {
        for (((w, codes), &scale), &zero) in w.chunks_mut(group).zip(codes.chunks(group)).zip(scales).zip(zero_points) {
            let zero = i32::from(zero);
            for (w, &q) in w.iter_mut().zip(codes) {
                *w = (i32::from(q) - zero) as f32 * scale;
            }
        }
    }
}

/// An integer in `-128..128`, held as f32, as a byte in two's complement.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "the integer is in -128..128")]
pub(crate) fn low_byte(x: f32) -> i8 {
    (x + 12_582_912.0).to_bits() as i8
}

multiversion! {
    /// Integers of at most 127, held as f32, as bytes.
    pub(crate) fn to_bytes(rounded: &[f32], out: &mut [i8]) {
        for (out, &q) in out.iter_mut().zip(rounded) {
            *out = low_byte(q);
        }
    }
}
