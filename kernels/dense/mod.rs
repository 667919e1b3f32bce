//! Dense operations on slices: what lies between the quantized products.

pub mod convert;
pub(crate) mod elementary;
pub mod float;
mod gemm;
mod norm;
mod softmax;
mod transpose;

pub use elementary::{exp, sigmoid, tanh};
pub use gemm::{Accumulate, Mat, gemm};
pub(crate) use gemm::{Tiles, gemm_tile};
pub use norm::{layer_norm, rms_norm};
pub use softmax::softmax;
pub use transpose::transpose_rows;
