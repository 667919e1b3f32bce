//! Repeating elements.

use super::layout::{View, count, dims, input, moved_rows, same_rows};
use super::rules::{gradient, only_first};
use super::{Call, Flow, FlowCall, Input, OpDef, OpError, Rows, Sample, Vjp, VjpCall};
use crate::array::Array;
use crate::ir::{Attr, Tensor};
use crate::rewrite::tape::Tape;

/// Operators that repeat.
pub(super) const ROWS: &[OpDef] = &[EXPAND, TILE];

const EXPAND: OpDef = OpDef {
    name: "Expand",
    domain: "",
    about: "Broadcasts to a shape computed at run time.",
    eval: expand,
    flow: Flow::Rule(flow),
    vjp: Vjp::Rule(expand_vjp),
    samples: &[
        Sample::new("one axis", &[Input::uniform(&[2, 1, 3]), Input::ints(&[3], &[2, 4, 3])]).grads(&[0]),
        Sample::new("new axes", &[Input::uniform(&[3]), Input::ints(&[3], &[2, 2, 3])]).grads(&[0]),
        Sample::new("ones keep the size", &[Input::uniform(&[2, 3]), Input::ints(&[2], &[1, 1])]).grads(&[0]),
        Sample::new("shorter shape", &[Input::uniform(&[2, 1, 3]), Input::ints(&[2], &[4, 1])]).grads(&[0]),
        Sample::new("scalar", &[Input::uniform(&[]), Input::ints(&[2], &[2, 3])]).grads(&[0]),
        Sample::new("to nothing", &[Input::uniform(&[1, 3]), Input::ints(&[2], &[0, 3])]),
        Sample::new("bool", &[Input::bools(&[1, 2], &[true, false]), Input::ints(&[2], &[3, 2])]),
        Sample::new("int64", &[Input::ints(&[2, 1], &[4, 5]), Input::ints(&[2], &[2, 3])]),
    ],
};

const TILE: OpDef = OpDef {
    name: "Tile",
    domain: "",
    about: "Repeats the tensor along every axis.",
    eval: tile,
    flow: Flow::Rule(flow),
    vjp: Vjp::Rule(tile_vjp),
    samples: &[
        Sample::new("both axes", &[Input::uniform(&[2, 3]), Input::ints(&[2], &[2, 3])]).grads(&[0]),
        Sample::new("one axis", &[Input::uniform(&[2, 1, 3]), Input::ints(&[3], &[1, 4, 1])]).grads(&[0]),
        Sample::new("not at all", &[Input::uniform(&[2, 3]), Input::ints(&[2], &[1, 1])]).grads(&[0]),
        Sample::new("to nothing", &[Input::uniform(&[2, 3]), Input::ints(&[2], &[0, 1])]),
        Sample::new("int64", &[Input::ints(&[2], &[4, 5]), Input::ints(&[1], &[3])]),
        Sample::new("bool", &[Input::bools(&[3], &[true, false, true]), Input::ints(&[1], &[2])]),
    ],
};

fn expand(call: &Call<'_>) -> Result<Vec<Array>, OpError> {
    let x = call.input(0)?;
    let wanted = dims(&call.input(1)?.to_i64s()?)?;
    let rank = wanted.len().max(x.rank());
    let missing = rank - x.rank();
    let mut view = View::of(&x.shape);
    view.dims.splice(0..0, std::iter::repeat_n((1, 0), missing));
    for (dim, &size) in view.dims[rank - wanted.len()..].iter_mut().zip(&wanted) {
        match (dim.0, size) {
            (_, 1) => {}
            (1, size) => *dim = (size, 0),
            (old, size) if old == size => {}
            _ => {
                return Err(OpError::Shape(format!("shape {:?} cannot be broadcast with {wanted:?}", x.shape)));
            }
        }
    }
    let shape = view.shape();
    Ok(vec![if count(&shape)? == x.len() { x.reshaped(shape)? } else { view.read(x)? }])
}

fn tile(call: &Call<'_>) -> Result<Vec<Array>, OpError> {
    let x = call.input(0)?;
    let repeats = dims(&call.input(1)?.to_i64s()?)?;
    if repeats.len() != x.rank() {
        return Err(OpError::Shape(format!("repeats {repeats:?} for a tensor of shape {:?}", x.shape)));
    }
    let sizes = x.shape.iter().zip(&repeats).map(|(&size, &repeat)| size.checked_mul(repeat));
    let shape = sizes.collect::<Option<Vec<usize>>>().filter(|shape| count(shape).is_ok());
    let shape = shape.ok_or_else(|| {
        OpError::Shape(format!("shape {:?} repeated {repeats:?} times does not fit in memory", x.shape))
    })?;
    let view = View::of(&x.shape);
    let dims = repeats.iter().zip(view.dims).flat_map(|(&repeat, dim)| [(repeat, 0), dim]).collect();
    Ok(vec![View { start: 0, dims }.read(x)?.reshaped(shape)?])
}

fn flow(call: &FlowCall<'_>) -> Vec<Option<Rows>> {
    let new_axes = match (call.inputs.first(), call.outputs.first()) {
        (Some(Some(x)), Some(out)) => out.rank().saturating_sub(x.rank()),
        _ => 0,
    };
    vec![same_rows(call, 0).or_else(|| moved_rows(call, 0, 0, |axis| Some(axis + new_axes)))]
}

fn expand_vjp(tape: &mut Tape<'_>, call: &VjpCall<'_>) -> Result<Vec<Option<String>>, String> {
    let d_x = tape.sum_to(gradient(call)?, input(call, 0)?);
    Ok(only_first(call, d_x))
}

/// Views the gradient as `[repeat, size, repeat, size, ..]` and sums over the repeats.
fn tile_vjp(tape: &mut Tape<'_>, call: &VjpCall<'_>) -> Result<Vec<Option<String>>, String> {
    if call.opset < 13 {
        return Err(format!("the gradient of Tile needs operator set 13, the model has {}", call.opset));
    }
    let (g, x, repeats) = (gradient(call)?, input(call, 0)?, input(call, 1)?);
    let column = tape.ints(&[-1, 1]);
    let flat = tape.ints(&[-1]);
    let shape = tape.op("Shape", &[x]);
    let sizes = tape.op("Reshape", &[&shape, &column]);
    let repeats = tape.op("Reshape", &[repeats, &column]);
    let pairs = tape.op_with("Concat", &[&repeats, &sizes], &[("axis", Attr::Int(1))]);
    let pairs = tape.op("Reshape", &[&pairs, &flat]);
    let split = tape.op("Reshape", &[g, &pairs]);
    let [zero, two] = [0, 2].map(|value| tape.constant(Tensor::i64s([], &[value])));
    let end = tape.op("Size", &[&pairs]);
    let axes = tape.op("Range", &[&zero, &end, &two]);
    let d_x = tape.op_with("ReduceSum", &[&split, &axes], &[("keepdims", Attr::Int(0))]);
    Ok(only_first(call, d_x))
}
