//! The tiles of `kernel.cu`.

use crate::cuda::{TileCodes, Unit};

/// See `kernel.cu`.
pub(super) static TILES: TileCodes = TileCodes::nibbles(&Unit { name: "w4a8", source: include_str!("kernel.cu") });
