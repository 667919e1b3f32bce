//! mbqc compiles exported vision-language models to low-bit ONNX graphs.
//!
//! The crate holds what touches the world: files ([`onnx`], [`data`]), the command line ([`cli`], [`commands`]), reports.
//! The compiler itself is `mbqc_passes`, its arithmetic `mbqc_kernels`; [`pipeline`] puts them together.

#![warn(clippy::print_stderr, reason = "it panics where nobody listens; `report::tell` does not")]

pub mod calibration;
pub mod cli;
pub mod commands;
pub mod data;
pub mod engine;
mod error;
pub mod folder;
pub mod onnx;
pub mod pipeline;
pub mod places;
pub mod report;
pub mod stage;
pub mod stamp;

pub use error::Error;
