//! CUDA: weights on a device, and products with them.
//!
//! ```no_run
//! # use mbqc_kernels::{Format, Stored, cuda::*};
//! # fn f(format: &'static Format, stored: &Stored<'_>) -> Result<(), DeviceError> {
//! let stream = Device::open(0)?.stream()?;
//! let weight = DeviceWeight::load(&stream, format, stored, false)?;
//! let mut workspace = Workspace::new(&stream, &[&weight], None)?;
//! let x = stream.device().memory(2 * weight.k().next_multiple_of(8))?;
//! let y = stream.device().memory(2 * weight.outputs())?;
//! let product = DeviceProduct {
//!     x: DeviceRows { memory: &x, stride: weight.k().next_multiple_of(8) }.into(),
//!     y: DeviceRows { memory: &y, stride: weight.outputs() },
//!     rows: 1,
//!     element: Element::F16,
//!     bias: None,
//!     residual: None,
//!     single: false,
//!     spread: None,
//! };
//! weight.product(&stream, &product, &mut workspace)?;
//! stream.synchronize()
//! # }
//! ```
//!
//! Nothing of this has run on a device yet: kernels compile for every architecture, and kernels and this interface are tested on
//! the host, emulated (`tests/emulated.rs`).

mod dense;
mod driver;
mod error;
mod estimate;
mod images;
mod middle;
mod norm;
mod prefill;
mod rows;
mod spread;
mod tiles;
mod weight;
mod wide;
mod workspace;

pub use dense::{Dense, DenseProduct};
pub use driver::{About, Device, Graph, Loaded, Mark, Memory, Stream};
pub use error::DeviceError;
pub use estimate::ManyRows;
pub use images::{Unit, source_hash};
pub use norm::{DeviceNorm, DeviceTokens, NormKind, Norms};
pub use prefill::Prefill;
pub use spread::{Spread, TileCost};
pub use tiles::{Fragments, Order, Quarter, TILE_CHANNELS, TILE_K, TileCodes, Tiles};
pub use weight::{DeviceInput, DeviceProduct, DeviceRows, DeviceWeight, Element, ROWS_AT_ONCE};
pub(crate) use wide::WIDE_CAPABILITY;
pub use wide::Way;
pub use workspace::Workspace;

use crate::format::FORMATS;

/// The sources of all kernels.
pub fn units() -> impl Iterator<Item = &'static Unit> {
    FORMATS
        .iter()
        .filter_map(|format| format.tiles)
        .flat_map(|tiles| [tiles.unit, tiles.wide])
        .chain([&norm::UNIT, &prefill::UNIT])
}
