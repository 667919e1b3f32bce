//! Numbers only: formats, packing, reference kernels and dense operations, all on plain slices.
//!
//! There is no graph, no file and no protobuf here. The laws of the crate:
//!
//! 1. **Rounding happens in [`affine`] and nowhere else.** Everything that packs, unpacks or multiplies works on codes
//!    that [`affine`] made.
//! 2. **Order is `rows, k, n`**: tokens, input channels, output channels. A weight is `[n, k]`, row-major; its groups run
//!    along `k`.
//! 3. **Stored bytes never depend on the device.** A kernel may rearrange what it reads, never what is written.
//! 4. **Results do not depend on the number of threads.** Every output is computed by one thread, sums have a fixed order,
//!    and the sum over `k` is never cut into pieces that go to different threads. (Blocks of a CUDA device may share one; they add
//!    their parts in a fixed order.)
//! 5. **What is stored is not trusted.** `unpack` and the kernels answer wrong lengths and impossible zero points with an
//!    [`Error`], never with a panic.
//!
//! [`cuda`] multiplies by the same weights on a device; a machine without one gets an error, and everything else works.
//!
//! `unsafe` is denied in the whole workspace and lifted, with its reason, where this crate needs it.

#[macro_use]
mod multiversion;

pub mod affine;
mod bandwidth;
mod blocks;
pub mod cuda;
pub mod dense;
mod error;
mod format;
mod integer;
mod isa;
mod matmul_nbits;
mod pool;
mod product;
mod simd;
mod spec;
mod symmetric;
mod tokens;
mod w2;
mod w3;
mod w4;
mod w4a8;
mod w8;
mod w8a8;

pub use bandwidth::read_all;
pub use dense::float::Float;
pub use error::Error;
pub use format::{Accuracy, FORMATS, Format, Kernel, Packed, Product, Run, Scales, Schema, Scheme, Shapes, Stored};
pub use integer::Epilogue;
pub use isa::{Isa, VARIABLE as ISA_VARIABLE, isa};
pub use pool::Pool;
pub use spec::{GROUPS, Spec};
pub use tokens::{Input, Tokens};
pub use w3::thirds_to_nibbles;
