//! Writing into a tensor at places named by indices.

use SampleAttr::{Int, Str};

use super::gather::{blocks, elements};
use super::layout::{Reduction, input, written, zeros_like};
use super::rules::{gradient, wanted};
use super::{Call, Flow, Input, OpDef, OpError, Sample, SampleAttr, Vjp, VjpCall, carrier};
use crate::array::Array;
use crate::ir::{Attr, Node};
use crate::rewrite::tape::Tape;

/// The scatters.
pub(super) const ROWS: &[OpDef] = &[SCATTER_ND, SCATTER_ELEMENTS];

const SCATTER_ND: OpDef = OpDef {
    name: "ScatterND",
    domain: "",
    about: "A copy of the data with elements or blocks written at index vectors.",
    eval: scatter_nd,
    flow: Flow::Keep,
    vjp: Vjp::Rule(scatter_nd_vjp),
    samples: &[
        Sample::new("rows", &[Input::uniform(&[4, 2]), Input::ints(&[2, 1], &[3, 1]), Input::uniform(&[2, 2])])
            .grads(&[0, 2]),
        Sample::new("elements", &[Input::uniform(&[2, 3]), Input::ints(&[2, 2], &[0, 2, 1, -2]), Input::uniform(&[2])])
            .grads(&[0, 2]),
        Sample::new("blocks", &[Input::uniform(&[2, 2, 2]), Input::ints(&[1, 2], &[1, 0]), Input::uniform(&[1, 2])])
            .grads(&[0, 2]),
        Sample::new("none", &[Input::uniform(&[2, 3]), Input::ints(&[0, 1], &[]), Input::uniform(&[0, 3])]).grads(&[0]),
        Sample::new("sum", &[Input::uniform(&[3, 2]), Input::ints(&[3, 1], &[1, 1, 0]), Input::uniform(&[3, 2])])
            .attrs(&[("reduction", Str("add"))])
            .grads(&[0, 2]),
        Sample::new("largest", &[Input::uniform(&[3]), Input::ints(&[3, 1], &[1, 1, 0]), Input::uniform(&[3])])
            .attrs(&[("reduction", Str("max"))])
            .opset(18),
        Sample::new(
            "product of int64",
            &[Input::ints(&[3], &[2, 3, 4]), Input::ints(&[2, 1], &[1, 1]), Input::ints(&[2], &[5, -2])],
        )
        .attrs(&[("reduction", Str("mul"))]),
        Sample::new(
            "bool",
            &[Input::bools(&[3], &[true]), Input::ints(&[2, 1], &[0, 2]), Input::bools(&[2], &[false])],
        ),
        Sample::new("opset 13", &[Input::uniform(&[3]), Input::ints(&[2, 1], &[0, 2]), Input::uniform(&[2])])
            .grads(&[0, 2])
            .opset(13),
    ],
};

const SCATTER_ELEMENTS: OpDef = OpDef {
    name: "ScatterElements",
    domain: "",
    about: "A copy of the data with every update written at its index along an axis.",
    eval: scatter_elements,
    flow: Flow::Keep,
    vjp: Vjp::Rule(scatter_elements_vjp),
    samples: &[
        Sample::new(
            "first axis",
            &[Input::uniform(&[3, 2]), Input::ints(&[2, 2], &[0, 2, 1, -2]), Input::uniform(&[2, 2])],
        )
        .grads(&[0, 2]),
        Sample::new(
            "last axis",
            &[Input::uniform(&[2, 3]), Input::ints(&[2, 2], &[0, 1, 2, 0]), Input::uniform(&[2, 2])],
        )
        .attrs(&[("axis", Int(-1))])
        .grads(&[0, 2]),
        Sample::new("sum", &[Input::uniform(&[2, 3]), Input::ints(&[1, 2], &[1, 1]), Input::uniform(&[1, 2])])
            .attrs(&[("axis", Int(1)), ("reduction", Str("add"))])
            .grads(&[0, 2]),
        Sample::new("smallest", &[Input::uniform(&[3]), Input::ints(&[3], &[1, 1, 0]), Input::uniform(&[3])])
            .attrs(&[("reduction", Str("min"))])
            .opset(18),
        Sample::new("int64", &[Input::ints(&[3], &[1, 2, 3]), Input::ints(&[1], &[1]), Input::ints(&[1], &[9])]),
        Sample::new("bool", &[Input::bools(&[3], &[true]), Input::ints(&[1], &[-1]), Input::bools(&[1], &[false])]),
    ],
};

fn reduction(node: &Node) -> Result<Reduction, OpError> {
    Ok(match node.string("reduction") {
        None | Some("none") => Reduction::Replace,
        Some("add") => Reduction::Add,
        Some("mul") => Reduction::Mul,
        Some("max") => Reduction::Max,
        Some("min") => Reduction::Min,
        Some(other) => return Err(OpError::Unsupported(format!("reduction `{other}` of {}", node.op))),
    })
}

fn scatter_nd(call: &Call<'_>) -> Result<Vec<Array>, OpError> {
    let (data, updates) = (call.input(0)?, call.input(2)?);
    let (starts, len, shape) = blocks(&data.shape, call.input(1)?, 0)?;
    if updates.shape != shape {
        return Err(OpError::Shape(format!("updates have shape {:?}, the indices ask for {shape:?}", updates.shape)));
    }
    Ok(vec![written(data.clone(), updates, &starts, len, reduction(call.node)?)?])
}

fn scatter_elements(call: &Call<'_>) -> Result<Vec<Array>, OpError> {
    let (data, indices, updates) = (call.input(0)?, call.input(1)?, call.input(2)?);
    let axis = carrier::axis(call.node.int("axis", 0), data.rank())?;
    if updates.shape != indices.shape {
        return Err(OpError::Shape(format!(
            "updates have shape {:?}, indices have shape {:?}",
            updates.shape, indices.shape
        )));
    }
    let starts = elements(&data.shape, axis, indices)?;
    Ok(vec![written(data.clone(), updates, &starts, 1, reduction(call.node)?)?])
}

/// The gradient passes to the data except where updates replaced it, and to the updates where they were written.
fn scatter_vjp(
    tape: &mut Tape<'_>,
    call: &VjpCall<'_>,
    gather: &str,
    attrs: &[(&str, Attr)],
) -> Result<Vec<Option<String>>, String> {
    let g = gradient(call)?;
    let (indices, updates) = (input(call, 1)?, input(call, 2)?);
    let d_data = match call.node.string("reduction") {
        None | Some("none") if wanted(call, 0) => {
            let zeros = zeros_like(tape, updates);
            Some(tape.op_with(&call.node.op, &[g, indices, &zeros], attrs))
        }
        None | Some("none") => None,
        Some("add") => Some(g.to_owned()),
        Some(other) => return Err(format!("{} with reduction `{other}` has no gradient rule", call.node.op)),
    };
    let d_updates = wanted(call, 2).then(|| tape.op_with(gather, &[g, indices], attrs));
    Ok(vec![d_data, None, d_updates])
}

fn scatter_nd_vjp(tape: &mut Tape<'_>, call: &VjpCall<'_>) -> Result<Vec<Option<String>>, String> {
    scatter_vjp(tape, call, "GatherND", &[])
}

fn scatter_elements_vjp(tape: &mut Tape<'_>, call: &VjpCall<'_>) -> Result<Vec<Option<String>>, String> {
    scatter_vjp(tape, call, "GatherElements", &[("axis", Attr::Int(call.node.int("axis", 0)))])
}
