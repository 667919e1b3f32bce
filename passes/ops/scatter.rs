//! Writing into a tensor at places named by indices.

use SampleAttr::{Int, Str};

use super::gather::{blocks, elements};
use super::layout::{Reduction, axis_of, bools, case, d_output, input, ints, uniform, written, zeros_like};
use super::{Call, Flow, OpDef, OpError, Sample, SampleAttr, Vjp, VjpCall};
use crate::array::Array;
use crate::ir::{Attr, Node};
use crate::rewrite::tape::Tape;

/// The scatters.
pub(super) const ROWS: &[OpDef] = &[
    OpDef {
        name: "ScatterND",
        domain: "",
        about: "A copy of the data with elements or blocks written at index vectors",
        eval: scatter_nd,
        flow: Flow::Keep,
        vjp: Vjp::Rule(scatter_nd_vjp),
        samples: &[
            case("rows", &[uniform(&[4, 2]), ints(&[2, 1], &[3, 1]), uniform(&[2, 2])], &[], &[0, 2]),
            case("elements", &[uniform(&[2, 3]), ints(&[2, 2], &[0, 2, 1, -2]), uniform(&[2])], &[], &[0, 2]),
            case("blocks", &[uniform(&[2, 2, 2]), ints(&[1, 2], &[1, 0]), uniform(&[1, 2])], &[], &[0, 2]),
            case("none", &[uniform(&[2, 3]), ints(&[0, 1], &[]), uniform(&[0, 3])], &[], &[0]),
            case(
                "sum",
                &[uniform(&[3, 2]), ints(&[3, 1], &[1, 1, 0]), uniform(&[3, 2])],
                &[("reduction", Str("add"))],
                &[0, 2],
            ),
            Sample {
                opset: 18,
                ..case(
                    "largest",
                    &[uniform(&[3]), ints(&[3, 1], &[1, 1, 0]), uniform(&[3])],
                    &[("reduction", Str("max"))],
                    &[],
                )
            },
            case(
                "product of int64",
                &[ints(&[3], &[2, 3, 4]), ints(&[2, 1], &[1, 1]), ints(&[2], &[5, -2])],
                &[("reduction", Str("mul"))],
                &[],
            ),
            case("bool", &[bools(&[3], &[true]), ints(&[2, 1], &[0, 2]), bools(&[2], &[false])], &[], &[]),
            Sample {
                opset: 13,
                ..case("opset 13", &[uniform(&[3]), ints(&[2, 1], &[0, 2]), uniform(&[2])], &[], &[0, 2])
            },
        ],
    },
    OpDef {
        name: "ScatterElements",
        domain: "",
        about: "A copy of the data with every update written at its index along an axis",
        eval: scatter_elements,
        flow: Flow::Keep,
        vjp: Vjp::Rule(scatter_elements_vjp),
        samples: &[
            case("first axis", &[uniform(&[3, 2]), ints(&[2, 2], &[0, 2, 1, -2]), uniform(&[2, 2])], &[], &[0, 2]),
            case(
                "last axis",
                &[uniform(&[2, 3]), ints(&[2, 2], &[0, 1, 2, 0]), uniform(&[2, 2])],
                &[("axis", Int(-1))],
                &[0, 2],
            ),
            case(
                "sum",
                &[uniform(&[2, 3]), ints(&[1, 2], &[1, 1]), uniform(&[1, 2])],
                &[("axis", Int(1)), ("reduction", Str("add"))],
                &[0, 2],
            ),
            Sample {
                opset: 18,
                ..case(
                    "smallest",
                    &[uniform(&[3]), ints(&[3], &[1, 1, 0]), uniform(&[3])],
                    &[("reduction", Str("min"))],
                    &[],
                )
            },
            case("int64", &[ints(&[3], &[1, 2, 3]), ints(&[1], &[1]), ints(&[1], &[9])], &[], &[]),
            case("bool", &[bools(&[3], &[true]), ints(&[1], &[-1]), bools(&[1], &[false])], &[], &[]),
        ],
    },
];

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
    Ok(vec![written(data, updates, &starts, len, reduction(call.node)?)?])
}

fn scatter_elements(call: &Call<'_>) -> Result<Vec<Array>, OpError> {
    let (data, indices, updates) = (call.input(0)?, call.input(1)?, call.input(2)?);
    let axis = axis_of(call.node.int("axis", 0), data.rank())?;
    if updates.shape != indices.shape {
        return Err(OpError::Shape(format!(
            "updates have shape {:?}, indices have shape {:?}",
            updates.shape, indices.shape
        )));
    }
    let starts = elements(&data.shape, axis, indices)?;
    Ok(vec![written(data, updates, &starts, 1, reduction(call.node)?)?])
}

/// The gradient passes to the data except where updates replaced it, and to the updates where they were written.
fn scatter_vjp(
    tape: &mut Tape<'_>,
    call: &VjpCall<'_>,
    gather: &str,
    attrs: &[(&str, Attr)],
) -> Result<Vec<Option<String>>, String> {
    let g = d_output(call, 0)?;
    let (indices, updates) = (input(call, 1)?, input(call, 2)?);
    let d_data = match call.node.string("reduction") {
        None | Some("none") => {
            let zeros = zeros_like(tape, updates);
            tape.op_with(&call.node.op, &[g, indices, &zeros], attrs)
        }
        Some("add") => g.to_owned(),
        Some(other) => return Err(format!("{} with reduction `{other}` has no gradient rule", call.node.op)),
    };
    let d_updates = tape.op_with(gather, &[g, indices], attrs);
    Ok(vec![Some(d_data), None, Some(d_updates)])
}

fn scatter_nd_vjp(tape: &mut Tape<'_>, call: &VjpCall<'_>) -> Result<Vec<Option<String>>, String> {
    scatter_vjp(tape, call, "GatherND", &[])
}

fn scatter_elements_vjp(tape: &mut Tape<'_>, call: &VjpCall<'_>) -> Result<Vec<Option<String>>, String> {
    scatter_vjp(tape, call, "GatherElements", &[("axis", Attr::Int(call.node.int("axis", 0)))])
}
