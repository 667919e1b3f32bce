//! The tiles of `kernel.cu`: eight codes to a word.

use crate::cuda::{TileCodes, Unit, WIDE_CAPABILITY};

/// See `kernel.cu`.
pub(super) static TILES: TileCodes = TileCodes::fields::<4>(
    &Unit { name: "w4", source: include_str!("kernel.cu"), only: None },
    &Unit { name: "w4_wide", source: include_str!("wide.cu"), only: Some(WIDE_CAPABILITY) },
);
