//! The order of weights that `kernel.cu` reads.

use crate::cuda::{TileCodes, Unit, WIDE_CAPABILITY};

/// See `kernel.cu`.
pub(super) static TILES: TileCodes = TileCodes::rows(
    &Unit { name: "w8a8", source: include_str!("kernel.cu"), only: None },
    &Unit { name: "w8a8_wide", source: include_str!("wide.cu"), only: Some(WIDE_CAPABILITY) },
);
