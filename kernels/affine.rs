//! Scales, zero points and codes: the only place that rounds.
//!
//! `round` is half to even, all is f32, n are the bits. Group-wise asymmetric, along k, per output channel:
//!
//! ```text
//! scale = max(max - min, 1e-5) / (2^n - 1), rounded to its stored type
//! zp    = clamp(-round(min / scale), 0, 2^n - 1)
//! q     = clamp(round(w / scale) + zp, 0, 2^n - 1)
//! w^    = (q - zp) * scale
//! ```
//!
//! Symmetric, a scale to an output channel (weights) or a token row (activations), for formats that quantize both:
//!
//! ```text
//! scale = max(max|w|, 1e-5) / (2^(n-1) - 1)
//! v     = clamp(round(w / scale), -2^(n-1), 2^(n-1) - 1)
//! w^    = v * scale
//! ```
//!
//! These are the quantizers of the MBQ reference code (thu-nics/MBQ, `pseudo_quantize_tensor`), operation for operation, so
//! that codes are equal bit for bit to what PyTorch computes in f32. Divisions are true divisions.

mod activations;
mod row;
mod search;
mod symmetric;

pub use activations::fake_quantize_tokens;
pub(crate) use activations::{Levels, is_uneven, quantize_group, quantize_rest};
pub(crate) use row::{low_byte, to_bytes};
pub use search::{POWER, SHRINK, search_range};
pub use symmetric::quantize_symmetric;

use crate::error::{Error, check_length, length};
use half::{bf16, f16};

/// The smallest range of a group; narrower ones are treated as this wide.
pub(crate) const LEAST_RANGE: f32 = 1e-5;

/// What the range of a group is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Range {
    /// `[min, max]` of the group, as the reference does. A group on one side of zero saturates: `[1, 1.5, 2]` in 3 bits
    /// becomes `[1, 1, 1]`. For parity only.
    Reference,
    /// `[min(min, 0), max(max, 0)]`: what the zero point can express. A constant group keeps its value.
    #[default]
    IncludeZero,
}

/// The type in which scales are stored. A scale is rounded to it before codes are computed, so that codes fit the scale
/// that a kernel will read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ScaleType {
    /// Kept as computed.
    #[default]
    F32,
    /// IEEE half precision: 11 bits, largest value 65504.
    F16,
    /// bfloat16: 8 bits, the range of f32.
    BF16,
}

impl ScaleType {
    /// The name that Rust gives to the type.
    pub fn name(self) -> &'static str {
        match self {
            ScaleType::F32 => "f32",
            ScaleType::F16 => "f16",
            ScaleType::BF16 => "bf16",
        }
    }

    /// `scale` as it will be read back. Never 0 for a positive scale: what would round to zero becomes the type's smallest
    /// normal number, so codes can be computed by division. (It takes a range below 1e-5, which the arithmetic excludes,
    /// to get there.)
    #[inline]
    pub fn round(self, scale: f32) -> f32 {
        let (rounded, least) = match self {
            ScaleType::F32 => (scale, f32::MIN_POSITIVE),
            ScaleType::F16 => (f16::from_f32(scale).to_f32(), f16::MIN_POSITIVE.to_f32_const()),
            ScaleType::BF16 => (bf16::from_f32(scale).to_f32(), bf16::MIN_POSITIVE.to_f32_const()),
        };
        if rounded == 0.0 { least } else { rounded }
    }
}

/// How weights are rounded to codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rounding {
    /// Bits per code, 1 to 8.
    pub bits: u32,
    /// Weights per group along k, at least 1; the last group of a row is shorter if it does not divide k.
    pub group: usize,
    /// What the range of a group is.
    pub range: Range,
    /// The type in which scales are stored.
    pub scale: ScaleType,
}

impl Rounding {
    /// `bits` and `group`, with a range that includes zero and f32 scales.
    pub fn new(bits: u32, group: usize) -> Rounding {
        Rounding { bits, group, range: Range::default(), scale: ScaleType::default() }
    }

    /// The largest code, `2^bits - 1`.
    pub fn top(&self) -> f32 {
        ((1u32 << self.bits) - 1) as f32
    }

    fn check(&self, w: &[f32], n: usize, k: usize) -> Result<(), Error> {
        if !(1..=8).contains(&self.bits) {
            return Err(Error::Bits { bits: self.bits, least: 1 });
        }
        if self.group == 0 {
            return Err(Error::Group { group: 0 });
        }
        check_length("the weight", w.len(), length(&[n, k]))
    }
}

/// A weight as integers: before packing, after unpacking.
#[derive(Clone, Debug, PartialEq)]
pub struct Codes {
    /// Output channels.
    pub n: usize,
    /// Input channels.
    pub k: usize,
    /// Weights per group along k, at least 1; k where a scale belongs to a row.
    pub group: usize,
    /// Bits per code.
    pub bits: u32,
    /// `[n, k]`, each in `0..2^bits`.
    pub codes: Vec<u8>,
    /// `[n, ceil(k / group)]`, positive.
    pub scales: Vec<f32>,
    /// `[n, ceil(k / group)]`, each in `0..2^bits`.
    pub zero_points: Vec<u8>,
}

