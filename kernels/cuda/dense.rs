//! Products with weights in 16 bits, by cuBLASLt alone: of layers that were not quantized, and what products with few bits are
//! measured beside.

use super::driver::{Blas, Multiplied, Number, Stream};
use super::error::DeviceError;
use super::weight::{DeviceRows, Element, memory, stride};

/// The most numbers along a side.
const MOST: usize = i32::MAX as usize;

/// What products with weights in 16 bits need besides: cuBLASLt. It serves one product after another on one stream.
#[derive(Debug)]
pub struct Dense {
    stream: usize,
    blas: Blas,
}

/// `y = x W^T`: products of 16-bit numbers, added up in f32 in the order that cuBLASLt likes, rounded once.
#[derive(Clone, Copy, Debug)]
pub struct DenseProduct<'a> {
    /// Of all numbers.
    pub element: Element,
    /// Token rows; 0 is no work.
    pub rows: usize,
    /// Output channels.
    pub n: usize,
    /// Input channels.
    pub k: usize,
    /// Activations `[rows, k]`; rows at multiples of 16 bytes.
    pub x: DeviceRows<'a>,
    /// The weight `[n, k]`; rows at multiples of 16 bytes.
    pub w: DeviceRows<'a>,
    /// `[rows, n]`, from a multiple of 16 bytes on.
    pub y: DeviceRows<'a>,
}

impl Dense {
    /// For products on one stream.
    ///
    /// # Errors
    ///
    /// If cuBLASLt is not there, or memory is short.
    pub fn new(stream: &Stream) -> Result<Dense, DeviceError> {
        Ok(Dense { stream: stream.id(), blas: Blas::new(stream.device())? })
    }

    /// Puts a product into the stream.
    ///
    /// # Errors
    ///
    /// If memory is too small, not aligned, another device's, or that of an input is that of y; if this was made for another stream; if
    /// cuBLASLt has nothing for the shape.
    pub fn product(&mut self, stream: &Stream, product: &DenseProduct<'_>) -> Result<(), DeviceError> {
        let &DenseProduct { element, rows, n, k, x, w, y } = product;
        if rows == 0 {
            return Ok(());
        }
        if self.stream != stream.id() {
            return Err(DeviceError::Foreign { what: "the memory of a product in 16 bits", whose: "stream" });
        }
        for (what, found) in [
            ("the number of token rows", rows),
            ("the number of output channels", n),
            ("the number of input channels", k),
        ] {
            if found == 0 || found > MOST {
                return Err(DeviceError::Shape { what, found, expected: format!("1 to {MOST}") });
            }
        }
        stride("the stride of x", x.stride, k, 8, rows)?;
        stride("the stride of the weight", w.stride, k, 8, n)?;
        stride("the stride of y", y.stride, n, 1, rows)?;
        let bytes = |rows: usize, stride: usize, last: usize| 2 * ((rows - 1) * stride + last);
        memory(stream, "x", x.memory, bytes(rows, x.stride, k), 16)?;
        memory(stream, "the weight", w.memory, bytes(n, w.stride, k), 16)?;
        memory(stream, "y", y.memory, bytes(rows, y.stride, n), 16)?;
        if [x.memory, w.memory].into_iter().any(|input| input.overlaps(y.memory)) {
            let expected = "memory that no input lies in".to_owned();
            return Err(DeviceError::Shape { what: "the first byte of y", found: y.memory.start(), expected });
        }
        let number = match element {
            Element::F16 => Number::F16,
            Element::Bf16 => Number::Bf16,
        };
        let multiplied = Multiplied {
            number,
            rows,
            n,
            k,
            x: x.memory,
            x_stride: x.stride,
            w: w.memory,
            w_stride: w.stride,
            y: y.memory,
            y_stride: y.stride,
            rounded: true,
            bias: None,
            residual: None,
        };
        // SAFETY: all memory was seen to be as large as the shapes say, and aligned.
        #[expect(unsafe_code, reason = "the library trusts its arguments")]
        unsafe {
            self.blas.multiply(stream, &multiplied)
        }
    }
}
