//! The order in which CUDA kernels read a weight: tiles of 32 output channels by 128 input channels, made at load from the
//! stored bytes (which stay as they are in the file).
//!
//! A tile is what a warp multiplies in one go. Its codes lie in the order of the fragments of `mma.m16n8k16`, so that a lane
//! loads its own in accesses of 16 bytes, as many as a code has bits; activations are read in their natural order.
//!
//! ```text
//! lane (g = lane / 4, t = lane % 4), of the 32 rows:     g, g + 8 | g + 16, g + 24     mt = 0 | 1
//! of 128 along k, for 16-bit activations:                64 kh + 32 u + 8 t + 0..8     kh, u = 0, 1
//!                 for bytes:                             64 kh + 16 t + 0..16
//!
//! of the 32 weights of (mt, kh), the one at e among the eight (u and e) or sixteen along k:
//!     16-bit:   step 2 u + e / 4,   register 2 (e / 2 % 2) + (row / 8 % 2),   e % 2 in it
//!     bytes:    step e / 8,         register 2 (e / 4 % 2) + (row / 8 % 2),   e % 4 in it
//! ```
//!
//! Bytes that fill a register are as easily read from rows, of whole tiles, as cuBLASLt takes them: `[32 row tiles, 128 k tiles]`.
//!
//! Behind the codes of weights that have groups lie `[32 rows, groups of the tile]` words of scale and zero point: the scale as f32, whose four lowest bits
//! are the zero point. That is exact for scales of half precision and bfloat16, and within 2^-20 for single ones.

use super::images::Unit;
use crate::affine::Codes;
use crate::blocks;
use crate::error::{Error, check_length};
use crate::format::{Format, Scheme, Stored};

/// Output channels of a tile.
pub const TILE_CHANNELS: usize = 32;

/// Input channels of a tile.
pub const TILE_K: usize = 128;

/// Bits of a scale's word that hold the zero point.
const ZERO_BITS: u32 = 4;

/// A weight as tiles.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tiles {
    /// `[row tiles, k tiles, tile_bytes]`, or `[32 row tiles, 128 k tiles]`.
    pub bytes: Vec<u8>,
    /// Output channels of the weight.
    pub n: usize,
    /// Input channels.
    pub k: usize,
    /// Groups of a row of a tile: 1 (groups of 128 or 256), 2 (64) or 4 (32); 0 if a scale belongs to an output channel, and
    /// lies elsewhere.
    pub groups: usize,
    /// Whether rows 0 to 15 of a tile are a gate's and rows 16 to 31 those of the other half.
    pub gated: bool,
}

/// Where a weight of a tile is found by the lane that multiplies by it.
struct Place {
    /// Lane of the warp.
    lane: usize,
    /// `2 mt + kh`: 32 weights of the lane.
    quarter: usize,
    /// Which of the 32, in the order of registers.
    index: usize,
}

/// The instruction that multiplies, which decides what a lane has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fragments {
    /// `mma.m16n8k16` of 16-bit numbers: two to a register.
    Halves,
    /// `mma.m16n8k32` of signed bytes: four to a register.
    Bytes,
}

impl Fragments {
    /// Of the weight at `row` in 0..32 and `k` in 0..128.
    fn place(self, row: usize, k: usize) -> Place {
        let (t, index) = match self {
            Fragments::Halves => {
                let (u, t, e) = (k / 32 % 2, k / 8 % 4, k % 8);
                let (step, register) = (2 * u + e / 4, 2 * (e / 2 % 2) + row / 8 % 2);
                (t, 8 * step + 2 * register + e % 2)
            }
            Fragments::Bytes => {
                let (t, e) = (k / 16 % 4, k % 16);
                let (step, register) = (e / 8, 2 * (e / 4 % 2) + row / 8 % 2);
                (t, 16 * step + 4 * register + e % 4)
            }
        };
        Place { lane: 4 * (row % 8) + t, quarter: 2 * (row / 16) + k / 64, index }
    }
}

/// How the codes of a format lie on a device.
pub struct TileCodes {
    /// The kernels that read them.
    pub unit: &'static Unit,
    /// Those for many token rows.
    pub wide: &'static Unit,
    /// Words for 32 weights: as many as a code has bits.
    pub words: usize,
    /// Where in a tile.
    pub order: Order,
}

/// Where codes lie.
#[derive(Clone, Copy)]
pub enum Order {
    /// In a tile, what a lane has of a quarter of it, 32 weights, in words; what multiplies by them, and where a code goes: which of the
    /// 32 it is, the code.
    Lanes(Fragments, fn(&mut Quarter<'_>, usize, u8)),
    /// As signed bytes row by row, whatever the tile: the code of each, whose zero is 128.
    Rows,
}

/// The words of a lane for 32 weights.
pub struct Quarter<'a> {
    tile: &'a mut [u8],
    lane: usize,
    first: usize,
}

impl Quarter<'_> {
    /// Sets bits of a word, from `bit` on, that are zero.
    pub fn set(&mut self, word: usize, bit: usize, value: u8) {
        let word = self.first + word;
        let at = 512 * (word / 4) + 16 * self.lane + 4 * (word % 4);
        let word: &mut [u8; 4] = self.tile[at..].first_chunk_mut().expect("a lane has whole words");
        *word = (u32::from_le_bytes(*word) | u32::from(value) << bit).to_le_bytes();
    }
}

