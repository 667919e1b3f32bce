//! 8-bit weights as onnxruntime stores them: one to a byte.
//!
//! ```text
//! byte 0: c0 c0 c0 c0 c0 c0 c0 c0   (bit 0 first)
//! ```
//!
//! Applies wherever stock `MatMulNBits` runs. Layout: [`matmul_nbits`](crate::matmul_nbits).

mod cpu;

pub(crate) use cpu::Bytes;

use crate::affine::Levels;
use crate::error::Error;
use crate::format::{Accuracy, Format, Kernel, Product, Scheme};
use crate::pool::Pool;
use crate::product::{self, kernels};
use crate::{blocks, matmul_nbits};

/// `w8`.
pub(crate) static FORMAT: Format = Format {
    name: "w8",
    about: "8-bit weights as onnxruntime stores them: one to a byte",
    scheme: Scheme::WeightOnly,
    bits: 8,
    zero_point_bits: 8,
    pack: |codes| blocks::pack(&FORMAT, codes, |block, out| matmul_nbits::pack_bits(8, block, out)),
    unpack: |stored| blocks::unpack(&FORMAT, stored, |block, out| matmul_nbits::unpack_bits(8, block, out)),
    schema: matmul_nbits::schema(8, 4),
    kernels: kernels!(FORMAT, _ => Bytes<false>),
    tiles: None,
};
