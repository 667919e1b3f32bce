//! Helper operators of reverse mode.

use super::carrier::{Outputs, Real, by_precision};
use super::linear::matmul;
use super::reduce::{Folding, sums};
use super::{Call, Flow, Input, OpDef, OpError, Sample, SampleAttr, Vjp, broadcast};
use crate::array::Array;
use crate::rewrite::tape::GRAD_DOMAIN;

/// The operators of this family.
pub(super) const ROWS: &[OpDef] = &[SUM_TO, MAT_MUL_T];

const SUM_TO: OpDef = OpDef {
    name: "SumTo",
    domain: GRAD_DOMAIN,
    about: "The first tensor summed over the axes along which the second would be repeated to its shape.",
    eval: |c| by_precision(c, sum_to::<f32>, sum_to::<f64>),
    flow: Flow::Ends,
    vjp: Vjp::Missing,
    samples: &[
        Sample::new("same shape", &[Input::uniform(&[2, 3]), Input::uniform(&[2, 3])]).opset(1),
        Sample::new("row", &[Input::uniform(&[2, 2, 3]), Input::uniform(&[3])]).opset(1),
        Sample::new("column", &[Input::uniform(&[2, 3]), Input::uniform(&[2, 1])]).opset(1),
        Sample::new("scalar", &[Input::uniform(&[2, 3]), Input::uniform(&[])]).opset(1),
        Sample::new("inner and outer", &[Input::uniform(&[2, 3, 2, 2]), Input::uniform(&[3, 1, 2])]).opset(1),
        Sample::new("over nothing", &[Input::uniform(&[0, 3]), Input::uniform(&[1, 3])]).opset(1),
        Sample::new("empty", &[Input::uniform(&[2, 0]), Input::uniform(&[0])]).opset(1),
    ],
};

const MAT_MUL_T: OpDef = OpDef {
    name: "MatMulT",
    domain: GRAD_DOMAIN,
    about: "MatMul with the last two axes of either operand swapped on request (`trans_a`, `trans_b`).",
    eval: |c| matmul(c, [c.node.int("trans_a", 0) != 0, c.node.int("trans_b", 0) != 0]),
    flow: Flow::Ends,
    vjp: Vjp::Missing,
    samples: &[
        Sample::new("plain", &[Input::uniform(&[2, 3]), Input::uniform(&[3, 4])]).opset(1),
        Sample::new("left", &[Input::uniform(&[2, 3, 2]), Input::uniform(&[3, 4])])
            .attrs(&[("trans_a", SampleAttr::Int(1))])
            .opset(1),
        Sample::new("right", &[Input::uniform(&[2, 2, 3]), Input::uniform(&[4, 3])])
            .attrs(&[("trans_b", SampleAttr::Int(1))])
            .opset(1),
        Sample::new("both", &[Input::uniform(&[2, 3, 2]), Input::uniform(&[2, 4, 3])])
            .attrs(&[("trans_a", SampleAttr::Int(1)), ("trans_b", SampleAttr::Int(1))])
            .opset(1),
    ],
};

fn sum_to<T: Real>(call: &Call<'_>) -> Outputs {
    let (g, like) = (call.input(0)?, call.input(1)?);
    if g.shape == like.shape {
        return Ok(vec![g.clone()]);
    }
    if broadcast::shape(&[&g.shape, &like.shape])? != g.shape {
        return Err(OpError::Shape(format!("shape {:?} cannot be summed to {:?}", g.shape, like.shape)));
    }
    let added = g.rank() - like.rank();
    let reduced: Vec<bool> =
        (0..g.rank()).map(|i| i < added || (like.shape[i - added] == 1 && g.shape[i] != 1)).collect();
    let buf = sums::<T>(g, &Folding { shape: &g.shape, reduced: &reduced })?;
    Ok(vec![Array { dtype: g.dtype, shape: like.shape.clone(), buf }])
}
