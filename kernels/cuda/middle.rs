//! Products with 33 to 64 token rows, which one kernel takes at once.

use super::driver::{Device, Grid, Kernel, Memory, Stream};
use super::error::DeviceError;
use super::images::Unit;
use super::spread::Spread;
use super::tiles::TILE_CHANNELS;
use super::weight::{Arguments, DeviceProduct, DeviceWeight, Element};
use super::workspace::Workspace;
use crate::error::length;

/// Token rows that the kernel takes at once.
pub(super) const MIDDLE_ROWS: usize = 64;

/// Rows of tiles of a band: one for each warp.
const TOGETHER: usize = 8;

/// Token rows that are finished at once.
const FINISHED: usize = 32;

/// The one parameter of a kernel: `Middle` in `middle.cuh`.
#[repr(C)]
struct MiddleArguments {
    few: Arguments,
    groups: i32,
}

/// The kernels of a format, by element.
#[derive(Clone, Debug)]
pub(super) struct Middle {
    kernels: [Kernel; 2],
    /// Bytes of shared memory: two stages of 128 activations of all token rows, and of a tile for each warp.
    shared: usize,
}

impl Middle {
    /// For tiles with that many bytes of codes.
    pub(super) fn load(
        device: &Device,
        unit: &'static Unit,
        format: &str,
        codes: usize,
    ) -> Result<Middle, DeviceError> {
        let shared = 2 * (MIDDLE_ROWS * 256 + TOGETHER * (codes + 4 * 128));
        let kernel = |element| device.kernel_with_shared(unit, &format!("{format}a16_{element}_{MIDDLE_ROWS}"), shared);
        Ok(Middle { kernels: [kernel("f16")?, kernel("bf16")?], shared })
    }
}

impl DeviceWeight {
    /// As many blocks as run at once, one on each multiprocessor.
    fn middle_spread(&self, device: &Device) -> Spread {
        let blocks = device.about().multiprocessors.clamp(1, self.units(TOGETHER));
        Spread { together: TOGETHER, blocks }
    }

    /// Bytes of partial sums, and of counts.
    pub(super) fn middle_workspace(&self, device: &Device) -> (usize, usize) {
        let spread = self.middle_spread(device);
        if self.middle.is_none() || !self.meets(spread) {
            return (0, 0);
        }
        let (bands, pieces) = (self.row_tiles().div_ceil(TOGETHER), MIDDLE_ROWS / FINISHED);
        (length(&[spread.blocks + bands, pieces, FINISHED, TOGETHER, TILE_CHANNELS, 4]), 4 * bands * pieces)
    }

    /// A product with so many rows that this kernel takes them at once; it was checked.
    pub(super) fn product_of_some(
        &self,
        stream: &Stream,
        product: &DeviceProduct<'_>,
        kernels: &Middle,
        workspace: &mut Workspace,
    ) -> Result<(), DeviceError> {
        let device = stream.device();
        let (partial, arrived) = self.middle_workspace(device);
        workspace.check(stream, partial, arrived)?;
        let spread = self.middle_spread(device);
        let arguments = MiddleArguments {
            few: self.dealt(product, spread, workspace),
            groups: i32::try_from(self.groups()).expect("four at most"),
        };
        let grid = Grid { blocks: [spread.blocks as u32, 1], threads: 256, shared: kernels.shared as u32 };
        let mut uses: Vec<&Memory> = self.uses(product);
        uses.extend(workspace.memory());
        // SAFETY: `MiddleArguments` is the parameter of these kernels, field by field; `DeviceWeight::check` has seen that all memory
        // is as large as they expect, the workspace was looked at above, and all of it is in `uses`.
        #[expect(unsafe_code, reason = "kernels trust their arguments")]
        unsafe {
            stream.launch(&kernels.kernels[usize::from(product.element == Element::Bf16)], grid, &arguments, &uses)
        }
    }
}
