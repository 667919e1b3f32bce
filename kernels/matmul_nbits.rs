//! The layout of onnxruntime's `com.microsoft::MatMulNBits` for 2, 4 and 8 bits.
//!
//! `B: uint8 [n, ceil(k / group), group * bits / 8]`; element i of a block is at bit `(i * bits) % 8` of its byte
//! `i * bits / 8`. Zero points are packed by the same rule along the groups of a row. The source is the operator's
//! documentation (onnxruntime, docs/ContribOperators.md).

use crate::format::Schema;

/// The schema for one width.
pub(crate) const fn schema(bits: i64, accuracy_level: i64) -> Schema {
    Schema {
        domain: "com.microsoft",
        op: "MatMulNBits",
        version: 1,
        inputs: &["A", "B", "scales", "zero_points?", "g_idx?", "bias?"],
        bits: Some(bits),
        accuracy_level,
    }
}

/// Packs `values`, each below `2^bits`, into bytes; missing values of the last byte are 0. `bits` is 2, 4 or 8.
pub(crate) fn pack_bits(bits: u32, values: &[u8], out: &mut [u8]) {
    match bits {
        2 => pack_into::<4>(values, out),
        4 => pack_into::<2>(values, out),
        _ => out.copy_from_slice(values),
    }
}

/// The inverse of [`pack_bits`]: as many values as `out` is long.
pub(crate) fn unpack_bits(bits: u32, packed: &[u8], out: &mut [u8]) {
    match bits {
        2 => unpack_from::<4>(packed, out),
        4 => unpack_from::<2>(packed, out),
        _ => out.copy_from_slice(packed),
    }
}

/// `PER` values to a byte.
fn pack_into<const PER: usize>(values: &[u8], out: &mut [u8]) {
    let (whole, rest) = values.as_chunks::<PER>();
    let byte = |values: &[u8]| values.iter().rev().fold(0u8, |byte, &value| byte << (8 / PER) | value);
    for (out, values) in out.iter_mut().zip(whole) {
        *out = byte(values);
    }
    if !rest.is_empty() {
        out[whole.len()] = byte(rest);
    }
}

/// `PER` values from a byte.
fn unpack_from<const PER: usize>(packed: &[u8], out: &mut [u8]) {
    let mask = u8::MAX >> (8 - 8 / PER);
    let (whole, rest) = out.as_chunks_mut::<PER>();
    for (values, byte) in whole.iter_mut().zip(packed) {
        for (i, value) in values.iter_mut().enumerate() {
            *value = byte >> (i * (8 / PER)) & mask;
        }
    }
    for (i, value) in rest.iter_mut().enumerate() {
        *value = packed[whole.len()] >> (i * (8 / PER)) & mask;
    }
}
