//! Products with many token rows: a slab of the weight, as a rule all of it, becomes 16-bit numbers, or bytes where activations are
//! bytes, by which cuBLASLt multiplies. It adds bias and residual where that is all there is to do; otherwise a kernel of ours makes
//! outputs of the sums.

use std::ops::Range;
use std::sync::Arc;

use super::driver::{Blas, Device, Grid, Kernel, Memory, Multiplied, Number, Stream};
use super::error::DeviceError;
use super::images::Unit;
use super::rows::ToRows;
use super::tiles::{TILE_CHANNELS, TILE_K};
use super::weight::{Arguments, DeviceProduct, DeviceRows, DeviceWeight, Element, IntegerArguments};

/// Where the kernel is that follows cuBLASLt.
pub(super) static UNIT: Unit = Unit { name: "finish", source: include_str!("finish.cu"), only: None };

/// Bytes of a slab, and of sums, where a kernel follows: enough for a layer of 3584 x 18944 and 2048 token rows. Each slab is a product of
/// its own, whose beginning and end leave multiprocessors idle; of what is written before the product begins, the second-level cache holds
/// a part anyway. A guess: no device was asked.
pub(super) const SLAB: usize = 160 << 20;

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
    finish_integers: Kernel,
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
    if weight.of_integers() { 1 } else { 2 }
}

/// Numbers from one row of a slab to the next.
fn row(weight: &DeviceWeight) -> usize {
    weight.k().next_multiple_of(16 / size(weight))
}

/// Whether it is what cuBLASLt multiplies by: rows of bytes, with whole tiles along k.
fn as_it_is(weight: &DeviceWeight) -> bool {
    matches!(weight.to_rows, ToRows::AsTheyAre)
}

/// Bytes of a row of tiles in a slab.
fn of_row_tile(weight: &DeviceWeight) -> usize {
    size(weight) * TILE_CHANNELS * row(weight)
}

impl Prefill {
    /// For the products of these weights with up to `rows` token rows, on one stream.
    ///
    /// # Errors
    ///
    /// If cuBLASLt is not there, kernels cannot be loaded, or memory is short.
    pub fn new(stream: &Stream, weights: &[&DeviceWeight], rows: usize) -> Result<Prefill, DeviceError> {
        Prefill::with_slab(stream, weights, rows, SLAB)
    }

    /// The same with slabs, and sums, of that many bytes, or of 32 output channels if that is more.
    ///
    /// # Errors
    ///
    /// As for [`Prefill::new`].
    pub fn with_slab(
        stream: &Stream,
        weights: &[&DeviceWeight],
        rows: usize,
        bytes: usize,
    ) -> Result<Prefill, DeviceError> {
        let device: &Arc<Device> = stream.device();
        let blas = Blas::new(device)?;
        let slabs = weights.iter().filter(|weight| !as_it_is(weight)).map(|weight| {
            let one = of_row_tile(weight);
            one * (bytes / one).clamp(1, weight.row_tiles())
        });
        let all = |weight: &&DeviceWeight| (4 * TILE_CHANNELS * weight.row_tiles()).saturating_mul(rows);
        let most = bytes.max((4 * TILE_CHANNELS).saturating_mul(rows));
        let sums = weights.iter().map(|weight| all(weight).min(most)).max();
        let (slab, sums) = (device.memory(slabs.max().unwrap_or(0))?, device.memory(sums.unwrap_or(0))?);
        // Channels that a weight does not have are multiplied too, and left alone.
        stream.fill(&slab, 0)?;
        stream.synchronize()?;
        let finish = [device.kernel(&UNIT, "finish_f16")?, device.kernel(&UNIT, "finish_bf16")?];
        let finish_integers = device.kernel(&UNIT, "finish_integers")?;
        Ok(Prefill { stream: stream.id(), rows, blas, slab, sums, finish, finish_integers })
    }

    /// Bytes that it takes, without what cuBLASLt uses.
    pub fn bytes(&self) -> usize {
        self.slab.bytes() + self.sums.bytes()
    }
}

