//! Margins around a tensor.

use SampleAttr::{Float, Ints, Str};

use super::layout::{
    Reduction, View, absent, axes_of, bools, carried_like, case, count, d_output, floats, input, ints, moved_rows,
    reshape_like, same_rows, strides, taken, uniform, written, zeros,
};
use super::{Call, Flow, FlowCall, OpDef, OpError, Rows, Sample, SampleAttr, Vjp, VjpCall};
use crate::array::{Array, ArrayError};
use crate::ir::{Attr, Node};
use crate::rewrite::tape::Tape;

/// `Pad`.
pub(super) const ROWS: &[OpDef] = &[OpDef {
    name: "Pad",
    domain: "",
    about: "Margins around a tensor, of a constant, of the edge, mirrored or wrapped; negative margins cut away",
    eval: pad,
    flow: Flow::Rule(flow),
    vjp: Vjp::Rule(vjp),
    samples: &[
        case("zeros", &[uniform(&[2, 3]), ints(&[4], &[1, 0, 0, 2])], &[], &[0]),
        case("value", &[uniform(&[2, 2]), ints(&[4], &[0, 1, 1, 1]), floats(&[], &[1.5])], &[], &[0, 2]),
        case("cut", &[uniform(&[4, 3]), ints(&[4], &[-1, 1, 0, -2])], &[], &[0]),
        case("edge", &[uniform(&[2, 3]), ints(&[4], &[1, 2, 0, 1])], &[("mode", Str("edge"))], &[]),
        case("reflect", &[uniform(&[3, 4]), ints(&[4], &[1, 2, 2, 1])], &[("mode", Str("reflect"))], &[]),
        case("int64", &[ints(&[3], &[1, 2, 3]), ints(&[2], &[2, 1]), ints(&[], &[-1])], &[], &[]),
        case("bool", &[bools(&[2], &[true]), ints(&[2], &[1, 1])], &[], &[]),
        case("of nothing", &[uniform(&[0, 2]), ints(&[4], &[1, 0, 1, 0])], &[], &[]),
        Sample {
            opset: 18,
            ..case("axes", &[uniform(&[2, 3, 2]), ints(&[4], &[1, 0, 0, 2]), absent(), ints(&[2], &[-1, 0])], &[], &[0])
        },
        Sample {
            opset: 19,
            ..case("wrap", &[uniform(&[2, 3]), ints(&[4], &[1, 2, 0, 1])], &[("mode", Str("wrap"))], &[])
        },
        Sample {
            opset: 10,
            ..case("attributes", &[uniform(&[2, 2])], &[("pads", Ints(&[0, 1, 1, 0])), ("value", Float(2.5))], &[0])
        },
    ],
}];

/// Margins (before, after) of every axis: input 1 with axes in input 3, or the attribute `pads`.
fn margins(node: &Node, inputs: &[Option<Array>], rank: usize) -> Result<Vec<(i64, i64)>, OpError> {
    let given = |slot: usize| inputs.get(slot).and_then(Option::as_ref);
    let pads = match (given(1), node.ints("pads")) {
        (Some(pads), _) => pads.to_i64s()?,
        (None, Some(pads)) => pads.to_vec(),
        (None, None) => return Err(OpError::MissingInput(1)),
    };
    let axes = match given(3) {
        Some(axes) => axes_of(&axes.to_i64s()?, rank)?,
        None => (0..rank).collect(),
    };
    if pads.len() != 2 * axes.len() {
        return Err(OpError::Shape(format!("{} margins for {} axes; two for each are needed", pads.len(), axes.len())));
    }
    let mut margins = vec![(0, 0); rank];
    for (i, &axis) in axes.iter().enumerate() {
        margins[axis] = (pads[i], pads[axes.len() + i]);
    }
    Ok(margins)
}

fn pad(call: &Call<'_>) -> Result<Vec<Array>, OpError> {
    let x = call.input(0)?;
    let margins = margins(call.node, call.inputs, x.rank())?;
    let mut shape = Vec::with_capacity(x.rank());
    for (axis, &(before, after)) in margins.iter().enumerate() {
        let size = x.shape[axis] as i128 + i128::from(before) + i128::from(after);
        shape.push(usize::try_from(size).map_err(|_| {
            OpError::Shape(format!("margins {before} and {after} along axis {axis} of shape {:?}", x.shape))
        })?);
    }
    count(&shape)?;
    match call.node.string("mode") {
        None | Some("constant") => Ok(vec![framed(call, x, &margins, shape)?]),
        Some(mode @ ("edge" | "reflect" | "wrap")) => {
            let mut padded = x.clone();
            for (axis, &(before, _)) in margins.iter().enumerate() {
                let old = x.shape[axis];
                if old == 0 && shape[axis] > 0 {
                    return Err(OpError::Shape(format!("mode {mode} has nothing to copy in shape {:?}", x.shape)));
                }
                let from: Vec<usize> =
                    (0..shape[axis]).map(|to| source(mode, to as i64 - before, old as i64)).collect();
                padded = taken(&padded, axis, &from)?;
            }
            Ok(vec![padded])
        }
        Some(mode) => Err(OpError::Unsupported(format!("mode `{mode}` of Pad"))),
    }
}

