//! Changes of element type, and operators that change nothing.
//!
//! Floats of all widths are carried alike, and arithmetic on `float16` values is done in `f32` without rounding in
//! between. A `Cast` to a half type, however, is part of the function a graph computes (exporters round rotary angles and
//! pictures that way), so it does round; in double precision, where tests take finite differences, and in `CastLike`,
//! which gradient rules write, it does not.

use super::carrier::{Outputs, bools, floats, ints, read_ints};
use super::rules::{Gradients, gradient, only_first};
use super::{Call, Flow, Input, OpDef, OpError, Sample, SampleAttr, Vjp, VjpCall};
use crate::array::{Array, Buf, Compute};
use crate::ir::DType;
use crate::rewrite::tape::Tape;

/// The operators of this family.
pub(super) const ROWS: &[OpDef] = &[CAST, CAST_LIKE, IDENTITY, DROPOUT];

const CAST: OpDef = OpDef {
    name: "Cast",
    domain: "",
    about: "The elements in another type; floats to whole numbers are cut off towards zero.",
    eval: |call| {
        let code = call.node.int("to", 0);
        let to = DType::from_onnx(i32::try_from(code).unwrap_or(0));
        let narrows = to != call.input(0)?.dtype;
        let mut out = cast(call, to)?;
        if let (true, Some(array)) = (narrows, out.first_mut()) {
            round_to_half(array);
        }
        Ok(out)
    },
    flow: Flow::Keep,
    vjp: Vjp::Rule(d_cast),
    samples: &[
        Sample::new("float to double", &[Input::uniform(&[2, 3])]).attrs(&[("to", SampleAttr::Int(11))]).grads(&[0]),
        Sample::new("float to int64", &[Input::floats(&[6], &[-2.7, -0.5, 0.0, 0.5, 1.5, 3e9])])
            .attrs(&[("to", SampleAttr::Int(7))]),
        Sample::new("float to int32", &[Input::floats(&[5], &[-2.7, -0.5, 0.0, 0.5, 1.5])])
            .attrs(&[("to", SampleAttr::Int(6))]),
        Sample::new("float to uint8", &[Input::floats(&[4], &[0.0, 1.9, 254.5, 255.0])])
            .attrs(&[("to", SampleAttr::Int(2))]),
        Sample::new("float to int8", &[Input::floats(&[4], &[0.0, -1.9, 127.5, -128.0])])
            .attrs(&[("to", SampleAttr::Int(3))]),
        Sample::new("float to bool", &[Input::floats(&[4], &[0.0, 0.25, -1.0, -0.0])])
            .attrs(&[("to", SampleAttr::Int(9))]),
        Sample::new("int64 to float", &[Input::ints(&[3], &[-3, 0, 1 << 40])]).attrs(&[("to", SampleAttr::Int(1))]),
        Sample::new("int64 to int32", &[Input::ints(&[3], &[-3, 0, 1 << 30])]).attrs(&[("to", SampleAttr::Int(6))]),
        Sample::new("int64 to uint8", &[Input::ints(&[3], &[3, 0, 255])]).attrs(&[("to", SampleAttr::Int(2))]),
        Sample::new("int64 to bool", &[Input::ints(&[3], &[3, 0, -1])]).attrs(&[("to", SampleAttr::Int(9))]),
        Sample::new("bool to float", &[Input::bools(&[3], &[true, false])]).attrs(&[("to", SampleAttr::Int(1))]),
        Sample::new("bool to int64", &[Input::bools(&[3], &[true, false])]).attrs(&[("to", SampleAttr::Int(7))]),
        Sample::new("empty", &[Input::uniform(&[0, 2])]).attrs(&[("to", SampleAttr::Int(7))]),
    ],
};

const CAST_LIKE: OpDef = OpDef {
    name: "CastLike",
    domain: "",
    about: "The elements of the first tensor in the type of the second.",
    eval: |call| cast(call, call.input(1)?.dtype),
    flow: Flow::Rule(|call| vec![call.rows.first().copied().flatten()]),
    vjp: Vjp::Rule(|t, c| Ok(only_first(c, t.op("CastLike", &[gradient(c)?, &c.inputs[0]])))),
    samples: &[
        Sample::new("float to float", &[Input::uniform(&[2, 3]), Input::uniform(&[1])]).grads(&[0]),
        Sample::new("float to int64", &[Input::floats(&[3], &[-2.7, 0.5, 1.5]), Input::ints(&[1], &[0])]),
        Sample::new("bool to float", &[Input::bools(&[3], &[true, false]), Input::uniform(&[])]),
        Sample::new("int64 to bool", &[Input::ints(&[3], &[2, 0, -1]), Input::bools(&[1], &[true])]),
    ],
};

const IDENTITY: OpDef = OpDef {
    name: "Identity",
    domain: "",
    about: "The input itself.",
    eval: |call| Ok(vec![call.input(0)?.clone()]),
    flow: Flow::Keep,
    vjp: Vjp::Rule(|_, c| Ok(only_first(c, gradient(c)?.to_owned()))),
    samples: &[
        Sample::new("floats", &[Input::uniform(&[2, 3])]).grads(&[0]),
        Sample::new("whole numbers", &[Input::ints(&[2], &[5, -5])]),
        Sample::new("truth values", &[Input::bools(&[2], &[true, false])]),
        Sample::new("empty", &[Input::uniform(&[0])]),
    ],
};

