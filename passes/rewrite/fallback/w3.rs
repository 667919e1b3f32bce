//! The body of `ai.mbqc::MbqMatMulW3`.
//!
//! The stored thirds `L0 | L1 | H` become the nibble blob of `MatMulNBits(bits = 4)` by four mask-and-shift steps:
//!
//! ```text
//! n0 = (L0      & 0x33) | ((H << 2) & 0x44)      n2 = (L1      & 0x33) | ( H       & 0x44)
//! n1 = ((L0>>2) & 0x33) | ((H << 1) & 0x44)      n3 = ((L1>>2) & 0x33) | ((H >> 1) & 0x44)
//! ```
//!
//! (`nibbles_by_convolution` says how it is done without bitwise operators.) All of it is uint8 arithmetic on constants,
//! which a runtime folds at load. A body that ended in float arithmetic would be folded into float weights instead.

use crate::ir::{Attr, Error, Function};

use super::body::{Body, refer};

/// The operator.
pub(super) const NAME: &str = "MbqMatMulW3";

const ATTRIBUTES: &[&str] = &["K", "N", "block_size", "accuracy_level"];

/// `(value >> by) & mask` for a mask that repeats in both nibbles: `bits` bits starting at bit 0.
fn field(body: &mut Body, value: &str, by: u8, bits: u8) -> Result<String, Error> {
    let shifted = body.shift("RIGHT", value, by)?;
    let mask = (1u8 << bits) - 1;
    let mask = body.byte(mask | mask << 4)?;
    body.node("BitwiseAnd", &[&shifted, &mask], vec![])
}

/// The nibble blob `[n, k/g, g/2]` of the thirds `[n, k/g, 3g/8]`.
fn nibbles(body: &mut Body) -> Result<String, Error> {
    if body.opset < 18 {
        return nibbles_by_convolution(body);
    }
    let attrs = vec![("axis", Attr::Int(2)), ("num_outputs", Attr::Int(3))];
    body.node_to("Split", "", &["B"], &["L0", "L1", "H"], attrs)?;
    let mut quarters = Vec::new();
    for t in 0..4u8 {
        let low = field(body, if t < 2 { "L0" } else { "L1" }, 2 * (t % 2), 2)?;
        let high = field(body, "H", t, 1)?;
        let high = body.shift("LEFT", &high, 2)?;
        quarters.push(body.node("BitwiseOr", &[&low, &high], vec![])?);
    }
    let names: Vec<&str> = quarters.iter().map(String::as_str).collect();
    body.node("Concat", &names, vec![("axis", Attr::Int(2))])
}

/// The same for opsets 14 to 17, which have no bitwise operators; onnxruntime 1.20 has no `Add` of bytes either, and
/// arithmetic in int32 would take four times the memory.
///
/// With `f(j) = x >> j`, the bits `j..j+m` of a byte are `f(j) - 2^m f(j+m)`. So a nibble pair is a linear combination of
/// the 24 planes that the three thirds give when shifted by 0 to 7. `QLinearConv` computes four such combinations, with the
/// shifts as channels, the thirds as a spatial axis of the kernel's size, and all scales 1. That is exact: its sums are
/// integers below 128.
fn nibbles_by_convolution(body: &mut Body) -> Result<String, Error> {
    // [n, k/g, 3g/8] -> [n, 1, 3, k/g, g/8] -> [n, 8, 3, k/g, g/8]
    let shape = body.ints(&[0, 0, 3, -1])?;
    let thirds = body.node("Reshape", &["B", &shape], vec![])?;
    let thirds = body.node("Transpose", &[&thirds], vec![("perm", Attr::Ints(vec![0, 2, 1, 3]))])?;
    let axis = body.ints(&[1])?;
    let thirds = body.node("Unsqueeze", &[&thirds, &axis], vec![])?;
    let shifts = body.bytes(&[8, 1, 1, 1], (0..8).collect())?;
    let planes = body.node("BitShift", &[&thirds, &shifts], vec![("direction", Attr::str("RIGHT"))])?;

    // -> [n, 4, 1, k/g, g/8] -> [n, k/g, 1, 4, g/8] -> [n, k/g, g/2]
    let one = body.float(1.0)?;
    let (none, offset) = (body.bytes(&[], vec![0])?, body.bytes(&[], vec![OFFSET])?);
    let kernel = body.bytes(&[4, 8, 3, 1, 1], combinations())?;
    let inputs = [&*planes, &one, &none, &kernel, &one, &offset, &one, &none];
    let quarters = body.node("QLinearConv", &inputs, vec![])?;
    let quarters = body.node("Transpose", &[&quarters], vec![("perm", Attr::Ints(vec![0, 3, 2, 1, 4]))])?;
    let shape = body.ints(&[0, 0, -1])?;
    body.node("Reshape", &[&quarters, &shape], vec![])
}

/// What is added to the coefficients of [`combinations`], so that they are unsigned: products of unsigned by signed bytes
/// saturate on some processors.
const OFFSET: u8 = 128;

