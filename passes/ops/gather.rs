//! Elements, rows and blocks named by indices.

use SampleAttr::Int;

use super::layout::{
    axis_of, axis_runs, bools, case, count, d_output, first_only, input, int32s, ints, moved_rows, picked, room,
    uniform, wrapped,
};
use super::{Call, Flow, FlowCall, OpDef, OpError, Rows, SampleAttr, Vjp, VjpCall};
use crate::array::Array;
use crate::ir::Attr;
use crate::rewrite::tape::Tape;

/// The gathers.
pub(super) const ROWS: &[OpDef] = &[
    OpDef {
        name: "Gather",
        domain: "",
        about: "The slices along an axis that the indices name; a negative index counts from the end",
        eval: gather,
        flow: Flow::Rule(gather_flow),
        vjp: Vjp::Rule(gather_vjp),
        samples: &[
            case("embedding", &[uniform(&[5, 3]), ints(&[2, 2], &[4, 0, 0, 2])], &[], &[0]),
            case("last axis", &[uniform(&[2, 4]), ints(&[3], &[-1, 1, 1])], &[("axis", Int(-1))], &[0]),
            case("scalar index", &[uniform(&[2, 3, 2]), ints(&[], &[1])], &[("axis", Int(1))], &[0]),
            case("of a shape", &[ints(&[3], &[7, 8, 9]), ints(&[], &[-2])], &[], &[]),
            case("int32 indices", &[uniform(&[3, 2]), int32s(&[2], &[2, 0])], &[], &[0]),
            case("bool", &[bools(&[3], &[true, false, true]), ints(&[2], &[0, 1])], &[], &[]),
            case("no indices", &[uniform(&[3, 2]), ints(&[0], &[])], &[], &[]),
        ],
    },
    OpDef {
        name: "GatherND",
        domain: "",
        about: "Elements or blocks named by index vectors, the last axis of the indices",
        eval: gather_nd,
        flow: Flow::Rule(gather_nd_flow),
        vjp: Vjp::Rule(gather_nd_vjp),
        samples: &[
            case("elements", &[uniform(&[3, 2]), ints(&[3, 2], &[0, 1, 2, 0, 0, 1])], &[], &[0]),
            case("rows", &[uniform(&[3, 2]), ints(&[2, 2, 1], &[2, 0, -1, 1])], &[], &[0]),
            case("blocks", &[uniform(&[2, 2, 3]), ints(&[1, 2], &[1, 0])], &[], &[0]),
            case("batch", &[uniform(&[2, 3, 2]), ints(&[2, 1], &[2, 0])], &[("batch_dims", Int(1))], &[0]),
            case(
                "batch of several",
                &[uniform(&[2, 3, 2]), ints(&[2, 2, 1], &[2, 0, 1, 1])],
                &[("batch_dims", Int(1))],
                &[0],
            ),
            case("bool", &[bools(&[2, 2], &[true, false, false]), ints(&[1, 1], &[1])], &[], &[]),
            case("int64", &[ints(&[4], &[1, 2, 3, 4]), ints(&[2, 1], &[3, 0])], &[], &[]),
            case("no indices", &[uniform(&[3, 2]), ints(&[0, 1], &[])], &[], &[]),
        ],
    },
    OpDef {
        name: "GatherElements",
        domain: "",
        about: "For every index the element at it along an axis, and at the index's own place along the others",
        eval: gather_elements,
        flow: Flow::Rule(gather_elements_flow),
        vjp: Vjp::Rule(gather_elements_vjp),
        samples: &[
            case("first axis", &[uniform(&[3, 2]), ints(&[2, 2], &[0, 2, 0, -1])], &[], &[0]),
            case("last axis", &[uniform(&[2, 3]), ints(&[2, 2], &[0, 0, 2, 1])], &[("axis", Int(-1))], &[0]),
            case("fewer columns", &[uniform(&[3, 3]), ints(&[2, 1], &[2, 2])], &[("axis", Int(0))], &[0]),
            case("int64", &[ints(&[2, 2], &[1, 2, 3, 4]), ints(&[1, 2], &[1, 0])], &[], &[]),
            case("bool", &[bools(&[3], &[true, false, true]), int32s(&[2], &[1, 2])], &[], &[]),
            case("no indices", &[uniform(&[3, 2]), ints(&[0, 2], &[])], &[], &[]),
        ],
    },
];

