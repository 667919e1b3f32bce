//! The body of `ai.mbqc::MbqMatMulW3`.
//!
//! The stored thirds `L0 | L1 | H` become the nibble blob of `MatMulNBits(bits = 4)` by four mask-and-shift steps:
//!
//! ```text
//! n0 = (L0      & 0x33) | ((H << 2) & 0x44)      n2 = (L1      & 0x33) | ( H       & 0x44)
//! n1 = ((L0>>2) & 0x33) | ((H << 1) & 0x44)      n3 = ((L1>>2) & 0x33) | ((H >> 1) & 0x44)
//! ```
//!
//! (`nibbles_by_convolution` says how it is done without bitwise operators.) All of it is uint8 arithmetic on constants, which a runtime folds at load. A body that ended in float arithmetic
//! would be folded into float weights instead.

use crate::ir::{Attr, DType, Error, Function, GraphBuilder, NewNode, Tensor};

use super::Fallback;

/// ONNX's number for an integer attribute.
const INT: i32 = 2;

/// The function for a model of this standard opset; `None` where no body is wanted.
///
/// # Errors
///
/// If the opset is too old for uint8 arithmetic: 14 for [`Fallback::Ort`], 21 for [`Fallback::Standard`].
pub fn body(fallback: Fallback, opset: i64) -> Result<Option<Function>, String> {
    let least = match fallback {
        Fallback::Ort => 14,
        Fallback::Standard => 21,
        Fallback::None => return Ok(None),
    };
    if opset < least {
        return Err(format!(
            "the model is of opset {opset}, and a body for 3-bit layers needs opset {least}; use --target ort, which \
             stores the same codes in 4-bit containers"
        ));
    }
    let built = match fallback {
        Fallback::Ort => ort(opset),
        Fallback::Standard | Fallback::None => standard(opset),
    };
    built.map(Some).map_err(|e| e.to_string())
}

/// Whether a function has the nodes of a body that [`body`] writes for the function's own opset.
pub fn is_body(function: &Function) -> bool {
    let nodes = |function: &Function| -> Vec<(String, String)> {
        function.body.nodes().map(|(_, node)| (node.domain.clone(), node.op.clone())).collect()
    };
    let opset = function.opsets.iter().find(|(domain, _)| domain.is_empty()).map_or(0, |(_, version)| *version);
    let written = [Fallback::Ort, Fallback::Standard].map(|fallback| body(fallback, opset).ok().flatten());
    written.iter().flatten().any(|ours| nodes(ours) == nodes(function))
}

struct Body {
    graph: GraphBuilder,
    opset: i64,
    count: usize,
}

impl Body {
    fn new(opset: i64) -> Result<Body, Error> {
        let mut graph = GraphBuilder::new("MbqMatMulW3");
        for name in ["A", "B", "scales", "zero_points"] {
            graph.input(name, None)?;
        }
        graph.output("Y", None);
        Ok(Body { graph, opset, count: 0 })
    }

    fn node(&mut self, op: &str, inputs: &[&str], attrs: Vec<(&str, Attr)>) -> Result<String, Error> {
        self.count += 1;
        let output = format!("t{}", self.count);
        self.node_to(op, "", inputs, &[&output], attrs)?;
        Ok(output)
    }

    fn node_to(
        &mut self,
        op: &str,
        domain: &str,
        inputs: &[&str],
        outputs: &[&str],
        attrs: Vec<(&str, Attr)>,
    ) -> Result<(), Error> {
        let mut node = NewNode::new(op, inputs, outputs).domain(domain).named(outputs[0]);
        node.attrs = attrs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        self.graph.node(node, None).map(|_| ())
    }

    fn byte(&mut self, value: u8) -> Result<String, Error> {
        self.bytes(&[], vec![value])
    }

    fn bytes(&mut self, shape: &[usize], values: Vec<u8>) -> Result<String, Error> {
        let tensor = Tensor::raw(DType::U8, shape, values);
        self.node("Constant", &[], vec![("value", Attr::Tensor(tensor))])
    }

    fn shift(&mut self, direction: &str, value: &str, by: u8) -> Result<String, Error> {
        if by == 0 {
            return Ok(value.to_owned());
        }
        let by = self.byte(by)?;
        self.node("BitShift", &[value, &by], vec![("direction", Attr::str(direction))])
    }