impl DeviceWeight {
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
        let (x, size, _) = product.x.parts();
        let stride = row(self);
        let number = match (size, element) {
            (1, _) => Number::I8,
            (_, Element::F16) => Number::F16,
            (_, Element::Bf16) => Number::Bf16,
        };
        let of_slab = if as_it_is(self) { self.row_tiles() } else { prefill.slab.bytes() / of_row_tile(self) };
        let of_sums = prefill.sums.bytes() / (4 * TILE_CHANNELS * rows);
        if of_slab == 0 || of_sums == 0 {
            let found = prefill.slab.bytes();
            let expected = format!("{} bytes or more for a slab; name the weight beforehand", of_row_tile(self));
            return Err(DeviceError::Shape { what: "the memory of a product of many rows", found, expected });
        }
        let direct = self.is_finished_by_blas(product);
        let most = if direct { of_slab } else { of_slab.min(of_sums) };
        // Slabs of about the same height.
        let height = self.row_tiles().div_ceil(self.row_tiles().div_ceil(most));
        for first in (0..self.row_tiles()).step_by(height) {
            let last = self.row_tiles().min(first + height);
            let channels = TILE_CHANNELS * (last - first);
            let tiles = self.tiles().bytes() / self.row_tiles();
            let (w, w_stride) = match as_it_is(self) {
                true => (self.tiles().part(first * tiles..last * tiles)?, TILE_K * self.k_tiles()),
                false => (prefill.slab.clone(), stride),
            };
            self.to_rows(stream, first..last, element, DeviceRows { memory: &w, stride })?;
            let sums = Multiplied {
                number,
                rows,
                n: channels,
                // Whole groups of 16 bytes: behind k, weights are zeros.
                k: if number == Number::I8 { stride } else { self.k() },
                x: x.memory,
                x_stride: x.stride,
                w: &w,
                w_stride,
                y: &prefill.sums,
                y_stride: channels,
                rounded: false,
                bias: None,
                residual: None,
            };
            if direct {
                let begin = 2 * TILE_CHANNELS * first;
                let behind = |memory: &Memory| memory.part(begin..memory.bytes());
                let bias = product.bias.map(behind).transpose()?;
                let residual = product.residual.map(behind).transpose()?;
                let finished = Multiplied {
                    n: channels.min(self.n() - TILE_CHANNELS * first),
                    y: &product.y.memory.part(begin..product.y.memory.bytes())?,
                    y_stride: product.y.stride,
                    rounded: true,
                    bias: bias.as_ref(),
                    residual: residual.as_ref(),
                    ..sums
                };
                // SAFETY: `check` has seen that x, y, bias and residual are as large as they have to be; the slab was looked at above.
                #[expect(unsafe_code, reason = "the library trusts its arguments")]
                unsafe {
                    prefill.blas.multiply(stream, &finished)?;
                }
                continue;
            }
            // SAFETY: as above, and the sums were looked at.
            #[expect(unsafe_code, reason = "the library trusts its arguments")]
            unsafe {
                prefill.blas.multiply(stream, &sums)?;
            }
            self.finish(stream, product, prefill, first..last)?;
        }
        Ok(())
    }

    /// Outputs of the sums of some rows of tiles.
    fn finish(
        &self,
        stream: &Stream,
        product: &DeviceProduct<'_>,
        prefill: &Prefill,
        rows: Range<usize>,
    ) -> Result<(), DeviceError> {
        let (few, sums, first) = (self.arguments(product), prefill.sums.at(), rows.start as i32);
        let stride = (TILE_CHANNELS * rows.len()) as i32;
        let grid = Grid { blocks: [rows.len() as u32, product.rows.div_ceil(8) as u32], threads: 256, shared: 0 };
        let mut uses = self.uses(product);
        uses.push(&prefill.sums);
        #[expect(unsafe_code, reason = "kernels trust their arguments")]
        if let Some(of) = self.integers(few, product) {
            // Codes of fewer bits are in the upper bits of bytes.
            let times = 1 << (8 - self.format().bits);
            let arguments = FinishIntegerArguments { of, sums, first, stride, times };
            // SAFETY: the arguments are the parameters of the kernels, field by field; `product_of_many` has looked at the memory.
            unsafe { stream.launch(&prefill.finish_integers, grid, &arguments, &uses) }
        } else {
            let arguments = FinishArguments { few, sums, first, stride };
            let kernel = &prefill.finish[usize::from(product.element == Element::Bf16)];
            // SAFETY: as above.
            unsafe { stream.launch(kernel, grid, &arguments, &uses) }
        }
    }

    /// Whether cuBLASLt does all there is to do: outputs are sums with a bias and a residual, of 16 bits, and lie where it likes them.
    fn is_finished_by_blas(&self, product: &DeviceProduct<'_>) -> bool {
        let &DeviceProduct { bias, residual, y, single, .. } = product;
        let all = [bias, residual, Some(y.memory)];
        let aligned = all.into_iter().flatten().all(|memory| memory.at().is_multiple_of(16));
        !self.of_integers() && !self.gated() && !single && aligned && y.stride.is_multiple_of(8)
    }
}
