//! Repeating elements.

use super::layout::{
    View, bools, case, count, d_output, dims, first_only, input, ints, moved_rows, same_rows, uniform,
};
use super::{Call, Flow, FlowCall, OpDef, OpError, Rows, Vjp, VjpCall};
use crate::array::Array;
use crate::ir::{Attr, Tensor};
use crate::rewrite::tape::Tape;

/// Operators that repeat.
pub(super) const ROWS: &[OpDef] = &[
    OpDef {
        name: "Expand",
        domain: "",
        about: "Broadcasts to a shape computed at run time",
        eval: expand,
        flow: Flow::Rule(flow),
        vjp: Vjp::Rule(expand_vjp),
        samples: &[
            case("one axis", &[uniform(&[2, 1, 3]), ints(&[3], &[2, 4, 3])], &[], &[0]),
            case("new axes", &[uniform(&[3]), ints(&[3], &[2, 2, 3])], &[], &[0]),
            case("ones keep the size", &[uniform(&[2, 3]), ints(&[2], &[1, 1])], &[], &[0]),
            case("shorter shape", &[uniform(&[2, 1, 3]), ints(&[2], &[4, 1])], &[], &[0]),
            case("scalar", &[uniform(&[]), ints(&[2], &[2, 3])], &[], &[0]),
            case("to nothing", &[uniform(&[1, 3]), ints(&[2], &[0, 3])], &[], &[]),
            case("bool", &[bools(&[1, 2], &[true, false]), ints(&[2], &[3, 2])], &[], &[]),
            case("int64", &[ints(&[2, 1], &[4, 5]), ints(&[2], &[2, 3])], &[], &[]),
        ],
    },
    OpDef {
        name: "Tile",
        domain: "",
        about: "Repeats the tensor along every axis",
        eval: tile,
        flow: Flow::Rule(flow),
        vjp: Vjp::Rule(tile_vjp),
        samples: &[
            case("both axes", &[uniform(&[2, 3]), ints(&[2], &[2, 3])], &[], &[0]),
            case("one axis", &[uniform(&[2, 1, 3]), ints(&[3], &[1, 4, 1])], &[], &[0]),
            case("not at all", &[uniform(&[2, 3]), ints(&[2], &[1, 1])], &[], &[0]),
            case("to nothing", &[uniform(&[2, 3]), ints(&[2], &[0, 1])], &[], &[]),
            case("int64", &[ints(&[2], &[4, 5]), ints(&[1], &[3])], &[], &[]),
            case("bool", &[bools(&[3], &[true, false, true]), ints(&[1], &[2])], &[], &[]),
        ],
    },
];

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
    let view = View::of(&x.shape);
    let dims = repeats.iter().zip(view.dims).flat_map(|(&repeat, dim)| [(repeat, 0), dim]).collect();
    let tiled = View { start: 0, dims }.read(x)?;
    let shape: Vec<usize> = x.shape.iter().zip(&repeats).map(|(size, repeat)| size * repeat).collect();
    Ok(vec![tiled.reshaped(shape)?])
}

fn flow(call: &FlowCall<'_>) -> Vec<Option<Rows>> {
    let new_axes = match (call.inputs.first(), call.outputs.first()) {
        (Some(Some(x)), Some(out)) => out.rank().saturating_sub(x.rank()),
        _ => 0,
    };
    vec![same_rows(call, 0).or_else(|| moved_rows(call, 0, 0, |axis| Some(axis + new_axes)))]
}

fn expand_vjp(tape: &mut Tape<'_>, call: &VjpCall<'_>) -> Result<Vec<Option<String>>, String> {
    let d_x = tape.sum_to(d_output(call, 0)?, input(call, 0)?);
    Ok(first_only(call, d_x))
}

/// Views the gradient as `[repeat, size, repeat, size, ..]` and sums over the repeats.
fn tile_vjp(tape: &mut Tape<'_>, call: &VjpCall<'_>) -> Result<Vec<Option<String>>, String> {
    if call.opset < 13 {
        return Err(format!("the gradient of Tile needs operator set 13, the model has {}", call.opset));
    }
    let (g, x, repeats) = (d_output(call, 0)?, input(call, 0)?, input(call, 1)?);
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
    Ok(first_only(call, d_x))
}
