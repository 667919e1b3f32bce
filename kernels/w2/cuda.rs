//! The tiles of `kernel.cu`: sixteen codes to a word.

use crate::cuda::{TileCodes, Unit, WIDE_CAPABILITY};

/// See `kernel.cu`.
pub(super) static TILES: TileCodes = TileCodes::fields::<2>(
    &Unit { name: "w2", source: include_str!("kernel.cu"), only: None },
    &Unit { name: "w2_wide", source: include_str!("wide.cu"), only: Some(WIDE_CAPABILITY) },
);
