//! 4-bit weights as onnxruntime stores them: two to a byte.
//!
//! ```text
//! byte 0: c0 c0 c0 c0 c1 c1 c1 c1   (bit 0 first)
//! ```
//!
//! Applies wherever stock `MatMulNBits` runs. Layout: [`matmul_nbits`](crate::matmul_nbits).

mod cpu;
mod cuda;

pub(crate) use cpu::Nibbles;

use crate::affine::Levels;
use crate::error::Error;
use crate::format::{Accuracy, Format, Kernel, Product, Scheme};
use crate::pool::Pool;
use crate::product::{self, kernels};
use crate::{blocks, matmul_nbits};

/// `w4`.
pub(crate) static FORMAT: Format = Format {
    name: "w4",
    about: "4-bit weights as onnxruntime stores them: two to a byte",
    scheme: Scheme::WeightOnly,
    bits: 4,
    zero_point_bits: 4,
    pack: |codes| blocks::pack(&FORMAT, codes, |block, out| matmul_nbits::pack_bits(4, block, out)),
    unpack: |stored| blocks::unpack(&FORMAT, stored, |block, out| matmul_nbits::unpack_bits(4, block, out)),
    schema: matmul_nbits::schema(4, 1),
    kernels: kernels!(FORMAT, _ => Nibbles<false>),
    tiles: Some(&cuda::TILES),
};
