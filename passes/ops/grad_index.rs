//! Helper operators of reverse mode for indexing: the gradient goes to the elements that were read, summed where one
//! was read more than once, in the order of the reads.

use SampleAttr::Int;

use super::gather::{batch_dims, blocks, elements, slices};
use super::layout::{Reduction, axis_of, case, count, int32s, ints, uniform, written, zeros};
use super::{Call, Flow, FlowCall, OpDef, OpError, Rows, SampleAttr, Vjp, slice};
use crate::array::Array;
use crate::rewrite::tape::GRAD_DOMAIN;

/// Gradients of `Slice` and of the gathers with respect to their data.
pub(super) const ROWS: &[OpDef] = &[
    OpDef {
        name: "SliceGrad",
        domain: GRAD_DOMAIN,
        about: "SliceGrad(g, x, starts, ends, axes, steps): zeros of x's shape with g where the slice was taken",
        eval: slice_grad,
        flow: Flow::Rule(rows_of_x),
        vjp: Vjp::Missing,
        samples: &[
            case(
                "strided",
                &[
                    uniform(&[2, 2]),
                    uniform(&[2, 5]),
                    ints(&[1], &[1]),
                    ints(&[1], &[i64::MAX]),
                    ints(&[1], &[1]),
                    ints(&[1], &[2]),
                ],
                &[],
                &[],
            ),
            case(
                "backwards",
                &[
                    uniform(&[3, 2]),
                    uniform(&[3, 2]),
                    ints(&[1], &[-1]),
                    ints(&[1], &[i64::MIN]),
                    ints(&[1], &[0]),
                    ints(&[1], &[-1]),
                ],
                &[],
                &[],
            ),
        ],
    },
    OpDef {
        name: "GatherGrad",
        domain: GRAD_DOMAIN,
        about: "GatherGrad(g, x, indices; axis): zeros of x's shape with the slices of g added at the indices",
        eval: gather_grad,
        flow: Flow::Rule(rows_of_x),
        vjp: Vjp::Missing,
        samples: &[
            case("repeated", &[uniform(&[2, 2, 3]), uniform(&[4, 3]), ints(&[2, 2], &[1, 3, 1, -1])], &[], &[]),
            case(
                "last axis",
                &[uniform(&[2, 3]), uniform(&[2, 2]), int32s(&[3], &[1, 1, 0])],
                &[("axis", Int(-1))],
                &[],
            ),
        ],
    },
    OpDef {
        name: "GatherNDGrad",
        domain: GRAD_DOMAIN,
        about: "GatherNDGrad(g, x, indices; batch_dims): zeros of x's shape with the blocks of g added at the indices",
        eval: gather_nd_grad,
        flow: Flow::Rule(rows_of_x),
        vjp: Vjp::Missing,
        samples: &[
            case("rows", &[uniform(&[3, 2]), uniform(&[4, 2]), ints(&[3, 1], &[3, 0, 3])], &[], &[]),
            case(
                "batch",
                &[uniform(&[2, 2]), uniform(&[2, 3, 2]), ints(&[2, 1], &[2, 0])],
                &[("batch_dims", Int(1))],
                &[],
            ),
        ],
    },
    OpDef {
        name: "GatherElementsGrad",
        domain: GRAD_DOMAIN,
        about: "GatherElementsGrad(g, x, indices; axis): zeros of x's shape with the elements of g added at the indices",
        eval: gather_elements_grad,
        flow: Flow::Rule(rows_of_x),
        vjp: Vjp::Missing,
        samples: &[
            case("first axis", &[uniform(&[2, 2]), uniform(&[3, 2]), ints(&[2, 2], &[0, 2, 0, -1])], &[], &[]),
            case(
                "last axis",
                &[uniform(&[2, 2]), uniform(&[2, 3]), ints(&[2, 2], &[0, 0, 2, 1])],
                &[("axis", Int(-1))],
                &[],
            ),
        ],
    },
];

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
    Ok(vec![written(&zeros(g, &x.shape)?, g, starts, len, Reduction::Add)?])
}

fn slice_grad(call: &Call<'_>) -> Result<Vec<Array>, OpError> {
    let (g, x) = (call.input(0)?, call.input(1)?);
    let (starts, len) = slice::view(call.node, call.inputs, 2, &x.shape)?.runs()?;
    summed(g, x, &starts, len)
}

fn gather_grad(call: &Call<'_>) -> Result<Vec<Array>, OpError> {
    let (g, x) = (call.input(0)?, call.input(1)?);
    let axis = axis_of(call.node.int("axis", 0), x.rank())?;
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
    let axis = axis_of(call.node.int("axis", 0), x.rank())?;
    let starts = elements(&x.shape, axis, call.input(2)?)?;
    summed(g, x, &starts, 1)
}
