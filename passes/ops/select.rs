//! Elements chosen by a condition, by size, or by their place about the diagonal.

use std::cmp::Ordering;

use SampleAttr::Int;

use super::layout::{
    axis_of, bools, case, count, d_output, first_only, floats, input, ints, moved_rows, picked, reshape_like, room,
    same_carrier, taken, uniform,
};
use super::{Call, Flow, FlowCall, OpDef, OpError, Rows, Sample, SampleAttr, Vjp, VjpCall};
use crate::array::{Array, Buf};
use crate::ir::Attr;
use crate::rewrite::tape::Tape;

/// Operators that select.
pub(super) const ROWS: &[OpDef] = &[
    OpDef {
        name: "NonZero",
        domain: "",
        about: "The indices of the elements that are not zero, one column each, in row-major order",
        eval: non_zero,
        flow: Flow::Ends,
        vjp: Vjp::Zero,
        samples: &[
            case("bool", &[bools(&[2, 3], &[true, false, false, true, true])], &[], &[]),
            case("int64", &[ints(&[4], &[0, 5, 0, -1])], &[], &[]),
            case("float", &[floats(&[2, 2, 2], &[0.0, 1.5, -1.0])], &[], &[]),
            case("nothing", &[bools(&[3], &[false])], &[], &[]),
            case("empty", &[ints(&[0, 2], &[])], &[], &[]),
        ],
    },
    OpDef {
        name: "Compress",
        domain: "",
        about: "The slices along an axis where a condition holds; without an axis, of the flattened tensor",
        eval: compress,
        flow: Flow::Rule(compress_flow),
        vjp: Vjp::Rule(compress_vjp),
        samples: &[
            case("rows", &[uniform(&[3, 2]), bools(&[3], &[true, false, true])], &[("axis", Int(0))], &[0]),
            case("short condition", &[uniform(&[2, 4]), bools(&[2], &[false, true])], &[("axis", Int(-1))], &[0]),
            case("flattened", &[uniform(&[2, 3]), bools(&[5], &[true, false, true])], &[], &[0]),
            case("int64", &[ints(&[3], &[1, 2, 3]), bools(&[3], &[false, true, true])], &[("axis", Int(0))], &[]),
        ],
    },
    OpDef {
        name: "TopK",
        domain: "",
        about: "The k largest (or smallest) elements along an axis in order, and their indices; equals by index",
        eval: top_k,
        flow: Flow::Rule(top_k_flow),
        vjp: Vjp::Rule(top_k_vjp),
        samples: &[
            Sample { outputs: 2, ..case("largest", &[uniform(&[3, 5]), ints(&[1], &[2])], &[], &[0]) },
            Sample {
                outputs: 2,
                ..case(
                    "smallest, first axis",
                    &[uniform(&[4, 3]), ints(&[1], &[3])],
                    &[("axis", Int(0)), ("largest", Int(0))],
                    &[0],
                )
            },
            Sample { outputs: 2, ..case("equals", &[ints(&[6], &[3, 1, 3, 2]), ints(&[1], &[4])], &[], &[]) },
            Sample { outputs: 2, ..case("none", &[uniform(&[2, 3]), ints(&[1], &[0])], &[], &[]) },
        ],
    },
    OpDef {
        name: "Trilu",
        domain: "",
        about: "The triangle of matrices on and above (or below) a diagonal; zeros elsewhere",
        eval: trilu,
        flow: Flow::Keep,
        vjp: Vjp::Rule(trilu_vjp),
        samples: &[
            case("upper", &[uniform(&[3, 3])], &[], &[0]),
            case("lower", &[uniform(&[2, 3, 4])], &[("upper", Int(0))], &[0]),
            case("above", &[uniform(&[3, 4]), ints(&[], &[1])], &[], &[0]),
            case("far below", &[uniform(&[4, 3]), ints(&[1], &[-2])], &[("upper", Int(0))], &[0]),
            case("int64", &[ints(&[2, 2], &[1, 2, 3, 4])], &[("upper", Int(0))], &[]),
            case("bool", &[bools(&[3, 3], &[true]), ints(&[], &[-1])], &[], &[]),
        ],
    },
];

