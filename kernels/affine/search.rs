//! Narrower ranges without data: what is lost at the ends may be won in between.

use super::row::{LANES, clamp, code, code_group, range, scale, zero_point};
use super::{Codes, Error, Rounding, code_rows};

/// The exponent of the error that [`search_range`] minimises: 2.4, as GPTQ's and LightCompress's range searches use. Above 2
/// it protects large weights a little.
pub const POWER: f64 = 2.4;

/// The factors by which either end of a range may shrink toward zero; the first is the plain range.
pub const SHRINK: [f32; 11] = [1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5];

/// Weights whose errors are computed before they are summed.
const BLOCK: usize = 256;

/// The codes of `w: [n, k]`, with the range of each group narrowed to minimise `sum |w - w^|^2.4`.
///
/// The two ends shrink by factors of [`SHRINK`], in three sweeps: both ends by the same factor; then the lower end alone,
/// the upper one staying where the first sweep left it; then the upper end alone. That is 31 candidates instead of 121.
/// The first best wins and the plain range comes first, so the result is never worse than that of
/// [`quantize`](super::quantize) (up to the accuracy of the power, 1e-6).
///
/// # Errors
///
/// As [`quantize`](super::quantize).
pub fn search_range(w: &[f32], n: usize, k: usize, rounding: &Rounding) -> Result<Codes, Error> {
    code_rows(w, n, k, rounding, search_row)
}

multiversion! {
    /// As `row::quantize`, with the range of each group searched for.
    fn search_row(w: &[f32], rounding: Rounding, codes: &mut [u8], scales: &mut [f32], zero_points: &mut [u8]) {
        let top = rounding.top();
        let groups = w.chunks(rounding.group).zip(codes.chunks_mut(rounding.group));
        for ((w, codes), (stored, zero)) in groups.zip(scales.iter_mut().zip(zero_points)) {
            let (scale, zero_point) = search_group(w, &rounding, top);
            *stored = scale;
            *zero = zero_point as u8;
            if scale.is_finite() {
                code_group(w, scale, zero_point, top, codes);
            }
        }
    }
}

/// Which end of a range a sweep moves.
#[derive(Clone, Copy)]
enum Sweep {
    Both,
    Lower,
    Upper,
}

/// The best scale and zero point of a group; a scale that is not finite if the plain range has none.
#[inline(always)]
fn search_group(w: &[f32], rounding: &Rounding, top: f32) -> (f32, f32) {
    let ends = range(w, rounding.range);
    let mut factors = (1.0, 1.0);
    let mut best = candidate(ends, factors, rounding, top);
    if !best.0.is_finite() {
        return best;
    }
    // Errors are measured in plain steps, so that no weight is too small to have one.
    let unit = 1.0 / best.0;
    let mut least = error(w, best, top, unit);
    for sweep in [Sweep::Both, Sweep::Lower, Sweep::Upper] {
        let start = factors;
        for factor in SHRINK {
            let moved = match sweep {
                Sweep::Both => (factor, factor),
                Sweep::Lower => (factor, start.1),
                Sweep::Upper => (start.0, factor),
            };
            if moved == start {
                continue;
            }
            let tried = candidate(ends, moved, rounding, top);
            let lost = error(w, tried, top, unit);
            if lost < least {
                (least, best, factors) = (lost, tried, moved);
            }
        }
    }
    best
}

/// Scale and zero point of the range `ends`, shrunk by `factors`.
#[inline(always)]
fn candidate(ends: (f32, f32), factors: (f32, f32), rounding: &Rounding, top: f32) -> (f32, f32) {
    let (min, max) = (ends.0 * factors.0, ends.1 * factors.1);
    let scale = rounding.scale.round(scale(min, max, top));
    (scale, zero_point(min, scale, top))
}

/// `sum (|w - w^| * unit)^2.4` over a group.
#[inline(always)]
fn error(w: &[f32], (scale, zero_point): (f32, f32), top: f32, unit: f32) -> f32 {
    let mut sums = [0.0f32; LANES];
    let mut lost = [0.0f32; BLOCK];
    for w in w.chunks(BLOCK) {
        // Two loops: the first has no sum that would tie one weight to the next, so it becomes vector code.
        let lost = &mut lost[..w.len()];
        for (lost, &w) in lost.iter_mut().zip(w) {
            *lost = power(((code(w, scale, zero_point, top) - zero_point) * scale - w) * unit);
        }
        for chunk in lost.chunks(LANES) {
            for (sum, lost) in sums.iter_mut().zip(chunk) {
                *sum += lost;
            }
        }
    }
    sums.iter().sum()
}

/// `|x|^2.4`, to 1e-6 relative, in operations that every instruction set has; no division.
///
/// `x^2 * |x|^0.4`, and with `u = x^2` and `z = u^(-1/5)` that is `u * (u * z^4)`. `z` comes from the exponent bits (the bits of a
/// float, read as an integer, are nearly its logarithm) and three steps of Newton's method, `z (1.2 - 0.2 u z^5)`.
#[inline(always)]
fn power(x: f32) -> f32 {
    const ONE: f32 = 0x3f80_0000 as f32;
    const SHIFT: f32 = 8_388_608.0;
    /// The guess is between 1 % below and 6 % above; this halves the larger of the two.
    const CENTRE: f32 = 0.976;
    let u = clamp(x * x, 1e-30, 1e30);
    let logarithm = u.to_bits() as i32 as f32 - ONE;
    // The bits of the guess in units of 2^9 are below 2^22: an f32 holds them, and adding 2^23 turns them into an integer.
    let guess = (ONE - logarithm * 0.2) * (1.0 / 512.0);
    let mut z = f32::from_bits(((guess + SHIFT).to_bits() & 0x007f_ffff) << 9) * CENTRE;
    for _ in 0..3 {
        let z2 = z * z;
        z *= 1.2 - 0.2 * u * (z2 * z2 * z);
    }
    let z2 = z * z;
    x * x * (u * (z2 * z2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn power_is_accurate_over_twelve_decades() {
        for i in -600..=600 {
            let x = 10f64.powf(f64::from(i) / 100.0);
            let (found, wanted) = (f64::from(power(-x as f32)), f64::from(x as f32).powf(POWER));
            assert!((found / wanted - 1.0).abs() < 1e-6, "|{x}|^2.4: {found} for {wanted}");
        }
        assert_eq!(power(0.0), 0.0);
    }
}