const DROPOUT: OpDef = OpDef {
    name: "Dropout",
    domain: "",
    about: "The input itself: outside training nothing is dropped.",
    eval: dropout,
    flow: Flow::Keep,
    vjp: Vjp::Rule(|_, c| Ok(only_first(c, gradient(c)?.to_owned()))),
    samples: &[
        Sample::new("inference", &[Input::uniform(&[2, 3])]).grads(&[0]),
        Sample::new("ratio given", &[Input::uniform(&[2, 3]), Input::floats(&[], &[0.3])]).grads(&[0]),
        Sample::new(
            "training off, mask asked for",
            &[Input::uniform(&[2, 3]), Input::floats(&[], &[0.3]), Input::bools(&[], &[false])],
        )
        .outputs(2)
        .grads(&[0]),
    ],
};

fn cast(call: &Call<'_>, to: DType) -> Outputs {
    let x = call.input(0)?;
    if to == x.dtype {
        return Ok(vec![x.clone()]);
    }
    let shape = x.shape.clone();
    let out = match &x.buf {
        Buf::F32(_) | Buf::F64(_) if to.is_float() => x.clone().carried(call.compute).with_dtype(to),
        Buf::F32(values) if to == DType::Bool => bools(shape, values.iter().map(|&v| v != 0.0).collect()),
        Buf::F64(values) if to == DType::Bool => bools(shape, values.iter().map(|&v| v != 0.0).collect()),
        Buf::F32(values) if to.is_int() => {
            ints(to, shape, values.iter().map(|&v| saturate(to, f64::from(v))).collect())
        }
        Buf::F64(values) if to.is_int() => ints(to, shape, values.iter().map(|&v| saturate(to, v)).collect()),
        Buf::I64(_) | Buf::Bool(_) | Buf::Bytes(_) if to.is_float() => {
            let values = read_ints(x)?;
            match call.compute {
                Compute::F32 => floats(to, shape, values.iter().map(|&v| v as f32).collect::<Vec<f32>>()),
                Compute::F64 => floats(to, shape, values.iter().map(|&v| v as f64).collect::<Vec<f64>>()),
            }
        }
        Buf::I64(_) | Buf::Bool(_) | Buf::Bytes(_) if to.is_int() || to == DType::Bool => {
            ints(to, shape, read_ints(x)?.into_owned())
        }
        _ => return Err(OpError::Unsupported(format!("a cast from {} to {to}", x.dtype))),
    };
    Ok(vec![out])
}

/// Rounds the elements of a half-precision array to what the type can hold, when they are carried in single precision.
fn round_to_half(array: &mut Array) {
    let round: fn(f32) -> f32 = match array.dtype {
        DType::F16 => |v| half::f16::from_f32(v).to_f32(),
        DType::BF16 => |v| half::bf16::from_f32(v).to_f32(),
        _ => return,
    };
    if let Buf::F32(values) = &mut array.buf {
        for v in std::sync::Arc::make_mut(values) {
            *v = round(*v);
        }
    }
}

/// The whole number towards zero, held to the range of the type; not-a-number becomes 0.
fn saturate(to: DType, value: f64) -> i64 {
    match to {
        DType::I8 => i64::from(value as i8),
        DType::U8 => i64::from(value as u8),
        DType::I16 => i64::from(value as i16),
        DType::U16 => i64::from(value as u16),
        DType::I32 => i64::from(value as i32),
        DType::U32 => i64::from(value as u32),
        DType::U64 => (value as u64).cast_signed(),
        _ => value as i64,
    }
}

fn d_cast(t: &mut Tape<'_>, c: &VjpCall<'_>) -> Gradients {
    let to = DType::from_onnx(i32::try_from(c.node.int("to", 0)).unwrap_or(0));
    if !to.is_float() {
        return Ok(vec![None]);
    }
    Ok(only_first(c, t.op("CastLike", &[gradient(c)?, &c.inputs[0]])))
}

fn dropout(call: &Call<'_>) -> Outputs {
    let x = call.input(0)?;
    if let Some(training) = call.optional(2)
        && training.to_bools()?.contains(&true)
    {
        return Err(OpError::Unsupported("Dropout in training mode".to_owned()));
    }
    let mut outputs = vec![x.clone()];
    if call.node.outputs.len() > 1 {
        outputs.push(Array::bool(x.shape.clone(), vec![true; x.len()]));
    }
    Ok(outputs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_types_round() {
        let mut array = Array::f32([3], vec![0.1, 70_000.0, 1e-9]).with_dtype(DType::F16);
        round_to_half(&mut array);
        // 0.1 in binary16 is 0x2e66 = 1638 / 2^14; 70000 is beyond 65504; 1e-9 is below half of the least subnormal.
        assert_eq!(array.as_f32().expect("carried in f32"), [1638.0 / 16384.0, f32::INFINITY, 0.0]);
    }
}
