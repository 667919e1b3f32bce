//! Helper operators of reverse mode for indexing: the gradient goes to the elements that were read, summed where one
//! was read more than once, in the order of the reads.

use SampleAttr::Int;

use super::gather::{batch_dims, blocks, elements, slices};
use super::layout::{Reduction, count, written, zeros};
use super::{Call, Flow, FlowCall, Input, OpDef, OpError, Rows, Sample, SampleAttr, Vjp, carrier, slice};
use crate::array::Array;
use crate::rewrite::tape::GRAD_DOMAIN;

/// Gradients of `Slice` and of the gathers with respect to their data.
pub(super) const ROWS: &[OpDef] = &[SLICE_GRAD, GATHER_GRAD, GATHER_ND_GRAD, GATHER_ELEMENTS_GRAD];

const SLICE_GRAD: OpDef = OpDef {
    name: "SliceGrad",
    domain: GRAD_DOMAIN,
    about: "SliceGrad(g, x, starts, ends, axes, steps): zeros of x's shape with g where the slice was taken.",
    eval: slice_grad,
    flow: Flow::Rule(rows_of_x),
    vjp: Vjp::Missing,
    samples: &[
        Sample::new(
            "strided",
            &[
                Input::uniform(&[2, 2]),
                Input::uniform(&[2, 5]),
                Input::ints(&[1], &[1]),
                Input::ints(&[1], &[i64::MAX]),
                Input::ints(&[1], &[1]),
                Input::ints(&[1], &[2]),
            ],
        ),
        Sample::new(
            "backwards",
            &[
                Input::uniform(&[3, 2]),
                Input::uniform(&[3, 2]),
                Input::ints(&[1], &[-1]),
                Input::ints(&[1], &[i64::MIN]),
                Input::ints(&[1], &[0]),
                Input::ints(&[1], &[-1]),
            ],
        ),
    ],
};

const GATHER_GRAD: OpDef = OpDef {
    name: "GatherGrad",
    domain: GRAD_DOMAIN,
    about: "GatherGrad(g, x, indices; axis): zeros of x's shape with the slices of g added at the indices.",
    eval: gather_grad,
    flow: Flow::Rule(rows_of_x),
    vjp: Vjp::Missing,
    samples: &[
        Sample::new(
            "repeated",
            &[Input::uniform(&[2, 2, 3]), Input::uniform(&[4, 3]), Input::ints(&[2, 2], &[1, 3, 1, -1])],
        ),
        Sample::new("last axis", &[Input::uniform(&[2, 3]), Input::uniform(&[2, 2]), Input::int32s(&[3], &[1, 1, 0])])
            .attrs(&[("axis", Int(-1))]),
    ],
};

const GATHER_ND_GRAD: OpDef = OpDef {
    name: "GatherNDGrad",
    domain: GRAD_DOMAIN,
    about: "GatherNDGrad(g, x, indices; batch_dims): zeros of x's shape with the blocks of g added at the indices.",
    eval: gather_nd_grad,
    flow: Flow::Rule(rows_of_x),
    vjp: Vjp::Missing,
    samples: &[
        Sample::new("rows", &[Input::uniform(&[3, 2]), Input::uniform(&[4, 2]), Input::ints(&[3, 1], &[3, 0, 3])]),
        Sample::new("batch", &[Input::uniform(&[2, 2]), Input::uniform(&[2, 3, 2]), Input::ints(&[2, 1], &[2, 0])])
            .attrs(&[("batch_dims", Int(1))]),
    ],
};

const GATHER_ELEMENTS_GRAD: OpDef = OpDef {
    name: "GatherElementsGrad",
    domain: GRAD_DOMAIN,
    about: "GatherElementsGrad(g, x, indices; axis): zeros of x's shape with the elements of g added at the indices.",
    eval: gather_elements_grad,
    flow: Flow::Rule(rows_of_x),
    vjp: Vjp::Missing,
    samples: &[
        Sample::new(
            "first axis",
            &[Input::uniform(&[2, 2]), Input::uniform(&[3, 2]), Input::ints(&[2, 2], &[0, 2, 0, -1])],
        ),
        Sample::new(
            "last axis",
            &[Input::uniform(&[2, 2]), Input::uniform(&[2, 3]), Input::ints(&[2, 2], &[0, 0, 2, 1])],
        )
        .attrs(&[("axis", Int(-1))]),
    ],
};

/// The gradient has the rows of what it is the gradient of.
fn rows_of_x(call: &FlowCall<'_>) -> Vec<Option<Rows>> {
    vec![call.rows.get(1).copied().flatten()]
}

/// Zeros of the shape of `x` with the runs of `g` added.
fn summed(g: &Array, x: &Array, starts: &[usize], len: usize) -> Result<Vec<Array>, OpError> {
    if g.len() != count(&[starts.len(), len])? {
        return Err(OpError::Shape(format!(
            "a gradient of shape {:?} for {} runs of {len} elements read from shape {:?}",
            g.shape,
            starts.len(),
            x.shape
        )));
    }
    Ok(vec![written(zeros(g, &x.shape)?, g, starts, len, Reduction::Add)?])
}

fn slice_grad(call: &Call<'_>) -> Result<Vec<Array>, OpError> {
    let (g, x) = (call.input(0)?, call.input(1)?);
    let (starts, len) = slice::view(call.node, call.inputs, 2, &x.shape)?.runs()?;
    summed(g, x, &starts, len)
}

fn gather_grad(call: &Call<'_>) -> Result<Vec<Array>, OpError> {
    let (g, x) = (call.input(0)?, call.input(1)?);
    let axis = carrier::axis(call.node.int("axis", 0), x.rank())?;
    let (starts, len) = slices(&x.shape, axis, call.input(2)?)?;
    summed(g, x, &starts, len)
}

fn gather_nd_grad(call: &Call<'_>) -> Result<Vec<Array>, OpError> {
    let (g, x) = (call.input(0)?, call.input(1)?);
    let (starts, len, _) = blocks(&x.shape, call.input(2)?, batch_dims(call)?)?;
    summed(g, x, &starts, len)
}

fn gather_elements_grad(call: &Call<'_>) -> Result<Vec<Array>, OpError> {
    let (g, x) = (call.input(0)?, call.input(1)?);
    let axis = carrier::axis(call.node.int("axis", 0), x.rank())?;
    let starts = elements(&x.shape, axis, call.input(2)?)?;
    summed(g, x, &starts, 1)
}