/// The element of an axis of `size` that is copied to `at`, counted from the old first element.
fn source(mode: &str, at: i64, size: i64) -> usize {
    let inside = match mode {
        "wrap" => at.rem_euclid(size),
        "reflect" if size > 1 => {
            let there_and_back = at.rem_euclid(2 * (size - 1));
            there_and_back.min(2 * (size - 1) - there_and_back)
        }
        _ => at.clamp(0, size - 1),
    };
    inside as usize
}

/// A tensor of one value with what is left of `x` in its place.
fn framed(call: &Call<'_>, x: &Array, margins: &[(i64, i64)], shape: Vec<usize>) -> Result<Array, OpError> {
    let value = match (call.optional(2), call.node.attr("value")) {
        (Some(value), _) if value.len() == 1 => Some(carried_like(x, value)?),
        (Some(value), _) => {
            return Err(ArrayError::Count { shape: Vec::new(), needed: 1, found: value.len() }.into());
        }
        (None, Some(Attr::Float(value))) => Some(carried_like(x, &Array::f32([], vec![*value]))?),
        (None, _) => None,
    };
    let value = value.map_or_else(|| zeros(x, &[]), Ok)?;
    let frame = View { start: 0, dims: shape.iter().map(|&size| (size, 0)).collect() }.read(&value)?;
    let mut seen = View::of(&x.shape);
    let mut place = View { start: 0, dims: Vec::with_capacity(shape.len()) };
    for (axis, &step) in strides(&shape).iter().enumerate() {
        let (before, after) = margins[axis];
        let cut = |margin: i64| usize::try_from(margin.saturating_neg()).unwrap_or(0);
        let left = x.shape[axis].saturating_sub(cut(before)).saturating_sub(cut(after));
        seen.start += cut(before) * seen.dims[axis].1 as usize;
        seen.dims[axis].0 = left;
        place.start += usize::try_from(before).unwrap_or(0) * step as usize;
        place.dims.push((left, step));
    }
    let (starts, len) = place.runs()?;
    written(&frame, &seen.read(x)?, &starts, len, Reduction::Replace).map(|out| out.with_dtype(x.dtype))
}

fn flow(call: &FlowCall<'_>) -> Vec<Option<Rows>> {
    let Some(Some(x)) = call.inputs.first() else { return vec![None] };
    let Ok(margins) = margins(call.node, call.inputs, x.rank()) else { return vec![None] };
    if margins.iter().all(|&margin| margin == (0, 0)) {
        return vec![same_rows(call, 0)];
    }
    vec![moved_rows(call, 0, 0, |axis| (margins[axis] == (0, 0)).then_some(axis))]
}

/// Padding by the opposite margins takes the constant away and puts zeros where something was cut.
fn vjp(tape: &mut Tape<'_>, call: &VjpCall<'_>) -> Result<Vec<Option<String>>, String> {
    if let Some(mode) = call.node.string("mode").filter(|&mode| mode != "constant") {
        return Err(format!("Pad with mode `{mode}` has no gradient rule"));
    }
    let g = d_output(call, 0)?;
    let mut grads = vec![None; call.inputs.len()];
    let d_x = match call.node.ints("pads") {
        Some(pads) => {
            let opposite = pads.iter().map(|&pad| pad.saturating_neg()).collect();
            tape.op_with("Pad", &[g], &[("pads", Attr::Ints(opposite))])
        }
        None => {
            let opposite = tape.op("Neg", &[input(call, 1)?]);
            match input(call, 3) {
                Ok(axes) => tape.op("Pad", &[g, &opposite, "", axes]),
                Err(_) => tape.op("Pad", &[g, &opposite]),
            }
        }
    };
    if call.wants.get(2).copied().unwrap_or(false) {
        let value = input(call, 2)?;
        let keep: &[(&str, Attr)] = &[("keepdims", Attr::Int(0))];
        let all = tape.op_with("ReduceSum", &[g], keep);
        let inside = tape.op_with("ReduceSum", &[&d_x], keep);
        let margin = tape.op("Sub", &[&all, &inside]);
        grads[2] = Some(reshape_like(tape, &margin, value, call.opset));
    }
    if let Some(first) = grads.first_mut() {
        *first = Some(d_x);
    }
    Ok(grads)
}