impl TileCodes {
    /// Codes of `BITS` bits, a divisor of 16, that fill words without a gap: pairs one after the other from the lowest bits on, the
    /// first of each in the low half of the word.
    pub(crate) const fn fields<const BITS: usize>(unit: &'static Unit, wide: &'static Unit) -> TileCodes {
        let put = |words: &mut Quarter<'_>, index: usize, code: u8| {
            let (to_a_word, pair, half) = (16 / BITS, index / 2, index % 2);
            words.set(pair / to_a_word, BITS * (pair % to_a_word) + 16 * half, code);
        };
        TileCodes { unit, wide, words: BITS, order: Order::Lanes(Fragments::Halves, put) }
    }

    /// Signed bytes, from codes whose zero is 128, row by row.
    pub(crate) const fn rows(unit: &'static Unit, wide: &'static Unit) -> TileCodes {
        TileCodes { unit, wide, words: 8, order: Order::Rows }
    }

    /// Whether rows of them are what cuBLASLt multiplies by, without a copy.
    pub fn are_rows(&self) -> bool {
        matches!(self.order, Order::Rows)
    }

    /// Signed nibbles, from codes whose zero is 8: two registers to a word, the first in the upper halves of its bytes.
    pub(crate) const fn nibbles(unit: &'static Unit, wide: &'static Unit) -> TileCodes {
        let put = |words: &mut Quarter<'_>, index: usize, code: u8| {
            let (register, byte) = (index / 4, index % 4);
            words.set(register / 2, 8 * byte + 4 * (1 - register % 2), code ^ 8);
        };
        TileCodes { unit, wide, words: 4, order: Order::Lanes(Fragments::Bytes, put) }
    }

    /// Bytes of the codes of a tile.
    fn size(&self) -> usize {
        512 * self.words
    }
}

/// How many tiles a weight has, and how large they are.
pub(super) struct Geometry {
    pub(super) row_tiles: usize,
    pub(super) k_tiles: usize,
    /// Of a row of a tile.
    pub(super) groups: usize,
    codes: &'static TileCodes,
}

impl Geometry {
    /// Of a stored weight, all of which is looked at but its codes, of which any are good.
    ///
    /// # Errors
    ///
    /// As for [`Tiles::new`].
    pub(super) fn of(format: &'static Format, stored: &Stored<'_>, gated: bool) -> Result<Geometry, Error> {
        let &Stored { n, k, group, .. } = stored;
        let codes = format.tiles.ok_or(Error::Device { format: format.name })?;
        let groups = match (format.scheme, group) {
            (Scheme::WeightActivation, _) => 0,
            (Scheme::WeightOnly, 128 | 256) => 1,
            (Scheme::WeightOnly, 32 | 64) => TILE_K / group,
            (Scheme::WeightOnly, _) => return Err(Error::Group { group }),
        };
        if gated {
            check_length("the gated weight (output channels)", n, n / 2 * 2)?;
        }
        stored.check(format)?;
        if groups != 0 {
            blocks::zero_points(format, stored, k.div_ceil(group))?;
        }
        Ok(Geometry { row_tiles: n.div_ceil(TILE_CHANNELS), k_tiles: k.div_ceil(TILE_K), groups, codes })
    }

    pub(super) fn tile_bytes(&self) -> usize {
        self.codes.size() + size_of::<u32>() * TILE_CHANNELS * self.groups
    }

    /// Of all tiles.
    pub(super) fn bytes(&self) -> usize {
        self.row_tiles * self.k_tiles * self.tile_bytes()
    }
}

