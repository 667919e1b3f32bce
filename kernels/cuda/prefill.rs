//! Products with many token rows: a slab of the weight becomes 16-bit numbers, or bytes where activations are bytes, which the
//! second-level cache holds while cuBLASLt multiplies by them.

use std::sync::Arc;

use super::driver::{Blas, Device, Grid, Kernel, Memory, Multiplied, Number, Stream};
use super::error::DeviceError;
use super::images::Unit;
use super::tiles::TILE_CHANNELS;
use super::weight::{Arguments, DeviceProduct, DeviceRows, DeviceWeight, Element, IntegerArguments};
use super::workspace::Workspace;

/// Where the kernel is that follows cuBLASLt.
pub(super) static UNIT: Unit = Unit { name: "finish", source: include_str!("finish.cu") };

/// Bytes of a slab: some of the second-level cache of a large device.
const SLAB: usize = 24 << 20;

/// Token rows of a product: a grid has no more blocks in its second direction, of eight rows each.
const MOST_ROWS: usize = 8 * 65535;

/// What products with many rows need besides: cuBLASLt, and memory for a slab and its sums. It serves one product after another on
/// one stream.
#[derive(Debug)]
pub struct Prefill {
    stream: usize,
    rows: usize,
    blas: Blas,
    slab: Memory,
    sums: Memory,
    finish: [Kernel; 2],
    finish_integers: [Kernel; 2],
}

/// The one parameter of a kernel: `Finish` in `finish.cu`.
#[repr(C)]
struct FinishArguments {
    few: Arguments,
    sums: u64,
    first: i32,
    stride: i32,
}

/// The one parameter of a kernel: `FinishIntegers` in `finish.cu`.
#[repr(C)]
struct FinishIntegerArguments {
    of: IntegerArguments,
    sums: u64,
    first: i32,
    stride: i32,
    times: i32,
}

/// Bytes of a number of a slab.
fn size(weight: &DeviceWeight) -> usize {
    if weight.scales().is_some() { 1 } else { 2 }
}

/// Token rows from which on cuBLASLt is thought to be faster, numbers and all: for weights whose kernels take 64 rows at once, of which
/// one pass over 3584 x 18944 costs an H200 about 12 us by its instructions, and making numbers of such a weight, with a product in half
/// precision, about 70; and for bytes, 16 rows at once. No device was asked: `gpu_check --only bench` tells the times of both.
const MANY_ROWS: usize = 321;
const MANY_ROWS_OF_BYTES: usize = 65;

/// Numbers from one row of a slab to the next.
fn row(weight: &DeviceWeight) -> usize {
    weight.k().next_multiple_of(16 / size(weight))
}

/// Rows of tiles of a slab.
fn height(weight: &DeviceWeight) -> usize {
    (SLAB / (size(weight) * TILE_CHANNELS * row(weight))).clamp(1, weight.row_tiles())
}

impl Prefill {
    /// For the products of these weights with up to `rows` token rows, on one stream.
    ///
    /// # Errors
    ///
    /// If cuBLASLt is not there, kernels cannot be loaded, or memory is short.
    pub fn new(stream: &Stream, weights: &[&DeviceWeight], rows: usize) -> Result<Prefill, DeviceError> {
        let device: &Arc<Device> = stream.device();
        let blas = Blas::new(device)?;
        let channels = |weight: &&DeviceWeight| TILE_CHANNELS * height(weight);
        let slab = weights.iter().map(|weight| size(weight) * channels(weight) * row(weight)).max();
        let sums = weights.iter().map(|weight| 4 * channels(weight)).max();
        let (slab, sums) = (device.memory(slab.unwrap_or(0))?, device.memory(sums.unwrap_or(0).saturating_mul(rows))?);
        // Channels that a weight does not have are multiplied too, and left alone.
        stream.fill(&slab, 0)?;
        stream.synchronize()?;
        let finish = [device.kernel(&UNIT, "finish_f16")?, device.kernel(&UNIT, "finish_bf16")?];
        let integers = |element| device.kernel(&UNIT, &format!("finish_integers_{element}"));
        let finish_integers = [integers("f16")?, integers("bf16")?];
        Ok(Prefill { stream: stream.id(), rows, blas, slab, sums, finish, finish_integers })
    }

    /// Bytes that it takes, without what cuBLASLt uses.
    pub fn bytes(&self) -> usize {
        self.slab.bytes() + self.sums.bytes()
    }
}

impl DeviceWeight {
    /// Token rows from which on [`DeviceWeight::product_of_any`] takes cuBLASLt.
    pub fn many(&self) -> usize {
        if self.middle.is_some() { MANY_ROWS } else { MANY_ROWS_OF_BYTES }
    }

