//! Quantized linear layers: `com.microsoft::MatMulNBits` and `ai.mbqc::MbqMatMulW3`, through our kernels.

use mbqc_kernels::{FORMATS, Format, Scales, Stored};

use super::{Call, Flow, FlowCall, OpDef, OpError, Rows, Vjp};
use crate::array::{Array, Buf};
use crate::ir::DType;

/// The rows of this family.
pub const ROWS: &[OpDef] = &[
    OpDef {
        name: "MatMulNBits",
        domain: "com.microsoft",
        about: "Product with a weight of 2, 4 or 8 bits in groups along k (onnxruntime's operator). Zero points are \
                packed integers; g_idx and float zero points are refused.",
        eval: |call| {
            let bits = call.node.int("bits", 4);
            let format = FORMATS.iter().find(|f| f.schema.bits == Some(bits)).ok_or_else(|| {
                OpError::Unsupported(format!("bits = {bits}; weights of 2, 4 and 8 bits are supported"))
            })?;
            if call.optional(4).is_some() {
                return Err(OpError::Unsupported(
                    "g_idx is given; onnxruntime computes it wrongly, so nothing writes it".into(),
                ));
            }
            product(call, format, 3, 5)
        },
        flow: Flow::Rule(keep_rows),
        vjp: Vjp::Stop("the weight is quantized"),
        samples: &[],
    },
    OpDef {
        name: "MbqMatMulW3",
        domain: "ai.mbqc",
        about: "Product with a weight of 3 bits in groups along k, eight weights in three bytes.",
        eval: |call| {
            let format =
                FORMATS.iter().find(|f| f.bits == 3).ok_or_else(|| OpError::Unsupported("no 3-bit format".into()))?;
            product(call, format, 3, 4)
        },
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

fn product(call: &Call<'_>, format: &Format, zeros: usize, bias: usize) -> Result<Vec<Array>, OpError> {
    let size = |name: &str| usize::try_from(call.node.int(name, -1)).ok().filter(|&v| v > 0);
    let (Some(k), Some(n), Some(group)) = (size("K"), size("N"), size("block_size")) else {
        return Err(OpError::Unsupported("attributes K, N and block_size must be positive".into()));
    };
    let x = call.input(0)?;
    if x.shape.last() != Some(&k) {
        return Err(OpError::Shape(format!("input A has shape {:?}; its last axis must be K = {k}", x.shape)));
    }
    let rows = x.len() / k;
    let single = x.clone().carried(crate::array::Compute::F32);
    let scales = call.input(2)?.clone().carried(crate::array::Compute::F32);
    let zero_points = match call.optional(zeros) {
        None => None,
        Some(array) => match &array.buf {
            Buf::Bytes(bytes) if array.dtype == DType::U8 => Some(bytes.clone()),
            _ => {
                return Err(OpError::Unsupported(format!(
                    "zero points of type {}; packed uint8 ones are supported",
                    array.dtype
                )));
            }
        },
    };
    let Buf::Bytes(codes) = &call.input(1)?.buf else {
        return Err(OpError::Unsupported("input B must be uint8".into()));
    };
    let stored =
        Stored { n, k, group, b: codes, scales: Scales::F32(scales.as_f32()?), zero_points: zero_points.as_deref() };
    let bias = call.optional(bias).map(|array| array.clone().carried(crate::array::Compute::F32));
    let bias = bias.as_ref().map(Array::as_f32).transpose()?;
    let mut y = vec![0.0f32; rows * n];
    let kernel = format.kernel(rows);
    (kernel.run)(single.as_f32()?, rows, &stored, bias, &mut y, call.pool)
        .map_err(|e| OpError::Kernel(e.to_string()))?;
    let mut shape = x.shape.clone();
    if let Some(last) = shape.last_mut() {
        *last = n;
    }
    Ok(vec![Array::f32(shape, y).with_dtype(x.dtype).carried(call.compute)])
}
