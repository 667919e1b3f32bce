//! Tensors made from attributes, shapes and bounds.

use std::sync::Arc;

use SampleAttr::{Float, Floats, Int, Ints};

use super::layout::{
    View, axis_of, carried_like, case, count, d_output, dims, floats, input, int32s, ints, moved_rows, picked, room,
    uniform, wrapped,
};
use super::{Call, Flow, FlowCall, OpDef, OpError, Rows, SampleAttr, Vjp, VjpCall};
use crate::array::{Array, Buf, Compute};
use crate::ir::{Attr, DType, Tensor};
use crate::rewrite::tape::Tape;

/// Operators that make tensors.
pub(super) const ROWS: &[OpDef] = &[
    OpDef {
        name: "Constant",
        domain: "",
        about: "The tensor, number or list in an attribute",
        eval: constant,
        flow: Flow::Ends,
        vjp: Vjp::Zero,
        samples: &[
            case("int", &[], &[("value_int", Int(-3))], &[]),
            case("ints", &[], &[("value_ints", Ints(&[1, 2, 3]))], &[]),
            case("float", &[], &[("value_float", Float(0.5))], &[]),
            case("floats", &[], &[("value_floats", Floats(&[0.5, -1.5]))], &[]),
        ],
    },
    OpDef {
        name: "ConstantOfShape",
        domain: "",
        about: "A tensor of a given shape filled with one value, float zero unless the attribute `value` says otherwise",
        eval: constant_of_shape,
        flow: Flow::Ends,
        vjp: Vjp::Zero,
        samples: &[
            case("zeros", &[ints(&[2], &[2, 3])], &[], &[]),
            case("scalar", &[ints(&[0], &[])], &[], &[]),
            case("empty", &[ints(&[2], &[0, 3])], &[], &[]),
        ],
    },
    OpDef {
        name: "Range",
        domain: "",
        about: "Numbers from a start (included) to a limit (excluded) in equal steps",
        eval: range,
        flow: Flow::Ends,
        vjp: Vjp::Rule(range_vjp),
        samples: &[
            case("int64", &[ints(&[], &[2]), ints(&[], &[9]), ints(&[], &[3])], &[], &[]),
            case("int32", &[int32s(&[], &[0]), int32s(&[], &[4]), int32s(&[], &[1])], &[], &[]),
            case("down", &[ints(&[], &[5]), ints(&[], &[-2]), ints(&[], &[-2])], &[], &[]),
            case("nothing", &[ints(&[], &[3]), ints(&[], &[3]), ints(&[], &[1])], &[], &[]),
            case("float", &[floats(&[], &[0.25]), floats(&[], &[2.1]), floats(&[], &[0.5])], &[], &[0, 2]),
        ],
    },
    OpDef {
        name: "EyeLike",
        domain: "",
        about: "Ones on a diagonal, zeros elsewhere, in the shape of a matrix",
        eval: eye_like,
        flow: Flow::Ends,
        vjp: Vjp::Zero,
        samples: &[
            case("square", &[uniform(&[3, 3])], &[], &[]),
            case("above, as int64", &[uniform(&[2, 4])], &[("k", Int(1)), ("dtype", Int(7))], &[]),
            case("below", &[ints(&[3, 2], &[5])], &[("k", Int(-1))], &[]),
        ],
    },
    OpDef {
        name: "OneHot",
        domain: "",
        about: "A new axis that is on at the index and off elsewhere; values are [off, on]",
        eval: one_hot,
        flow: Flow::Rule(one_hot_flow),
        vjp: Vjp::Missing,
        samples: &[
            case("last axis", &[ints(&[2, 2], &[0, 2, -1, 5]), ints(&[], &[3]), floats(&[2], &[0.0, 1.0])], &[], &[]),
            case(
                "first axis",
                &[ints(&[3], &[0, 2, 1]), ints(&[1], &[3]), ints(&[2], &[7, 9])],
                &[("axis", Int(0))],
                &[],
            ),
        ],
    },
];

