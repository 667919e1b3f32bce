//! The shape of a weight in tiles and groups, for one instruction set.

use super::Decode;
use crate::error::Error;
use crate::format::{Format, Scales, Stored};

/// Weights of a group: sums of as many integers of 16 bits are exact in f32, and sums of products in 32 bits.
const MOST_GROUP: usize = 512;

/// Input channels for which no length overflows.
const MOST_CHANNELS: usize = u32::MAX as usize >> 4;

/// How the rows of a weight are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    /// Input channels.
    pub(crate) k: usize,
    /// Weights that share a scale: the group size, or all of a row.
    pub(crate) group: usize,
    /// Groups of a row.
    pub(crate) groups: usize,
    /// Bytes of a register.
    pub(crate) width: usize,
    /// Registers of a tile.
    pub(crate) registers: usize,
    /// Tiles of a row; the last may reach beyond its end.
    pub(crate) tiles: usize,
    /// Tiles that lie within a row.
    pub(crate) whole_tiles: usize,
    /// Stored bytes of a tile.
    pub(crate) tile_bytes: usize,
    /// Stored bytes of a row.
    pub(crate) row_bytes: usize,
    /// Tiles of a block: the least number of tiles that holds whole groups.
    pub(crate) block_tiles: usize,
    /// Groups of a block: 1 if a block is more than one tile.
    pub(crate) block_groups: usize,
    /// Blocks of a row.
    pub(crate) blocks: usize,
    /// The length of rows of scales: the groups of all blocks in whole registers of floats, and one register more, so that
    /// one can be loaded from anywhere before.
    pub(crate) padded_groups: usize,
}

impl Layout {
    /// The layout of a weight in registers of `width` bytes, if groups and registers fit one another and no sum overflows:
    /// groups are powers of two whose codes fill whole lanes of 32 bits, of at most [`MOST_GROUP`] weights; where a group
    /// is a row, its sum is below 2^31.
    pub(crate) fn new<D: Decode>(k: usize, group: usize, width: usize) -> Option<Layout> {
        let fits = if D::WHOLE_ROWS {
            k <= i32::MAX as usize >> (7 + D::BITS - 1)
        } else {
            k <= MOST_CHANNELS && group <= MOST_GROUP && group.is_power_of_two() && group >= 4 * D::REGISTERS
        };
        if !fits {
            return None;
        }
        let tile = D::weights(width);
        let tile_bytes = tile / 8 * D::BITS as usize;
        let (group, groups, row_bytes) = if D::WHOLE_ROWS {
            (k, 1, (k * D::BITS as usize).div_ceil(8))
        } else {
            let groups = k.div_ceil(group);
            (group, groups, groups * (group / 8) * D::BITS as usize)
        };
        let (block_tiles, block_groups) = match D::WHOLE_ROWS || group >= tile {
            true => (group.div_ceil(tile), 1),
            false => (1, tile / group),
        };
        let blocks = groups.div_ceil(block_groups);
        Some(Layout {
            k,
            group,
            groups,
            width,
            registers: D::REGISTERS,
            tiles: blocks * block_tiles,
            // Where a block is several tiles, groups are whole, and so are their tiles.
            whole_tiles: if D::WHOLE_ROWS || block_tiles == 1 { row_bytes / tile_bytes } else { groups * block_tiles },
            tile_bytes,
            row_bytes,
            block_tiles,
            block_groups,
            blocks,
            padded_groups: (blocks * block_groups).next_multiple_of(width / 4) + width / 4,
        })
    }

    /// Lanes of 32 bits.
    pub(crate) fn lanes(&self) -> usize {
        self.width / 4
    }

    /// Whether groups fill whole fours of lanes, so that the sums of four lines can share a register.
    pub(crate) fn folds(&self) -> bool {
        self.block_groups * 4 <= self.lanes()
    }

    /// Bytes of a tile of activations or of codes: its weights.
    pub(crate) fn tile_weights(&self) -> usize {
        self.registers * self.width
    }

    /// The order in which weights leave a tile.
    pub(crate) fn order<D: Decode>(&self) -> Order {
        let bytes = (0..D::period(self.width)).flat_map(|tile| {
            let registers = (0..self.registers).map(move |register| (tile, register));
            registers.flat_map(|(tile, register)| (0..self.width).map(move |byte| (tile, register, byte)))
        });
        let places: Vec<usize> =
            bytes.map(|(tile, register, byte)| D::source(self.width, tile, register, byte)).collect();
        let stride = places[1] - places[0];
        let steady = |run: &usize| {
            places.chunks(*run).all(|run| run.iter().enumerate().all(|(i, &place)| place == run[0] + i * stride))
        };
        let run = [64, 32, 16, 8, 4, 2, 1].into_iter().filter(|run| *run <= self.width).find(steady).unwrap_or(1);
        Order { run, stride, starts: places.iter().step_by(run).map(|&place| place as u32).collect() }
    }
}

/// The places along k of the bytes of a period of tiles: runs of equal length and stride.
#[derive(Default)]
pub(crate) struct Order {
    /// Bytes of a run; registers hold whole runs.
    pub(crate) run: usize,
    /// From one byte of a run to the next.
    pub(crate) stride: usize,
    /// Of each run.
    pub(crate) starts: Vec<u32>,
}

/// A stored weight whose parts are as long as its shape says.
#[derive(Clone, Copy)]
pub(crate) struct Weight<'a> {
    pub(crate) layout: Layout,
    pub(crate) codes: &'a [u8],
    pub(crate) scales: Scales<'a>,
    pub(crate) zero_points: Option<&'a [u8]>,
}

impl<'a> Weight<'a> {
    /// Checks lengths; `None` if this layout cannot be read in registers of `width` bytes.
    pub(crate) fn new<D: Decode>(format: &Format, w: &Stored<'a>, width: usize) -> Result<Option<Weight<'a>>, Error> {
        w.check(format)?;
        let zero_bits = if D::WHOLE_ROWS { 0 } else { D::ZERO_BITS };
        debug_assert_eq!((format.bits, format.zero_point_bits), (D::BITS, zero_bits), "{} is decoded", format.name);
        Ok(Layout::new::<D>(w.k, w.group, width).map(|layout| Weight {
            layout,
            codes: w.b,
            scales: w.scales,
            zero_points: w.zero_points,
        }))
    }

    /// The bytes of an output channel.
    pub(crate) fn row(&self, channel: usize) -> &'a [u8] {
        &self.codes[channel * self.layout.row_bytes..][..self.layout.row_bytes]
    }
}