fn non_zero(call: &Call<'_>) -> Result<Vec<Array>, OpError> {
    fn places<T: PartialEq + Default>(x: &[T]) -> Vec<usize> {
        x.iter().enumerate().filter(|(_, v)| **v != T::default()).map(|(at, _)| at).collect()
    }
    let x = call.input(0)?;
    let found = match &x.buf {
        Buf::F32(v) => places(v),
        Buf::F64(v) => places(v),
        Buf::I64(v) => places(v),
        Buf::Bool(v) => places(v),
        Buf::Bytes(v) => places(v),
    };
    // A scalar counts as a vector of one.
    let shape: &[usize] = if x.rank() == 0 { &[1] } else { &x.shape };
    let mut out = room(count(&[shape.len(), found.len()])?)?;
    for axis in 0..shape.len() {
        let inner: usize = shape[axis + 1..].iter().product();
        out.extend(found.iter().map(|at| (at / inner % shape[axis]) as i64));
    }
    Ok(vec![Array::i64([shape.len(), found.len()], out)])
}

fn compress(call: &Call<'_>) -> Result<Vec<Array>, OpError> {
    let (x, condition) = (call.input(0)?, call.input(1)?.to_bools()?);
    let (x, axis) = match call.node.attr("axis") {
        Some(Attr::Int(axis)) => (x.clone(), axis_of(*axis, x.rank())?),
        _ => (x.reshaped([x.len()])?, 0),
    };
    let indices: Vec<usize> = condition.iter().enumerate().filter(|(_, on)| **on).map(|(at, _)| at).collect();
    if let Some(&last) = indices.last().filter(|&&last| last >= x.shape[axis]) {
        return Err(OpError::Shape(format!(
            "the condition selects place {last} of axis {axis}, whose size is {}",
            x.shape[axis]
        )));
    }
    Ok(vec![taken(&x, axis, &indices)?])
}

fn compress_flow(call: &FlowCall<'_>) -> Vec<Option<Rows>> {
    let Some(Attr::Int(axis)) = call.node.attr("axis") else { return vec![None] };
    let cut = call.outputs.first().and_then(|out| axis_of(*axis, out.rank()).ok());
    vec![moved_rows(call, 0, 0, |axis| (Some(axis) != cut).then_some(axis))]
}

fn compress_vjp(tape: &mut Tape<'_>, call: &VjpCall<'_>) -> Result<Vec<Option<String>>, String> {
    let (g, x, condition) = (d_output(call, 0)?, input(call, 0)?, input(call, 1)?);
    let flat = tape.ints(&[-1]);
    let chosen = tape.op("NonZero", &[condition]);
    let chosen = tape.op("Reshape", &[&chosen, &flat]);
    let d_x = match call.node.attr("axis") {
        Some(Attr::Int(axis)) => tape.grad("GatherGrad", &[g, x, &chosen], &[("axis", Attr::Int(*axis))]),
        _ => {
            let line = tape.op("Reshape", &[x, &flat]);
            let d_line = tape.grad("GatherGrad", &[g, &line, &chosen], &[("axis", Attr::Int(0))]);
            reshape_like(tape, &d_line, x, call.opset)
        }
    };
    Ok(first_only(call, d_x))
}

