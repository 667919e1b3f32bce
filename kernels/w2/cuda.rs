//! The tiles of `kernel.cu`: sixteen codes to a word.

use crate::cuda::{TileCodes, Unit};

/// See `kernel.cu`.
pub(super) static TILES: TileCodes = TileCodes::fields::<2>(&Unit { name: "w2", source: include_str!("kernel.cu") });
