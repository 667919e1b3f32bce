//! Reductions over axes, and running sums.

use super::carrier::{Outputs, Real, axis, by_precision, floats, fold, ints, read_ints};
use super::rules::{Gradients, gradient, only_first, repeated, undo_reduction};
use super::{Call, Flow, FlowCall, Input, OpDef, OpError, Rows, Sample, SampleAttr, Vjp, VjpCall};
use crate::array::{Array, Buf, Compute};
use crate::ir::{Attr, DType, Node};
use crate::rewrite::tape::Tape;

/// The operators of this family.
pub(super) const ROWS: &[OpDef] =
    &[REDUCE_SUM, REDUCE_MEAN, REDUCE_MAX, REDUCE_MIN, REDUCE_PROD, REDUCE_L2, REDUCE_SUM_SQUARE, ARG_MAX, CUM_SUM];

const fn op(
    name: &'static str,
    about: &'static str,
    eval: fn(&Call<'_>) -> Outputs,
    vjp: Vjp,
    samples: &'static [Sample],
) -> OpDef {
    OpDef { name, domain: "", about, eval, flow: Flow::Rule(reduction_flow), vjp, samples }
}

const REDUCE_SUM: OpDef = op(
    "ReduceSum",
    "Sum over axes.",
    |c| by_precision(c, |c| reduce(c, sums::<f32>), |c| reduce(c, sums::<f64>)),
    Vjp::Rule(|t, c| {
        let g = undo_reduction(t, c, gradient(c)?);
        repeated(t, c, &g)
    }),
    &[
        Sample::new("last axis by input", &[X, LAST]).grads(&[0]),
        Sample::new("last axis by input, dropped", &[X, LAST]).attrs(DROPPED).grads(&[0]),
        Sample::new("outer axes", &[X, Input::ints(&[2], &[0, 1])]).attrs(DROPPED).grads(&[0]),
        Sample::new("outer and last", &[X, Input::ints(&[2], &[0, 2])]).attrs(DROPPED).grads(&[0]),
        Sample::new("all", &[X]).attrs(DROPPED).grads(&[0]),
        Sample::new("none, since there are no axes", &[X, Input::ints(&[0], &[])])
            .attrs(&[("noop_with_empty_axes", SampleAttr::Int(1))])
            .grads(&[0]),
        Sample::new("axes as attribute", &[X]).attrs(MIDDLE).opset(11).grads(&[0]),
        Sample::new("whole numbers", &[Input::ints(&[2, 3], &[1, -2, 30]), Input::ints(&[1], &[1])]),
        Sample::new("int32", &[Input::int32s(&[2, 3], &[1, -2, 30]), Input::ints(&[1], &[0])]),
        Sample::new("over nothing", &[Input::uniform(&[2, 0, 3]), Input::ints(&[1], &[1])]),
    ],
);

const REDUCE_MEAN: OpDef = op(
    "ReduceMean",
    "Mean over axes.",
    |c| by_precision(c, |c| reduce(c, means::<f32>), |c| reduce(c, means::<f64>)),
    Vjp::Rule(|t, c| {
        let all = t.op("Size", &[&c.inputs[0]]);
        let kept = t.op("Size", &[&c.outputs[0]]);
        let unit = t.ints(&[1]);
        let kept = t.op("Max", &[&kept, &unit]);
        let count = t.op("Div", &[&all, &kept]);
        let count = t.op("CastLike", &[&count, &c.inputs[0]]);
        let share = t.op("Div", &[gradient(c)?, &count]);
        let g = undo_reduction(t, c, &share);
        repeated(t, c, &g)
    }),
    &[
        Sample::new("last axis", &[X]).attrs(LAST_ATTR).grads(&[0]),
        Sample::new("middle axis, dropped", &[X]).attrs(MIDDLE_DROPPED).grads(&[0]),
        Sample::new("all", &[X]).grads(&[0]),
        Sample::new("axes as input", &[X, Input::ints(&[2], &[-1, 0])]).opset(18).grads(&[0]),
        Sample::new("axes as input, dropped", &[X, LAST]).attrs(DROPPED).opset(18).grads(&[0]),
    ],
);

const REDUCE_MAX: OpDef = op(
    "ReduceMax",
    "Largest element over axes.",
    |c| by_precision(c, |c| reduce(c, largest::<f32>), |c| reduce(c, largest::<f64>)),
    Vjp::Rule(d_extremum),
    EXTREMUM_SAMPLES,
);

const REDUCE_MIN: OpDef = op(
    "ReduceMin",
    "Smallest element over axes.",
    |c| by_precision(c, |c| reduce(c, smallest::<f32>), |c| reduce(c, smallest::<f64>)),
    Vjp::Rule(d_extremum),
    EXTREMUM_SAMPLES,
);

const REDUCE_PROD: OpDef = op(
    "ReduceProd",
    "Product over axes.",
    |c| by_precision(c, |c| reduce(c, products::<f32>), |c| reduce(c, products::<f64>)),
    Vjp::Stop("the gradient of a product over an axis cannot be written as a quotient where a factor is zero"),
    &[
        Sample::new("last axis", &[X]).attrs(LAST_ATTR),
        Sample::new("all, dropped", &[Input::uniform(&[2, 3])]).attrs(DROPPED),
        Sample::new("whole numbers", &[Input::ints(&[2, 3], &[1, -2, 30, 4])]).attrs(LAST_ATTR),
        Sample::new("axes as input", &[X, Input::ints(&[1], &[0])]).opset(18),
    ],
);

const REDUCE_L2: OpDef = op(
    "ReduceL2",
    "Root of the sum of squares over axes.",
    |c| by_precision(c, |c| reduce(c, norms::<f32>), |c| reduce(c, norms::<f64>)),
    Vjp::Rule(|t, c| {
        // g x / |x|, and 0 where |x| is 0
        let g = undo_reduction(t, c, gradient(c)?);
        let norm = undo_reduction(t, c, &c.outputs[0]);
        let zero = t.scalar(0.0, &c.inputs[0]);
        let unit = t.scalar(1.0, &c.inputs[0]);
        let none = t.op("Equal", &[&norm, &zero]);
        let safe = t.op("Where", &[&none, &unit, &norm]);
        let scaled = t.op("Div", &[&g, &safe]);
        Ok(only_first(c, t.op("Mul", &[&scaled, &c.inputs[0]])))
    }),
    SQUARE_SAMPLES,
);

const REDUCE_SUM_SQUARE: OpDef = op(
    "ReduceSumSquare",
    "Sum of squares over axes.",
    |c| by_precision(c, |c| reduce(c, squares::<f32>), |c| reduce(c, squares::<f64>)),
    Vjp::Rule(|t, c| {
        let g = undo_reduction(t, c, gradient(c)?);
        let half = t.op("Mul", &[&g, &c.inputs[0]]);
        Ok(only_first(c, t.op("Add", &[&half, &half])))
    }),
    SQUARE_SAMPLES,
);

const ARG_MAX: OpDef = op(
    "ArgMax",
    "Index of the largest element along an axis.",
    arg_max,
    Vjp::Zero,
    &[
        Sample::new("first axis", &[X]),
        Sample::new("last axis, dropped", &[X])
            .attrs(&[("axis", SampleAttr::Int(-1)), ("keepdims", SampleAttr::Int(0))]),
        Sample::new("ties, first", &[TIED]).attrs(&[("axis", SampleAttr::Int(1))]),
        Sample::new("ties, last", &[TIED])
            .attrs(&[("axis", SampleAttr::Int(1)), ("select_last_index", SampleAttr::Int(1))]),
        Sample::new("int32", &[Input::int32s(&[2, 3], &[1, -2, 30, 7])]).attrs(&[("axis", SampleAttr::Int(1))]),
    ],
);

const CUM_SUM: OpDef = OpDef {
    name: "CumSum",
    domain: "",
    about: "Running sum along an axis.",
    eval: cum_sum,
    flow: Flow::Rule(cum_sum_flow),
    vjp: Vjp::Rule(|t, c| {
        let reverse = 1 - c.node.int("reverse", 0);
        let exclusive = c.node.int("exclusive", 0);
        let attrs = [("reverse", Attr::Int(reverse)), ("exclusive", Attr::Int(exclusive))];
        Ok(only_first(c, t.op_with("CumSum", &[gradient(c)?, &c.inputs[1]], &attrs)))
    }),
    samples: &[
        Sample::new("last axis", &[X, Input::ints(&[], &[-1])]).grads(&[0]),
        Sample::new("middle axis", &[X, Input::ints(&[], &[1])]).grads(&[0]),
        Sample::new("exclusive", &[X, Input::ints(&[], &[1])]).attrs(&[("exclusive", SampleAttr::Int(1))]).grads(&[0]),
        Sample::new("reverse", &[X, Input::ints(&[], &[1])]).attrs(&[("reverse", SampleAttr::Int(1))]).grads(&[0]),
        Sample::new("exclusive and reverse", &[X, Input::int32s(&[], &[2])])
            .attrs(&[("exclusive", SampleAttr::Int(1)), ("reverse", SampleAttr::Int(1))])
            .grads(&[0]),
        Sample::new("whole numbers", &[Input::ints(&[2, 3], &[1, 0, 1, 1]), Input::ints(&[], &[1])]),
        Sample::new("empty", &[Input::uniform(&[0, 3]), Input::ints(&[], &[0])]),
    ],
};

const X: Input = Input::uniform(&[2, 3, 4]);
const LAST: Input = Input::ints(&[1], &[-1]);
const TIED: Input = Input::floats(&[2, 4], &[1.0, 3.0, 3.0, 2.0, 0.0, 0.0]);
const DROPPED: &[(&str, SampleAttr)] = &[("keepdims", SampleAttr::Int(0))];
const LAST_ATTR: &[(&str, SampleAttr)] = &[("axes", SampleAttr::Ints(&[-1]))];
const MIDDLE: &[(&str, SampleAttr)] = &[("axes", SampleAttr::Ints(&[1]))];
const MIDDLE_DROPPED: &[(&str, SampleAttr)] = &[("axes", SampleAttr::Ints(&[1])), ("keepdims", SampleAttr::Int(0))];

const EXTREMUM_SAMPLES: &[Sample] = &[
    Sample::new("last axis", &[X]).attrs(LAST_ATTR).grads(&[0]),
    Sample::new("middle axis, dropped", &[X]).attrs(MIDDLE_DROPPED).grads(&[0]),
    Sample::new("all", &[X]).grads(&[0]),
    Sample::new("axes as input", &[X, Input::ints(&[1], &[0])]).opset(18).grads(&[0]),
    Sample::new("not a number", &[Input::floats(&[2, 2], &[1.0, f32::NAN, 2.0, 3.0])]).attrs(LAST_ATTR),
    Sample::new("whole numbers", &[Input::ints(&[2, 3], &[1, -2, 30, 4])]).attrs(LAST_ATTR),
];

const SQUARE_SAMPLES: &[Sample] = &[
    Sample::new("last axis", &[X]).attrs(LAST_ATTR).grads(&[0]),
    Sample::new("middle axis, dropped", &[X]).attrs(MIDDLE_DROPPED).grads(&[0]),
    Sample::new("all", &[X]).grads(&[0]),
    Sample::new("axes as input", &[X, Input::ints(&[1], &[0])]).opset(18).grads(&[0]),
];

/// Which axes of a tensor of this rank a reduction removes.
fn reduced_axes(node: &Node, given: Option<&Array>, rank: usize) -> Result<Vec<bool>, OpError> {
    let listed = match (given, node.ints("axes")) {
        (Some(array), _) => array.to_i64s()?,
        (None, Some(axes)) => axes.to_vec(),
        (None, None) => Vec::new(),
    };
    if listed.is_empty() {
        return Ok(vec![node.int("noop_with_empty_axes", 0) == 0; rank]);
    }
    let mut reduced = vec![false; rank];
    for index in listed {
        reduced[axis(index, rank)?] = true;
    }
    Ok(reduced)
}

fn output_shape(shape: &[usize], reduced: &[bool], keep: bool) -> Vec<usize> {
    let dims = shape.iter().zip(reduced);
    dims.filter(|&(_, &gone)| keep || !gone).map(|(&dim, &gone)| if gone { 1 } else { dim }).collect()
}

/// A tensor and which of its axes are to be folded.
pub(super) struct Folding<'a> {
    pub(super) shape: &'a [usize],
    pub(super) reduced: &'a [bool],
}

