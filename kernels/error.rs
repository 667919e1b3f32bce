//! What can be wrong with the numbers that this crate is given.

use crate::format::Scheme;
use crate::spec;

/// The error of this crate. It names places in tensors (row, column, group); whoever knows the tensor's name adds it.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A slice is not as long as the shape says.
    #[error("{what} holds {found} elements, expected {expected}")]
    Length {
        /// Which argument.
        what: &'static str,
        /// Its length.
        found: usize,
        /// The length that the shape asks for.
        expected: usize,
    },
    /// A weight is NaN or infinite.
    #[error("the weight at row {row}, column {column} is {value}, which has no quantized value")]
    NotFinite {
        /// Output channel.
        row: usize,
        /// Input channel.
        column: usize,
        /// The weight itself.
        value: f32,
    },
    /// A group's range is so wide that its scale is infinite in the stored type.
    #[error("the scale of row {row}, group {group} is {scale}, which overflows {stored}")]
    ScaleOverflow {
        /// Output channel.
        row: usize,
        /// Group along k.
        group: usize,
        /// The scale in f32, before it is rounded.
        scale: f32,
        /// Name of the stored type.
        stored: &'static str,
    },
    /// A bit width that the arithmetic does not cover.
    #[error("{bits} bits: a code has {least} to 8")]
    Bits {
        /// What was asked for.
        bits: u32,
        /// The least width: 1 for unsigned codes, 2 for signed ones.
        least: u32,
    },
    /// A group size that the format cannot store.
    #[error("group size {group}: a group is a multiple of 8 weights (16, 32, 64, 128 or 256 in a file)")]
    Group {
        /// What was asked for.
        group: usize,
    },
    /// A stored zero point that is not one of the format's codes.
    #[error("the zero point of row {row}, group {group} is {value}, but codes of {bits} bits end at {}", (1u32 << bits) - 1)]
    ZeroPoint {
        /// Output channel.
        row: usize,
        /// Group along k.
        group: usize,
        /// The stored value.
        value: u8,
        /// Bits of the format.
        bits: u32,
    },
    /// A format that only the CPU multiplies by.
    #[error("there is no CUDA kernel for {format}; the CPU multiplies by it")]
    Device {
        /// Name of the format.
        format: &'static str,
    },
    /// An instruction set that cannot be used.
    #[error(
        "{}; this machine has {available}",
        if *known { format!("this machine has no {name}") } else { format!("`{name}` is not an instruction set") }
    )]
    Isa {
        /// What was asked for.
        name: String,
        /// Whether it is the name of an instruction set at all.
        known: bool,
        /// The names of those that can be used.
        available: String,
    },
    /// Text that names no format and group size.
    #[error(
        "`{text}` is not a weight format; write one of {} with a group size of {} (w3g128), or one of {}",
        spec::names(Scheme::WeightOnly),
        spec::groups(),
        spec::names(Scheme::WeightActivation)
    )]
    Spec {
        /// What was written.
        text: String,
    },
}

impl Error {
    /// The same error of a matrix of which only the rows from `first` on were looked at.
    pub fn below(self, first: usize) -> Error {
        match self {
            Error::NotFinite { row, column, value } => Error::NotFinite { row: row + first, column, value },
            Error::ScaleOverflow { row, group, scale, stored } => {
                Error::ScaleOverflow { row: row + first, group, scale, stored }
            }
            Error::ZeroPoint { row, group, value, bits } => Error::ZeroPoint { row: row + first, group, value, bits },
            other => other,
        }
    }
}

/// `Ok` if `found` is the length that the shape asks for.
pub(crate) fn check_length(what: &'static str, found: usize, expected: usize) -> Result<(), Error> {
    if found == expected { Ok(()) } else { Err(Error::Length { what, found, expected }) }
}

/// The length of a slice with these sizes: their product, or, where that overflows, a number that no slice has as its length.
pub(crate) fn length(sizes: &[usize]) -> usize {
    if sizes.contains(&0) {
        return 0;
    }
    sizes.iter().fold(1, |product: usize, &size| product.saturating_mul(size))
}
