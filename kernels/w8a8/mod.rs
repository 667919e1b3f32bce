//! 8-bit weights and 8-bit activations: one byte to a weight, one scale to an output channel, one to a token row.
//!
//! `B: uint8 [n, k]`, the signed weight plus 128.

mod cuda;

use crate::affine::Levels;
use crate::format::{Accuracy, Format, Kernel, Schema, Scheme};
use crate::w8::Bytes;
use crate::{integer, symmetric};

/// `w8a8`.
pub(crate) static FORMAT: Format = Format {
    name: "w8a8",
    about: "8-bit weights, a scale per output channel, and 8-bit activations, a scale per token row",
    scheme: Scheme::WeightActivation,
    bits: 8,
    zero_point_bits: 0,
    pack: |codes| symmetric::pack(&FORMAT, codes),
    unpack: |stored| symmetric::unpack(&FORMAT, stored),
    schema: Schema {
        domain: "ai.mbqc",
        op: "MbqMatMulW8A8",
        version: 1,
        inputs: &["A", "B", "scales", "bias?"],
        bits: None,
        accuracy_level: 4,
    },
    kernels: symmetric::kernels!(FORMAT, Bytes<true>),
    tiles: Some(&cuda::TILES),
};
