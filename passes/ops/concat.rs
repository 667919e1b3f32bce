//! Joining and splitting along an axis.

use SampleAttr::{Int, Ints};

use super::layout::{
    View, axis_of, bools, carried_like, case, count, d_output, dims, first_only, input, int32s, ints, moved_rows, room,
    size_along, uniform, zeros_like,
};
use super::{Call, Flow, FlowCall, OpDef, OpError, Rows, Sample, SampleAttr, Vjp, VjpCall};
use crate::array::{Array, Buf};
use crate::ir::Attr;
use crate::rewrite::tape::Tape;

/// `Concat` and `Split`.
pub(super) const ROWS: &[OpDef] = &[
    OpDef {
        name: "Concat",
        domain: "",
        about: "Joins tensors along an axis",
        eval: concat,
        flow: Flow::Rule(concat_flow),
        vjp: Vjp::Rule(concat_vjp),
        samples: &[
            case("first axis", &[uniform(&[2, 3]), uniform(&[1, 3])], &[("axis", Int(0))], &[0, 1]),
            case(
                "last axis, three",
                &[uniform(&[2, 1]), uniform(&[2, 3]), uniform(&[2, 2])],
                &[("axis", Int(-1))],
                &[0, 1, 2],
            ),
            case("middle axis", &[uniform(&[2, 1, 2]), uniform(&[2, 2, 2])], &[("axis", Int(-2))], &[0, 1]),
            case("empty cache", &[uniform(&[2, 0, 3]), uniform(&[2, 2, 3])], &[("axis", Int(1))], &[1]),
            case("alone", &[uniform(&[2, 3])], &[("axis", Int(0))], &[0]),
            case("int64", &[ints(&[1], &[1]), ints(&[2], &[2, 3])], &[("axis", Int(0))], &[]),
            case("int32", &[int32s(&[1], &[1]), int32s(&[2], &[2, 3])], &[("axis", Int(0))], &[]),
            case("bool", &[bools(&[2, 1], &[true, false]), bools(&[2, 1], &[true])], &[("axis", Int(1))], &[]),
        ],
    },
    OpDef {
        name: "Split",
        domain: "",
        about: "Cuts a tensor into pieces along an axis",
        eval: split,
        flow: Flow::Rule(split_flow),
        vjp: Vjp::Rule(split_vjp),
        samples: &[
            Sample {
                outputs: 3,
                ..case("sizes", &[uniform(&[2, 6]), ints(&[3], &[1, 3, 2])], &[("axis", Int(-1))], &[0])
            },
            Sample { outputs: 2, ..case("equal", &[uniform(&[4, 2])], &[], &[0]) },
            Sample { outputs: 2, ..case("empty piece", &[uniform(&[2, 3]), ints(&[2], &[0, 2])], &[], &[0]) },
            Sample {
                outputs: 2,
                opset: 18,
                ..case("uneven", &[uniform(&[2, 5])], &[("axis", Int(1)), ("num_outputs", Int(2))], &[0])
            },
            Sample {
                outputs: 2,
                opset: 11,
                ..case("sizes as attribute", &[uniform(&[3, 2])], &[("split", Ints(&[1, 2]))], &[0])
            },
            Sample { outputs: 2, ..case("int64", &[ints(&[4], &[1, 2, 3, 4])], &[], &[]) },
        ],
    },
];

fn concat(call: &Call<'_>) -> Result<Vec<Array>, OpError> {
    let first = call.input(0)?;
    let axis = axis_of(call.node.int("axis", 1), first.rank())?;
    let mut parts = Vec::with_capacity(call.inputs.len());
    let mut size = 0usize;
    for slot in 0..call.inputs.len() {
        let part = call.input(slot)?;
        let fits = part.rank() == first.rank()
            && (0..first.rank()).all(|other| other == axis || part.shape[other] == first.shape[other]);
        if !fits {
            return Err(OpError::Shape(format!(
                "input {slot} of shape {:?} cannot be joined with shape {:?} along axis {axis}",
                part.shape, first.shape
            )));
        }
        size = size.saturating_add(part.shape[axis]);
        parts.push(carried_like(first, part)?);
    }
    let mut shape = first.shape.clone();
    shape[axis] = size;
    let total = count(&shape)?;
    if let Some(whole) = parts.iter().find(|part| part.len() == total) {
        return Ok(vec![whole.reshaped(shape)?.with_dtype(first.dtype)]);
    }
    let outer = count(&shape[..axis])?;
    macro_rules! join {
        ($carrier:ident) => {{
            let slices = parts.iter().filter_map(|part| match &part.buf {
                Buf::$carrier(elements) => Some(&elements[..]),
                _ => None,
            });
            joined(&slices.collect::<Vec<_>>(), outer, total)?
        }};
    }
    let buf = match &first.buf {
        Buf::F32(_) => Buf::F32(join!(F32).into()),
        Buf::F64(_) => Buf::F64(join!(F64).into()),
        Buf::I64(_) => Buf::I64(join!(I64).into()),
        Buf::Bool(_) => Buf::Bool(join!(Bool).into()),
        Buf::Bytes(_) => Buf::Bytes(join!(Bytes).into()),
    };
    Ok(vec![Array { dtype: first.dtype, shape, buf }])
}