impl Tiles {
    /// Arranges a stored weight; with `gated`, of `[gate; up]`, whose channels are then found by the same thread block.
    ///
    /// # Errors
    ///
    /// If there is no CUDA kernel for the format, groups are not of 32, 64, 128 or 256, a gated weight has an odd number of
    /// channels, or the stored bytes are none of the format.
    pub fn new(format: &'static Format, stored: &Stored<'_>, gated: bool) -> Result<Tiles, Error> {
        let &Stored { n, k, .. } = stored;
        let geometry = Geometry::of(format, stored, gated)?;
        let Geometry { k_tiles, groups, codes: codes_of_tile, .. } = geometry;
        let tile_bytes = geometry.tile_bytes();
        let mut bytes = vec![0; geometry.bytes()];
        // Where the rows of a tile come from: all from one place, or from both halves. Unpacked codes are a byte each, so a row
        // of tiles at a time.
        let parts: &[usize] = if gated { &[0, n / 2] } else { &[0] };
        let (outputs, rows) = (n / parts.len(), TILE_CHANNELS / parts.len());
        for (row_tile, tiles) in bytes.chunks_mut((k_tiles * tile_bytes).max(1)).enumerate() {
            for (part, first) in parts.iter().enumerate() {
                let channels = first + rows * row_tile..first + outputs.min(rows * (row_tile + 1));
                let begins = channels.start;
                let codes = (format.unpack)(&stored.rows(channels)).map_err(|error| error.below(begins))?;
                let first = rows * part;
                match codes_of_tile.order {
                    Order::Lanes(fragments, put) => {
                        for (k_tile, tile) in tiles.chunks_mut(tile_bytes).enumerate() {
                            let (own, scales) = tile.split_at_mut(codes_of_tile.size());
                            let put = |row: usize, k: usize, code: u8| {
                                let Place { lane, quarter, index } = fragments.place(row, k);
                                put(
                                    &mut Quarter { tile: own, lane, first: codes_of_tile.words * quarter },
                                    index,
                                    code,
                                );
                            };
                            fill(&codes, first, k_tile, groups, scales, put);
                        }
                    }
                    Order::Rows => {
                        for (row, codes) in codes.codes.chunks(codes.k.max(1)).enumerate() {
                            let at = (first + row) * k_tiles * TILE_K;
                            tiles[at..at + k].iter_mut().zip(codes).for_each(|(byte, code)| *byte = code ^ 128);
                        }
                    }
                }
            }
        }
        Ok(Tiles { bytes, n, k, groups, gated })
    }

    /// Tiles along k.
    pub fn k_tiles(&self) -> usize {
        self.k.div_ceil(TILE_K)
    }

    /// Tiles along the output channels.
    pub fn row_tiles(&self) -> usize {
        self.n.div_ceil(TILE_CHANNELS)
    }
}

/// Codes and scales of some rows of a tile, from its row `first` on.
fn fill(
    codes: &Codes,
    first: usize,
    k_tile: usize,
    groups: usize,
    scales: &mut [u8],
    mut put: impl FnMut(usize, usize, u8),
) {
    let start = TILE_K * k_tile;
    for row in 0..codes.n {
        let along_k = &codes.codes[row * codes.k..(row + 1) * codes.k][start..codes.k.min(start + TILE_K)];
        for (k, &code) in along_k.iter().enumerate() {
            put(first + row, k, code);
        }
        for i in 0..groups {
            let begins = start + TILE_K / groups * i;
            if begins < codes.k {
                let place = row * codes.groups() + begins / codes.group;
                let word = scale_word(codes.scales[place], codes.zero_points[place]);
                scales.as_chunks_mut().0[groups * (first + row) + i] = word.to_le_bytes();
            }
        }
    }
}

/// A scale, rounded to 20 bits, with a zero point in the bits that are left.
fn scale_word(scale: f32, zero_point: u8) -> u32 {
    let low = (1 << ZERO_BITS) - 1;
    let up = f32::from_bits(scale.to_bits().saturating_add(1 << (ZERO_BITS - 1)) & !low);
    let rounded = if up.is_finite() { up.to_bits() } else { scale.to_bits() & !low };
    rounded | u32::from(zero_point) & low
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_place_of_a_tile_is_somebodys() {
        for fragments in [Fragments::Halves, Fragments::Bytes] {
            let mut seen = vec![false; TILE_CHANNELS * TILE_K];
            for (row, k) in (0..TILE_CHANNELS).flat_map(|row| (0..TILE_K).map(move |k| (row, k))) {
                let Place { lane, quarter, index } = fragments.place(row, k);
                assert!(lane < 32 && quarter < 4 && index < 32);
                let place = (lane * 4 + quarter) * 32 + index;
                assert!(!std::mem::replace(&mut seen[place], true), "{fragments:?}: row {row}, k {k}");
            }
        }
    }

    #[test]
    fn scales_keep_twenty_bits() {
        for (scale, rounded) in [(1.0, 1.0), (0.1, 0.1), (6.1e-5, 6.1e-5), (f32::MAX, f32::MAX), (1e-40, 1e-40)] {
            for zero_point in [0, 7, 15] {
                let word = scale_word(scale, zero_point);
                assert_eq!(word & 15, u32::from(zero_point));
                let found = f32::from_bits(word & !15);
                assert!(found.is_finite() && (found - rounded).abs() <= rounded * 1e-6 + 1e-44, "{scale}: {found}");
            }
        }
        // To the nearest, not down.
        assert_eq!(scale_word(f32::from_bits(0x3f80_000f), 0), 0x3f80_0010);
        let half = half::f16::from_f32(0.3).to_f32();
        assert_eq!(f32::from_bits(scale_word(half, 5) & !15), half);
    }
}
