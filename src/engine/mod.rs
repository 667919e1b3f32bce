//! Other engines that run emitted graphs with our kernels. Each is a feature of the crate; none is on by default.

#[cfg(feature = "tract")]
pub mod tract;
