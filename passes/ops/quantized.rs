//! Quantized linear layers, `com.microsoft::MatMulNBits` and the operators of `ai.mbqc`, through our kernels.

use mbqc_kernels::{Accuracy, Epilogue, FORMATS, Format, Product, Scales, Scheme, Spec, Stored};

use super::{Call, Flow, FlowCall, OpDef, OpError, Rows, Vjp};
use crate::array::{Array, Buf, Compute};
use crate::ir::{Attr, DType};

/// The rows of this family.
pub(super) const ROWS: &[OpDef] = &[
    OpDef {
        name: "MatMulNBits",
        domain: "com.microsoft",
        about: "Product with a weight of 2, 4 or 8 bits in groups along k (onnxruntime's operator). Zero points are \
                packed integers; g_idx and float zero points are refused.",
        eval: product,
        flow: Flow::Rule(keep_rows),
        vjp: Vjp::Stop("the weight is quantized"),
        samples: &[],
    },
    OpDef {
        name: "MbqMatMulW3",
        domain: "ai.mbqc",
        about: "Product with a weight of 3 bits in groups along k, eight weights in three bytes.",
        eval: product,
        flow: Flow::Rule(keep_rows),
        vjp: Vjp::Stop("the weight is quantized"),
        samples: &[],
    },
    OpDef {
        name: "MbqMatMulW4A8",
        domain: "ai.mbqc",
        about: "Product of activations rounded to 8 bits, a scale per token row, with a weight of 4 bits, a scale per \
                output channel.",
        eval: product,
        flow: Flow::Rule(keep_rows),
        vjp: Vjp::Stop("the weight is quantized"),
        samples: &[],
    },
    OpDef {
        name: "MbqMatMulW8A8",
        domain: "ai.mbqc",
        about: "Product of activations rounded to 8 bits, a scale per token row, with a weight of 8 bits, a scale per \
                output channel.",
        eval: product,
        flow: Flow::Rule(keep_rows),
        vjp: Vjp::Stop("the weight is quantized"),
        samples: &[],
    },
];

/// Rows stay where they are as long as they do not lie along the channels.
fn keep_rows(call: &FlowCall<'_>) -> Vec<Option<Rows>> {
    let out = call.axis(0).and_then(|(space, axis)| {
        let shape = &call.outputs.first()?.shape;
        (axis + 1 < shape.len()).then(|| Rows::along(space, shape, axis))
    });
    vec![out]
}

/// A quantized linear layer, as the attributes of its node describe it. What its inputs hold is checked when they are
/// multiplied.
#[derive(Clone, Copy, Debug)]
pub struct QuantizedLayer {
    /// How its weight is stored.
    pub format: &'static Format,
    /// Input channels, at least 1.
    pub k: usize,
    /// Output channels, at least 1.
    pub n: usize,
    /// Weights per group along k, at least 1; k if a scale belongs to an output channel.
    pub group: usize,
    /// How closely the product must be computed: what the attribute `accuracy_level` allows.
    pub accuracy: Accuracy,
}

impl QuantizedLayer {
    /// Reads a node; `attribute` answers its whole-number attributes by name.
    ///
    /// # Errors
    ///
    /// If the op carries no weight format or one of other bits, or an attribute is missing, not positive or above `u32::MAX`.
    pub fn read(domain: &str, op: &str, attribute: impl Fn(&str) -> Option<i64>) -> Result<QuantizedLayer, OpError> {
        let bits = attribute("bits").unwrap_or(4);
        let Some(format) = Format::carried_by(domain, op, bits) else {
            return Err(OpError::Unsupported(unknown(domain, op, bits)));
        };
        let grouped = format.scheme == Scheme::WeightOnly;
        let size = |name: &str| {
            attribute(name).and_then(|v| u32::try_from(v).ok()).filter(|&v| v > 0).map(|v| v as usize).ok_or_else(
                || {
                    let found = attribute(name).map_or("missing".to_owned(), |v| v.to_string());
                    let names = if grouped { "K, N and block_size" } else { "K and N" };
                    OpError::Unsupported(format!("attribute {name} is {found}; {names} must be from 1 to {}", u32::MAX))
                },
            )
        };
        let (k, n) = (size("K")?, size("N")?);
        let group = if grouped { size("block_size")? } else { k };
        let accuracy = Accuracy::of_level(attribute("accuracy_level").unwrap_or(0));
        Ok(QuantizedLayer { format, k, n, group, accuracy })
    }

