//! Axes in another order.

use SampleAttr::Ints;

use super::layout::{View, moved_rows, strides};
use super::rules::{gradient, only_first};
use super::{Call, Flow, FlowCall, Input, OpDef, OpError, Rows, Sample, SampleAttr, Vjp, VjpCall};
use crate::array::Array;
use crate::ir::{Attr, Node};
use crate::rewrite::tape::Tape;

/// `Transpose`.
pub(super) const ROWS: &[OpDef] = &[TRANSPOSE];

const TRANSPOSE: OpDef = OpDef {
    name: "Transpose",
    domain: "",
    about: "Axes in another order; without `perm` the order is reversed.",
    eval: transpose,
    flow: Flow::Rule(flow),
    vjp: Vjp::Rule(vjp),
    samples: &[
        Sample::new("matrix", &[Input::uniform(&[3, 5])]).grads(&[0]),
        Sample::new("batched matrix", &[Input::uniform(&[2, 3, 4])]).attrs(&[("perm", Ints(&[0, 2, 1]))]).grads(&[0]),
        Sample::new("heads", &[Input::uniform(&[2, 3, 2, 4])]).attrs(&[("perm", Ints(&[0, 2, 1, 3]))]).grads(&[0]),
        Sample::new("cycle", &[Input::uniform(&[2, 3, 4])]).attrs(&[("perm", Ints(&[2, 0, 1]))]).grads(&[0]),
        Sample::new("reversed", &[Input::uniform(&[2, 3, 4])]).grads(&[0]),
        Sample::new("same", &[Input::uniform(&[2, 3])]).attrs(&[("perm", Ints(&[0, 1]))]).grads(&[0]),
        Sample::new("int64", &[Input::ints(&[2, 3], &[1, 2, 3, 4, 5, 6])]).attrs(&[("perm", Ints(&[1, 0]))]),
        Sample::new("bool", &[Input::bools(&[2, 3], &[true, false, false])]),
        Sample::new("empty", &[Input::uniform(&[2, 0, 3])]).attrs(&[("perm", Ints(&[1, 2, 0]))]),
        Sample::new("scalar", &[Input::uniform(&[])]).grads(&[0]),
    ],
};

/// The order of the axes, if it is one.
fn order(node: &Node, rank: usize) -> Option<Vec<usize>> {
    let Some(perm) = node.ints("perm") else { return Some((0..rank).rev().collect()) };
    let perm: Vec<usize> = perm.iter().map(|&axis| usize::try_from(axis)).collect::<Result<_, _>>().ok()?;
    (perm.len() == rank && (0..rank).all(|axis| perm.contains(&axis))).then_some(perm)
}

fn transpose(call: &Call<'_>) -> Result<Vec<Array>, OpError> {
    let x = call.input(0)?;
    let Some(order) = order(call.node, x.rank()) else {
        return Err(OpError::Shape(format!(
            "perm {:?} does not name every axis of shape {:?} once",
            call.node.ints("perm").unwrap_or(&[]),
            x.shape
        )));
    };
    if order.is_sorted() {
        return Ok(vec![x.clone()]);
    }
    let steps = strides(&x.shape);
    let dims = order.iter().map(|&axis| (x.shape[axis], steps[axis])).collect();
    Ok(vec![View { start: 0, dims }.read(x)?])
}

fn flow(call: &FlowCall<'_>) -> Vec<Option<Rows>> {
    let to = |axis| order(call.node, call.outputs.first()?.rank())?.iter().position(|&from| from == axis);
    vec![moved_rows(call, 0, 0, to)]
}

fn vjp(tape: &mut Tape<'_>, call: &VjpCall<'_>) -> Result<Vec<Option<String>>, String> {
    let g = gradient(call)?;
    let d_x = match call.node.ints("perm") {
        None => tape.op("Transpose", &[g]),
        Some(perm) => {
            let order = order(call.node, perm.len()).ok_or_else(|| format!("perm {perm:?} is not a permutation"))?;
            let mut back = vec![0; order.len()];
            for (to, &from) in (0i64..).zip(&order) {
                back[from] = to;
            }
            tape.op_with("Transpose", &[g], &[("perm", Attr::Ints(back))])
        }
    };
    Ok(only_first(call, d_x))
}
