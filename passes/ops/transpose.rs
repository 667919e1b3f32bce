//! Axes in another order.

use SampleAttr::Ints;

use super::layout::{View, bools, case, d_output, first_only, ints, moved_rows, strides, uniform};
use super::{Call, Flow, FlowCall, OpDef, OpError, Rows, SampleAttr, Vjp, VjpCall};
use crate::array::Array;
use crate::ir::{Attr, Node};
use crate::rewrite::tape::Tape;

/// `Transpose`.
pub(super) const ROWS: &[OpDef] = &[OpDef {
    name: "Transpose",
    domain: "",
    about: "Axes in another order; without `perm` the order is reversed",
    eval: transpose,
    flow: Flow::Rule(flow),
    vjp: Vjp::Rule(vjp),
    samples: &[
        case("matrix", &[uniform(&[3, 5])], &[], &[0]),
        case("batched matrix", &[uniform(&[2, 3, 4])], &[("perm", Ints(&[0, 2, 1]))], &[0]),
        case("heads", &[uniform(&[2, 3, 2, 4])], &[("perm", Ints(&[0, 2, 1, 3]))], &[0]),
        case("cycle", &[uniform(&[2, 3, 4])], &[("perm", Ints(&[2, 0, 1]))], &[0]),
        case("reversed", &[uniform(&[2, 3, 4])], &[], &[0]),
        case("same", &[uniform(&[2, 3])], &[("perm", Ints(&[0, 1]))], &[0]),
        case("int64", &[ints(&[2, 3], &[1, 2, 3, 4, 5, 6])], &[("perm", Ints(&[1, 0]))], &[]),
        case("bool", &[bools(&[2, 3], &[true, false, false])], &[], &[]),
        case("empty", &[uniform(&[2, 0, 3])], &[("perm", Ints(&[1, 2, 0]))], &[]),
        case("scalar", &[uniform(&[])], &[], &[0]),
    ],
}];

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
    let g = d_output(call, 0)?;
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
    Ok(first_only(call, d_x))
}
