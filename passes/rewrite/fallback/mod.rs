//! Bodies that travel with a model, so that runtimes without our kernels execute its quantized operators.

mod w3;

pub use w3::{body, is_body};

/// Which body a 3-bit operator brings along.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fallback {
    /// Re-arranges the thirds into 4-bit containers and calls onnxruntime's `MatMulNBits`. Constant folding does the
    /// re-arranging once at load, so that memory and speed afterwards are those of a 4-bit model.
    Ort,
    /// Standard operators only: unpack to `uint4`, blocked `DequantizeLinear`, `MatMul`; needs opset 21. For runtimes
    /// without `MatMulNBits`; onnxruntime loads it from 1.24 on and computes it with int8 activations
    /// unless the session says `session.qdq_matmulnbits_accuracy_level=1`.
    Standard,
    /// No body: only a runtime with our kernels executes the model.
    None,
}
