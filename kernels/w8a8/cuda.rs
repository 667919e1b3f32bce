//! The order of weights that `kernel.cu` reads.

use crate::cuda::{TileCodes, Unit};

/// See `kernel.cu`.
pub(super) static TILES: TileCodes = TileCodes::rows(&Unit { name: "w8a8", source: include_str!("kernel.cu") });
