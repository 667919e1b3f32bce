//! Parts of a tensor: ranges along axes.

use SampleAttr::Ints;

use super::layout::{
    View, axes_of, bools, case, d_output, first_only, input, int32s, ints, moved_rows, same_rows, uniform,
};
use super::{Call, Flow, FlowCall, OpDef, OpError, Rows, Sample, SampleAttr, Vjp, VjpCall};
use crate::array::Array;
use crate::ir::{Attr, Node, Tensor};
use crate::rewrite::tape::Tape;

/// `Slice`.
pub(super) const ROWS: &[OpDef] = &[OpDef {
    name: "Slice",
    domain: "",
    about: "Ranges along axes, with steps that may be negative; bounds beyond the tensor are clamped",
    eval: slice,
    flow: Flow::Rule(flow),
    vjp: Vjp::Rule(vjp),
    samples: &[
        case("one axis", &[uniform(&[4, 3]), ints(&[1], &[1]), ints(&[1], &[3]), ints(&[1], &[0])], &[], &[0]),
        case("no axes", &[uniform(&[4, 3]), ints(&[2], &[1, 0]), ints(&[2], &[3, 2])], &[], &[0]),
        case(
            "to the end",
            &[uniform(&[2, 5]), ints(&[1], &[2]), ints(&[1], &[i64::MAX]), ints(&[1], &[-1]), ints(&[1], &[2])],
            &[],
            &[0],
        ),
        case(
            "backwards",
            &[uniform(&[2, 5]), ints(&[1], &[-1]), ints(&[1], &[i64::MIN]), ints(&[1], &[1]), ints(&[1], &[-1])],
            &[],
            &[0],
        ),
        case(
            "backwards by two",
            &[uniform(&[6, 2]), ints(&[1], &[i64::MAX]), ints(&[1], &[0]), ints(&[1], &[0]), ints(&[1], &[-2])],
            &[],
            &[0],
        ),
        case(
            "two axes",
            &[
                uniform(&[3, 4, 2]),
                ints(&[2], &[1, -3]),
                ints(&[2], &[100, -1]),
                ints(&[2], &[0, 1]),
                ints(&[2], &[1, 1]),
            ],
            &[],
            &[0],
        ),
        case("nothing", &[uniform(&[3, 2]), ints(&[1], &[2]), ints(&[1], &[1]), ints(&[1], &[0])], &[], &[]),
        case("of nothing", &[uniform(&[0, 2]), ints(&[1], &[0]), ints(&[1], &[5]), ints(&[1], &[0])], &[], &[]),
        case("int32 bounds", &[uniform(&[4]), int32s(&[1], &[1]), int32s(&[1], &[-1]), int32s(&[1], &[0])], &[], &[0]),
        case("int64", &[ints(&[4], &[1, 2, 3, 4]), ints(&[1], &[1]), ints(&[1], &[2]), ints(&[1], &[0])], &[], &[]),
        case("bool", &[bools(&[3], &[true, false, true]), ints(&[1], &[-2]), ints(&[1], &[3])], &[], &[]),
        Sample {
            opset: 9,
            ..case(
                "bounds as attributes",
                &[uniform(&[4, 3])],
                &[("starts", Ints(&[1, -2])), ("ends", Ints(&[4, i64::MAX])), ("axes", Ints(&[0, 1]))],
                &[0],
            )
        },
        Sample {
            opset: 9,
            ..case(
                "attributes without axes",
                &[uniform(&[4, 3])],
                &[("starts", Ints(&[1])), ("ends", Ints(&[3]))],
                &[0],
            )
        },
    ],
}];

/// A range along one axis: where it begins, how many elements it has, and the step between them.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Range {
    start: usize,
    len: usize,
    step: i64,
}

impl Range {
    fn clamped(start: i64, end: i64, step: i64, size: usize) -> Option<Range> {
        let size = size as i64;
        let (low, high) = if step > 0 { (0, size) } else { (-1, size - 1) };
        let bound = |at: i64| (if at < 0 { at.saturating_add(size) } else { at }).max(low).min(high);
        let (start, end) = (bound(start), bound(end));
        let distance = i128::from(end) - i128::from(start);
        let step_wide = i128::from(step);
        let whole = distance.checked_div(step_wide)?;
        let len = whole + i128::from(distance % step_wide != 0);
        let len = if (distance > 0) == (step > 0) { usize::try_from(len).ok()? } else { 0 };
        Some(Range { start: usize::try_from(start).unwrap_or(0), len, step })
    }

    fn is_all(self, size: usize) -> bool {
        self.len == size && (self.step > 0 || size <= 1)
    }
}