fn constant(call: &Call<'_>) -> Result<Vec<Array>, OpError> {
    let [(name, value)] = call.node.attrs.as_slice() else {
        return Err(OpError::Unsupported(format!(
            "a Constant has one attribute, this one has {}",
            call.node.attrs.len()
        )));
    };
    let tensor = match value {
        Attr::Tensor(tensor) if name == "value" => tensor,
        Attr::Int(value) => &Tensor::i64s([], &[*value]),
        Attr::Ints(values) => &Tensor::i64s([values.len()], values),
        Attr::Float(value) => &Tensor::f32s([], &[*value]),
        Attr::Floats(values) => &Tensor::f32s([values.len()], values),
        _ => return Err(OpError::Unsupported(format!("a Constant with the attribute `{name}`"))),
    };
    Ok(vec![Array::from_tensor(tensor, call.compute)?])
}

fn constant_of_shape(call: &Call<'_>) -> Result<Vec<Array>, OpError> {
    let shape = dims(&call.input(0)?.to_i64s()?)?;
    let value = match call.node.attr("value") {
        Some(Attr::Tensor(value)) => Array::from_tensor(value, call.compute)?,
        _ => Array::f32([], vec![0.0]).carried(call.compute),
    };
    if value.len() != 1 {
        return Err(OpError::Shape(format!("a fill value has one element, found shape {:?}", value.shape)));
    }
    let dims = shape.into_iter().map(|size| (size, 0)).collect();
    Ok(vec![View { start: 0, dims }.read(&value)?])
}

fn range(call: &Call<'_>) -> Result<Vec<Array>, OpError> {
    let first = call.input(0)?;
    let bounds = [first, call.input(1)?, call.input(2)?];
    if let Some(other) = bounds.iter().find(|bound| bound.len() != 1) {
        return Err(OpError::Shape(format!("bounds of a range have one element, found shape {:?}", other.shape)));
    }
    if !first.dtype.is_float() {
        let [start, limit, delta] =
            [bounds[0].to_scalar_i64()?, bounds[1].to_scalar_i64()?, bounds[2].to_scalar_i64()?].map(i128::from);
        if delta == 0 {
            return Err(no_step());
        }
        let distance = limit - start;
        let steps = if distance.signum() == delta.signum() { (distance.abs() - 1) / delta.abs() + 1 } else { 0 };
        let steps = usize::try_from(steps).unwrap_or(usize::MAX);
        let mut out = room(count(&[steps])?)?;
        out.extend((0..steps as i128).map(|i| (start + i * delta) as i64));
        return Ok(vec![carried_like(first, &Array::i64([steps], out))?.with_dtype(first.dtype)]);
    }
    let [start, limit, delta] = bounds.map(|bound| bound.to_f64s().first().copied().unwrap_or_default());
    if delta == 0.0 {
        return Err(no_step());
    }
    let steps = ((limit - start) / delta).ceil().max(0.0) as usize;
    let shape = vec![steps];
    let total = count(&shape)?;
    let buf = match call.compute {
        Compute::F64 => {
            let mut out = room(total)?;
            out.extend((0..steps).map(|i| start + i as f64 * delta));
            Buf::F64(Arc::new(out))
        }
        Compute::F32 => {
            let mut out = room(total)?;
            out.extend((0..steps).map(|i| start as f32 + i as f32 * delta as f32));
            Buf::F32(Arc::new(out))
        }
    };
    Ok(vec![Array { dtype: first.dtype, shape, buf }])
}

fn no_step() -> OpError {
    OpError::Shape("the step of a range must not be zero".to_owned())
}

/// Every element is `start + i * delta`; the limit only says how many there are.
fn range_vjp(tape: &mut Tape<'_>, call: &VjpCall<'_>) -> Result<Vec<Option<String>>, String> {
    let g = d_output(call, 0)?;
    let keep: &[(&str, Attr)] = &[("keepdims", Attr::Int(0))];
    let d_start = tape.op_with("ReduceSum", &[g], keep);
    let [zero, one] = [0, 1].map(|value| tape.constant(Tensor::i64s([], &[value])));
    let steps = tape.op("Size", &[g]);
    let steps = tape.op("Range", &[&zero, &steps, &one]);
    let steps = tape.op("CastLike", &[&steps, input(call, 0)?]);
    let weighted = tape.op("Mul", &[g, &steps]);
    let d_delta = tape.op_with("ReduceSum", &[&weighted], keep);
    Ok(vec![Some(d_start), None, Some(d_delta)])
}

