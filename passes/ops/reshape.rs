//! Other shapes over the same elements. Nothing is copied.

use SampleAttr::{Int, Ints};

use super::layout::{
    axes_of, axis_of, bools, case, count, d_output, first_only, input, int32s, ints, reshape_like, uniform,
};
use super::{Call, Flow, OpDef, OpError, Sample, SampleAttr, Vjp, VjpCall};
use crate::array::Array;
use crate::rewrite::tape::Tape;

/// Operators that change the shape only.
pub(super) const ROWS: &[OpDef] = &[
    OpDef {
        name: "Reshape",
        domain: "",
        about: "The same elements under a shape computed at run time; -1 stands for what is left, 0 for the old size",
        eval: reshape,
        flow: Flow::Keep,
        vjp: Vjp::Rule(back_to_shape),
        samples: &[
            case("plain", &[uniform(&[2, 3, 4]), ints(&[2], &[6, 4])], &[], &[0]),
            case("rest and old size", &[uniform(&[2, 3, 4]), ints(&[3], &[0, -1, 2])], &[], &[0]),
            case("to scalar", &[uniform(&[1, 1]), ints(&[0], &[])], &[], &[0]),
            case("zero copied", &[uniform(&[2, 0, 3]), ints(&[2], &[6, 0])], &[("allowzero", Int(1))], &[]),
            case("int32", &[int32s(&[2, 2], &[1, 2, 3, 4]), ints(&[1], &[-1])], &[], &[]),
            case("bool", &[bools(&[2, 2], &[true, false]), ints(&[2], &[4, 1])], &[], &[]),
            Sample { opset: 13, ..case("opset 13", &[uniform(&[2, 6]), ints(&[2], &[3, 4])], &[], &[0]) },
        ],
    },
    OpDef {
        name: "Squeeze",
        domain: "",
        about: "Removes axes of size one",
        eval: squeeze,
        flow: Flow::Keep,
        vjp: Vjp::Rule(back_to_shape),
        samples: &[
            case("axes", &[uniform(&[1, 3, 1, 2]), ints(&[2], &[0, -2])], &[], &[0]),
            case("every one", &[uniform(&[1, 3, 1])], &[], &[0]),
            case("int64", &[ints(&[1], &[7]), ints(&[1], &[0])], &[], &[]),
            Sample { opset: 11, ..case("axes as attribute", &[uniform(&[3, 1])], &[("axes", Ints(&[-1]))], &[0]) },
        ],
    },
    OpDef {
        name: "Unsqueeze",
        domain: "",
        about: "Inserts axes of size one",
        eval: unsqueeze,
        flow: Flow::Keep,
        vjp: Vjp::Rule(back_to_shape),
        samples: &[
            case("axes", &[uniform(&[2, 3]), ints(&[2], &[0, -1])], &[], &[0]),
            case("int64 scalar", &[ints(&[], &[5]), ints(&[1], &[0])], &[], &[]),
            case("bool", &[bools(&[3], &[true, false, true]), ints(&[2], &[2, 1])], &[], &[]),
            case("empty", &[uniform(&[0, 2]), ints(&[1], &[1])], &[], &[]),
            Sample { opset: 11, ..case("axes as attribute", &[uniform(&[2, 3])], &[("axes", Ints(&[1]))], &[0]) },
        ],
    },
    OpDef {
        name: "Flatten",
        domain: "",
        about: "A matrix: the axes before `axis` by the axes from it on",
        eval: flatten,
        flow: Flow::Keep,
        vjp: Vjp::Rule(back_to_shape),
        samples: &[
            case("default axis", &[uniform(&[2, 3, 2])], &[], &[0]),
            case("all into columns", &[uniform(&[2, 3])], &[("axis", Int(0))], &[0]),
            case("negative axis", &[uniform(&[2, 3, 2])], &[("axis", Int(-1))], &[0]),
            case("last", &[ints(&[2, 3], &[1, 2, 3])], &[("axis", Int(2))], &[]),
        ],
    },
];

fn reshape(call: &Call<'_>) -> Result<Vec<Array>, OpError> {
    let x = call.input(0)?;
    let wanted = match (call.optional(1), call.node.ints("shape")) {
        (None, Some(shape)) => shape.to_vec(),
        _ => call.input(1)?.to_i64s()?,
    };
    let misfit = || OpError::Shape(format!("a tensor of shape {:?} cannot be reshaped to {wanted:?}", x.shape));
    let copy_zeros = call.node.int("allowzero", 0) == 0;
    let mut shape = Vec::with_capacity(wanted.len());
    let mut rest = None;
    for (axis, &size) in wanted.iter().enumerate() {
        shape.push(match size {
            0 if copy_zeros => *x.shape.get(axis).ok_or_else(misfit)?,
            -1 if rest.is_none() => {
                rest = Some(axis);
                1
            }
            size => usize::try_from(size).map_err(|_| misfit())?,
        });
    }
    if let Some(axis) = rest {
        let known = count(&shape)?;
        shape[axis] = x.len().checked_div(known).ok_or_else(misfit)?;
    }
    if count(&shape)? != x.len() {
        return Err(misfit());
    }
    Ok(vec![x.reshaped(shape)?])
}

/// Axes from input 1 (operator set 13) or from the attribute.
fn axes(call: &Call<'_>) -> Result<Option<Vec<i64>>, OpError> {
    Ok(match call.optional(1) {
        Some(axes) => Some(axes.to_i64s()?),
        None => call.node.ints("axes").map(<[i64]>::to_vec),
    })
}

fn squeeze(call: &Call<'_>) -> Result<Vec<Array>, OpError> {
    let x = call.input(0)?;
    let gone = match axes(call)? {
        Some(axes) => axes_of(&axes, x.rank())?,
        None => (0..x.rank()).filter(|&axis| x.shape[axis] == 1).collect(),
    };
    if let Some(axis) = gone.iter().find(|&&axis| x.shape[axis] != 1) {
        return Err(OpError::Shape(format!("axis {axis} of shape {:?} is to be removed but is not 1", x.shape)));
    }
    let shape: Vec<usize> = (0..x.rank()).filter(|axis| !gone.contains(axis)).map(|axis| x.shape[axis]).collect();
    Ok(vec![x.reshaped(shape)?])
}

fn unsqueeze(call: &Call<'_>) -> Result<Vec<Array>, OpError> {
    let x = call.input(0)?;
    let axes = axes(call)?.ok_or(OpError::MissingInput(1))?;
    let rank = x.rank() + axes.len();
    let new = axes_of(&axes, rank)?;
    let mut old = x.shape.iter().copied();
    let shape: Vec<usize> =
        (0..rank).map(|axis| if new.contains(&axis) { 1 } else { old.next().unwrap_or(1) }).collect();
    Ok(vec![x.reshaped(shape)?])
}

fn flatten(call: &Call<'_>) -> Result<Vec<Array>, OpError> {
    let x = call.input(0)?;
    let axis = call.node.int("axis", 1);
    let axis = if axis == x.rank() as i64 { x.rank() } else { axis_of(axis, x.rank())? };
    let (rows, cols) = x.shape.split_at(axis);
    Ok(vec![x.reshaped([rows.iter().product::<usize>(), cols.iter().product()])?])
}

fn back_to_shape(tape: &mut Tape<'_>, call: &VjpCall<'_>) -> Result<Vec<Option<String>>, String> {
    let d_x = reshape_like(tape, d_output(call, 0)?, input(call, 0)?, call.opset);
    Ok(first_only(call, d_x))
}
