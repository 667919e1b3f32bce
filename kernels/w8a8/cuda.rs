//! The tiles of `kernel.cu`.

use crate::cuda::{TileCodes, Unit};

/// See `kernel.cu`.
pub(super) static TILES: TileCodes = TileCodes::bytes(&Unit { name: "w8a8", source: include_str!("kernel.cu") });