impl Folding<'_> {
    /// How many elements are folded into one.
    fn count(&self) -> usize {
        self.shape.iter().zip(self.reduced).filter(|&(_, &gone)| gone).map(|(&dim, _)| dim).product()
    }

    /// Folds with an associative and commutative `f`, one run of neighbouring axes after the other, last run first.
    pub(super) fn fold<T: Copy>(&self, values: &[T], init: T, f: impl Fn(T, T) -> T) -> Vec<T> {
        let mut current = values.to_vec();
        let mut end = self.shape.len();
        let mut inner = 1;
        while end > 0 {
            let start = self.reduced[..end].iter().rposition(|&r| r != self.reduced[end - 1]).map_or(0, |at| at + 1);
            let len: usize = self.shape[start..end].iter().product();
            if self.reduced[end - 1] {
                let outer: usize = self.shape[..start].iter().product();
                current = fold_block(&current, [outer, len, inner], init, &f);
            } else {
                inner *= len;
            }
            end = start;
        }
        current
    }
}

/// `[outer, len, inner] -> [outer, inner]`
fn fold_block<T: Copy>(values: &[T], [outer, len, inner]: [usize; 3], init: T, f: &impl Fn(T, T) -> T) -> Vec<T> {
    let mut out = vec![init; outer * inner];
    if len * inner == 0 {
        return out;
    }
    for (out, block) in out.chunks_exact_mut(inner).zip(values.chunks_exact(len * inner)) {
        if inner == 1 {
            out[0] = fold(block, init, f);
            continue;
        }
        for row in block.chunks_exact(inner) {
            for (out, &value) in out.iter_mut().zip(row) {
                *out = f(*out, value);
            }
        }
    }
    out
}

