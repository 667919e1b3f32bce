//! Products with 17 to 64 token rows, which one kernel takes at once: a weight is read, and decoded, once. No device was asked whether
//! up to 32 rows are not better taken 16 at a time: of a tile of w3 that costs twice 443 instructions with groups of 32, against 1051 here
//! (`tests/gpu/costs.json`), of which 256 apply scales; with groups of 128, twice 294, against a fourth of these and the rest.

use super::driver::{Device, Grid, Kernel, Memory, Stream};
use super::error::DeviceError;
use super::images::Unit;
use super::spread::{Spread, TileCost, WARPS};
use super::tiles::{Geometry, TILE_CHANNELS, TILE_K};
use super::weight::{Arguments, DeviceProduct, DeviceWeight, Element};
use super::workspace::Workspace;
use crate::error::length;

/// Token rows that the kernel takes at once.
pub(super) const MIDDLE_ROWS: usize = 64;

/// Token rows that are finished at once.
const FINISHED: usize = 32;

/// The one parameter of a kernel: `Middle` in `middle.cuh`.
#[repr(C)]
struct MiddleArguments {
    few: Arguments,
    groups: i32,
}

/// The kernels of a format, by element, and how a product is dealt to the device.
#[derive(Clone, Debug)]
pub(super) struct Middle {
    kernels: [Kernel; 2],
    pub(super) spread: Spread,
    /// That a product is thought to take.
    pub(super) seconds: f64,
    /// Bytes of shared memory.
    shared: usize,
}

impl Middle {
    /// For a weight of that many tiles, with so many bytes of codes each.
    pub(super) fn load(
        device: &Device,
        unit: &'static Unit,
        format: &str,
        geometry: &Geometry,
        codes: usize,
    ) -> Result<Middle, DeviceError> {
        let &Geometry { row_tiles, k_tiles, groups, .. } = geometry;
        // As `Grouped` in `middle.cuh` and `Integers` in `integer.cuh` have it; and what a tile costs in instructions, about,
        // of w8a8 and of w3 (`tests/gpu/costs.json`).
        let (activations, tile, stages, instructions) = match groups {
            0 => (TILE_K, codes, if codes < 4096 { 3 } else { 2 }, 400),
            _ => (2 * TILE_K, codes + 4 * 128, 2, 1050),
        };
        // Warps that are not at the same place along k want other activations.
        let shared = |together: usize| stages * (WARPS / together * MIDDLE_ROWS * activations + WARPS * tile);
        let most = device.about().shared;
        let least = if shared(4) <= most { 4 } else { 8 };
        let cost = TileCost { bytes: geometry.tile_bytes(), activations, instructions };
        let multiprocessors = device.about().multiprocessors;
        let (spread, seconds) = Spread::best_alone(row_tiles, k_tiles, cost, multiprocessors, MIDDLE_ROWS, least);
        let shared = shared(spread.together);
        let kernel = |element| {
            let name = match groups {
                0 => format!("{format}_{MIDDLE_ROWS}"),
                _ => format!("{format}a16_{element}_{MIDDLE_ROWS}"),
            };
            device.kernel_with_shared(unit, &name, most)
        };
        Ok(Middle { kernels: [kernel("f16")?, kernel("bf16")?], spread, seconds, shared })
    }
}

impl DeviceWeight {
    /// Bytes of partial sums, and of counts.
    pub(super) fn middle_workspace(&self) -> (usize, usize) {
        let spread = self.middle.spread;
        if !self.meets(spread) {
            return (0, 0);
        }
        let (bands, pieces) = (self.row_tiles().div_ceil(spread.together), MIDDLE_ROWS / FINISHED);
        (length(&[spread.blocks + bands, pieces, FINISHED, spread.together, TILE_CHANNELS, 4]), 4 * bands * pieces)
    }

    /// A product with so many rows that this kernel takes them at once; it was checked.
    pub(super) fn product_of_some(
        &self,
        stream: &Stream,
        product: &DeviceProduct<'_>,
        workspace: &mut Workspace,
    ) -> Result<(), DeviceError> {
        let spread = self.middle.spread;
        let few = self.dealt(product, spread, workspace);
        let kernel = &self.middle.kernels[usize::from(product.element == Element::Bf16)];
        let grid = Grid { blocks: [spread.blocks as u32, 1], threads: 256, shared: self.middle.shared as u32 };
        let mut uses: Vec<&Memory> = self.uses(product);
        uses.extend(workspace.memory());
        // SAFETY: the arguments are the parameters of these kernels, field by field; `DeviceWeight::product` has seen that all
        // memory is as large as they expect, and all of it is in `uses`.
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
