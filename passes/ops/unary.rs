//! Functions of one tensor, element by element.

use mbqc_kernels::dense;

use super::carrier::{Outputs, Real, bools, by_precision, floats, ints, read_ints};
use super::rules::{gradient, one, only_first};
use super::{Call, Flow, Input, OpDef, OpError, Sample, SampleAttr, Vjp, VjpCall, broadcast};
use crate::array::Compute;
use crate::rewrite::tape::Tape;

/// The operators of this family.
pub(super) const ROWS: &[OpDef] = &[
    NEG, ABS, SQRT, RECIPROCAL, EXP, LOG, ERF, TANH, SIGMOID, COS, SIN, FLOOR, CEIL, ROUND, SIGN, RELU, GELU, SOFTPLUS,
    CLIP, IS_NAN, IS_INF, NOT,
];

const fn op(
    name: &'static str,
    about: &'static str,
    eval: fn(&Call<'_>) -> Outputs,
    vjp: Vjp,
    samples: &'static [Sample],
) -> OpDef {
    OpDef { name, domain: "", about, eval, flow: Flow::Elementwise, vjp, samples }
}

const NEG: OpDef = op(
    "Neg",
    "The negative of every element.",
    |c| numbers(c, |x| -x, |x| -x, i64::wrapping_neg),
    Vjp::Rule(|t, c| one(t.op("Neg", &[gradient(c)?]))),
    &[FLOATS, INTS, SCALAR, EMPTY],
);

const ABS: OpDef = op(
    "Abs",
    "The magnitude of every element.",
    |c| numbers(c, f32::abs, f64::abs, i64::wrapping_abs),
    Vjp::Rule(|t, c| {
        let sign = t.op("Sign", &[&c.inputs[0]]);
        one(t.op("Mul", &[gradient(c)?, &sign]))
    }),
    &[AWAY_FROM_ZERO, INTS, EMPTY],
);

const SQRT: OpDef = op(
    "Sqrt",
    "The square root of every element.",
    |c| map(c, f32::sqrt, f64::sqrt),
    Vjp::Rule(|t, c| {
        let twice = t.op("Add", &[&c.outputs[0], &c.outputs[0]]);
        one(t.op("Div", &[gradient(c)?, &twice]))
    }),
    &[POSITIVE, EMPTY],
);

const RECIPROCAL: OpDef = op(
    "Reciprocal",
    "One over every element.",
    |c| map(c, f32::recip, f64::recip),
    Vjp::Rule(|t, c| {
        let square = t.op("Mul", &[&c.outputs[0], &c.outputs[0]]);
        let product = t.op("Mul", &[gradient(c)?, &square]);
        one(t.op("Neg", &[&product]))
    }),
    &[POSITIVE, EMPTY],
);

const EXP: OpDef = op(
    "Exp",
    "e to the power of every element.",
    |c| map_all(c, dense::exp, dense::exp),
    Vjp::Rule(|t, c| one(t.op("Mul", &[gradient(c)?, &c.outputs[0]]))),
    &[FLOATS, SCALAR, EMPTY],
);

const LOG: OpDef = op(
    "Log",
    "The natural logarithm of every element.",
    |c| map(c, f32::ln, f64::ln),
    Vjp::Rule(|t, c| one(t.op("Div", &[gradient(c)?, &c.inputs[0]]))),
    &[POSITIVE, EMPTY],
);

const ERF: OpDef = op(
    "Erf",
    "The error function of every element.",
    |c| map(c, libm::erff, libm::erf),
    Vjp::Rule(|t, c| {
        // d erf(x) = 2 / sqrt(pi) * exp(-x^2)
        let square = t.op("Mul", &[&c.inputs[0], &c.inputs[0]]);
        let negative = t.op("Neg", &[&square]);
        let bell = t.op("Exp", &[&negative]);
        let factor = t.scalar(std::f32::consts::FRAC_2_SQRT_PI, &c.inputs[0]);
        let slope = t.op("Mul", &[&bell, &factor]);
        one(t.op("Mul", &[gradient(c)?, &slope]))
    }),
    &[FLOATS, SMALL_AND_LARGE, EMPTY],
);

const TANH: OpDef = op(
    "Tanh",
    "The hyperbolic tangent of every element.",
    |c| map_all(c, dense::tanh, dense::tanh),
    Vjp::Rule(|t, c| {
        // g (1 - y^2) = g - g y^2
        let square = t.op("Mul", &[&c.outputs[0], &c.outputs[0]]);
        let lost = t.op("Mul", &[gradient(c)?, &square]);
        one(t.op("Sub", &[gradient(c)?, &lost]))
    }),
    &[FLOATS, SMALL_AND_LARGE, EMPTY],
);

const SIGMOID: OpDef = op(
    "Sigmoid",
    "1 / (1 + exp(-x)) of every element.",
    |c| map_all(c, dense::sigmoid, dense::sigmoid),
    Vjp::Rule(|t, c| {
        // g y (1 - y) = g y - g y y
        let scaled = t.op("Mul", &[gradient(c)?, &c.outputs[0]]);
        let lost = t.op("Mul", &[&scaled, &c.outputs[0]]);
        one(t.op("Sub", &[&scaled, &lost]))
    }),
    &[FLOATS, SMALL_AND_LARGE, EMPTY],
);

const COS: OpDef = op(
    "Cos",
    "The cosine of every element.",
    |c| map(c, f32::cos, f64::cos),
    Vjp::Rule(|t, c| {
        let sine = t.op("Sin", &[&c.inputs[0]]);
        let product = t.op("Mul", &[gradient(c)?, &sine]);
        one(t.op("Neg", &[&product]))
    }),
    &[FLOATS, SMALL_AND_LARGE, EMPTY],
);

const SIN: OpDef = op(
    "Sin",
    "The sine of every element.",
    |c| map(c, f32::sin, f64::sin),
    Vjp::Rule(|t, c| {
        let cosine = t.op("Cos", &[&c.inputs[0]]);
        one(t.op("Mul", &[gradient(c)?, &cosine]))
    }),
    &[FLOATS, SMALL_AND_LARGE, EMPTY],
);

const FLOOR: OpDef = op(
    "Floor",
    "The largest whole number that is not larger.",
    |c| map(c, f32::floor, f64::floor),
    Vjp::Zero,
    &[FLOATS_ONLY, TIES, EMPTY],
);

const CEIL: OpDef = op(
    "Ceil",
    "The smallest whole number that is not smaller.",
    |c| map(c, f32::ceil, f64::ceil),
    Vjp::Zero,
    &[FLOATS_ONLY, TIES, EMPTY],
);

const ROUND: OpDef = op(
    "Round",
    "The nearest whole number, ties to even.",
    |c| map(c, f32::round_ties_even, f64::round_ties_even),
    Vjp::Zero,
    &[FLOATS_ONLY, TIES, EMPTY],
);

const SIGN: OpDef =
    op("Sign", "-1, 0 or 1.", |c| numbers(c, sign, sign, i64::signum), Vjp::Zero, &[FLOATS_ONLY, TIES, INTS, EMPTY]);

const RELU: OpDef = op(
    "Relu",
    "The element where it is positive, else zero.",
    |c| numbers(c, |x| if x < 0.0 { 0.0 } else { x }, |x| if x < 0.0 { 0.0 } else { x }, |x| x.max(0)),
    Vjp::Rule(|t, c| {
        let zero = t.scalar(0.0, &c.inputs[0]);
        let positive = t.op("Greater", &[&c.outputs[0], &zero]);
        one(t.op("Where", &[&positive, gradient(c)?, &zero]))
    }),
    &[AWAY_FROM_ZERO, INT32S, EMPTY],
);

const GELU: OpDef = op(
    "Gelu",
    "x times the normal distribution's cumulative function, exact or by tanh.",
    |c| {
        if by_tanh(c.node.string("approximate"))? {
            map(c, gelu_tanh, gelu_tanh)
        } else {
            map(
                c,
                |x: f32| 0.5 * x * (1.0 + libm::erff(x * std::f32::consts::FRAC_1_SQRT_2)),
                |x: f64| 0.5 * x * (1.0 + libm::erf(x * std::f64::consts::FRAC_1_SQRT_2)),
            )
        }
    },
    Vjp::Rule(d_gelu),
    &[
        FLOATS.opset(20),
        SMALL_AND_LARGE.opset(20),
        Sample::new("by tanh", &[Input::uniform(&[2, 3])])
            .attrs(&[("approximate", SampleAttr::Str("tanh"))])
            .opset(20)
            .grads(&[0]),
        EMPTY.opset(20),
    ],
);

const SOFTPLUS: OpDef = op(
    "Softplus",
    "ln(1 + exp(x)) of every element.",
    |c| map(c, |x: f32| x.max(0.0) + (-x.abs()).exp().ln_1p(), |x: f64| x.max(0.0) + (-x.abs()).exp().ln_1p()),
    Vjp::Rule(|t, c| {
        let slope = t.op("Sigmoid", &[&c.inputs[0]]);
        one(t.op("Mul", &[gradient(c)?, &slope]))
    }),
    &[FLOATS, SMALL_AND_LARGE, EMPTY],
);

const CLIP: OpDef = op(
    "Clip",
    "Every element moved into a range.",
    clip,
    Vjp::Rule(d_clip),
    &[
        Sample::new("both bounds", &[CLIPPED, Input::floats(&[], &[-0.75]), Input::floats(&[], &[1.0])])
            .grads(&[0, 1, 2]),
        Sample::new("no lower bound", &[CLIPPED, Input::ABSENT, Input::floats(&[], &[0.75])]).grads(&[0, 2]),
        Sample::new("no upper bound", &[CLIPPED, Input::floats(&[], &[-0.75])]).grads(&[0, 1]),
        Sample::new("no bounds", &[CLIPPED]).grads(&[0]),
        Sample::new("bounds crossed", &[CLIPPED, Input::floats(&[], &[1.0]), Input::floats(&[], &[-0.75])]),
        Sample::new(
            "whole numbers",
            &[Input::ints(&[5], &[-7, 0, 3, 9, 20]), Input::ints(&[], &[-2]), Input::ints(&[], &[9])],
        ),
        Sample::new("bounds as attributes", &[CLIPPED])
            .attrs(&[("min", SampleAttr::Float(-0.75)), ("max", SampleAttr::Float(1.0))])
            .opset(7)
            .grads(&[0]),
        Sample::new("empty", &[Input::uniform(&[0, 3]), Input::floats(&[], &[-0.75])]),
    ],
);

const IS_NAN: OpDef = op(
    "IsNaN",
    "Whether an element is not a number.",
    |c| by_precision(c, |c| test(c, f32::is_nan), |c| test(c, f64::is_nan)),
    Vjp::Zero,
    &[FLOATS_ONLY, NOT_FINITE, Sample::new("empty", &[Input::uniform(&[2, 0])])],
);

const IS_INF: OpDef = op(
    "IsInf",
    "Whether an element is infinite.",
    |c| by_precision(c, is_inf::<f32>, is_inf::<f64>),
    Vjp::Zero,
    &[
        FLOATS_ONLY,
        NOT_FINITE,
        Sample::new("negative only", &[INFINITIES]).attrs(&[("detect_positive", SampleAttr::Int(0))]),
        Sample::new("positive only", &[INFINITIES]).attrs(&[("detect_negative", SampleAttr::Int(0))]),
    ],
);

const NOT: OpDef = op(
    "Not",
    "The other truth value.",
    |c| {
        let x = c.input(0)?;
        Ok(vec![bools(x.shape.clone(), broadcast::map(c.pool, &x.to_bools()?, |x| !x))])
    },
    Vjp::Zero,
    &[
        Sample::new("truth values", &[Input::bools(&[2, 3], &[true, false, false])]),
        Sample::new("empty", &[Input::bools(&[0], &[])]),
    ],
);

const FLOATS: Sample = Sample::new("floats", &[Input::uniform(&[2, 3, 4])]).grads(&[0]);
const FLOATS_ONLY: Sample = Sample::new("floats", &[Input::uniform(&[2, 3, 4])]);
const SCALAR: Sample = Sample::new("scalar", &[Input::uniform(&[])]).grads(&[0]);
const POSITIVE: Sample = Sample::new("positive floats", &[Input::positive(&[2, 3])]).grads(&[0]);
const EMPTY: Sample = Sample::new("empty", &[Input::uniform(&[2, 0, 3])]);
const INTS: Sample = Sample::new("whole numbers", &[Input::ints(&[2, 3], &[-3, 0, 5, 1 << 40])]);
const INT32S: Sample = Sample::new("whole numbers", &[Input::int32s(&[2, 3], &[-3, 0, 5, 1 << 30])]);
const AWAY_FROM_ZERO: Sample =
    Sample::new("floats away from zero", &[Input::floats(&[2, 3], &[-1.5, 0.75, -0.25, 0.5, 2.0, -0.5])]).grads(&[0]);
const TIES: Sample = Sample::new("halves", &[Input::floats(&[9], &[-2.5, -1.5, -0.5, 0.0, 0.5, 1.5, 2.5, 1e10, -3.0])]);
const SMALL_AND_LARGE: Sample =
    Sample::new("small and large", &[Input::floats(&[8], &[-30.0, -5.0, -1e-3, 0.0, 1e-5, 0.3, 6.0, 40.0])]);
const CLIPPED: Input = Input::floats(&[2, 3], &[-1.5, 0.5, -0.5, 0.25, 2.0, -0.9]);
const INFINITIES: Input = Input::floats(&[4], &[f32::INFINITY, 1.0, f32::NEG_INFINITY, f32::NAN]);
const NOT_FINITE: Sample = Sample::new("not finite", &[INFINITIES]);

/// Floats to floats.
fn map(call: &Call<'_>, single: impl Fn(f32) -> f32 + Sync, double: impl Fn(f64) -> f64 + Sync) -> Outputs {
    let x = call.input(0)?;
    let out = match call.compute {
        Compute::F32 => floats(x.dtype, x.shape.clone(), broadcast::map(call.pool, &f32::read(x)?, single)),
        Compute::F64 => floats(x.dtype, x.shape.clone(), broadcast::map(call.pool, &f64::read(x)?, double)),
    };
    Ok(vec![out])
}

/// As [`map`], with functions of many elements.
fn map_all(call: &Call<'_>, single: fn(&[f32], &mut [f32]), double: fn(&[f64], &mut [f64])) -> Outputs {
    fn each<T: Real>(call: &Call<'_>, f: fn(&[T], &mut [T])) -> Outputs {
        let x = call.input(0)?;
        let data = T::read(x)?;
        let out =
            broadcast::fill(call.pool, data.len(), |start, out: &mut [T]| f(&data[start..start + out.len()], out));
        Ok(vec![floats(x.dtype, x.shape.clone(), out)])
    }
    match call.compute {
        Compute::F32 => each(call, single),
        Compute::F64 => each(call, double),
    }
}

/// Numbers of any kind to the same kind.
fn numbers(
    call: &Call<'_>,
    single: impl Fn(f32) -> f32 + Sync,
    double: impl Fn(f64) -> f64 + Sync,
    whole: impl Fn(i64) -> i64 + Sync,
) -> Outputs {
    let x = call.input(0)?;
    if !x.dtype.is_int() {
        return map(call, single, double);
    }
    Ok(vec![ints(x.dtype, x.shape.clone(), broadcast::map(call.pool, &read_ints(x)?, whole))])
}

fn sigmoid<T: Real>(x: T) -> T {
    T::ONE / (T::ONE + (-x).exp())
}

fn sign<T: Real>(x: T) -> T {
    if x > T::ZERO {
        T::ONE
    } else if x < T::ZERO {
        -T::ONE
    } else {
        x
    }
}

/// sqrt(2 / pi), of the tanh form of GELU.
const GELU_SCALE: f64 = 0.797_884_560_802_865_4;
const GELU_CUBIC: f64 = 0.044_715;

fn gelu_tanh<T: Real>(x: T) -> T {
    // 0.5 (1 + tanh u) = sigmoid(2 u)
    let u = T::from_f64(GELU_SCALE) * (x + T::from_f64(GELU_CUBIC) * x * x * x);
    x * sigmoid(u + u)
}

fn by_tanh(approximate: Option<&str>) -> Result<bool, OpError> {
    match approximate {
        None | Some("none") => Ok(false),
        Some("tanh") => Ok(true),
        Some(other) => Err(OpError::Unsupported(format!("Gelu with approximate = `{other}`"))),
    }
}

fn d_gelu(t: &mut Tape<'_>, c: &VjpCall<'_>) -> Result<Vec<Option<String>>, String> {
    let x = &c.inputs[0];
    let half = t.scalar(0.5, x);
    let unit = t.scalar(1.0, x);
    let slope = if by_tanh(c.node.string("approximate")).map_err(|e| e.to_string())? {
        // y = x s with s = 0.5 (1 + tanh u), u = k (x + c x^3); dy = s + 2 x s (1 - s) k (1 + 3 c x^2)
        let square = t.op("Mul", &[x, x]);
        let cubic = t.scalar(GELU_CUBIC as f32, x);
        let scale = t.scalar(GELU_SCALE as f32, x);
        let term = t.op("Mul", &[&square, &cubic]);
        let factor = t.op("Add", &[&term, &unit]);
        let inner = t.op("Mul", &[x, &factor]);
        let u = t.op("Mul", &[&inner, &scale]);
        let twice_u = t.op("Add", &[&u, &u]);
        let s = t.op("Sigmoid", &[&twice_u]);
        let rest = t.op("Sub", &[&unit, &s]);
        let bell = t.op("Mul", &[&s, &rest]);
        let twice_term = t.op("Add", &[&term, &term]);
        let d_inner = t.op("Add", &[&factor, &twice_term]);
        let d_u = t.op("Mul", &[&d_inner, &scale]);
        let d_twice_u = t.op("Add", &[&d_u, &d_u]);
        let d_s = t.op("Mul", &[&bell, &d_twice_u]);
        let through = t.op("Mul", &[x, &d_s]);
        t.op("Add", &[&s, &through])
    } else {
        // y = x P with P = 0.5 (1 + erf(x / sqrt 2)); dy = P + x exp(-x^2 / 2) / sqrt(2 pi)
        let root = t.scalar(std::f32::consts::FRAC_1_SQRT_2, x);
        let height = t.scalar(0.5 * std::f32::consts::FRAC_2_SQRT_PI * std::f32::consts::FRAC_1_SQRT_2, x);
        let scaled = t.op("Mul", &[x, &root]);
        let erf = t.op("Erf", &[&scaled]);
        let sum = t.op("Add", &[&erf, &unit]);
        let p = t.op("Mul", &[&sum, &half]);
        let square = t.op("Mul", &[&scaled, &scaled]);
        let negative = t.op("Neg", &[&square]);
        let bell = t.op("Exp", &[&negative]);
        let density = t.op("Mul", &[&bell, &height]);
        let through = t.op("Mul", &[x, &density]);
        t.op("Add", &[&p, &through])
    };
    one(t.op("Mul", &[gradient(c)?, &slope]))
}

fn clip(call: &Call<'_>) -> Outputs {
    let x = call.input(0)?;
    if x.dtype.is_int() {
        let bound = |slot, open| match call.optional(slot) {
            Some(array) => array.to_scalar_i64().map_err(OpError::from),
            None => Ok(open),
        };
        let (low, high) = (bound(1, i64::MIN)?, bound(2, i64::MAX)?);
        return numbers(call, |x| x, |x| x, |x| x.max(low).min(high));
    }
    let bound = |slot, name, open: f32| {
        if call.opset < 11 {
            return Ok(f64::from(call.node.float(name, open)));
        }
        let Some(array) = call.optional(slot) else { return Ok(f64::from(open)) };
        match array.to_f64s().as_slice() {
            [value] => Ok(*value),
            many => Err(OpError::Shape(format!("input {slot} of Clip must be one number, found {}", many.len()))),
        }
    };
    let (low, high) = (bound(1, "min", f32::NEG_INFINITY)?, bound(2, "max", f32::INFINITY)?);
    map(call, |x| within(x, low as f32, high as f32), |x| within(x, low, high))
}

/// NaN stays NaN; the upper bound wins where the bounds cross.
fn within<T: Real>(x: T, low: T, high: T) -> T {
    let raised = if x < low { low } else { x };
    if raised > high { high } else { raised }
}

fn d_clip(t: &mut Tape<'_>, c: &VjpCall<'_>) -> Result<Vec<Option<String>>, String> {
    let g = gradient(c)?;
    let x = &c.inputs[0];
    let zero = t.scalar(0.0, x);
    let inside = t.op("Equal", &[x, &c.outputs[0]]);
    let mut grads = only_first(c, t.op("Where", &[&inside, g, &zero]));
    for (slot, beyond) in [(1, "Less"), (2, "Greater")] {
        if c.wants.get(slot) == Some(&true) && !c.inputs[slot].is_empty() {
            let bound = &c.inputs[slot];
            let outside = t.op(beyond, &[x, bound]);
            let part = t.op("Where", &[&outside, g, &zero]);
            grads[slot] = Some(t.sum_to(&part, bound));
        }
    }
    Ok(grads)
}

fn test<T: Real>(call: &Call<'_>, f: impl Fn(T) -> bool + Sync) -> Outputs {
    let x = call.input(0)?;
    Ok(vec![bools(x.shape.clone(), broadcast::map(call.pool, &T::read(x)?, f))])
}

fn is_inf<T: Real>(call: &Call<'_>) -> Outputs {
    let positive = call.node.int("detect_positive", 1) != 0;
    let negative = call.node.int("detect_negative", 1) != 0;
    let infinity = -T::NEG_INFINITY;
    test::<T>(call, |x| (positive && x == infinity) || (negative && x == -infinity))
}