/// One block of every part, then the next block of every part.
fn joined<T: Copy>(parts: &[&[T]], outer: usize, total: usize) -> Result<Vec<T>, OpError> {
    let mut out = room(total)?;
    for block in 0..outer {
        for part in parts {
            let len = part.len() / outer;
            out.extend_from_slice(&part[block * len..(block + 1) * len]);
        }
    }
    Ok(out)
}

/// Sizes of the pieces: input 1 (operator set 13), attribute `split`, or equal pieces of which the last may be shorter
/// (`num_outputs`, operator set 18).
fn sizes(call: &Call<'_>, size: usize) -> Result<Vec<usize>, OpError> {
    let pieces = call.node.outputs.len();
    let given = match (call.optional(1), call.node.ints("split")) {
        (Some(sizes), _) => Some(sizes.to_i64s()?),
        (None, attr) => attr.map(<[i64]>::to_vec),
    };
    let sizes = match given {
        Some(sizes) => dims(&sizes)?,
        None if call.opset < 18 && size % pieces.max(1) != 0 => {
            return Err(OpError::Shape(format!("an axis of {size} cannot be split into {pieces} equal pieces")));
        }
        None => {
            let piece = size.div_ceil(pieces.max(1));
            (0..pieces).map(|i| size.saturating_sub(i * piece).min(piece)).collect()
        }
    };
    if sizes.len() != pieces || sizes.iter().try_fold(0usize, |sum, &n| sum.checked_add(n)) != Some(size) {
        return Err(OpError::Shape(format!("an axis of {size} cannot be split into {sizes:?} for {pieces} outputs")));
    }
    Ok(sizes)
}

fn split(call: &Call<'_>) -> Result<Vec<Array>, OpError> {
    let x = call.input(0)?;
    let axis = axis_of(call.node.int("axis", 0), x.rank())?;
    let mut from = 0;
    let piece = |size: usize| {
        let mut view = View::of(&x.shape);
        view.start = from * view.dims[axis].1 as usize;
        view.dims[axis].0 = size;
        from += size;
        view.read(x)
    };
    sizes(call, x.shape[axis])?.into_iter().map(piece).collect()
}

fn concat_flow(call: &FlowCall<'_>) -> Vec<Option<Rows>> {
    let Some(out) = call.outputs.first() else { return Vec::new() };
    let rows = (0..call.inputs.len()).filter_map(|slot| moved_rows(call, slot, 0, Some));
    // A token axis keeps its length either when another axis is joined, or when nothing is joined to it.
    let kept = rows.filter(|rows| rows.axis(&out.shape).is_some());
    let joined = axis_of(call.node.int("axis", 1), out.rank()).ok();
    let kept = kept.filter(|rows| rows.axis(&out.shape) != joined || alone_along(call, joined));
    vec![kept.min_by_key(|rows| rows.space)]
}

/// True when only one operand has elements along the axis.
fn alone_along(call: &FlowCall<'_>, axis: Option<usize>) -> bool {
    let size = |x: &Option<Array>| axis.and_then(|axis| x.as_ref()?.shape.get(axis).copied());
    call.inputs.iter().filter(|x| size(x).is_some_and(|size| size > 0)).count() == 1
}

fn split_flow(call: &FlowCall<'_>) -> Vec<Option<Rows>> {
    (0..call.outputs.len()).map(|output| moved_rows(call, 0, output, Some)).collect()
}

/// Slices of the gradient; where they begin is summed up from the shapes at run time.
fn concat_vjp(tape: &mut Tape<'_>, call: &VjpCall<'_>) -> Result<Vec<Option<String>>, String> {
    let g = d_output(call, 0)?;
    let axis = call.node.int("axis", 1);
    let last = call.wants.iter().rposition(|&wanted| wanted).unwrap_or(0);
    let along = tape.ints(&[axis]);
    let mut start = tape.ints(&[0]);
    let mut grads = vec![None; call.inputs.len()];
    for slot in 0..=last.min(call.inputs.len().saturating_sub(1)) {
        let size = size_along(tape, input(call, slot)?, axis);
        let end = tape.op("Add", &[&start, &size]);
        if call.wants.get(slot).copied().unwrap_or(false) {
            grads[slot] = Some(tape.op("Slice", &[g, &start, &end, &along]));
        }
        start = end;
    }
    Ok(grads)
}

fn split_vjp(tape: &mut Tape<'_>, call: &VjpCall<'_>) -> Result<Vec<Option<String>>, String> {
    let axis = call.node.int("axis", 0);
    let mut pieces = Vec::with_capacity(call.outputs.len());
    for (slot, output) in call.outputs.iter().enumerate() {
        pieces.push(match call.d_outputs.get(slot).cloned().flatten() {
            Some(gradient) => gradient,
            None if output.is_empty() => {
                return Err(format!("output {slot} of Split has no name to take a shape from"));
            }
            None => zeros_like(tape, output),
        });
    }
    let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
    let d_x = tape.op_with("Concat", &pieces, &[("axis", Attr::Int(axis))]);
    Ok(first_only(call, d_x))
}
