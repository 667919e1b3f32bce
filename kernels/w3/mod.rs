//! 3-bit weights as thirds: eight weights in three bytes, two planes of low bits and one of high bits.
//!
//! ```text
//! block of g codes c[0..g), g/8 bytes per third:   L0 | L1 | H
//!
//! t in 0..4, i in 0..g/8:   (a, b) = (c[(g/4)t + 2i], c[(g/4)t + 2i + 1])
//!
//!           bit 0 1   2 3   4 5   6 7
//! L0[i]         a0    a1    b0    b1      low two bits of the pairs t = 0, 1
//! L1[i]         a2    a3    b2    b3      low two bits of the pairs t = 2, 3
//! H [i]     a0 a1 a2 a3 b0 b1 b2 b3       high bits
//! ```
//!
//! `B: uint8 [n, ceil(k / g), 3g/8]`. Zero points are nibbles, as in a 4-bit `MatMulNBits`. No stock runtime multiplies by
//! three bits, but four mask-and-shift steps turn the thirds into the 4-bit blob ([`thirds_to_nibbles`]), which is what the
//! op's function body does.

mod cpu;
mod cuda;

use crate::affine::Levels;
use crate::blocks;
use crate::error::{Error, check_length};
use crate::format::{Accuracy, Format, Kernel, Product, Schema, Scheme};
use crate::pool::Pool;
use crate::product::{self, kernels};

/// `w3`.
pub(crate) static FORMAT: Format = Format {
    name: "w3",
    about: "3-bit weights as thirds: eight to three bytes, one mask-and-shift away from 4-bit MatMulNBits",
    scheme: Scheme::WeightOnly,
    bits: 3,
    zero_point_bits: 4,
    pack: |codes| blocks::pack(&FORMAT, codes, pack_block),
    unpack: |stored| blocks::unpack(&FORMAT, stored, unpack_block),
    schema: Schema {
        domain: "ai.mbqc",
        op: "MbqMatMulW3",
        version: 1,
        inputs: &["A", "B", "scales", "zero_points?", "bias?"],
        bits: None,
        accuracy_level: 1,
    },
    kernels: kernels!(FORMAT, 32 => cpu::Thirds<4>, 64 => cpu::Thirds<8>, 128 => cpu::Thirds<16>, 256 => cpu::Thirds<32>),
    tiles: Some(&cuda::TILES),
};

/// The codes of a block, `[g]`, to `L0 | L1 | H`, `[3g/8]`.
fn pack_block(codes: &[u8], out: &mut [u8]) {
    out.fill(0);
    let third = codes.len() / 8;
    let (low, high) = out.split_at_mut(2 * third);
    for (t, quarter) in codes.chunks(2 * third).enumerate() {
        let low = &mut low[t / 2 * third..][..third];
        let shift = 2 * (t % 2);
        for ((low, high), &[a, b]) in low.iter_mut().zip(&mut *high).zip(quarter.as_chunks().0) {
            *low |= (a & 3 | (b & 3) << 4) << shift;
            *high |= (a >> 2 | b >> 2 << 4) << t;
        }
    }
}

/// The inverse of [`pack_block`].
fn unpack_block(block: &[u8], codes: &mut [u8]) {
    let third = block.len() / 3;
    for (t, quarter) in codes.chunks_mut(2 * third).enumerate() {
        let nibbles = (0..third).map(|i| nibbles(block, t, i));
        for (pair, nibbles) in quarter.as_chunks_mut().0.iter_mut().zip(nibbles) {
            *pair = [nibbles & 15, nibbles >> 4];
        }
    }
}

/// The pair `(t, i)` of a block as two nibbles: the mask-and-shift step.
#[inline(always)]
fn nibbles(block: &[u8], t: usize, i: usize) -> u8 {
    let third = block.len() / 3;
    let (low, high) = (block[t / 2 * third + i], block[2 * third + i]);
    low >> (2 * (t % 2)) & 0x33 | (high >> t & 0x11) << 2
}

/// The same codes as the B of a 4-bit `MatMulNBits`: `[.., 3g/8]` to `[.., g/2]`, block by block. Scales and zero points are
/// the same for both.
///
/// # Errors
///
/// If the group size is not a multiple of 8, or `b` does not end with a whole block.
pub fn thirds_to_nibbles(b: &[u8], group: usize) -> Result<Vec<u8>, Error> {
    if group == 0 || !group.is_multiple_of(8) {
        return Err(Error::Group { group });
    }
    let (bytes, third) = (3 * (group / 8), group / 8);
    check_length("the packed codes", b.len(), b.len() / bytes * bytes)?;
    let blocks = b.chunks(bytes);
    Ok(blocks.flat_map(|block| (0..4 * third).map(move |j| nibbles(block, j / third, j % third))).collect())
}

#[cfg(test)]
mod tests;