/// Coefficients of the nibble pairs `n0..n3` in the planes (shift 0 to 7; third `L0`, `L1` or `H`): `[4, 8, 3]`, plus
/// [`OFFSET`].
fn combinations() -> Vec<u8> {
    let mut table = [[[i16::from(OFFSET); 3]; 8]; 4];
    for (t, row) in table.iter_mut().enumerate() {
        // `width` bits of a third from bit `at` on go to bit `to` of the nibble pair
        let low = (t / 2, 2 * (t % 2), 2, 0);
        let high = (2, t, 1, 2);
        for (third, at, width, to) in [low, high] {
            for nibble in [0, 4] {
                let (from, to) = (at + nibble, to + nibble);
                row[from][third] += 1 << to;
                if from + width < 8 {
                    row[from + width][third] -= 1 << (to + width);
                }
            }
        }
    }
    table.as_flattened().as_flattened().iter().map(|&c| u8::try_from(c).expect("between -128 and 64")).collect()
}

/// The body that calls `MatMulNBits`; needs opset 14.
pub(super) fn ort(opset: i64) -> Result<Function, Error> {
    let mut body = Body::new(NAME, &["A", "B", "scales", "zero_points"], opset)?;
    let blob = nibbles(&mut body)?;
    body.node_to(
        "MatMulNBits",
        "com.microsoft",
        &["A", &blob, "scales", "zero_points"],
        &["Y"],
        vec![
            ("K", refer("K")),
            ("N", refer("N")),
            ("bits", Attr::Int(4)),
            ("block_size", refer("block_size")),
            ("accuracy_level", refer("accuracy_level")),
        ],
    )?;
    Ok(body.finish(ATTRIBUTES, Some("com.microsoft")))
}

/// The body of standard operators; needs opset 21: codes and zero points as `uint4` in the orientation of `MatMul`, a
/// blocked `DequantizeLinear` along axis 0, `MatMul`: the pattern that runtimes recognise. Everything before the `DequantizeLinear` is integer work that folds.
pub(super) fn standard(opset: i64) -> Result<Function, Error> {
    const UINT4: i64 = 21;
    let mut body = Body::new(NAME, &["A", "B", "scales", "zero_points"], opset)?;
    let blob = nibbles(&mut body)?;
    let swap = || vec![("perm", Attr::Ints(vec![1, 0]))];
    let (zero, one, last) = (body.ints(&[0])?, body.ints(&[1])?, body.ints(&[-1])?);

    // [n, k/g, g/2] -> [n, k/g, g] -> [n, padded k] -> [k, n]
    let codes = unpack(&mut body, &blob)?;
    let n = body.attribute("N")?;
    let shape = body.node("Concat", &[&n, &last], vec![("axis", Attr::Int(0))])?;
    let codes = body.node("Reshape", &[&codes, &shape], vec![])?;
    let codes = body.node("Transpose", &[&codes], swap())?;
    let k = body.attribute("K")?;
    let codes = body.node("Slice", &[&codes, &zero, &k, &zero], vec![])?;
    let codes = body.node("Cast", &[&codes], vec![("to", Attr::Int(UINT4))])?;

    // A row of zero points has a spare entry when the number of groups is odd: [n, ..] -> [k/g, n]
    let zeros = unpack(&mut body, "zero_points")?;
    let groups = body.node("Shape", &["scales"], vec![("start", Attr::Int(1)), ("end", Attr::Int(2))])?;
    let zeros = body.node("Slice", &[&zeros, &zero, &groups, &one], vec![])?;
    let zeros = body.node("Transpose", &[&zeros], swap())?;
    let zeros = body.node("Cast", &[&zeros], vec![("to", Attr::Int(UINT4))])?;

    let scales = body.node("Transpose", &["scales"], swap())?;
    let attrs = vec![("axis", Attr::Int(0)), ("block_size", refer("block_size"))];
    let weights = body.node("DequantizeLinear", &[&codes, &scales, &zeros], attrs)?;
    body.node_to("MatMul", "", &["A", &weights], &["Y"], vec![])?;
    Ok(body.finish(ATTRIBUTES, None))
}

/// Bytes to nibbles, low one first: `[.., m]` to `[.., 2m]`.
fn unpack(body: &mut Body, bytes: &str) -> Result<String, Error> {
    let fifteen = body.byte(15)?;
    let low = body.node("BitwiseAnd", &[bytes, &fifteen], vec![])?;
    let high = body.shift("RIGHT", bytes, 4)?;
    let last = body.ints(&[-1])?;
    let low = body.node("Unsqueeze", &[&low, &last], vec![])?;
    let high = body.node("Unsqueeze", &[&high, &last], vec![])?;
    let pairs = body.node("Concat", &[&low, &high], vec![("axis", Attr::Int(-1))])?;
    let shape = body.node("Shape", &[bytes], vec![("end", Attr::Int(-1))])?;
    let shape = body.node("Concat", &[&shape, &last], vec![("axis", Attr::Int(0))])?;
    body.node("Reshape", &[&pairs, &shape], vec![])
}
