//! mbqc.

pub mod onnx;
