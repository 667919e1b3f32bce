//! Comparisons, logic, and choice between two tensors.

use std::sync::Arc;

use super::carrier::{Outputs, Real, bools, read_ints};
use super::rules::{Gradients, gradient, wanted};
use super::{Call, Flow, Input, OpDef, OpError, Sample, Vjp, VjpCall, broadcast};
use crate::array::{Array, ArrayError, Buf, Compute};
use crate::rewrite::tape::Tape;

/// The operators of this family.
pub(super) const ROWS: &[OpDef] = &[EQUAL, LESS, LESS_OR_EQUAL, GREATER, GREATER_OR_EQUAL, AND, OR, XOR, WHERE];

const fn test(
    name: &'static str,
    about: &'static str,
    eval: fn(&Call<'_>) -> Outputs,
    samples: &'static [Sample],
) -> OpDef {
    OpDef { name, domain: "", about, eval, flow: Flow::Elementwise, vjp: Vjp::Zero, samples }
}

const EQUAL: OpDef = test(
    "Equal",
    "Whether elements are equal.",
    |c| compare(c, |a, b| a == b, |a, b| a == b, |a, b| a == b),
    &[TIED_FLOATS, INTS, ROW_OF_INTS, NOT_A_NUMBER, EMPTY, TRUTH_VALUES],
);

const LESS: OpDef = test(
    "Less",
    "Whether elements of the first are less.",
    |c| compare(c, |a, b| a < b, |a, b| a < b, |a, b| a < b),
    &[TIED_FLOATS, INTS, ROW_OF_INTS, NOT_A_NUMBER, EMPTY],
);

const LESS_OR_EQUAL: OpDef = test(
    "LessOrEqual",
    "Whether elements of the first are less or equal.",
    |c| compare(c, |a, b| a <= b, |a, b| a <= b, |a, b| a <= b),
    &[TIED_FLOATS, INTS, ROW_OF_INTS, NOT_A_NUMBER, EMPTY],
);

const GREATER: OpDef = test(
    "Greater",
    "Whether elements of the first are greater.",
    |c| compare(c, |a, b| a > b, |a, b| a > b, |a, b| a > b),
    &[TIED_FLOATS, INTS, ROW_OF_INTS, NOT_A_NUMBER, EMPTY],
);

const GREATER_OR_EQUAL: OpDef = test(
    "GreaterOrEqual",
    "Whether elements of the first are greater or equal.",
    |c| compare(c, |a, b| a >= b, |a, b| a >= b, |a, b| a >= b),
    &[TIED_FLOATS, INTS, ROW_OF_INTS, NOT_A_NUMBER, EMPTY],
);

const AND: OpDef = test("And", "Whether both are true.", |c| logic(c, |a, b| a & b), &[LOGIC, LOGIC_ROW]);

const OR: OpDef = test("Or", "Whether one is true.", |c| logic(c, |a, b| a | b), &[LOGIC, LOGIC_ROW]);

const XOR: OpDef = test("Xor", "Whether exactly one is true.", |c| logic(c, |a, b| a ^ b), &[LOGIC, LOGIC_ROW]);

const WHERE: OpDef = OpDef {
    name: "Where",
    domain: "",
    about: "The second tensor's element where the first holds, else the third's.",
    eval: choose,
    flow: Flow::Elementwise,
    vjp: Vjp::Rule(d_where),
    samples: &[
        Sample::new("same shape", &[CONDITION, Input::uniform(&[2, 3]), Input::uniform(&[2, 3])]).grads(&[1, 2]),
        Sample::new("scalar choice", &[CONDITION, Input::floats(&[], &[-1e4]), Input::uniform(&[2, 3])]).grads(&[1, 2]),
        Sample::new(
            "condition repeated",
            &[Input::bools(&[2, 1], &[true, false]), Input::uniform(&[2, 3]), Input::uniform(&[3])],
        )
        .grads(&[1, 2]),
        Sample::new("condition larger than both", &[CONDITION, Input::uniform(&[3]), Input::uniform(&[])])
            .grads(&[1, 2]),
        Sample::new("whole numbers", &[CONDITION, Input::ints(&[2, 3], &[1, 2, 3]), Input::ints(&[1], &[-9])]),
        Sample::new("truth values", &[CONDITION, Input::bools(&[1], &[true]), Input::bools(&[3], &[false, true])]),
        Sample::new("empty", &[Input::bools(&[0, 1], &[]), Input::uniform(&[1, 3]), Input::uniform(&[3])]),
    ],
};

const CONDITION: Input = Input::bools(&[2, 3], &[true, false, false, true, true]);
const TIED_FLOATS: Sample = Sample::new(
    "floats",
    &[Input::floats(&[2, 3], &[1.0, 2.0, 3.0, -1.0, 0.0]), Input::floats(&[2, 3], &[1.0, 3.0, 2.0, -1.0, -0.0])],
);
const INTS: Sample = Sample::new("whole numbers", &[Input::ints(&[4], &[1, 2, 3]), Input::ints(&[4], &[1, 3, 2])]);
const ROW_OF_INTS: Sample =
    Sample::new("column against row", &[Input::ints(&[3, 1], &[0, 1, 2]), Input::ints(&[1, 3], &[0, 1, 2])]);
const NOT_A_NUMBER: Sample =
    Sample::new("not a number", &[Input::floats(&[2], &[f32::NAN, 1.0]), Input::floats(&[2], &[f32::NAN])]);
const EMPTY: Sample = Sample::new("empty", &[Input::uniform(&[0, 2]), Input::uniform(&[2])]);
const TRUTH_VALUES: Sample =
    Sample::new("truth values", &[Input::bools(&[4], &[true, false]), Input::bools(&[4], &[true, true, false])]);
const LOGIC: Sample = Sample::new(
    "same shape",
    &[Input::bools(&[4], &[true, true, false, false]), Input::bools(&[4], &[true, false, true, false])],
);
const LOGIC_ROW: Sample =
    Sample::new("row", &[Input::bools(&[2, 3], &[true, true, false, false]), Input::bools(&[3], &[true, false])]);

fn compare(
    call: &Call<'_>,
    single: impl Fn(f32, f32) -> bool + Sync,
    double: impl Fn(f64, f64) -> bool + Sync,
    whole: impl Fn(i64, i64) -> bool + Sync,
) -> Outputs {
    let (a, b) = (call.input(0)?, call.input(1)?);
    let shape = broadcast::shape(&[&a.shape, &b.shape])?;
    let values = match (a.dtype.is_float(), call.compute) {
        (false, _) => {
            let (x, y) = (read_ints(a)?, read_ints(b)?);
            broadcast::zip(call.pool, &shape, (&a.shape, &x), (&b.shape, &y), whole)
        }
        (true, Compute::F32) => {
            let (x, y) = (f32::read(a)?, f32::read(b)?);
            broadcast::zip(call.pool, &shape, (&a.shape, &x), (&b.shape, &y), single)
        }
        (true, Compute::F64) => {
            let (x, y) = (f64::read(a)?, f64::read(b)?);
            broadcast::zip(call.pool, &shape, (&a.shape, &x), (&b.shape, &y), double)
        }
    };
    Ok(vec![bools(shape, values)])
}

fn logic(call: &Call<'_>, f: impl Fn(bool, bool) -> bool + Sync) -> Outputs {
    let (a, b) = (call.input(0)?, call.input(1)?);
    let shape = broadcast::shape(&[&a.shape, &b.shape])?;
    let (x, y) = (a.to_bools()?, b.to_bools()?);
    let values = broadcast::zip(call.pool, &shape, (&a.shape, &x), (&b.shape, &y), f);
    Ok(vec![bools(shape, values)])
}

fn choose(call: &Call<'_>) -> Outputs {
    let (condition, a, b) = (call.input(0)?, call.input(1)?, call.input(2)?);
    let shape = broadcast::shape(&[&condition.shape, &a.shape, &b.shape])?;
    let holds = condition.to_bools()?;
    let holds = (condition.shape.as_slice(), holds.as_slice());
    fn pick<T: Copy + Default + Send + Sync>(
        call: &Call<'_>,
        shape: &[usize],
        holds: (&[usize], &[bool]),
        a: (&[usize], &[T]),
        b: (&[usize], &[T]),
    ) -> Vec<T> {
        broadcast::select(call.pool, shape, holds, a, b)
    }
    let buf = match (&a.buf, &b.buf) {
        (Buf::I64(x), Buf::I64(y)) => Buf::I64(Arc::new(pick(call, &shape, holds, (&a.shape, x), (&b.shape, y)))),
        (Buf::Bool(x), Buf::Bool(y)) => Buf::Bool(Arc::new(pick(call, &shape, holds, (&a.shape, x), (&b.shape, y)))),
        (Buf::Bytes(x), Buf::Bytes(y)) => Buf::Bytes(pick(call, &shape, holds, (&a.shape, x), (&b.shape, y)).into()),
        (Buf::F32(_) | Buf::F64(_), Buf::F32(_) | Buf::F64(_)) => match call.compute {
            Compute::F32 => f32::buf(pick(call, &shape, holds, (&a.shape, &f32::read(a)?), (&b.shape, &f32::read(b)?))),
            Compute::F64 => f64::buf(pick(call, &shape, holds, (&a.shape, &f64::read(a)?), (&b.shape, &f64::read(b)?))),
        },
        _ => {
            let expected = "two choices of one element type";
            return Err(OpError::Array(ArrayError::Expected { expected, found: b.dtype }));
        }
    };
    Ok(vec![Array { dtype: a.dtype, shape, buf }])
}

fn d_where(t: &mut Tape<'_>, c: &VjpCall<'_>) -> Gradients {
    let g = gradient(c)?;
    let condition = &c.inputs[0];
    let zero = t.scalar(0.0, g);
    let mut grads = vec![None; 3];
    if wanted(c, 1) {
        let part = t.op("Where", &[condition, g, &zero]);
        grads[1] = Some(t.sum_to(&part, &c.inputs[1]));
    }
    if wanted(c, 2) {
        let part = t.op("Where", &[condition, &zero, g]);
        grads[2] = Some(t.sum_to(&part, &c.inputs[2]));
    }
    Ok(grads)
}