fn reduce(call: &Call<'_>, f: fn(&Array, &Folding<'_>) -> Result<Buf, OpError>) -> Outputs {
    let x = call.input(0)?;
    let reduced = reduced_axes(call.node, call.optional(1), x.rank())?;
    let shape = output_shape(&x.shape, &reduced, call.node.int("keepdims", 1) != 0);
    let buf = f(x, &Folding { shape: &x.shape, reduced: &reduced })?;
    Ok(vec![Array { dtype: x.dtype, shape, buf }])
}

/// Folds floats in their carrier, or whole numbers.
fn either<T: Real>(
    x: &Array,
    folding: &Folding<'_>,
    (init, f): (T, impl Fn(T, T) -> T),
    (int_init, int_f): (i64, impl Fn(i64, i64) -> i64),
) -> Result<Buf, OpError> {
    if x.dtype.is_float() {
        return Ok(T::buf(folding.fold(&T::read(x)?, init, f)));
    }
    let values = folding.fold(&read_ints(x)?, int_init, int_f);
    let len = values.len();
    Ok(ints(x.dtype, [len], values).buf)
}

pub(super) fn sums<T: Real>(x: &Array, folding: &Folding<'_>) -> Result<Buf, OpError> {
    either(x, folding, (T::ZERO, |a, b| a + b), (0, i64::wrapping_add))
}

