//! The tiles of `kernel.cu`: two words to 32 weights, eight pairs to a word.

use crate::cuda::TileCodes;

/// See `kernel.cu`.
pub(super) static TILES: TileCodes =
    TileCodes { words: 2, put: |words, pair, half, code| words.set(pair / 8, 2 * (pair % 8) + 16 * half, code) };