/// Where the slices that the indices name begin, and how long their runs are.
pub(super) fn slices(shape: &[usize], axis: usize, indices: &Array) -> Result<(Vec<usize>, usize), OpError> {
    let rows: Vec<usize> =
        indices.to_i64s()?.into_iter().map(|index| at(index, shape, axis)).collect::<Result<_, _>>()?;
    axis_runs(shape, axis, &rows)
}

fn at(index: i64, shape: &[usize], axis: usize) -> Result<usize, OpError> {
    wrapped(index, shape[axis])
        .ok_or_else(|| OpError::Shape(format!("index {index} is out of bounds for axis {axis} of shape {shape:?}")))
}

/// Where the blocks that index vectors name begin, how long they are, and the shape of all blocks together.
pub(super) fn blocks(
    shape: &[usize],
    indices: &Array,
    batch_dims: usize,
) -> Result<(Vec<usize>, usize, Vec<usize>), OpError> {
    let misfit = || {
        OpError::Shape(format!(
            "index vectors of shape {:?} with {batch_dims} batch axes do not fit a tensor of shape {shape:?}",
            indices.shape
        ))
    };
    let (&depth, outer) = indices.shape.split_last().ok_or_else(misfit)?;
    let last = batch_dims.checked_add(depth).filter(|&last| last <= shape.len()).ok_or_else(misfit)?;
    if batch_dims > outer.len() || outer[..batch_dims] != shape[..batch_dims] {
        return Err(misfit());
    }
    let len = count(&shape[last..])?;
    let batch_len = count(&shape[batch_dims..])?;
    let per_batch = count(&outer[batch_dims..])?;
    let vectors = count(outer)?;
    let values = indices.to_i64s()?;
    let mut starts = room(vectors)?;
    for vector in 0..vectors {
        let mut block = 0;
        for (axis, &index) in (batch_dims..last).zip(&values[vector * depth..(vector + 1) * depth]) {
            block = block * shape[axis] + at(index, shape, axis)?;
        }
        starts.push(vector / per_batch * batch_len + block * len);
    }
    let all = outer.iter().chain(&shape[last..]).copied().collect();
    Ok((starts, len, all))
}

/// Where the elements are that indices name along an axis.
pub(super) fn elements(shape: &[usize], axis: usize, indices: &Array) -> Result<Vec<usize>, OpError> {
    let fits = indices.rank() == shape.len()
        && (0..shape.len()).all(|other| other == axis || indices.shape[other] <= shape[other]);
    if !fits {
        return Err(OpError::Shape(format!(
            "indices of shape {:?} along axis {axis} do not fit a tensor of shape {shape:?}",
            indices.shape
        )));
    }
    let mut starts = room(indices.len())?;
    let mut place = vec![0; shape.len()];
    for index in indices.to_i64s()? {
        let index = at(index, shape, axis)?;
        let position = (0..shape.len()).fold(0, |sum, other| {
            let step = if other == axis { index } else { place[other] };
            sum * shape[other] + step
        });
        starts.push(position);
        for other in (0..shape.len()).rev() {
            place[other] += 1;
            if place[other] < indices.shape[other] {
                break;
            }
            place[other] = 0;
        }
    }
    Ok(starts)
}

fn gather(call: &Call<'_>) -> Result<Vec<Array>, OpError> {
    let (x, indices) = (call.input(0)?, call.input(1)?);
    let axis = axis_of(call.node.int("axis", 0), x.rank())?;
    let (starts, len) = slices(&x.shape, axis, indices)?;
    let shape = [&x.shape[..axis], &indices.shape, &x.shape[axis + 1..]].concat();
    Ok(vec![picked(x, &starts, len, shape)?])
}