fn means<T: Real>(x: &Array, folding: &Folding<'_>) -> Result<Buf, OpError> {
    let count = folding.count();
    if !x.dtype.is_float() {
        let values = folding.fold(&read_ints(x)?, 0, i64::wrapping_add);
        let values: Vec<i64> = values.into_iter().map(|v| v / (count.max(1) as i64)).collect();
        return Ok(ints(x.dtype, [values.len()], values).buf);
    }
    let count = T::of(count as f64);
    let mut values = folding.fold(&T::read(x)?, T::ZERO, |a, b| a + b);
    values.iter_mut().for_each(|v| *v = *v / count);
    Ok(T::buf(values))
}

fn largest<T: Real>(x: &Array, folding: &Folding<'_>) -> Result<Buf, OpError> {
    let f = |a: T, b: T| if a > b || a.partial_cmp(&a).is_none() { a } else { b };
    either(x, folding, (T::LOWEST, f), (i64::MIN, i64::max))
}

fn smallest<T: Real>(x: &Array, folding: &Folding<'_>) -> Result<Buf, OpError> {
    let f = |a: T, b: T| if a < b || a.partial_cmp(&a).is_none() { a } else { b };
    either(x, folding, (-T::LOWEST, f), (i64::MAX, i64::min))
}

fn products<T: Real>(x: &Array, folding: &Folding<'_>) -> Result<Buf, OpError> {
    either(x, folding, (T::ONE, |a, b| a * b), (1, i64::wrapping_mul))
}

fn squares<T: Real>(x: &Array, folding: &Folding<'_>) -> Result<Buf, OpError> {
    let values: Vec<T> = T::read(x)?.iter().map(|&v| v * v).collect();
    Ok(T::buf(folding.fold(&values, T::ZERO, |a, b| a + b)))
}

fn norms<T: Real>(x: &Array, folding: &Folding<'_>) -> Result<Buf, OpError> {
    let values: Vec<T> = T::read(x)?.iter().map(|&v| v * v).collect();
    let mut sums = folding.fold(&values, T::ZERO, |a, b| a + b);
    sums.iter_mut().for_each(|v| *v = v.sqrt());
    Ok(T::buf(sums))
}

