//! The tiles of `kernel.cu`, where they are drawn: three words to 32 weights.

use crate::cuda::{Fragments, Order, TileCodes, Unit, WIDE_CAPABILITY};

/// Where the five fields of a half of a word begin.
const FIELDS: [usize; 5] = [0, 3, 6, 10, 13];

/// The bit that a half has to spare.
const SPARE: usize = 9;

/// See `kernel.cu`.
pub(super) static TILES: TileCodes = TileCodes {
    unit: &Unit { name: "w3", source: include_str!("kernel.cu"), only: None },
    wide: &Unit { name: "w3_wide", source: include_str!("wide.cu"), only: Some(WIDE_CAPABILITY) },
    words: 3,
    order: Order::Lanes(Fragments::Halves, |words, index, code| match (index / 2, index % 2) {
        (pair @ 0..15, half) => words.set(pair / 5, FIELDS[pair % 5] + 16 * half, code),
        // The 16th pair: a bit in each of the three words.
        (_, half) => (0..3).for_each(|i| words.set(i, SPARE + 16 * half, code >> i & 1)),
    }),
};
