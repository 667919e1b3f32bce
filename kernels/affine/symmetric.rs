//! Symmetric codes per output channel: the weights of W8A8 and W4A8.

use super::activations::largest_magnitude;
use super::row::{clamp, round};
use super::{Codes, LEAST_RANGE, ScaleType};
use crate::error::{Error, check_length, length};

/// `scale = max(max|w|, 1e-5) / (2^(bits-1) - 1)`, `v = clamp(round(w / scale), -2^(bits-1), 2^(bits-1) - 1)` for each row of
/// `w: [n, k]`, with 2 to 8 bits (MBQ reference code, `pseudo_quantize_tensor` without zero point).
///
/// They are answered as codes like any others: a group is a row, the zero point is `2^(bits-1)`, and the code is
/// `v + 2^(bits-1)`.
///
/// # Errors
///
/// Wrong lengths, a bit width outside 2 to 8, a weight that is not finite, a scale that overflows its stored type.
pub fn quantize_symmetric(w: &[f32], n: usize, k: usize, bits: u32, scale: ScaleType) -> Result<Codes, Error> {
    if !(2..=8).contains(&bits) {
        return Err(Error::Bits { bits, least: 2 });
    }
    check_length("the weight", w.len(), length(&[n, k]))?;
    let zero = 1u8 << (bits - 1);
    let top = f32::from(zero - 1);
    let rows = if k == 0 { 0 } else { n };
    let mut out = Codes {
        n,
        k,
        group: k.max(1),
        bits,
        codes: vec![0; n * k],
        scales: Vec::with_capacity(rows),
        zero_points: vec![zero; rows],
    };
    for (row, (w, q)) in w.chunks(k.max(1)).zip(out.codes.chunks_mut(k.max(1))).enumerate() {
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
        out.scales.push(stored);
        code_row(w, stored, top, q);
    }
    Ok(out)
}

multiversion! {
    fn code_row(w: &[f32], scale: f32, top: f32, codes: &mut [u8]) {
        for (q, &w) in codes.iter_mut().zip(w) {
            *q = to_byte(clamp(round(w / scale), -top - 1.0, top) + top + 1.0);
        }
    }
}

/// An integer in `0..256`, held as f32, as a byte.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "the integer is in 0..256")]
fn to_byte(x: f32) -> u8 {
    (x + 8_388_608.0).to_bits() as u8
}