fn arg_max(call: &Call<'_>) -> Outputs {
    let x = call.input(0)?;
    let along = axis(call.node.int("axis", 0), x.rank())?;
    let last = call.node.int("select_last_index", 0) != 0;
    let len = x.shape[along];
    if len == 0 {
        return Err(OpError::Shape(format!("ArgMax over axis {along} of shape {:?}, which has no elements", x.shape)));
    }
    let inner: usize = x.shape[along + 1..].iter().product();
    let values = x.to_f64s();
    let mut out = Vec::with_capacity(values.len() / len);
    for block in values.chunks_exact((len * inner).max(1)) {
        for column in 0..inner {
            let mut best = 0;
            for i in 1..len {
                let (new, old) = (block[i * inner + column], block[best * inner + column]);
                if new > old || (last && new == old) {
                    best = i;
                }
            }
            out.push(best as i64);
        }
    }
    let mut reduced = vec![false; x.rank()];
    reduced[along] = true;
    let shape = output_shape(&x.shape, &reduced, call.node.int("keepdims", 1) != 0);
    Ok(vec![ints(DType::I64, shape, out)])
}

fn cum_sum(call: &Call<'_>) -> Outputs {
    let x = call.input(0)?;
    let along = axis(call.input(1)?.to_scalar_i64()?, x.rank())?;
    let (len, inner) = (x.shape[along], x.shape[along + 1..].iter().product());
    let shape = x.shape.clone();
    let out = match (x.dtype.is_float(), call.compute) {
        (false, _) => ints(x.dtype, shape, running(call.node, &read_ints(x)?, len, inner, 0, i64::wrapping_add)),
        (true, Compute::F32) => {
            floats(x.dtype, shape, running(call.node, &f32::read(x)?, len, inner, 0.0, |a, b| a + b))
        }
        (true, Compute::F64) => {
            floats(x.dtype, shape, running(call.node, &f64::read(x)?, len, inner, 0.0, |a, b| a + b))
        }
    };
    Ok(vec![out])
}

fn running<T: Copy>(node: &Node, values: &[T], len: usize, inner: usize, zero: T, add: impl Fn(T, T) -> T) -> Vec<T> {
    let (exclusive, reverse) = (node.int("exclusive", 0) != 0, node.int("reverse", 0) != 0);
    let mut out = values.to_vec();
    for block in out.chunks_exact_mut((len * inner).max(1)) {
        for column in 0..inner {
            let mut sum = zero;
            for step in 0..len {
                let at = if reverse { len - 1 - step } else { step } * inner + column;
                let before = sum;
                sum = add(sum, block[at]);
                block[at] = if exclusive { before } else { sum };
            }
        }
    }
    out
}

/// The axes that a reduction (or `ArgMax`, which has a single one) removes, on concrete inputs.
fn flow_axes(call: &FlowCall<'_>, rank: usize) -> Option<Vec<bool>> {
    if call.node.op == "ArgMax" {
        let along = axis(call.node.int("axis", 0), rank).ok()?;
        return Some((0..rank).map(|i| i == along).collect());
    }
    reduced_axes(call.node, call.inputs.get(1).and_then(Option::as_ref), rank).ok()
}

fn reduction_flow(call: &FlowCall<'_>) -> Vec<Option<Rows>> {
    let answer = || {
        let mut rows = call.rows.first().copied().flatten()?;
        let x = call.inputs.first()?.as_ref()?;
        let reduced = flow_axes(call, x.rank())?;
        let mut inner = 1;
        for (&dim, &gone) in x.shape.iter().zip(&reduced).rev() {
            if gone {
                rows = rows.without_axis(dim, inner)?;
            } else {
                inner *= dim;
            }
        }
        Some(rows)
    };
    vec![answer(); call.outputs.len()]
}

fn cum_sum_flow(call: &FlowCall<'_>) -> Vec<Option<Rows>> {
    let answer = || {
        let rows = call.rows.first().copied().flatten()?;
        let x = call.inputs.first()?.as_ref()?;
        let along = axis(call.inputs.get(1)?.as_ref()?.to_scalar_i64().ok()?, x.rank()).ok()?;
        rows.apart(x.shape[along], x.shape[along + 1..].iter().product())
    };
    vec![answer()]
}

/// The gradient goes to the elements that equal the extremum, in equal parts.
fn d_extremum(t: &mut Tape<'_>, c: &VjpCall<'_>) -> Gradients {
    let g = undo_reduction(t, c, gradient(c)?);
    let best = undo_reduction(t, c, &c.outputs[0]);
    let hit = t.op("Equal", &[&c.inputs[0], &best]);
    let hit = t.op("CastLike", &[&hit, &c.inputs[0]]);
    let count = t.sum_to(&hit, &best);
    let share = t.op("Div", &[&g, &count]);
    Ok(only_first(c, t.op("Mul", &[&share, &hit])))
}
