//! Symmetric codes per output channel: the weights of W8A8 and W4A8.

use super::activations::largest_magnitude;
use super::row::{clamp, round};
use super::{LEAST_RANGE, ScaleType};
use crate::error::{Error, check_length, length};

/// A weight as signed integers, one scale per output channel, no zero point.
#[derive(Clone, Debug, PartialEq)]
pub struct SymmetricCodes {
    /// Output channels.
    pub n: usize,
    /// Input channels.
    pub k: usize,
    /// Bits per code.
    pub bits: u32,
    /// `[n, k]`, each in `-2^(bits-1)..2^(bits-1)`.
    pub codes: Vec<i8>,
    /// `[n]`, positive.
    pub scales: Vec<f32>,
}

/// `scale = max(max|w|, 1e-5) / (2^(bits-1) - 1)`, `q = clamp(round(w / scale), -2^(bits-1), 2^(bits-1) - 1)` for each row of
/// `w: [n, k]`, with 2 to 8 bits. The same formula serves activations, a row per token.
///
/// # Errors
///
/// Wrong lengths, a bit width outside 2 to 8, a weight that is not finite, a scale that overflows its stored type.
pub fn quantize_symmetric(w: &[f32], n: usize, k: usize, bits: u32, scale: ScaleType) -> Result<SymmetricCodes, Error> {
    if !(2..=8).contains(&bits) {
        return Err(Error::Bits { bits, least: 2 });
    }
    check_length("the weight", w.len(), length(&[n, k]))?;
    let top = ((1i32 << (bits - 1)) - 1) as f32;
    let mut out = SymmetricCodes { n, k, bits, codes: vec![0; n * k], scales: vec![scale.round(LEAST_RANGE / top); n] };
    if k == 0 {
        return Ok(out);
    }
    for (row, (w, q)) in w.chunks(k).zip(out.codes.chunks_mut(k)).enumerate() {
        let largest = largest_magnitude(w);
        if !largest.is_finite() {
            let column = w.iter().position(|w| !w.is_finite()).expect("some weight of the row is not finite");
            return Err(Error::NotFinite { row, column, value: w[column] });
        }
        let exact = largest.max(LEAST_RANGE) / top;
        let stored = scale.round(exact);
        if !stored.is_finite() {
            return Err(Error::ScaleOverflow { row, group: 0, scale: exact, stored: scale.name() });
        }
        out.scales[row] = stored;
        code_row(w, stored, top, q);
    }
    Ok(out)
}

/// `w^ = q * scale`: `[n, k]`.
pub fn dequantize_symmetric(codes: &SymmetricCodes) -> Vec<f32> {
    let rows = codes.codes.chunks(codes.k.max(1)).zip(&codes.scales);
    rows.flat_map(|(row, &scale)| row.iter().map(move |&q| f32::from(q) * scale)).collect()
}

multiversion! {
    fn code_row(w: &[f32], scale: f32, top: f32, codes: &mut [i8]) {
        for (q, &w) in codes.iter_mut().zip(w) {
            *q = to_signed_byte(clamp(round(w / scale), -top - 1.0, top));
        }
    }
}

/// An integer in `-128..128`, held as f32, as a byte in two's complement.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "the integer is in -128..128")]
fn to_signed_byte(x: f32) -> i8 {
    (x + 12_582_912.0).to_bits() as i8
}
