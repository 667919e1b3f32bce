//! Softmax and its logarithm.
//!
//! Before operator set 13 all axes from `axis` on are normalised together; since then `axis` alone is.

use super::carrier::{Outputs, Real, axis, by_precision, floats, fold};
use super::rules::{Gradients, flatten, gradient, only_first, reduce, unflatten};
use super::{Call, Flow, FlowCall, Input, OpDef, OpError, Rows, Sample, SampleAttr, Vjp, VjpCall, broadcast};
use crate::rewrite::tape::Tape;

/// The operators of this family.
pub(super) const ROWS: &[OpDef] = &[SOFTMAX, LOG_SOFTMAX];

const SOFTMAX: OpDef = OpDef {
    name: "Softmax",
    domain: "",
    about: "Exponentials, divided by their sum along an axis.",
    eval: |c| by_precision(c, |c| normalise(c, softmax::<f32>), |c| normalise(c, softmax::<f64>)),
    flow: Flow::Rule(flow),
    vjp: Vjp::Rule(d_softmax),
    samples: SAMPLES,
};

const LOG_SOFTMAX: OpDef = OpDef {
    name: "LogSoftmax",
    domain: "",
    about: "Logarithm of the softmax along an axis.",
    eval: |c| by_precision(c, |c| normalise(c, log_softmax::<f32>), |c| normalise(c, log_softmax::<f64>)),
    flow: Flow::Rule(flow),
    vjp: Vjp::Rule(d_log_softmax),
    samples: SAMPLES,
};

const SAMPLES: &[Sample] = &[
    Sample::new("last axis", &[Input::uniform(&[2, 3, 4])]).grads(&[0]),
    Sample::new("middle axis", &[Input::uniform(&[2, 3, 4])]).attrs(&[("axis", SampleAttr::Int(1))]).grads(&[0]),
    Sample::new("vector", &[Input::uniform(&[19])]).grads(&[0]),
    Sample::new("before 13, default axis", &[Input::uniform(&[2, 3, 4])]).opset(11).grads(&[0]),
    Sample::new("before 13, last axis", &[Input::uniform(&[2, 3, 4])])
        .attrs(&[("axis", SampleAttr::Int(-1))])
        .opset(12)
        .grads(&[0]),
    Sample::new("large", &[Input::floats(&[2, 3], &[1000.0, 1001.0, 999.0, -1e4, 3.0, 2.0])]),
    Sample::new("masked", &[Input::floats(&[2, 3], &[f32::NEG_INFINITY, 1.0, 2.0])]),
    Sample::new("empty", &[Input::uniform(&[2, 0, 3])]),
];

/// `[outer, len, inner]` of the elements that are normalised together: `len` of them, `inner` apart.
fn blocks(opset: i64, given: Option<i64>, shape: &[usize]) -> Result<[usize; 3], OpError> {
    let flattened = opset < 13;
    let given = given.unwrap_or(if flattened { 1 } else { -1 });
    // A flattening axis may stand behind the last one: then nothing is normalised together.
    let along = if flattened && given == shape.len() as i64 { shape.len() } else { axis(given, shape.len())? };
    let end = if flattened { shape.len() } else { along + 1 };
    Ok([shape[..along].iter().product(), shape[along..end].iter().product(), shape[end..].iter().product()])
}

fn given_axis(node: &crate::ir::Node) -> Option<i64> {
    node.attr("axis").map(|_| node.int("axis", 0))
}

fn normalise<T: Real>(call: &Call<'_>, f: fn(&[T], &mut [T])) -> Outputs {
    let x = call.input(0)?;
    let [_, len, inner] = blocks(call.opset, given_axis(call.node), &x.shape)?;
    let data = T::read(x)?;
    if x.is_empty() {
        return Ok(vec![x.clone()]);
    }
    let out = broadcast::fill_blocks(call.pool, data.len(), len * inner, |block, out: &mut [T]| {
        let from = &data[block * len * inner..][..len * inner];
        if inner == 1 {
            return f(from, out);
        }
        let (mut column, mut result) = (vec![T::ZERO; len], vec![T::ZERO; len]);
        for at in 0..inner {
            for (i, value) in column.iter_mut().enumerate() {
                *value = from[i * inner + at];
            }
            f(&column, &mut result);
            for (i, &value) in result.iter().enumerate() {
                out[i * inner + at] = value;
            }
        }
    });
    Ok(vec![floats(x.dtype, x.shape.clone(), out)])
}

fn largest<T: Real>(x: &[T]) -> T {
    fold(x, T::LOWEST, |a, b| if a > b { a } else { b })
}

fn softmax<T: Real>(x: &[T], out: &mut [T]) {
    let top = largest(x);
    for (out, &x) in out.iter_mut().zip(x) {
        *out = (x - top).exp();
    }
    let scale = T::ONE / fold(out, T::ZERO, |a, b| a + b);
    for out in out {
        *out = *out * scale;
    }
}

fn log_softmax<T: Real>(x: &[T], out: &mut [T]) {
    let top = largest(x);
    for (out, &x) in out.iter_mut().zip(x) {
        *out = (x - top).exp();
    }
    let total = fold(out, T::ZERO, |a, b| a + b).ln();
    for (out, &x) in out.iter_mut().zip(x) {
        *out = x - top - total;
    }
}

/// Rows stay as they are where the elements that are normalised together belong to one token.
fn flow(call: &FlowCall<'_>) -> Vec<Option<Rows>> {
    let answer = || {
        let rows = call.rows.first().copied().flatten()?;
        let shape = &call.inputs.first()?.as_ref()?.shape;
        let [_, len, inner] = blocks(call.opset, given_axis(call.node), shape).ok()?;
        rows.apart(len, inner)
    };
    vec![answer()]
}

/// Writes a rule for normalisation along one axis; before operator set 13 on the flattened values.
fn along_axis(t: &mut Tape<'_>, c: &VjpCall<'_>, rule: impl Fn(&mut Tape<'_>, &str, &str, i64) -> String) -> Gradients {
    let g = gradient(c)?;
    let y = &c.outputs[0];
    if c.opset >= 13 {
        return Ok(only_first(c, rule(t, g, y, c.node.int("axis", -1))));
    }
    let axis = c.node.int("axis", 1);
    let (g, y) = (flatten(t, g, axis), flatten(t, y, axis));
    let flat = rule(t, &g, &y, 1);
    Ok(only_first(c, unflatten(t, &flat, &c.inputs[0])))
}

fn d_softmax(t: &mut Tape<'_>, c: &VjpCall<'_>) -> Gradients {
    // y (g - sum(g y))
    along_axis(t, c, |t, g, y, axis| {
        let product = t.op("Mul", &[g, y]);
        let sum = reduce(t, c, "ReduceSum", &product, &[axis]);
        let lost = t.op("Mul", &[y, &sum]);
        t.op("Sub", &[&product, &lost])
    })
}

fn d_log_softmax(t: &mut Tape<'_>, c: &VjpCall<'_>) -> Gradients {
    // g - exp(y) sum(g)
    along_axis(t, c, |t, g, y, axis| {
        let sum = reduce(t, c, "ReduceSum", g, &[axis]);
        let p = t.op("Exp", &[y]);
        let lost = t.op("Mul", &[&p, &sum]);
        t.op("Sub", &[g, &lost])
    })
}
