//! What the weight-only formats share: rows cut into blocks of one group, and their zero points.
//!
//! A block holds the codes of one group of one output channel. The last block of a row is padded with the group's zero
//! point, whose value is 0. Zero points are packed along the groups of a row, little-endian within a byte, and every row
//! starts at a byte.

use crate::affine::Codes;
use crate::error::Error;
use crate::format::{Format, Packed, Stored};
use crate::matmul_nbits::{pack_bits, unpack_bits};

/// Packs block by block; `pack_block` turns `group` codes into `group * bits / 8` bytes.
///
/// # Panics
///
/// If the codes are not of this format, their lengths do not fit, or the group size is not a multiple of 8.
pub(crate) fn pack(format: &Format, codes: &Codes, pack_block: impl Fn(&[u8], &mut [u8])) -> Packed {
    assert_eq!(codes.bits, format.bits, "{} stores codes of {} bits", format.name, format.bits);
    assert!(codes.group != 0 && codes.group.is_multiple_of(8), "the group size is a multiple of 8");
    codes.check().expect("the codes are as long as their shape says");

    let (n, k, group, groups) = (codes.n, codes.k, codes.group, codes.groups());
    let shapes = format.shapes(n, k, group);
    let (bytes, zero_bytes) = (shapes.b[2], shapes.zero_points.as_ref().map_or(0, |shape| shape[1]));
    let mut b = vec![0; n * groups * bytes];
    let mut zero_points = vec![0; n * zero_bytes];
    let mut padded = vec![0; group];
    for row in 0..n {
        let zeros = &codes.zero_points[row * groups..(row + 1) * groups];
        let out = &mut b[row * groups * bytes..(row + 1) * groups * bytes];
        let blocks = codes.codes[row * k..(row + 1) * k].chunks(group).zip(out.chunks_mut(bytes)).zip(zeros);
        for ((block, out), &zero) in blocks {
            if block.len() == group {
                pack_block(block, out);
            } else {
                padded[..block.len()].copy_from_slice(block);
                padded[block.len()..].fill(zero);
                pack_block(&padded, out);
            }
        }
        pack_bits(format.zero_point_bits, zeros, &mut zero_points[row * zero_bytes..(row + 1) * zero_bytes]);
    }
    Packed { shapes, b, zero_points, scales: codes.scales.clone() }
}

/// Unpacks block by block; `unpack_block` turns `group * bits / 8` bytes into `group` codes.
///
/// # Errors
///
/// If the lengths do not fit, the group size is not a multiple of 8, or a zero point is not a code.
pub(crate) fn unpack(
    format: &Format,
    stored: &Stored<'_>,
    unpack_block: impl Fn(&[u8], &mut [u8]),
) -> Result<Codes, Error> {
    stored.check(format)?;
    let &Stored { n, k, group, .. } = stored;
    if n == 0 || k == 0 {
        let (codes, scales, zero_points) = (Vec::new(), Vec::new(), Vec::new());
        return Ok(Codes { n, k, group, bits: format.bits, codes, scales, zero_points });
    }
    let groups = k.div_ceil(group);
    let bytes = group / 8 * format.bits as usize;
    let mut codes = vec![0; n * k];
    let mut padded = vec![0; group];
    for (row, b) in codes.chunks_mut(k).zip(stored.b.chunks(groups * bytes)) {
        for (out, block) in row.chunks_mut(group).zip(b.chunks(bytes)) {
            if out.len() == group {
                unpack_block(block, out);
            } else {
                unpack_block(block, &mut padded);
                out.copy_from_slice(&padded[..out.len()]);
            }
        }
    }
    let zero_points = self::zero_points(format, stored, groups)?;
    Ok(Codes { n, k, group, bits: format.bits, codes, scales: stored.scales.to_f32(), zero_points })
}

/// The zero points of all channels, `[n, groups]`.
///
/// # Errors
///
/// If one is not a code.
pub(crate) fn zero_points(format: &Format, stored: &Stored<'_>, groups: usize) -> Result<Vec<u8>, Error> {
    let Some(packed) = stored.zero_points else {
        return Ok(vec![1 << (format.bits - 1); stored.n * groups]);
    };
    let mut zeros = vec![0; stored.n * groups];
    let bytes = (groups * format.zero_point_bits as usize).div_ceil(8);
    for (zeros, packed) in zeros.chunks_mut(groups).zip(packed.chunks(bytes)) {
        unpack_bits(format.zero_point_bits, packed, zeros);
    }
    let codes = 1u32 << format.bits;
    match zeros.iter().position(|&zero| u32::from(zero) >= codes) {
        None => Ok(zeros),
        Some(place) => {
            Err(Error::ZeroPoint { row: place / groups, group: place % groups, value: zeros[place], bits: format.bits })
        }
    }
}
