//! Models as text: a subset of ONNX's own textual syntax (`docs/Syntax.md` of the ONNX project), which `onnx.parser`
//! reads, too.
//!
//! ```text
//! <ir_version: 10, opset_import: ["" : 20]>
//! main (float[B,8] x) => (float[B,4] y)
//! <
//!   float[8,4] w = ["digest": "9f86d081884c7d65"],  # large constants: a digest of their bytes
//!   float[4] b = {0.0, 0.5, -1.0, 2.0}              # small ones: their values
//! >
//! {
//!   [linear] y = Gemm<transB: int = 0>(x, w, b)     # a note, given by the caller of `dump`
//! }
//! ```
//!
//! - A type without brackets is a scalar, `float[]` a tensor of unknown rank, `?` an unknown dimension.
//! - Names that are not identifiers are quoted; `\` keeps the character after it from ending the string.
//! - Elements of 16-bit and 8-bit floats are written as the whole number with the same bits, as ONNX has it; where a
//!   number has a decimal point or an exponent, [`parse`] rounds it to the type. Types of less than a byte are written
//!   as the bytes they are packed in; a list with one number per element is packed by [`parse`].
//! - `["seed": "7"]` as the value of a constant makes pseudo-random elements with SplitMix64 whose first state is the
//!   seed: floats `(2 k + 1) / 2^23 - 1` for the upper 23 bits `k` of a draw, which are uniform in (-1, 1); types of up
//!   to 8 bits from the upper 8 bits. `["seed": "7", "scale": "0.1"]` multiplies the floats.
//! - A constant of which the text holds the digest only comes back as one that cannot be loaded.
//!
//! Beyond ONNX's parser, for what its syntax has no words for: quoted names of subgraphs and attributes, quoted parts
//! of an operator's name, `\xHH` for a byte of a string that is not UTF-8, lists of tensors and graphs, `undefinedN`
//! for the element type with ONNX's number `N`, and `opaque()` for a declaration or attribute the IR does not read.
//! Notes of nodes (metadata) and origins are not part of the text.

mod dump;
mod literal;
mod node;
mod parse;
mod scan;

pub use dump::{DumpOptions, Subject, dump, dump_with};
pub use parse::parse;
pub use scan::ParseError;
