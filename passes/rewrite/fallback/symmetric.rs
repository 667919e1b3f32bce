//! The bodies of `ai.mbqc::MbqMatMulW8A8` and `ai.mbqc::MbqMatMulW4A8`, of standard operators alone:
//!
//! ```text
//! t = max(max|A|, 1e-5) / 127             of each token row, in f32
//! p = uint8(round(A / t) + 128)           half to even
//! Y = MatMulInteger(p - 128, V - z) * s * t
//! ```
//!
//! onnxruntime folds what is done to B at load. Three of its ways shape this:
//!
//! - With signed activations its product is a plain loop, 30 to 100 times slower: hence the zero point of 128.
//! - Unsigned times signed bytes are fast, but without VNNI pairs of products saturate at 16 bits. Weights of 4 bits cannot
//!   get there and become int8. Those of 8 bits can and stay uint8, whose product is exact on every processor.
//! - `.. * (t * s)` would be fused into `MatMulIntegerToFloat`, together with an `Add` that follows, and with a scale per row
//!   that operator multiplies the bias by the scale, too (1.20 to 1.31; `tests/oracle/bodies.py` has such a case).

use crate::ir::{Attr, Error, Function};

use super::body::Body;

pub(super) const W8A8: &str = "MbqMatMulW8A8";
pub(super) const W4A8: &str = "MbqMatMulW4A8";

/// The opset of `CastLike`, without which a body does not know the type of its output.
pub(super) const LEAST_OPSET: i64 = 15;

pub(super) const WAY_OUT: &str = "use --fallback none, which leaves out the body (then `mbqc run` executes the model, and \
                                  stock runtimes do not), or export the model with a newer opset";

/// ONNX's numbers for types.
const FLOAT: i64 = 1;
const UINT8: i64 = 2;
const INT8: i64 = 3;

pub(super) fn w8a8(opset: i64) -> Result<Function, Error> {
    let mut body = Body::new(W8A8, INPUTS, opset)?;
    let weight = body.node("Transpose", &["B"], swap())?;
    let zero = body.byte(128)?;
    product(body, &weight, &zero)
}

pub(super) fn w4a8(opset: i64) -> Result<Function, Error> {
    let mut body = Body::new(W4A8, INPUTS, opset)?;
    // [n, ceil(k / 2)] -> [n, ceil(k / 2), 2] -> [n, k or k + 1] -> [k, n]
    let even = body.shift("LEFT", "B", 4)?;
    let even = body.shift("RIGHT", &even, 4)?;
    let odd = body.shift("RIGHT", "B", 4)?;
    let last = body.ints(&[2])?;
    let even = body.node("Unsqueeze", &[&even, &last], vec![])?;
    let odd = body.node("Unsqueeze", &[&odd, &last], vec![])?;
    let pairs = body.node("Concat", &[&even, &odd], vec![("axis", Attr::Int(2))])?;
    let shape = body.ints(&[0, -1])?;
    let codes = body.node("Reshape", &[&pairs, &shape], vec![])?;
    let codes = body.node("Transpose", &[&codes], swap())?;
    let (zero, k) = (body.ints(&[0])?, body.attribute("K")?);
    let codes = body.node("Slice", &[&codes, &zero, &k, &zero], vec![])?;
    let weight = body.node("Cast", &[&codes], to(INT8))?;
    let zero = body.byte(8)?;
    let zero = body.node("Cast", &[&zero], to(INT8))?;
    product(body, &weight, &zero)
}

const INPUTS: &[&str] = &["A", "B", "scales"];

fn to(number: i64) -> Vec<(&'static str, Attr)> {
    vec![("to", Attr::Int(number))]
}

fn swap() -> Vec<(&'static str, Attr)> {
    vec![("perm", Attr::Ints(vec![1, 0]))]
}

/// The product of the rounded activations with `weight - zero`, `[k, n]`, and the scales.
fn product(mut body: Body, weight: &str, zero: &str) -> Result<Function, Error> {
    let x = body.node("Cast", &["A"], to(FLOAT))?;
    let magnitudes = body.node("Abs", &[&x], vec![])?;
    let largest = if body.opset < 18 {
        body.node("ReduceMax", &[&magnitudes], vec![("axes", Attr::Ints(vec![-1]))])?
    } else {
        let axes = body.ints(&[-1])?;
        body.node("ReduceMax", &[&magnitudes, &axes], vec![])?
    };
    let least = body.float(1e-5)?;
    let largest = body.node("Max", &[&largest, &least], vec![])?;
    let levels = body.float(127.0)?;
    let steps = body.node("Div", &[&largest, &levels], vec![])?;
    let rounded = body.node("Div", &[&x, &steps], vec![])?;
    let rounded = body.node("Round", &[&rounded], vec![])?;
    let (middle, middle_byte) = (body.float(128.0)?, body.byte(128)?);
    let rounded = body.node("Add", &[&rounded, &middle], vec![])?;
    let rounded = body.node("Cast", &[&rounded], to(UINT8))?;
    let sums = body.node("MatMulInteger", &[&rounded, weight, &middle_byte, zero], vec![])?;
    let sums = body.node("Cast", &[&sums], to(FLOAT))?;
    let scales = body.node("Cast", &["scales"], to(FLOAT))?;
    let y = body.node("Mul", &[&sums, &scales], vec![])?;
    let y = body.node("Mul", &[&y, &steps], vec![])?;
    body.node_to("CastLike", "", &[&y, "A"], &["Y"], vec![])?;
    Ok(body.finish(&["K", "N"], None))
}
