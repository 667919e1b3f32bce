//! `e^x` and what is made of it, in f32 without branches, so that loops over them become vector code.
//!
//! The methods are the usual ones (W. J. Cody and W. Waite, Software Manual for the Elementary Functions, 1980): `x` is cut
//! into a multiple of `ln 2` and a rest, and a polynomial takes the rest. Coefficients interpolate in Chebyshev points.

use super::float::Float;

/// Elements `e^x`.
///
/// In f32 to within 1 unit in the last place; subnormal results and infinity where they belong, NaN stays NaN.
///
/// # Panics
///
/// If `y` is not as long as `x`.
pub fn exp<T: Float>(x: &[T], y: &mut [T]) {
    assert_eq!(x.len(), y.len(), "as many results as arguments");
    T::exp_all(x, y);
}

/// The hyperbolic tangent of elements.
///
/// In f32 to within 1.1 units in the last place.
///
/// # Panics
///
/// If `y` is not as long as `x`.
pub fn tanh<T: Float>(x: &[T], y: &mut [T]) {
    assert_eq!(x.len(), y.len(), "as many results as arguments");
    T::tanh_all(x, y);
}

/// `1 / (1 + e^-x)` of elements.
///
/// In f32 to within 2.5 units in the last place, and 0 where that is below the least normal number.
///
/// # Panics
///
/// If `y` is not as long as `x`.
pub fn sigmoid<T: Float>(x: &[T], y: &mut [T]) {
    assert_eq!(x.len(), y.len(), "as many results as arguments");
    T::sigmoid_all(x, y);
}

/// `e^x`.
#[inline(always)]
pub(crate) fn exp_f32(x: f32) -> f32 {
    // ln 2 as a sum of two, of which the first has so few bits that its multiples are exact.
    const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
    // (e^r - 1 - r) / r^2 for |r| <= ln 2 / 2, to 3e-9.
    const REST: [f32; 6] = [0.5, 0.166_666_67, 0.041_666_467, 0.008_333_31, 0.001_393_364_7, 0.000_198_909_88];
    // Added to a number, it leaves the nearest whole one in the low bits.
    const ROUNDER: f32 = 12_582_912.0;

    // Beyond, the result is 0 or infinite anyway.
    let x = x.clamp(-106.0, 89.0);
    let rounded = x * std::f32::consts::LOG2_E + ROUNDER;
    let n = rounded - ROUNDER;
    let r = (x - n * LN_2[0]) - n * LN_2[1];
    let mut rest = REST[5];
    for i in [4, 3, 2, 1, 0] {
        rest = rest * r + REST[i];
    }
    let value = (rest * r * r + r) + 1.0;
    // 2^n by two factors, neither of which overflows.
    let n = (rounded.to_bits() as i32).wrapping_sub(ROUNDER.to_bits() as i32);
    let half = n >> 1;
    let power = |n: i32| f32::from_bits((n.wrapping_add(127) as u32) << 23);
    value * power(half) * power(n.wrapping_sub(half))
}

/// The hyperbolic tangent.
#[inline(always)]
fn tanh_f32(x: f32) -> f32 {
    // (tanh x - x) / x^3 as a polynomial in x^2, for |x| < 0.7.
    const REST: [f32; 6] = [-0.333_333_3, 0.133_332_5, -0.053_948_17, 0.021_689_406, -0.008_113_507, 0.002_060_621_5];
    let size = x.abs();
    let z = x * x;
    let mut rest = REST[5];
    for i in [4, 3, 2, 1, 0] {
        rest = rest * z + REST[i];
    }
    let near = rest * z * x + x;
    let far = (1.0 - 2.0 / (exp_f32(2.0 * size) + 1.0)).copysign(x);
    if size < 0.7 { near } else { far }
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub(crate) fn sigmoid_f32(x: f32) -> f32 {
    1.0 / (1.0 + exp_f32(-x))
}

multiversion! {
    pub(super) fn exp_all(x: &[f32], y: &mut [f32]) {
        for (y, &x) in y.iter_mut().zip(x) {
            *y = exp_f32(x);
        }
    }
}

multiversion! {
    pub(super) fn tanh_all(x: &[f32], y: &mut [f32]) {
        for (y, &x) in y.iter_mut().zip(x) {
            *y = tanh_f32(x);
        }
    }
}

multiversion! {
    pub(super) fn sigmoid_all(x: &[f32], y: &mut [f32]) {
        for (y, &x) in y.iter_mut().zip(x) {
            *y = sigmoid_f32(x);
        }
    }
}

multiversion! {
    /// Softmax of a row.
    pub(super) fn softmax_row(row: &mut [f32]) {
        const LANES: usize = 16;
        let max = largest::<LANES>(row);
        let mut sums = [0.0f32; LANES];
        let (whole, rest) = row.as_chunks_mut::<LANES>();
        for chunk in whole {
            for (sum, x) in sums.iter_mut().zip(chunk) {
                *x = exp_f32(*x - max);
                *sum += *x;
            }
        }
        for (sum, x) in sums.iter_mut().zip(rest) {
            *x = exp_f32(*x - max);
            *sum += *x;
        }
        let sum: f32 = sums.iter().sum();
        for x in row {
            *x /= sum;
        }
    }
}

/// The largest element; those that are not numbers do not count.
#[inline(always)]
fn largest<const LANES: usize>(row: &[f32]) -> f32 {
    let mut most = [f32::NEG_INFINITY; LANES];
    let (whole, rest) = row.as_chunks::<LANES>();
    for chunk in whole {
        for (most, &x) in most.iter_mut().zip(chunk) {
            *most = if x > *most { x } else { *most };
        }
    }
    most.iter().chain(rest).fold(f32::NEG_INFINITY, |most, &x| if x > most { x } else { most })
}
