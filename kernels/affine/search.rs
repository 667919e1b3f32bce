//! Narrower ranges without data: what is lost at the ends may be won in between.

use super::row::{LANES, clamp, code, code_group, range, scale, zero_point};
use super::{Codes, Error, Rounding, code_rows};

/// The exponent of the error that [`search_range`] minimises: 2.4, as GPTQ's and LightCompress's range searches use. Above 2
/// it protects large weights a little.
pub const POWER: f64 = 2.4;

/// The factors by which either end of a range may shrink toward zero; the first is the plain range.
pub const SHRINK: [f32; 11] = [1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5];

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

/// The best scale and zero point of a group; a scale that is not finite if the plain range has none.
#[inline(always)]
fn search_group(w: &[f32], rounding: &Rounding, top: f32) -> (f32, f32) {
    let (min, max) = range(w, rounding.range);
    let candidate = |low: f32, high: f32| {
        let scale = rounding.scale.round(scale(min * low, max * high, top));
        (scale, zero_point(min * low, scale, top))
    };
    let mut best = candidate(1.0, 1.0);
    if !best.0.is_finite() {
        return best;
    }
    // Errors are measured in plain steps, so that no weight is too small to have one.
    let unit = 1.0 / best.0;
    let mut least = error(w, best, top, unit);
    let mut factors = (1.0, 1.0);
    let mut sweep = |pairs: [(f32, f32); SHRINK.len() - 1], factors: &mut (f32, f32)| {
        for (low, high) in pairs {
            let tried = candidate(low, high);
            let lost = error(w, tried, top, unit);
            if lost < least {
                (least, best, *factors) = (lost, tried, (low, high));
            }
        }
    };
    let shrink: [f32; SHRINK.len() - 1] = std::array::from_fn(|i| SHRINK[i + 1]);
    sweep(shrink.map(|f| (f, f)), &mut factors);
    let both = factors.0;
    let others: [f32; SHRINK.len() - 1] = others(both);
    sweep(others.map(|f| (f, both)), &mut factors);
    let low = factors.0;
    sweep(others.map(|f| (low, f)), &mut factors);
    best
}

/// The factors of [`SHRINK`] that are not `tried`.
#[inline(always)]
fn others(tried: f32) -> [f32; SHRINK.len() - 1] {
    let mut others = [1.0; SHRINK.len() - 1];
    let mut count = 0;
    for factor in SHRINK {
        if factor != tried && count < others.len() {
            others[count] = factor;
            count += 1;
        }
    }
    others
}

/// `sum (|w - w^| * unit)^2.4` over a group.
#[inline(always)]
fn error(w: &[f32], (scale, zero_point): (f32, f32), top: f32, unit: f32) -> f32 {
    let lost = |w: f32| power(((code(w, scale, zero_point, top) - zero_point) * scale - w) * unit);
    let mut sums = [0.0f32; LANES];
    let (whole, rest) = w.as_chunks::<LANES>();
    for chunk in whole {
        for lane in 0..LANES {
            sums[lane] += lost(chunk[lane]);
        }
    }
    sums.iter().sum::<f32>() + rest.iter().map(|&w| lost(w)).sum::<f32>()
}

/// `|x|^2.4`, to 1e-6 relative, in operations that every instruction set has.
///
/// `x^2 * y` with `y = |x|^0.4`, the root of `y^5 = x^2`: a first guess from the exponent bits (the bits of a float, read as an
/// integer, are nearly its logarithm), then three steps of Newton's method.
#[inline(always)]
fn power(x: f32) -> f32 {
    const ONE: f32 = 0x3f80_0000 as f32;
    const SHIFT: f32 = 8_388_608.0;
    let square = clamp(x * x, 1e-30, 1e30);
    // Bits of the guess in units of 2^9 (below 2^22), so that an f32 holds them and adding 2^23 turns them into an integer.
    let logarithm = square.to_bits() as i32 as f32 - ONE;
    let guess = (logarithm * 0.2 + ONE) * (1.0 / 512.0);
    let mut y = f32::from_bits(((guess + SHIFT).to_bits() & 0x007f_ffff) << 9);
    for _ in 0..3 {
        let y2 = y * y;
        y = 0.8 * y + 0.2 * square / (y2 * y2);
    }
    x * x * y
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