/// The range of every axis of `shape`; starts, ends, axes and steps are inputs `first..first + 4`, or attributes.
fn ranges(node: &Node, inputs: &[Option<Array>], first: usize, shape: &[usize]) -> Result<Vec<Range>, OpError> {
    let given = |slot: usize, attr: &str| match inputs.get(first + slot).and_then(Option::as_ref) {
        Some(values) => values.to_i64s().map(Some),
        None => Ok(node.ints(attr).map(<[i64]>::to_vec)),
    };
    let starts = given(0, "starts")?.ok_or(OpError::MissingInput(first))?;
    let ends = given(1, "ends")?.ok_or(OpError::MissingInput(first + 1))?;
    let axes = given(2, "axes")?.unwrap_or_else(|| (0..starts.len() as i64).collect());
    let steps = given(3, "steps")?.unwrap_or_else(|| vec![1; starts.len()]);
    if [ends.len(), axes.len(), steps.len()] != [starts.len(); 3] {
        return Err(OpError::Shape(format!(
            "starts {starts:?}, ends {ends:?}, axes {axes:?} and steps {steps:?} must be equally many"
        )));
    }
    let mut ranges: Vec<Range> = shape.iter().map(|&len| Range { start: 0, len, step: 1 }).collect();
    for (i, axis) in axes_of(&axes, shape.len())?.into_iter().enumerate() {
        ranges[axis] = Range::clamped(starts[i], ends[i], steps[i], shape[axis])
            .ok_or_else(|| OpError::Shape(format!("steps {steps:?} of a slice must not be zero")))?;
    }
    Ok(ranges)
}

/// The part of `shape` that a slice reads; see [`ranges`].
pub(super) fn view(node: &Node, inputs: &[Option<Array>], first: usize, shape: &[usize]) -> Result<View, OpError> {
    let mut view = View::of(shape);
    for (dim, range) in view.dims.iter_mut().zip(ranges(node, inputs, first, shape)?) {
        view.start += range.start * dim.1 as usize;
        // A step beyond the tensor is never taken.
        let step = if range.len > 1 { range.step as isize * dim.1 } else { dim.1 };
        *dim = (range.len, step);
    }
    Ok(view)
}

fn slice(call: &Call<'_>) -> Result<Vec<Array>, OpError> {
    let x = call.input(0)?;
    let part = view(call.node, call.inputs, 1, &x.shape)?;
    let whole = part.start == 0 && part.dims == View::of(&x.shape).dims;
    Ok(vec![if whole { x.clone() } else { part.read(x)? }])
}

fn flow(call: &FlowCall<'_>) -> Vec<Option<Rows>> {
    let Some(Some(x)) = call.inputs.first() else { return vec![None] };
    let Ok(ranges) = ranges(call.node, call.inputs, 1, &x.shape) else { return vec![None] };
    let all = |axis: usize| ranges[axis].is_all(x.shape[axis]);
    if (0..x.rank()).all(all) {
        return vec![same_rows(call, 0)];
    }
    vec![moved_rows(call, 0, 0, |axis| all(axis).then_some(axis))]
}

/// All bounds are handed to the helper, so that its body need not ask which were left out.
fn vjp(tape: &mut Tape<'_>, call: &VjpCall<'_>) -> Result<Vec<Option<String>>, String> {
    let (g, x) = (d_output(call, 0)?, input(call, 0)?);
    let given = |slot: usize| call.inputs.get(slot).filter(|name| !name.is_empty()).cloned();
    let attr = |tape: &mut Tape<'_>, name: &str| call.node.ints(name).map(|values| tape.ints(values));
    let starts = given(1).or_else(|| attr(tape, "starts")).ok_or("Slice without starts")?;
    let ends = given(2).or_else(|| attr(tape, "ends")).ok_or("Slice without ends")?;
    let axes = given(3).or_else(|| attr(tape, "axes")).unwrap_or_else(|| {
        let [zero, one] = [0, 1].map(|value| tape.constant(Tensor::i64s([], &[value])));
        let end = tape.op("Size", &[&starts]);
        let axes = tape.op("Range", &[&zero, &end, &one]);
        if call.opset < 15 { axes } else { tape.op("CastLike", &[&axes, &starts]) }
    });
    let steps = given(4).unwrap_or_else(|| {
        let shape = tape.op("Shape", &[&starts]);
        let ones = tape.op_with("ConstantOfShape", &[&shape], &[("value", Attr::Tensor(Tensor::i64s([1], &[1])))]);
        if call.opset < 15 { ones } else { tape.op("CastLike", &[&ones, &starts]) }
    });
    let d_x = tape.grad("SliceGrad", &[g, x, &starts, &ends, &axes, &steps], &[]);
    Ok(first_only(call, d_x))
}