fn top_k(call: &Call<'_>) -> Result<Vec<Array>, OpError> {
    let x = call.input(0)?;
    let axis = axis_of(call.node.int("axis", -1), x.rank())?;
    let k = match call.optional(1) {
        Some(k) => k.to_scalar_i64()?,
        None => call.node.int("k", -1),
    };
    let k = usize::try_from(k)
        .ok()
        .filter(|&k| k <= x.shape[axis])
        .ok_or_else(|| OpError::Shape(format!("{k} elements are wanted along axis {axis} of shape {:?}", x.shape)))?;
    let largest = call.node.int("largest", 1) != 0;
    let order: Box<dyn Fn(usize, usize) -> Ordering> = match &x.buf {
        Buf::F32(v) => Box::new(|a, b| v[a].total_cmp(&v[b])),
        Buf::F64(v) => Box::new(|a, b| v[a].total_cmp(&v[b])),
        Buf::I64(_) | Buf::Bool(_) | Buf::Bytes(_) => {
            let v = x.to_i64s()?;
            Box::new(move |a, b| v[a].cmp(&v[b]))
        }
    };
    let size = x.shape[axis];
    let inner = count(&x.shape[axis + 1..])?;
    let outer = count(&x.shape[..axis])?;
    let mut shape = x.shape.clone();
    shape[axis] = k;
    let mut chosen = vec![0; count(&shape)?];
    let mut indices = vec![0; chosen.len()];
    for line in 0..outer * inner {
        let (block, inside) = (line / inner, line % inner);
        let at = |index: usize| (block * size + index) * inner + inside;
        let mut sorted: Vec<usize> = (0..size).collect();
        sorted.sort_by(|&a, &b| {
            let smaller = order(at(a), at(b));
            if largest { smaller.reverse() } else { smaller }
        });
        for (rank, &index) in sorted.iter().take(k).enumerate() {
            let to = (block * k + rank) * inner + inside;
            chosen[to] = at(index);
            indices[to] = index as i64;
        }
    }
    Ok(vec![picked(x, &chosen, 1, shape.clone())?, Array::i64(shape, indices)])
}

fn top_k_flow(call: &FlowCall<'_>) -> Vec<Option<Rows>> {
    let cut = call.outputs.first().and_then(|out| axis_of(call.node.int("axis", -1), out.rank()).ok());
    let kept = |output| moved_rows(call, 0, output, |axis| (Some(axis) != cut).then_some(axis));
    (0..call.outputs.len()).map(kept).collect()
}

fn top_k_vjp(tape: &mut Tape<'_>, call: &VjpCall<'_>) -> Result<Vec<Option<String>>, String> {
    let indices = call.outputs.get(1).filter(|name| !name.is_empty());
    let indices = indices.ok_or("the gradient of TopK needs its second output, which has no name here")?;
    let axis = Attr::Int(call.node.int("axis", -1));
    let d_x = tape.grad("GatherElementsGrad", &[d_output(call, 0)?, input(call, 0)?, indices], &[("axis", axis)]);
    Ok(first_only(call, d_x))
}

fn trilu(call: &Call<'_>) -> Result<Vec<Array>, OpError> {
    let x = call.input(0)?;
    let [.., rows, cols] = x.shape[..] else {
        return Err(OpError::Shape(format!("Trilu takes matrices, found shape {:?}", x.shape)));
    };
    let k = call.optional(1).map_or(Ok(0), Array::to_scalar_i64)?;
    let upper = call.node.int("upper", 1) != 0;
    let kept = |at: usize| {
        let (row, col) = ((at / cols % rows) as i64, (at % cols) as i64);
        if upper { col - row >= k } else { col - row <= k }
    };
    fn masked<T: Copy + Default>(x: &[T], kept: impl Fn(usize) -> bool) -> Vec<T> {
        x.iter().enumerate().map(|(at, &v)| if kept(at) { v } else { T::default() }).collect()
    }
    let buf = same_carrier!(x, elements => masked(elements, kept));
    Ok(vec![Array { dtype: x.dtype, shape: x.shape.clone(), buf }])
}

fn trilu_vjp(tape: &mut Tape<'_>, call: &VjpCall<'_>) -> Result<Vec<Option<String>>, String> {
    let inputs = [Some(d_output(call, 0)?), input(call, 1).ok()];
    let upper = Attr::Int(call.node.int("upper", 1));
    let inputs: Vec<&str> = inputs.into_iter().flatten().collect();
    let d_x = tape.op_with("Trilu", &inputs, &[("upper", upper)]);
    Ok(first_only(call, d_x))
}