fn eye_like(call: &Call<'_>) -> Result<Vec<Array>, OpError> {
    let x = call.input(0)?;
    let [rows, cols] = x.shape[..] else {
        return Err(OpError::Shape(format!("EyeLike takes a matrix, found shape {:?}", x.shape)));
    };
    let dtype = match call.node.attr("dtype") {
        Some(Attr::Int(code)) => DType::from_onnx(i32::try_from(*code).unwrap_or(0)),
        _ => x.dtype,
    };
    let k = call.node.int("k", 0);
    let total = count(&x.shape)?;
    let on = |at: usize| (at % cols.max(1)) as i64 == ((at / cols.max(1)) as i64).saturating_add(k);
    debug_assert_eq!(total, rows * cols);
    let buf = match (dtype, call.compute) {
        (DType::Bool, _) => Buf::Bool(Arc::new((0..total).map(on).collect())),
        (DType::U8 | DType::I8, _) => Buf::Bytes((0..total).map(|at| u8::from(on(at))).collect()),
        (float, Compute::F32) if float.is_float() => {
            Buf::F32(Arc::new((0..total).map(|at| f32::from(u8::from(on(at)))).collect()))
        }
        (float, Compute::F64) if float.is_float() => {
            Buf::F64(Arc::new((0..total).map(|at| f64::from(u8::from(on(at)))).collect()))
        }
        (int, _) if int.is_int() => Buf::I64(Arc::new((0..total).map(|at| i64::from(on(at))).collect())),
        (other, _) => return Err(OpError::Unsupported(format!("an identity matrix of type {other}"))),
    };
    Ok(vec![Array { dtype, shape: x.shape.clone(), buf }])
}

/// Numbers that may be carried as floats, as `OneHot` allows for indices and depth.
fn whole(x: &Array) -> Result<Vec<i64>, OpError> {
    match x.buf {
        Buf::F32(_) | Buf::F64(_) => Ok(x.to_f64s().into_iter().map(|v| v as i64).collect()),
        Buf::I64(_) | Buf::Bool(_) | Buf::Bytes(_) => Ok(x.to_i64s()?),
    }
}

fn one_hot(call: &Call<'_>) -> Result<Vec<Array>, OpError> {
    let (indices, depth, values) = (call.input(0)?, whole(call.input(1)?)?, call.input(2)?);
    let [depth] = dims(&depth)?[..] else {
        return Err(OpError::Shape(format!("the depth of OneHot has one element, found {depth:?}")));
    };
    if values.shape != [2] {
        return Err(OpError::Shape(format!("values of OneHot are [off, on], found shape {:?}", values.shape)));
    }
    let axis = axis_of(call.node.int("axis", -1), indices.rank() + 1)?;
    let mut shape = indices.shape.clone();
    shape.insert(axis, depth);
    let inner: usize = shape[axis + 1..].iter().product();
    let on: Vec<Option<usize>> = whole(indices)?.into_iter().map(|index| wrapped(index, depth)).collect();
    let mut places = room(count(&shape)?)?;
    places.extend((0..count(&shape)?).map(|at| {
        let (outer, step, inside) = (at / inner / depth, at / inner % depth, at % inner);
        usize::from(on[outer * inner + inside] == Some(step))
    }));
    Ok(vec![picked(values, &places, 1, shape)?])
}

fn one_hot_flow(call: &FlowCall<'_>) -> Vec<Option<Rows>> {
    let new = call.outputs.first().and_then(|out| axis_of(call.node.int("axis", -1), out.rank()).ok());
    vec![moved_rows(call, 0, 0, |axis| Some(axis + usize::from(new? <= axis)))]
}
