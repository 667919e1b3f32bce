//! Products with 17 to 64 token rows, which one kernel takes at once: a weight is read, and decoded, once. No device was asked whether
//! up to 32 rows are not better taken 16 at a time: of a tile of w3 that costs twice 443 instructions with groups of 32, against 1033 here
//! (`tests/gpu/costs.json`), of which 256 apply scales; with groups of 128, twice 294, against a fourth of these and the rest.

use super::driver::{Device, Grid, Kernel, Memory, Stream};
use super::error::DeviceError;
use super::images::Unit;
use super::spread::Spread;
use super::tiles::{TILE_CHANNELS, TILE_K};
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
    /// Bytes of shared memory: stages of 128 activations of all token rows, and of a tile for each warp.
    shared: usize,
}

impl Middle {
    /// For tiles with that many bytes of codes, of formats that have groups or not.
    pub(super) fn load(
        device: &Device,
        unit: &'static Unit,
        format: &str,
        codes: usize,
        groups: bool,
    ) -> Result<Middle, DeviceError> {
        // As `Grouped` in `middle.cuh` and `Integers` in `integer.cuh` have it.
        let (x, tile, stages) = match groups {
            true => (2 * TILE_K, codes + 4 * 128, 2),
            false => (TILE_K, codes, if codes < 4096 { 3 } else { 2 }),
        };
        let shared = stages * (MIDDLE_ROWS * x + TOGETHER * tile);
        let kernel = |element| {
            let name = match groups {
                true => format!("{format}a16_{element}_{MIDDLE_ROWS}"),
                false => format!("{format}_{MIDDLE_ROWS}"),
            };
            device.kernel_with_shared(unit, &name, shared)
        };
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
        if !self.meets(spread) {
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
        workspace: &mut Workspace,
    ) -> Result<(), DeviceError> {
        let device = stream.device();
        let (partial, arrived) = self.middle_workspace(device);
        workspace.check(stream, partial, arrived)?;
        let spread = self.middle_spread(device);
        let few = self.dealt(product, spread, workspace);
        let kernel = &self.middle.kernels[usize::from(product.element == Element::Bf16)];
        let grid = Grid { blocks: [spread.blocks as u32, 1], threads: 256, shared: self.middle.shared as u32 };
        let mut uses: Vec<&Memory> = self.uses(product);
        uses.extend(workspace.memory());
        // SAFETY: the arguments are the parameters of these kernels, field by field; `DeviceWeight::check` has seen that all memory
        // is as large as they expect, the workspace was looked at above, and all of it is in `uses`.
        #[expect(unsafe_code, reason = "kernels trust their arguments")]
        unsafe {
            if let Some(arguments) = self.integers(few, product) {
                return stream.launch(kernel, grid, &arguments, &uses);
            }
            let groups = i32::try_from(self.groups()).expect("four at most");
            stream.launch(kernel, grid, &MiddleArguments { few, groups }, &uses)
        }
    }
}
