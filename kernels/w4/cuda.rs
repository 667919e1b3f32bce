//! The tiles of `kernel.cu`: four words to 32 weights, four pairs to a word.

use crate::cuda::TileCodes;

/// See `kernel.cu`.
pub(super) static TILES: TileCodes =
    TileCodes { words: 4, put: |words, pair, half, code| words.set(pair / 4, 4 * (pair % 4) + 16 * half, code) };
