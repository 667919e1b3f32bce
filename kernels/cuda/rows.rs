//! Tiles back to rows of numbers, for products with many token rows.

use std::ops::Range;

use super::driver::{Device, Grid, Kernel, Stream};
use super::error::DeviceError;
use super::images::Unit;
use super::tiles::{Order, TILE_CHANNELS};
use super::weight::{DeviceRows, DeviceWeight, Element, memory, stride};

/// The one parameter of a kernel: `Dequantize` in `dequantize.cuh`.
#[repr(C)]
struct DequantizeArguments {
    tiles: u64,
    w: u64,
    first: i32,
    n: i32,
    k: i32,
    k_tiles: i32,
    groups: i32,
    stride: i32,
    gated: i32,
}

/// The kernels of a format that do so.
#[derive(Clone, Debug)]
pub(super) enum ToRows {
    /// Of formats that have groups, by element: `s (q - z)`.
    Numbers([Kernel; 2]),
    /// Of formats that are multiplied in integers: signed bytes.
    Codes(Kernel),
    /// They are rows of signed bytes, with whole tiles along k.
    AsTheyAre,
}

impl ToRows {
    pub(super) fn load(
        device: &Device,
        unit: &'static Unit,
        format: &str,
        groups: bool,
        order: Order,
    ) -> Result<ToRows, DeviceError> {
        let kernel = |name: &str| device.kernel(unit, &format!("{format}_{name}"));
        Ok(match order {
            Order::Rows => ToRows::AsTheyAre,
            _ if groups => ToRows::Numbers([kernel("dequantize_f16")?, kernel("dequantize_bf16")?]),
            Order::Lanes(..) => ToRows::Codes(kernel("codes")?),
        })
    }
}

impl DeviceWeight {
    /// Puts into the stream what the codes of some rows of tiles stand for: `s (q - z)`, rounded once, `[32 rows.len(), k]`. With a
    /// gate, a row of tiles is 16 channels of it above the 16 they are multiplied by. Rows of channels that there are not stay as
    /// they were, as do columns behind the eight that k ends in.
    ///
    /// # Errors
    ///
    /// If the format has no groups, there are no such rows of tiles, or memory is too small, not aligned or another device's.
    pub fn dequantize(
        &self,
        stream: &Stream,
        rows: Range<usize>,
        element: Element,
        w: DeviceRows<'_>,
    ) -> Result<(), DeviceError> {
        match &self.to_rows {
            ToRows::Numbers(_) => self.to_rows(stream, rows, element, w),
            ToRows::Codes(_) | ToRows::AsTheyAre => Err(DeviceError::NoGroups { format: self.format().name }),
        }
    }

    /// The same; nothing if they are rows; of other formats that are multiplied in integers their codes as signed bytes, those of 4
    /// bits times 16, in rows at multiples of 16 bytes.
    pub(super) fn to_rows(
        &self,
        stream: &Stream,
        rows: Range<usize>,
        element: Element,
        w: DeviceRows<'_>,
    ) -> Result<(), DeviceError> {
        let (kernel, size) = match &self.to_rows {
            ToRows::Numbers(kernels) => (&kernels[usize::from(element == Element::Bf16)], 2),
            ToRows::Codes(kernel) => (kernel, 1),
            ToRows::AsTheyAre => return Ok(()),
        };
        if rows.is_empty() || rows.end > self.row_tiles() {
            let expected = format!("up to {}, behind the first", self.row_tiles());
            return Err(DeviceError::Shape { what: "the last row of tiles", found: rows.end, expected });
        }
        stream.own("the weight", self.tiles())?;
        stride("the stride of the numbers", w.stride, self.k().next_multiple_of(16 / size), 16 / size, 1)?;
        memory(stream, "the numbers", w.memory, size * TILE_CHANNELS * rows.len() * w.stride, 16)?;
        let number = |number: usize| i32::try_from(number).expect("checked");
        let arguments = DequantizeArguments {
            tiles: self.tiles().at(),
            w: w.memory.at(),
            first: number(rows.start),
            n: number(self.n()),
            k: number(self.k()),
            k_tiles: number(self.k_tiles()),
            groups: number(self.groups()),
            stride: number(w.stride),
            gated: i32::from(self.gated()),
        };
        let grid = Grid { blocks: [self.k_tiles() as u32, rows.len() as u32], threads: 128, shared: 0 };
        // SAFETY: `DequantizeArguments` is the parameter of these kernels, field by field; the numbers have room, and what is
        // used is in the list.
        #[expect(unsafe_code, reason = "kernels trust their arguments")]
        unsafe {
            stream.launch(kernel, grid, &arguments, &[self.tiles(), w.memory])
        }
    }
}