/// The attribute `batch_dims`.
pub(super) fn batch_dims(call: &Call<'_>) -> Result<usize, OpError> {
    let given = call.node.int("batch_dims", 0);
    usize::try_from(given).map_err(|_| OpError::Shape(format!("batch_dims is {given}, expected zero or more")))
}

fn gather_nd(call: &Call<'_>) -> Result<Vec<Array>, OpError> {
    let (x, indices) = (call.input(0)?, call.input(1)?);
    let (starts, len, shape) = blocks(&x.shape, indices, batch_dims(call)?)?;
    Ok(vec![picked(x, &starts, len, shape)?])
}

fn gather_elements(call: &Call<'_>) -> Result<Vec<Array>, OpError> {
    let (x, indices) = (call.input(0)?, call.input(1)?);
    let axis = axis_of(call.node.int("axis", 0), x.rank())?;
    let starts = elements(&x.shape, axis, indices)?;
    Ok(vec![picked(x, &starts, 1, indices.shape.clone())?])
}

/// Shapes of data and indices.
fn shapes<'a>(call: &FlowCall<'a>) -> Option<(&'a [usize], &'a [usize])> {
    match call.inputs {
        [Some(x), Some(indices), ..] => Some((&x.shape, &indices.shape)),
        _ => None,
    }
}

/// Rows of the indices where they land; else rows of the data along an axis that is not gathered.
fn gather_flow(call: &FlowCall<'_>) -> Vec<Option<Rows>> {
    let Some((x, indices)) = shapes(call) else { return vec![None] };
    let Ok(gathered) = axis_of(call.node.int("axis", 0), x.len()) else { return vec![None] };
    let of_indices = moved_rows(call, 1, 0, |axis| Some(gathered + axis));
    let kept = |axis| match axis {
        before if before < gathered => Some(before),
        after if after > gathered => Some(after - 1 + indices.len()),
        _ => None,
    };
    vec![of_indices.or_else(|| moved_rows(call, 0, 0, kept))]
}

fn gather_nd_flow(call: &FlowCall<'_>) -> Vec<Option<Rows>> {
    let Some((x, [outer @ .., depth])) = shapes(call) else { return vec![None] };
    let batch = usize::try_from(call.node.int("batch_dims", 0)).unwrap_or(x.len());
    let of_indices = moved_rows(call, 1, 0, |axis| (axis < outer.len()).then_some(axis));
    let kept = |axis: usize| match axis {
        batched if batched < batch => Some(batched),
        inner => inner.checked_sub(batch + depth).map(|inner| outer.len() + inner),
    };
    vec![of_indices.or_else(|| moved_rows(call, 0, 0, kept))]
}

fn gather_elements_flow(call: &FlowCall<'_>) -> Vec<Option<Rows>> {
    let Some((x, _)) = shapes(call) else { return vec![None] };
    let Ok(gathered) = axis_of(call.node.int("axis", 0), x.len()) else { return vec![None] };
    let of_indices = moved_rows(call, 1, 0, Some);
    vec![of_indices.or_else(|| moved_rows(call, 0, 0, |axis| (axis != gathered).then_some(axis)))]
}

fn with_helper(
    tape: &mut Tape<'_>,
    call: &VjpCall<'_>,
    helper: &str,
    attr: &str,
) -> Result<Vec<Option<String>>, String> {
    let attr = (attr, Attr::Int(call.node.int(attr, 0)));
    let d_x = tape.grad(helper, &[d_output(call, 0)?, input(call, 0)?, input(call, 1)?], &[attr]);
    Ok(first_only(call, d_x))
}

fn gather_vjp(tape: &mut Tape<'_>, call: &VjpCall<'_>) -> Result<Vec<Option<String>>, String> {
    with_helper(tape, call, "GatherGrad", "axis")
}

fn gather_nd_vjp(tape: &mut Tape<'_>, call: &VjpCall<'_>) -> Result<Vec<Option<String>>, String> {
    with_helper(tape, call, "GatherNDGrad", "batch_dims")
}

fn gather_elements_vjp(tape: &mut Tape<'_>, call: &VjpCall<'_>) -> Result<Vec<Option<String>>, String> {
    with_helper(tape, call, "GatherElementsGrad", "axis")
}
