//! 8-bit weights and 8-bit activations: one signed byte to a weight, one scale to an output channel, one to a token row.
//!
//! ```text
//! B: int8 [n, k]
//! ```

use crate::affine::Levels;
use crate::format::{Accuracy, Format, Kernel, Schema, Scheme};
use crate::w8::Bytes;
use crate::{integer, signed};

/// `w8a8`.
pub(crate) static FORMAT: Format = Format {
    name: "w8a8",
    about: "8-bit weights, a scale per output channel, and 8-bit activations, a scale per token row",
    scheme: Scheme::WeightActivation,
    bits: 8,
    zero_point_bits: 0,
    pack: |codes| signed::pack(&FORMAT, codes),
    unpack: |stored| signed::unpack(&FORMAT, stored),
    schema: Schema {
        domain: "ai.mbqc",
        op: "MbqMatMulW8A8",
        version: 1,
        inputs: &["A", "B", "scales", "bias?"],
        signed: true,
        bits: None,
        accuracy_level: 4,
    },
    kernels: signed::kernels!(FORMAT, Bytes<true>),
};
