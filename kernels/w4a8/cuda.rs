//! The tiles of `kernel.cu`.

use crate::cuda::{TileCodes, Unit, WIDE_CAPABILITY};

/// See `kernel.cu`.
pub(super) static TILES: TileCodes = TileCodes::nibbles(
    &Unit { name: "w4a8", source: include_str!("kernel.cu"), only: None },
    &Unit { name: "w4a8_wide", source: include_str!("wide.cu"), only: Some(WIDE_CAPABILITY) },
);
