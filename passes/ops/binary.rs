//! Arithmetic on two or more tensors, element by element, with broadcasting.

use super::carrier::{Outputs, Real, floats, ints, read_ints};
use super::rules::{Gradients, gradient, wanted};
use super::{Call, Flow, Input, OpDef, OpError, Sample, SampleAttr, Vjp, VjpCall, broadcast};
use crate::array::{Array, Compute};
use crate::rewrite::tape::Tape;

/// The operators of this family.
pub(super) const ROWS: &[OpDef] = &[ADD, SUB, MUL, DIV, POW, MOD, MIN, MAX];

const fn op(
    name: &'static str,
    about: &'static str,
    eval: fn(&Call<'_>) -> Outputs,
    vjp: Vjp,
    samples: &'static [Sample],
) -> OpDef {
    OpDef { name, domain: "", about, eval, flow: Flow::Elementwise, vjp, samples }
}

const ADD: OpDef = op(
    "Add",
    "Sum of two tensors.",
    |c| numbers(c, |a, b| a + b, |a, b| a + b, i64::wrapping_add),
    Vjp::Rule(|t, c| {
        let g = gradient(c)?.to_owned();
        back(t, c, |_, _| Ok(g.clone()))
    }),
    &[SAME, ROW, COLUMN, SCALAR, BOTH_WAYS, INTS, INT32S_WRAP, EMPTY, EMPTY_FROM_ONE],
);

const SUB: OpDef = op(
    "Sub",
    "Difference of two tensors.",
    |c| numbers(c, |a, b| a - b, |a, b| a - b, i64::wrapping_sub),
    Vjp::Rule(|t, c| {
        let g = gradient(c)?.to_owned();
        back(t, c, |t, slot| Ok(if slot == 0 { g.clone() } else { t.op("Neg", &[&g]) }))
    }),
    &[SAME, ROW, COLUMN, SCALAR, BOTH_WAYS, INTS, EMPTY],
);

const MUL: OpDef = op(
    "Mul",
    "Product of two tensors.",
    |c| numbers(c, |a, b| a * b, |a, b| a * b, i64::wrapping_mul),
    Vjp::Rule(|t, c| {
        let g = gradient(c)?;
        back(t, c, |t, slot| Ok(t.op("Mul", &[g, &c.inputs[1 - slot]])))
    }),
    &[SAME, ROW, COLUMN, SCALAR, BOTH_WAYS, INTS, INT32S_WRAP, EMPTY],
);

const DIV: OpDef = op(
    "Div",
    "Quotient of two tensors; whole numbers are cut off towards zero.",
    |c| {
        refuse_zero_divisor(c)?;
        numbers(c, |a, b| a / b, |a, b| a / b, i64::wrapping_div)
    },
    Vjp::Rule(|t, c| {
        let d_a = t.op("Div", &[gradient(c)?, &c.inputs[1]]);
        back(t, c, |t, slot| {
            if slot == 0 {
                return Ok(d_a.clone());
            }
            let product = t.op("Mul", &[&d_a, &c.outputs[0]]);
            Ok(t.op("Neg", &[&product]))
        })
    }),
    &[
        Sample::new("same shape", &[Input::uniform(&[2, 3]), Input::positive(&[2, 3])]).grads(&[0, 1]),
        Sample::new("row of divisors", &[Input::uniform(&[2, 3]), Input::positive(&[3])]).grads(&[0, 1]),
        Sample::new("column of divisors", &[Input::uniform(&[2, 3]), Input::positive(&[2, 1])]).grads(&[0, 1]),
        Sample::new(
            "whole numbers towards zero",
            &[Input::ints(&[4], &[7, -7, 7, -7]), Input::ints(&[4], &[2, 2, -2, -2])],
        ),
        EMPTY,
    ],
);

const POW: OpDef = op(
    "Pow",
    "The first tensor to the power of the second.",
    pow,
    Vjp::Rule(d_pow),
    &[
        Sample::new("same shape", &[Input::positive(&[2, 3]), Input::uniform(&[2, 3])]).grads(&[0, 1]),
        Sample::new("square", &[Input::uniform(&[2, 3]), Input::floats(&[], &[2.0])]).grads(&[0]),
        Sample::new("cube by a whole number", &[Input::uniform(&[2, 3]), Input::ints(&[], &[3])]).grads(&[0]),
        Sample::new("root of a row", &[Input::positive(&[2, 3]), Input::floats(&[1, 3], &[0.5, 1.5, -1.0])])
            .grads(&[0, 1]),
        Sample::new("whole numbers", &[Input::ints(&[3], &[2, -3, 10]), Input::ints(&[3], &[10, 3, 0])]),
        EMPTY,
    ],
);

const MOD: OpDef = op(
    "Mod",
    "Remainder: with the divisor's sign for whole numbers, with the dividend's for fmod.",
    modulo,
    Vjp::Rule(|t, c| {
        // a fmod b = a - b trunc(a / b), so d_b = -g (a - y) / b
        let g = gradient(c)?;
        back(t, c, |t, slot| {
            if slot == 0 {
                return Ok(g.to_owned());
            }
            let whole = t.op("Sub", &[&c.outputs[0], &c.inputs[0]]);
            let times = t.op("Div", &[&whole, &c.inputs[1]]);
            Ok(t.op("Mul", &[g, &times]))
        })
    }),
    &[
        Sample::new(
            "floats",
            &[Input::floats(&[4], &[5.3, -5.3, 5.3, -5.3]), Input::floats(&[4], &[2.0, 2.0, -2.0, -2.0])],
        )
        .attrs(&[("fmod", SampleAttr::Int(1))])
        .grads(&[0, 1]),
        Sample::new("whole numbers", &[Input::ints(&[4], &[5, -5, 5, -5]), Input::ints(&[4], &[3, 3, -3, -3])]),
        Sample::new("whole numbers, fmod", &[Input::ints(&[4], &[5, -5, 5, -5]), Input::ints(&[4], &[3, 3, -3, -3])])
            .attrs(&[("fmod", SampleAttr::Int(1))]),
    ],
);

const MIN: OpDef = op(
    "Min",
    "The smallest of the tensors' elements.",
    |c| variadic(c, min, min, i64::min),
    Vjp::Rule(d_extremum),
    EXTREMUM_SAMPLES,
);

const MAX: OpDef = op(
    "Max",
    "The largest of the tensors' elements.",
    |c| variadic(c, max, max, i64::max),
    Vjp::Rule(d_extremum),
    EXTREMUM_SAMPLES,
);

const EXTREMUM_SAMPLES: &[Sample] = &[
    Sample::new("two", &[Input::uniform(&[2, 3]), Input::uniform(&[2, 3])]).grads(&[0, 1]),
    Sample::new(
        "three, broadcast",
        &[
            Input::floats(&[2, 3], &[-1.0, 0.25, 1.5, 0.75, -0.5, 2.0]),
            Input::floats(&[3], &[0.5, -0.25, 1.0]),
            Input::floats(&[2, 1], &[0.1, -0.1]),
        ],
    )
    .grads(&[0, 1, 2]),
    Sample::new("one", &[Input::uniform(&[3])]).grads(&[0]),
    Sample::new("whole numbers", &[Input::ints(&[2, 2], &[-3, 4, 9, 0]), Input::ints(&[], &[3])]),
    Sample::new("not a number", &[Input::floats(&[2], &[f32::NAN, 1.0]), Input::floats(&[2], &[0.0, f32::NAN])]),
    Sample::new("empty", &[Input::uniform(&[0, 3]), Input::uniform(&[3])]),
];

const SAME: Sample = Sample::new("same shape", &[Input::uniform(&[2, 3]), Input::uniform(&[2, 3])]).grads(&[0, 1]);
const ROW: Sample = Sample::new("row", &[Input::uniform(&[2, 2, 3]), Input::uniform(&[3])]).grads(&[0, 1]);
const COLUMN: Sample = Sample::new("column", &[Input::uniform(&[2, 1]), Input::uniform(&[2, 3])]).grads(&[0, 1]);
const SCALAR: Sample = Sample::new("scalar", &[Input::uniform(&[]), Input::uniform(&[2, 3])]).grads(&[0, 1]);
const BOTH_WAYS: Sample =
    Sample::new("both ways", &[Input::uniform(&[2, 1, 3, 1]), Input::uniform(&[2, 1, 2])]).grads(&[0, 1]);
const INTS: Sample = Sample::new("whole numbers", &[Input::ints(&[2, 3], &[1, -2, 30]), Input::ints(&[1], &[7])]);
const INT32S_WRAP: Sample =
    Sample::new("int32 wraps", &[Input::int32s(&[2], &[i32::MAX as i64, 5]), Input::int32s(&[2], &[2, 3])]);
const EMPTY: Sample = Sample::new("empty", &[Input::uniform(&[2, 0]), Input::positive(&[1])]);
const EMPTY_FROM_ONE: Sample = Sample::new("empty against one", &[Input::uniform(&[2, 1]), Input::positive(&[0])]);

/// `f` of two broadcast operands of one kind.
fn pair(
    call: &Call<'_>,
    (a, b): (&Array, &Array),
    single: impl Fn(f32, f32) -> f32 + Sync,
    double: impl Fn(f64, f64) -> f64 + Sync,
    whole: impl Fn(i64, i64) -> i64 + Sync,
) -> Result<Array, OpError> {
    let shape = broadcast::shape(&[&a.shape, &b.shape])?;
    if a.dtype.is_int() {
        let values = broadcast::zip(call.pool, &shape, (&a.shape, &read_ints(a)?), (&b.shape, &read_ints(b)?), whole);
        return Ok(ints(a.dtype, shape, values));
    }
    Ok(match call.compute {
        Compute::F32 => {
            let (x, y) = (f32::read(a)?, f32::read(b)?);
            let values = broadcast::zip(call.pool, &shape, (&a.shape, &x), (&b.shape, &y), single);
            floats(a.dtype, shape, values)
        }
        Compute::F64 => {
            let (x, y) = (f64::read(a)?, f64::read(b)?);
            let values = broadcast::zip(call.pool, &shape, (&a.shape, &x), (&b.shape, &y), double);
            floats(a.dtype, shape, values)
        }
    })
}

fn numbers(
    call: &Call<'_>,
    single: impl Fn(f32, f32) -> f32 + Sync,
    double: impl Fn(f64, f64) -> f64 + Sync,
    whole: impl Fn(i64, i64) -> i64 + Sync,
) -> Outputs {
    Ok(vec![pair(call, (call.input(0)?, call.input(1)?), single, double, whole)?])
}

fn variadic(
    call: &Call<'_>,
    single: impl Fn(f32, f32) -> f32 + Sync,
    double: impl Fn(f64, f64) -> f64 + Sync,
    whole: impl Fn(i64, i64) -> i64 + Sync,
) -> Outputs {
    let mut so_far = call.input(0)?.clone();
    for slot in 1..call.inputs.len() {
        so_far = pair(call, (&so_far, call.input(slot)?), &single, &double, &whole)?;
    }
    Ok(vec![so_far])
}

fn min<T: Real>(a: T, b: T) -> T {
    if a < b || a.partial_cmp(&a).is_none() { a } else { b }
}

fn max<T: Real>(a: T, b: T) -> T {
    if a > b || a.partial_cmp(&a).is_none() { a } else { b }
}

fn refuse_zero_divisor(call: &Call<'_>) -> Result<(), OpError> {
    let b = call.input(1)?;
    if b.dtype.is_int() && !call.input(0)?.is_empty() && read_ints(b)?.contains(&0) {
        return Err(OpError::Unsupported("division of a whole number by zero".to_owned()));
    }
    Ok(())
}

fn modulo(call: &Call<'_>) -> Outputs {
    refuse_zero_divisor(call)?;
    let fmod = call.node.int("fmod", 0) != 0;
    if !fmod && call.input(0)?.dtype.is_float() {
        return Err(OpError::Unsupported("Mod of floats needs fmod = 1".to_owned()));
    }
    let whole = |a: i64, b: i64| {
        let rest = a.wrapping_rem(b);
        if !fmod && rest != 0 && (rest < 0) != (b < 0) { rest + b } else { rest }
    };
    numbers(call, |a, b| a % b, |a, b| a % b, whole)
}

fn pow(call: &Call<'_>) -> Outputs {
    let (a, b) = (call.input(0)?, call.input(1)?);
    let exponent = if b.dtype.is_float() { b.clone() } else { floats(a.dtype, b.shape.clone(), b.to_f64s()) };
    if a.dtype.is_int() {
        let shape = broadcast::shape(&[&a.shape, &b.shape])?;
        let (base, power) = (read_ints(a)?, f64::read(&exponent)?);
        let values = broadcast::zip(call.pool, &shape, (&a.shape, &base), (&b.shape, &power), whole_power);
        return Ok(vec![ints(a.dtype, shape, values)]);
    }
    // Squares and cubes are common and far cheaper as products.
    let power = if exponent.len() == 1 { exponent.to_f64s() } else { Vec::new() };
    let out = match power.as_slice() {
        [2.0] => pair(call, (a, &exponent), |x, _| x * x, |x, _| x * x, |x, _| x)?,
        [3.0] => pair(call, (a, &exponent), |x, _| x * x * x, |x, _| x * x * x, |x, _| x)?,
        [0.5] => pair(call, (a, &exponent), |x, _| x.sqrt(), |x, _| x.sqrt(), |x, _| x)?,
        _ => pair(call, (a, &exponent), f32::powf, f64::powf, |x, _| x)?,
    };
    Ok(vec![out])
}

fn whole_power(base: i64, power: f64) -> i64 {
    if power >= 0.0 && power.fract() == 0.0 && power <= f64::from(u32::MAX) {
        return base.wrapping_pow(power as u32);
    }
    (base as f64).powf(power) as i64
}

/// For every wanted input, what `rule` makes of it, summed over the axes along which the input was repeated.
fn back(
    t: &mut Tape<'_>,
    c: &VjpCall<'_>,
    mut rule: impl FnMut(&mut Tape<'_>, usize) -> Result<String, String>,
) -> Gradients {
    let mut grads = vec![None; c.inputs.len()];
    for (slot, grad) in grads.iter_mut().enumerate() {
        if wanted(c, slot) {
            let full = rule(t, slot)?;
            *grad = Some(t.sum_to(&full, &c.inputs[slot]));
        }
    }
    Ok(grads)
}

fn d_pow(t: &mut Tape<'_>, c: &VjpCall<'_>) -> Gradients {
    let g = gradient(c)?;
    let (a, b) = (&c.inputs[0], &c.inputs[1]);
    let power = t.op("CastLike", &[b, a]);
    let mut grads = back(t, c, |t, slot| {
        if slot == 0 {
            let unit = t.scalar(1.0, a);
            let less = t.op("Sub", &[&power, &unit]);
            let rest = t.op("Pow", &[a, &less]);
            let slope = t.op("Mul", &[&power, &rest]);
            return Ok(t.op("Mul", &[g, &slope]));
        }
        // y ln(a), and 0 where a is not positive: its logarithm is not needed there, or does not exist.
        let zero = t.scalar(0.0, a);
        let unit = t.scalar(1.0, a);
        let positive = t.op("Greater", &[a, &zero]);
        let safe = t.op("Where", &[&positive, a, &unit]);
        let log = t.op("Log", &[&safe]);
        let slope = t.op("Mul", &[&c.outputs[0], &log]);
        Ok(t.op("Mul", &[g, &slope]))
    })?;
    if let Some(Some(d_b)) = grads.get_mut(1) {
        *d_b = t.op("CastLike", &[d_b.as_str(), b]);
    }
    Ok(grads)
}

/// The gradient goes to the inputs that equal the output, in equal parts.
fn d_extremum(t: &mut Tape<'_>, c: &VjpCall<'_>) -> Gradients {
    let g = gradient(c)?;
    let mut hits = Vec::with_capacity(c.inputs.len());
    for input in &c.inputs {
        let hit = t.op("Equal", &[input, &c.outputs[0]]);
        hits.push(t.op("CastLike", &[&hit, g]));
    }
    let mut count = hits[0].clone();
    for hit in &hits[1..] {
        count = t.op("Add", &[&count, hit]);
    }
    let share = t.op("Div", &[g, &count]);
    back(t, c, |t, slot| Ok(t.op("Mul", &[&share, &hits[slot]])))
}