    /// Format and group size.
    pub fn spec(&self) -> Spec {
        Spec { format: self.format, group: (self.format.scheme == Scheme::WeightOnly).then_some(self.group) }
    }

    /// The rows of an input `A: [.., k]`.
    ///
    /// # Errors
    ///
    /// If the last axis is not k.
    pub fn rows(&self, shape: &[usize]) -> Result<usize, OpError> {
        match shape.split_last() {
            Some((&last, rows)) if last == self.k => Ok(rows.iter().product()),
            _ => Err(OpError::Shape(format!("input A has shape {shape:?}; its last axis must be K = {}", self.k))),
        }
    }

    /// The weight of these parts, which may be of any length: kernels check them.
    pub fn stored<'a>(&self, b: &'a [u8], scales: Scales<'a>, zero_points: Option<&'a [u8]>) -> Stored<'a> {
        Stored { n: self.n, k: self.k, group: self.group, b, scales, zero_points }
    }
}

/// What is wrong with an op that carries no format.
fn unknown(domain: &str, op: &str, bits: i64) -> String {
    let of_name = || FORMATS.iter().map(|format| &format.schema).filter(|schema| schema.op == op);
    let widths: Vec<String> = of_name().filter_map(|schema| schema.bits).map(|bits| bits.to_string()).collect();
    match of_name().next() {
        None => format!("{domain}::{op} carries no weight format"),
        Some(schema) if schema.domain != domain => {
            format!("{op} is of domain `{domain}`, expected `{}`", schema.domain)
        }
        Some(_) => format!("bits = {bits}; weights of {} bits are supported", widths.join(", ")),
    }
}

fn product(call: &Call<'_>) -> Result<Vec<Array>, OpError> {
    let node = call.node;
    let layer = QuantizedLayer::read(&node.domain, &node.op, |name| match node.attr(name) {
        Some(Attr::Int(value)) => Some(*value),
        _ => None,
    })?;
    let inputs = &layer.format.schema.inputs;
    if node.inputs.len() > inputs.len() {
        let (found, most) = (node.inputs.len(), inputs.len());
        return Err(OpError::Unsupported(format!("{found} inputs, expected at most {most}: {}", inputs.join(", "))));
    }
    let optional = |name| layer.format.schema.slot(name).and_then(|slot| call.optional(slot));
    if optional("g_idx").is_some() {
        return Err(OpError::Unsupported(
            "g_idx is given; onnxruntime computes it wrongly, so nothing writes it".into(),
        ));
    }
    let x = call.input(0)?;
    let rows = layer.rows(&x.shape)?;
    let b = call.input(1)?;
    let (DType::U8, Buf::Bytes(codes)) = (b.dtype, &b.buf) else {
        return Err(OpError::Unsupported(format!("input B has type {}, expected {}", b.dtype, DType::U8)));
    };
    let zero_points = match optional("zero_points") {
        None => None,
        Some(Array { dtype: DType::U8, buf: Buf::Bytes(bytes), .. }) => Some(&bytes[..]),
        Some(array) => {
            let found = array.dtype;
            return Err(OpError::Unsupported(format!("zero points of type {found}; packed uint8 ones are supported")));
        }
    };
    let single = |name: &str, array: &Array| match array.dtype.is_float() {
        true => Ok(array.clone().carried(Compute::F32)),
        false => Err(OpError::Unsupported(format!("input {name} has type {}, expected floats", array.dtype))),
    };
    let (x_single, scales) = (single("A", x)?, single("scales", call.input(2)?)?);
    let bias = optional("bias").map(|bias| single("bias", bias)).transpose()?;
    let bias = bias.as_ref().map(Array::as_f32).transpose()?;
    let weight = layer.stored(codes, Scales::F32(scales.as_f32()?), zero_points);
    let product = Product { x: x_single.as_f32()?.into(), rows, w: weight, epilogue: Epilogue::bias(bias) };
    let y = layer.format.product(&product, layer.accuracy, call.pool).map_err(|e| OpError::Kernel(e.to_string()))?;
    let mut shape = x.shape.clone();
    if let Some(last) = shape.last_mut() {
        *last = layer.n;
    }
    Ok(vec![Array::f32(shape, y).with_dtype(x.dtype).carried(call.compute)])
}