    /// `(value >> by) & mask` for a mask that repeats in both nibbles: `bits` bits starting at bit 0.
    fn field(&mut self, value: &str, by: u8, bits: u8) -> Result<String, Error> {
        let shifted = self.shift("RIGHT", value, by)?;
        let mask = (1u8 << bits) - 1;
        let mask = self.byte(mask | mask << 4)?;
        self.node("BitwiseAnd", &[&shifted, &mask], vec![])
    }

    /// The nibble blob `[n, k/g, g/2]` of the thirds `[n, k/g, 3g/8]`.
    fn nibbles(&mut self) -> Result<String, Error> {
        if self.opset < 18 {
            return self.nibbles_by_convolution();
        }
        let attrs = vec![("axis", Attr::Int(2)), ("num_outputs", Attr::Int(3))];
        self.node_to("Split", "", &["B"], &["L0", "L1", "H"], attrs)?;
        let mut quarters = Vec::new();
        for t in 0..4u8 {
            let low = self.field(if t < 2 { "L0" } else { "L1" }, 2 * (t % 2), 2)?;
            let high = self.field("H", t, 1)?;
            let high = self.shift("LEFT", &high, 2)?;
            quarters.push(self.node("BitwiseOr", &[&low, &high], vec![])?);
        }
        let names: Vec<&str> = quarters.iter().map(String::as_str).collect();
        self.node("Concat", &names, vec![("axis", Attr::Int(2))])
    }

    /// The same for opsets 14 to 17, which have no bitwise operators; onnxruntime 1.20 has no `Add` of bytes either, and
    /// arithmetic in int32 would take four times the memory.
    ///
    /// With `f(j) = x >> j`, the bits `j..j+m` of a byte are `f(j) - 2^m f(j+m)`. So a nibble pair is a linear combination of the
    /// 24 planes that the three thirds give when shifted by 0 to 7. `QLinearConv` computes four such combinations, with the shifts
    /// as channels, the thirds as a spatial axis of the kernel's size, and all scales 1. That is exact: its sums are integers below 128.
    fn nibbles_by_convolution(&mut self) -> Result<String, Error> {
        // [n, k/g, 3g/8] -> [n, 1, 3, k/g, g/8] -> [n, 8, 3, k/g, g/8]
        let shape = ints(self, &[0, 0, 3, -1])?;
        let thirds = self.node("Reshape", &["B", &shape], vec![])?;
        let thirds = self.node("Transpose", &[&thirds], vec![("perm", Attr::Ints(vec![0, 2, 1, 3]))])?;
        let axis = ints(self, &[1])?;
        let thirds = self.node("Unsqueeze", &[&thirds, &axis], vec![])?;
        let shifts = self.bytes(&[8, 1, 1, 1], (0..8).collect())?;
        let planes = self.node("BitShift", &[&thirds, &shifts], vec![("direction", Attr::str("RIGHT"))])?;

        // -> [n, 4, 1, k/g, g/8] -> [n, k/g, 1, 4, g/8] -> [n, k/g, g/2]
        let one = self.node("Constant", &[], vec![("value_float", Attr::Float(1.0))])?;
        let (none, offset) = (self.bytes(&[], vec![0])?, self.bytes(&[], vec![OFFSET])?);
        let kernel = self.bytes(&[4, 8, 3, 1, 1], combinations())?;
        let inputs = [&*planes, &one, &none, &kernel, &one, &offset, &one, &none];
        let quarters = self.node("QLinearConv", &inputs, vec![])?;
        let quarters = self.node("Transpose", &[&quarters], vec![("perm", Attr::Ints(vec![0, 3, 2, 1, 4]))])?;
        let shape = ints(self, &[0, 0, -1])?;
        self.node("Reshape", &[&quarters, &shape], vec![])
    }

    fn finish(self, opsets: Vec<(String, i64)>) -> Function {
        Function {
            domain: "ai.mbqc".to_owned(),
            name: "MbqMatMulW3".to_owned(),
            overload: String::new(),
            defaults: Vec::new(),
            attributes: ["K", "N", "block_size", "accuracy_level"].map(str::to_owned).to_vec(),
            opsets,
            body: self.graph.finish(),
            origin: None,
        }
    }
}

/// What is added to the coefficients of [`combinations`], so that they are unsigned: products of unsigned by signed bytes
/// saturate on some processors.
const OFFSET: u8 = 128;

