//! 4-bit weights and 8-bit activations: two signed nibbles to a byte, one scale to an output channel, one to a token row.
//!
//! ```text
//! byte i of a row: v_2i v_2i v_2i v_2i  v_2i+1 v_2i+1 v_2i+1 v_2i+1   (bit 0 first; two's complement)
//! ```
//!
//! `B: uint8 [n, ceil(k / 2)]`: for even k the bytes are those of an ONNX tensor of type INT4.

use crate::affine::Levels;
use crate::format::{Accuracy, Format, Kernel, Schema, Scheme};
use crate::w4::Nibbles;
use crate::{integer, signed};

/// `w4a8`.
pub(crate) static FORMAT: Format = Format {
    name: "w4a8",
    about: "4-bit weights, a scale per output channel, and 8-bit activations, a scale per token row",
    scheme: Scheme::WeightActivation,
    bits: 4,
    zero_point_bits: 0,
    pack: |codes| signed::pack(&FORMAT, codes),
    unpack: |stored| signed::unpack(&FORMAT, stored),
    schema: Schema {
        domain: "ai.mbqc",
        op: "MbqMatMulW4A8",
        version: 1,
        inputs: &["A", "B", "scales", "bias?"],
        signed: false,
        bits: None,
        accuracy_level: 4,
    },
    kernels: signed::kernels!(FORMAT, Nibbles<true>),
};
