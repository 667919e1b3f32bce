//! 2-bit weights as onnxruntime stores them: four to a byte.
//!
//! ```text
//! byte 0: c0 c0 c1 c1 c2 c2 c3 c3   (bit 0 first)
//! ```
//!
//! Applies wherever stock `MatMulNBits` runs. Layout: [`matmul_nbits`](crate::matmul_nbits).

mod cpu;
mod cuda;

use crate::affine::Levels;
use crate::error::Error;
use crate::format::{Accuracy, Format, Kernel, Product, Scheme};
use crate::pool::Pool;
use crate::product::{self, kernels};
use crate::{blocks, matmul_nbits};

/// `w2`.
pub(crate) static FORMAT: Format = Format {
    name: "w2",
    about: "2-bit weights as onnxruntime stores them: four to a byte",
    scheme: Scheme::WeightOnly,
    bits: 2,
    zero_point_bits: 2,
    pack: |codes| blocks::pack(&FORMAT, codes, |block, out| matmul_nbits::pack_bits(2, block, out)),
    unpack: |stored| blocks::unpack(&FORMAT, stored, |block, out| matmul_nbits::unpack_bits(2, block, out)),
    schema: matmul_nbits::schema(2, 4),
    kernels: kernels!(FORMAT, _ => cpu::Quarters),
    tiles: Some(&cuda::TILES),
};
