//! The tiles of `kernel.cu`: three words for the 32 weights that a lane has of half a tile, which is drawn there.

use super::FORMAT;
use crate::cuda::Tiles;
use crate::error::Error;
use crate::format::Stored;

/// Bytes of the codes of a tile: 12 words for each of 32 lanes.
const CODE_BYTES: usize = 32 * 12 * 4;

/// Where the five fields of a half of a word begin.
const FIELDS: [usize; 5] = [0, 3, 6, 10, 13];

/// The bit that a half has to spare.
const SPARE: usize = 9;

/// A weight of 3 bits, stored as thirds, in the order of the CUDA kernels. With `gated`, of `[gate; up]`, whose channels
/// are then found by the same thread block.
///
/// # Errors
///
/// If groups are not of 32, 64, 128 or 256, a gated weight has an odd number of channels, or the stored bytes are none of w3.
pub fn w3_tiles(stored: &Stored<'_>, gated: bool) -> Result<Tiles, Error> {
    Tiles::new(&FORMAT, stored, gated, CODE_BYTES, |tile, place, code| {
        let mut set = |word: usize, bit: usize, value: u8| {
            let (word, bit) = (3 * place.part + word, bit + 16 * place.half);
            let at = 512 * (word / 4) + 16 * place.lane + 4 * (word % 4);
            let word: &mut [u8; 4] = tile[at..].first_chunk_mut().expect("twelve words to a lane");
            *word = (u32::from_le_bytes(*word) | u32::from(value) << bit).to_le_bytes();
        };
        match FIELDS.get(place.pair % 5) {
            Some(&bit) if place.pair < 15 => set(place.pair / 5, bit, code),
            // The 16th pair: a bit in each of the three words.
            _ => (0..3).for_each(|i| set(i, SPARE, code >> i & 1)),
        }
    })
}