impl Codes {
    /// Groups in a row, `ceil(k / group)`.
    pub fn groups(&self) -> usize {
        self.k.div_ceil(self.group)
    }

    /// `Ok` if the three vectors are as long as the shape says.
    pub fn check(&self) -> Result<(), Error> {
        let groups = length(&[self.n, self.groups()]);
        check_length("the codes", self.codes.len(), length(&[self.n, self.k]))?;
        check_length("the scales", self.scales.len(), groups)?;
        check_length("the zero points", self.zero_points.len(), groups)
    }

    fn zeros(n: usize, k: usize, rounding: &Rounding) -> Codes {
        let groups = n * k.div_ceil(rounding.group);
        Codes {
            n,
            k,
            group: rounding.group,
            bits: rounding.bits,
            codes: vec![0; n * k],
            scales: vec![0.0; groups],
            zero_points: vec![0; groups],
        }
    }
}

/// The codes of `w: [n, k]`.
///
/// # Errors
///
/// Wrong lengths, a bit width outside 1 to 8, a weight that is not finite, a scale that overflows its stored type.
pub fn quantize(w: &[f32], n: usize, k: usize, rounding: &Rounding) -> Result<Codes, Error> {
    code_rows(w, n, k, rounding, row::quantize)
}

/// `w^ = (q - zp) * scale`: `[n, k]`.
pub fn dequantize(codes: &Codes) -> Vec<f32> {
    let mut w = vec![0.0; codes.n * codes.k];
    dequantize_into(codes, &mut w);
    w
}

/// [`dequantize`] into `w: [n, k]`.
///
/// # Panics
///
/// If `w` has another length.
pub fn dequantize_into(codes: &Codes, w: &mut [f32]) {
    assert_eq!(w.len(), codes.n * codes.k, "w is [n, k]");
    if w.is_empty() {
        return;
    }
    let groups = codes.groups();
    for (r, (w, q)) in w.chunks_mut(codes.k).zip(codes.codes.chunks(codes.k)).enumerate() {
        let places = r * groups..(r + 1) * groups;
        row::dequantize(q, codes.group, &codes.scales[places.clone()], &codes.zero_points[places], w);
    }
}

/// `dequantize(quantize(w))`: the weight that the compiled model will have, `[n, k]`, without storing its codes.
///
/// # Errors
///
/// As [`quantize`].
pub fn fake_quantize(w: &[f32], n: usize, k: usize, rounding: &Rounding) -> Result<Vec<f32>, Error> {
    rounding.check(w, n, k)?;
    let mut rounded = vec![0.0; w.len()];
    if w.is_empty() {
        return Ok(rounded);
    }
    let groups = k.div_ceil(rounding.group);
    let mut row = Codes::zeros(1, k, rounding);
    for (r, (w, rounded)) in w.chunks(k).zip(rounded.chunks_mut(k)).enumerate() {
        row::quantize(w, *rounding, &mut row.codes, &mut row.scales, &mut row.zero_points);
        check_row(w, r, rounding, &row.scales[..groups])?;
        row::dequantize(&row.codes, rounding.group, &row.scales, &row.zero_points, rounded);
    }
    Ok(rounded)
}

/// Codes one row: `w: [k]` to codes `[k]`, scales and zero points `[ceil(k / group)]`. A group that has no codes gets a
/// scale that is not finite.
type CodeRow = fn(&[f32], Rounding, &mut [u8], &mut [f32], &mut [u8]);

fn code_rows(w: &[f32], n: usize, k: usize, rounding: &Rounding, code_row: CodeRow) -> Result<Codes, Error> {
    rounding.check(w, n, k)?;
    let mut out = Codes::zeros(n, k, rounding);
    if w.is_empty() {
        return Ok(out);
    }
    let groups = out.groups();
    for (r, (w, q)) in w.chunks(k).zip(out.codes.chunks_mut(k)).enumerate() {
        let places = r * groups..(r + 1) * groups;
        let scales = &mut out.scales[places.clone()];
        code_row(w, *rounding, q, scales, &mut out.zero_points[places]);
        check_row(w, r, rounding, scales)?;
    }
    Ok(out)
}

/// Finds out what is wrong with row `r`, given that a group that has no codes has a scale that is not finite.
fn check_row(w: &[f32], r: usize, rounding: &Rounding, scales: &[f32]) -> Result<(), Error> {
    let Some(group) = scales.iter().position(|scale| !scale.is_finite()) else { return Ok(()) };
    let start = group * rounding.group;
    let weights = &w[start..w.len().min(start + rounding.group)];
    if let Some(i) = weights.iter().position(|w| !w.is_finite()) {
        return Err(Error::NotFinite { row: r, column: start + i, value: weights[i] });
    }
    let (min, max) = row::range(weights, rounding.range);
    let scale = row::scale(min, max, rounding.top());
    Err(Error::ScaleOverflow { row: r, group, scale, stored: rounding.scale.name() })
}

#[cfg(test)]
mod tests;
