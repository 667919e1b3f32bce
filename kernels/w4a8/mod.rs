//! 4-bit weights and 8-bit activations: two weights to a byte, one scale to an output channel, one to a token row.
//!
//! ```text
//! byte i of a row: c_2i c_2i c_2i c_2i  c_2i+1 c_2i+1 c_2i+1 c_2i+1   (bit 0 first)
//! ```
//!
//! `B: uint8 [n, ceil(k / 2)]`, each nibble the signed weight plus 8; a spare nibble at the end of a row is 0.

mod cuda;

use crate::affine::Levels;
use crate::format::{Accuracy, Format, Kernel, Schema, Scheme};
use crate::w4::Nibbles;
use crate::{integer, symmetric};

/// `w4a8`.
pub(crate) static FORMAT: Format = Format {
    name: "w4a8",
    about: "4-bit weights, a scale per output channel, and 8-bit activations, a scale per token row",
    scheme: Scheme::WeightActivation,
    bits: 4,
    zero_point_bits: 0,
    pack: |codes| symmetric::pack(&FORMAT, codes),
    unpack: |stored| symmetric::unpack(&FORMAT, stored),
    schema: Schema {
        domain: "ai.mbqc",
        op: "MbqMatMulW4A8",
        version: 1,
        inputs: &["A", "B", "scales", "bias?"],
        bits: None,
        accuracy_level: 4,
    },
    kernels: symmetric::kernels!(FORMAT, Nibbles<true>),
    tiles: Some(&cuda::TILES),
};