/// Coefficients of the nibble pairs `n0..n3` in the planes (shift 0 to 7; third `L0`, `L1` or `H`): `[4, 8, 3]`, plus [`OFFSET`].
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

fn ort(opset: i64) -> Result<Function, Error> {
    let mut body = Body::new(opset)?;
    let blob = body.nibbles()?;
    let refer = |name: &str| Attr::Ref(name.to_owned(), INT);
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
    Ok(body.finish(vec![(String::new(), opset), ("com.microsoft".to_owned(), 1)]))
}

/// Codes and zero points as `uint4` in the orientation of `MatMul`, a blocked `DequantizeLinear` along axis 0, `MatMul`:
/// the pattern that runtimes recognise. Everything before the `DequantizeLinear` is integer work that folds.
fn standard(opset: i64) -> Result<Function, Error> {
    const UINT4: i64 = 21;
    let mut body = Body::new(opset)?;
    let blob = body.nibbles()?;
    let swap = || vec![("perm", Attr::Ints(vec![1, 0]))];
    let (zero, one, last) = (ints(&mut body, &[0])?, ints(&mut body, &[1])?, ints(&mut body, &[-1])?);

    // [n, k/g, g/2] -> [n, k/g, g] -> [n, padded k] -> [k, n]
    let codes = unpack(&mut body, &blob)?;
    let n = body.node("Constant", &[], vec![("value_int", Attr::Ref("N".to_owned(), INT))])?;
    let n = body.node("Unsqueeze", &[&n, &zero], vec![])?;
    let shape = body.node("Concat", &[&n, &last], vec![("axis", Attr::Int(0))])?;
    let codes = body.node("Reshape", &[&codes, &shape], vec![])?;
    let codes = body.node("Transpose", &[&codes], swap())?;
    let k = body.node("Constant", &[], vec![("value_int", Attr::Ref("K".to_owned(), INT))])?;
    let k = body.node("Unsqueeze", &[&k, &zero], vec![])?;
    let codes = body.node("Slice", &[&codes, &zero, &k, &zero], vec![])?;
    let codes = body.node("Cast", &[&codes], vec![("to", Attr::Int(UINT4))])?;

    // A row of zero points has a spare entry when the number of groups is odd: [n, ..] -> [k/g, n]
    let zeros = unpack(&mut body, "zero_points")?;
    let groups = body.node("Shape", &["scales"], vec![("start", Attr::Int(1)), ("end", Attr::Int(2))])?;
    let zeros = body.node("Slice", &[&zeros, &zero, &groups, &one], vec![])?;
    let zeros = body.node("Transpose", &[&zeros], swap())?;
    let zeros = body.node("Cast", &[&zeros], vec![("to", Attr::Int(UINT4))])?;

    let scales = body.node("Transpose", &["scales"], swap())?;
    let block = Attr::Ref("block_size".to_owned(), INT);
    let weights =
        body.node("DequantizeLinear", &[&codes, &scales, &zeros], vec![("axis", Attr::Int(0)), ("block_size", block)])?;
    body.node_to("MatMul", "", &["A", &weights], &["Y"], vec![])?;
    Ok(body.finish(vec![(String::new(), opset)]))
}

fn ints(body: &mut Body, values: &[i64]) -> Result<String, Error> {
    body.node("Constant", &[], vec![("value_ints", Attr::Ints(values.to_vec()))])
}

/// Bytes to nibbles, low one first: `[.., m]` to `[.., 2m]`.
fn unpack(body: &mut Body, bytes: &str) -> Result<String, Error> {
    let fifteen = body.byte(15)?;
    let low = body.node("BitwiseAnd", &[bytes, &fifteen], vec![])?;
    let high = body.shift("RIGHT", bytes, 4)?;
    let last = ints(body, &[-1])?;
    let low = body.node("Unsqueeze", &[&low, &last], vec![])?;
    let high = body.node("Unsqueeze", &[&high, &last], vec![])?;
    let pairs = body.node("Concat", &[&low, &high], vec![("axis", Attr::Int(-1))])?;
    let shape = body.node("Shape", &[bytes], vec![("end", Attr::Int(-1))])?;
    let shape = body.node("Concat", &[&shape, &last], vec![("axis", Attr::Int(0))])?;
    body.node("Reshape", &[&pairs, &shape], vec![])
}