    /// Puts `y = x W^T` into the stream in the way that is thought to be faster for that many token rows: as [`DeviceWeight::product`]
    /// or, from [`DeviceWeight::many`] on, as [`DeviceWeight::product_of_many`] does.
    ///
    /// # Errors
    ///
    /// As for these.
    pub fn product_of_any(
        &self,
        stream: &Stream,
        product: &DeviceProduct<'_>,
        workspace: &mut Workspace,
        prefill: &mut Prefill,
    ) -> Result<(), DeviceError> {
        match product.rows < self.many() {
            true => self.product(stream, product, workspace),
            false => self.product_of_many(stream, product, prefill),
        }
    }

    /// Puts `y = x W^T` into the stream, as [`DeviceWeight::product`] does (a spread means nothing here), in time that many token rows
    /// are worth. Weights are rounded to the element of the product, and the order of sums is cuBLASLt's; where activations are bytes,
    /// sums are exact.
    ///
    /// # Errors
    ///
    /// As for [`DeviceWeight::product`]; if there are more rows than `prefill` was made for; if cuBLASLt has nothing for so few (which
    /// is said of bytes and less than 32 rows; [`DeviceWeight::product`] takes them).
    pub fn product_of_many(
        &self,
        stream: &Stream,
        product: &DeviceProduct<'_>,
        prefill: &mut Prefill,
    ) -> Result<(), DeviceError> {
        let &DeviceProduct { rows, element, .. } = product;
        if rows == 0 {
            return Ok(());
        }
        if prefill.stream != stream.id() {
            return Err(DeviceError::Foreign { what: "the memory of a product of many rows", whose: "stream" });
        }
        let most = prefill.rows.min(MOST_ROWS);
        if rows > most {
            let expected = format!("up to {most}, as was said beforehand");
            return Err(DeviceError::Shape { what: "the number of token rows", found: rows, expected });
        }
        self.check(stream, product)?;
        let (x, size, token_scales) = product.x.parts();
        let stride = row(self);
        let number = match (size, element) {
            (1, _) => Number::I8,
            (_, Element::F16) => Number::F16,
            (_, Element::Bf16) => Number::Bf16,
        };
        let (slab, sums) = (prefill.slab.bytes(), prefill.sums.bytes());
        let channels = TILE_CHANNELS * height(self);
        if slab < size * channels * stride || sums < 4 * channels * rows {
            let expected = format!("{} bytes for a slab; name the weight beforehand", size * channels * stride);
            return Err(DeviceError::Shape { what: "the memory of a product of many rows", found: slab, expected });
        }
        for first in (0..self.row_tiles()).step_by(height(self)) {
            let last = self.row_tiles().min(first + height(self));
            let channels = TILE_CHANNELS * (last - first);
            self.to_rows(stream, first..last, element, DeviceRows { memory: &prefill.slab, stride })?;
            let multiplied = Multiplied {
                number,
                rows,
                n: channels,
                // Whole groups of 16 bytes: behind k, weights of the slab are zeros.
                k: if number == Number::I8 { stride } else { self.k() },
                x: x.memory,
                x_stride: x.stride,
                w: &prefill.slab,
                w_stride: stride,
                y: &prefill.sums,
                y_stride: channels,
                rounded: false,
            };
            let (few, at, by) = (self.arguments(product), first as i32, usize::from(element == Element::Bf16));
            let grid = Grid { blocks: [(last - first) as u32, rows.div_ceil(8) as u32], threads: 256, shared: 0 };
            let mut uses = self.uses(product);
            uses.push(&prefill.sums);
            // SAFETY: `check` has seen that x and y are as large as they have to be, the slab and the sums were looked at above;
            // the arguments are the parameters of the kernels, field by field.
            #[expect(unsafe_code, reason = "kernels trust their arguments")]
            unsafe {
                prefill.blas.multiply(stream, &multiplied)?;
            }
            let sums = prefill.sums.at();
            #[expect(unsafe_code, reason = "as above")]
            if let (Some(scales), Some(token_scales)) = (self.scales(), token_scales) {
                uses.push(scales);
                let (token_scales, scales) = (token_scales.at(), scales.at());
                let of = IntegerArguments { few, codes: 0, token_scales, scales };
                // Codes of fewer bits are in the upper bits of bytes.
                let times = 1 << (8 - self.format().bits);
                let arguments = FinishIntegerArguments { of, sums, first: at, stride: channels as i32, times };
                // SAFETY: as above.
                unsafe { stream.launch(&prefill.finish_integers[by], grid, &arguments, &uses)? };
            } else {
                let arguments = FinishArguments { few, sums, first: at, stride: channels as i32 };
                // SAFETY: as above.
                unsafe { stream.launch(&prefill.finish[by], grid, &arguments, &uses)? };
            }
        }
        Ok(())
    }
}
