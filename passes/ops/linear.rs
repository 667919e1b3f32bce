//! Matrix products.

use mbqc_kernels::Pool;

use super::carrier::{Outputs, Real, by_precision, floats, ints, read_ints};
use super::product::{Accumulate, Mat, gemm};
use super::rules::{Gradients, gradient, unsqueeze, wanted};
use super::{Call, Flow, FlowCall, Input, OpDef, OpError, Rows, Sample, SampleAttr, Vjp, VjpCall, broadcast};
use crate::array::Array;
use crate::ir::{Attr, Def, Type};
use crate::rewrite::tape::Tape;

/// The operators of this family.
pub(super) const ROWS: &[OpDef] = &[MAT_MUL, GEMM];

const MAT_MUL: OpDef = OpDef {
    name: "MatMul",
    domain: "",
    about: "Matrix product of the last two axes, as in numpy.",
    eval: |c| matmul(c, [false, false]),
    flow: Flow::Rule(matmul_flow),
    vjp: Vjp::Rule(d_matmul),
    samples: &[
        Sample::new("matrices", &[Input::uniform(&[2, 3]), Input::uniform(&[3, 4])]).grads(&[0, 1]),
        Sample::new("tokens by weight", &[Input::uniform(&[2, 3, 4]), Input::uniform(&[4, 5])]).grads(&[0, 1]),
        Sample::new("heads", &[Input::uniform(&[1, 2, 3, 4]), Input::uniform(&[1, 2, 4, 3])]).grads(&[0, 1]),
        Sample::new("batch repeated left", &[Input::uniform(&[3, 4]), Input::uniform(&[2, 4, 5])]).grads(&[0, 1]),
        Sample::new("batch repeated both ways", &[Input::uniform(&[2, 1, 3, 2]), Input::uniform(&[3, 2, 2])])
            .grads(&[0, 1]),
        Sample::new("by vector", &[Input::uniform(&[2, 3, 4]), Input::uniform(&[4])]).grads(&[0, 1]),
        Sample::new("vector by matrices", &[Input::uniform(&[4]), Input::uniform(&[2, 4, 3])]).grads(&[0, 1]),
        Sample::new("vector by vector", &[Input::uniform(&[4]), Input::uniform(&[4])]).grads(&[0, 1]),
        Sample::new("whole numbers", &[Input::ints(&[2, 2], &[1, -2, 3, 4]), Input::ints(&[2, 1], &[5, 6])]),
        Sample::new("no rows", &[Input::uniform(&[2, 0, 3]), Input::uniform(&[3, 2])]),
        Sample::new("empty sums", &[Input::uniform(&[2, 0]), Input::uniform(&[0, 3])]),
    ],
};

const GEMM: OpDef = OpDef {
    name: "Gemm",
    domain: "",
    about: "alpha A B + beta C, with A and B transposed on request.",
    eval: |c| by_precision(c, full_product::<f32>, full_product::<f64>),
    flow: Flow::Rule(gemm_flow),
    vjp: Vjp::Rule(d_gemm),
    samples: &[
        Sample::new("bias", &[Input::uniform(&[2, 3]), Input::uniform(&[3, 4]), Input::uniform(&[4])])
            .grads(&[0, 1, 2]),
        Sample::new("no bias", &[Input::uniform(&[2, 3]), Input::uniform(&[3, 4])]).grads(&[0, 1]),
        Sample::new("B transposed", &[Input::uniform(&[2, 3]), Input::uniform(&[4, 3]), Input::uniform(&[1, 4])])
            .attrs(&[("transB", SampleAttr::Int(1))])
            .grads(&[0, 1, 2]),
        Sample::new("A transposed", &[Input::uniform(&[3, 2]), Input::uniform(&[3, 4]), Input::uniform(&[2, 1])])
            .attrs(&[("transA", SampleAttr::Int(1))])
            .grads(&[0, 1, 2]),
        Sample::new(
            "both transposed, scaled",
            &[Input::uniform(&[3, 2]), Input::uniform(&[4, 3]), Input::uniform(&[])],
        )
        .attrs(&[
            ("transA", SampleAttr::Int(1)),
            ("transB", SampleAttr::Int(1)),
            ("alpha", SampleAttr::Float(0.5)),
            ("beta", SampleAttr::Float(-2.0)),
        ])
        .grads(&[0, 1, 2]),
        Sample::new("no rows", &[Input::uniform(&[0, 3]), Input::uniform(&[3, 2]), Input::uniform(&[2])]),
    ],
};

/// Sizes of a product with broadcast batches: every batch item is `[m, k] x [k, n]`.
struct Product {
    shape: Vec<usize>,
    batch: Vec<usize>,
    a_batch: Vec<usize>,
    b_batch: Vec<usize>,
    m: usize,
    k: usize,
    n: usize,
}

impl Product {
    fn new(a: &[usize], b: &[usize], [trans_a, trans_b]: [bool; 2]) -> Result<Product, OpError> {
        let misfit = || OpError::Shape(format!("a product of shapes {a:?} and {b:?}"));
        let matrix = |shape: &[usize], trans: bool, vector: [usize; 2]| match shape {
            [] => Err(misfit()),
            [_] if trans => Err(OpError::Shape(format!("a vector of shape {shape:?} cannot be transposed"))),
            [_] => Ok((Vec::new(), vector)),
            [batch @ .., r, c] => Ok((batch.to_vec(), if trans { [*c, *r] } else { [*r, *c] })),
        };
        let (a_batch, [m, k]) = matrix(a, trans_a, [1, a.first().copied().unwrap_or(0)])?;
        let (b_batch, [k_b, n]) = matrix(b, trans_b, [b.first().copied().unwrap_or(0), 1])?;
        if k != k_b {
            return Err(misfit());
        }
        let batch = broadcast::shape(&[&a_batch, &b_batch])?;
        let mut shape = batch.clone();
        shape.extend((a.len() > 1).then_some(m));
        shape.extend((b.len() > 1).then_some(n));
        Ok(Product { shape, batch, a_batch, b_batch, m, k, n })
    }

    /// Which matrix of an operand belongs to each item of the batch.
    fn items(&self, pool: &Pool, own: &[usize]) -> Vec<usize> {
        let all: Vec<usize> = (0..own.iter().product()).collect();
        broadcast::zip(pool, &self.batch, (own, &all), (&[], &[()]), |i, ()| i)
    }
}

/// Multiply-adds that are worth a thread of their own.
const PIECE: usize = 1 << 20;

/// The product of two operands, each optionally with its last two axes swapped.
pub(super) fn product<T: Real>(
    pool: &Pool,
    (a_shape, a): (&[usize], &[T]),
    (b_shape, b): (&[usize], &[T]),
    trans: [bool; 2],
) -> Result<(Vec<usize>, Vec<T>), OpError> {
    let p = Product::new(a_shape, b_shape, trans)?;
    let (mut m, k, n) = (p.m, p.k, p.n);
    let mut out = vec![T::ZERO; p.shape.iter().product()];
    let left = |data, m| if trans[0] { Mat::rows(data, m).t() } else { Mat::rows(data, k) };
    let right = |data| if trans[1] { Mat::rows(data, k).t() } else { Mat::rows(data, n) };
    if out.is_empty() || k == 0 {
        return Ok((p.shape, out));
    }
    // One right operand for all: the batch is more rows.
    if p.b_batch.iter().product::<usize>() == 1 && !trans[0] {
        m *= p.a_batch.iter().product::<usize>();
    }
    if out.len() == m * n {
        gemm(m, n, k, left(a, m), right(b), &mut out, Accumulate::Replace, pool);
        return Ok((p.shape, out));
    }
    let (of_a, of_b) = (p.items(pool, &p.a_batch), p.items(pool, &p.b_batch));
    let per_piece = (PIECE / (m * n * k)).max(1);
    pool.for_each_chunk(&mut out, per_piece * m * n, |piece, out| {
        for (i, out) in out.chunks_exact_mut(m * n).enumerate() {
            let item = piece * per_piece + i;
            let (a, b) = (&a[of_a[item] * m * k..][..m * k], &b[of_b[item] * k * n..][..k * n]);
            gemm(m, n, k, left(a, m), right(b), out, Accumulate::Replace, pool);
        }
    });
    Ok((p.shape, out))
}

/// The product of whole numbers; rare and small.
fn whole_product(pool: &Pool, a: &Array, b: &Array, trans: [bool; 2]) -> Result<Array, OpError> {
    let p = Product::new(&a.shape, &b.shape, trans)?;
    let (x, y) = (read_ints(a)?, read_ints(b)?);
    let (of_a, of_b) = (p.items(pool, &p.a_batch), p.items(pool, &p.b_batch));
    let (m, k, n) = (p.m, p.k, p.n);
    let mut out = Vec::with_capacity(p.shape.iter().product());
    for (a_item, b_item) in of_a.into_iter().zip(of_b) {
        let (x, y) = (&x[a_item * m * k..], &y[b_item * k * n..]);
        for i in 0..m {
            for j in 0..n {
                let left = |l: usize| if trans[0] { x[l * m + i] } else { x[i * k + l] };
                let right = |l: usize| if trans[1] { y[j * k + l] } else { y[l * n + j] };
                out.push((0..k).fold(0i64, |sum, l| sum.wrapping_add(left(l).wrapping_mul(right(l)))));
            }
        }
    }
    Ok(ints(a.dtype, p.shape, out))
}

/// The product of inputs 0 and 1.
pub(super) fn matmul(call: &Call<'_>, trans: [bool; 2]) -> Outputs {
    fn of<T: Real>(call: &Call<'_>, trans: [bool; 2]) -> Outputs {
        let (a, b) = (call.input(0)?, call.input(1)?);
        let (x, y) = (T::read(a)?, T::read(b)?);
        let (shape, values) = product(call.pool, (&a.shape, &x), (&b.shape, &y), trans)?;
        Ok(vec![floats(a.dtype, shape, values)])
    }
    let (a, b) = (call.input(0)?, call.input(1)?);
    if a.dtype.is_int() {
        return Ok(vec![whole_product(call.pool, a, b, trans)?]);
    }
    match call.compute {
        crate::array::Compute::F32 => of::<f32>(call, trans),
        crate::array::Compute::F64 => of::<f64>(call, trans),
    }
}

fn transposes(node: &crate::ir::Node) -> [bool; 2] {
    [node.int("transA", 0) != 0, node.int("transB", 0) != 0]
}

fn full_product<T: Real>(call: &Call<'_>) -> Outputs {
    let (a, b) = (call.input(0)?, call.input(1)?);
    if a.rank() != 2 || b.rank() != 2 {
        return Err(OpError::Shape(format!("Gemm of shapes {:?} and {:?}, which are not matrices", a.shape, b.shape)));
    }
    let (alpha, beta) = (call.node.float("alpha", 1.0), call.node.float("beta", 1.0));
    let (alpha, beta) = (T::of(f64::from(alpha)), T::of(f64::from(beta)));
    let (shape, mut y) = product(call.pool, (&a.shape, &T::read(a)?), (&b.shape, &T::read(b)?), transposes(call.node))?;
    if let Some(c) = call.optional(2) {
        if broadcast::shape(&[&c.shape, &shape])? != shape {
            return Err(OpError::Shape(format!("Gemm adds shape {:?} to {shape:?}", c.shape)));
        }
        let (y_side, c_side) = ((shape.as_slice(), y.as_slice()), (c.shape.as_slice(), T::read(c)?));
        y = broadcast::zip(call.pool, &shape, y_side, (c_side.0, &c_side.1), |y, c| alpha * y + beta * c);
    } else if alpha != T::ONE {
        y.iter_mut().for_each(|y| *y = alpha * *y);
    }
    Ok(vec![floats(a.dtype, shape, y)])
}

/// Rows of input 0 along any axis but the contracted one; else those of input 1 along any but its contracted one.
fn matmul_flow(call: &FlowCall<'_>) -> Vec<Option<Rows>> {
    let shape = |slot: usize| Some(call.inputs.get(slot)?.as_ref()?.shape.as_slice());
    let answer = || {
        let (a, b) = (shape(0)?, shape(1)?);
        let out = &call.outputs.first()?.shape;
        if let Some((space, axis)) = call.axis(0) {
            // Axes behind the token axis: [.., n] of the output for [.., k] of the input; none for a vector.
            let behind = (a.len() - 1 - axis + usize::from(b.len() > 1)).checked_sub(1)?;
            let at = (axis + 1 < a.len()).then(|| (out.len() - 1).checked_sub(behind)).flatten()?;
            return (out[at] == a[axis]).then(|| Rows::along(space, out, at));
        }
        let (space, axis) = call.axis(1)?;
        if b.len() < 2 || axis + 2 == b.len() {
            return None;
        }
        let last = axis + 1 == b.len();
        let behind = if last { 0 } else { b.len() - 1 - axis - usize::from(a.len() == 1) };
        let at = (out.len() - 1).checked_sub(behind)?;
        (out[at] == b[axis]).then(|| Rows::along(space, out, at))
    };
    vec![answer()]
}

fn gemm_flow(call: &FlowCall<'_>) -> Vec<Option<Rows>> {
    let [trans_a, trans_b] = transposes(call.node);
    let answer = || {
        let out = &call.outputs.first()?.shape;
        if let Some((space, axis)) = call.axis(0) {
            return (axis == usize::from(trans_a)).then(|| Rows::along(space, out, 0));
        }
        let (space, axis) = call.axis(1)?;
        (axis == usize::from(!trans_b)).then(|| Rows::along(space, out, 1))
    };
    vec![answer()]
}

/// The rank of a value, where the graph declares it.
fn rank(t: &Tape<'_>, name: &str) -> Option<usize> {
    let graph = t.graph();
    let value = graph.value(graph.find(name)?);
    match (&value.def, &value.ty) {
        (Def::Const(tensor), _) => Some(tensor.dims.len()),
        (_, Some(Type::Tensor(_, Some(dims)))) => Some(dims.len()),
        _ => None,
    }
}

/// For matrices `d_a = g b'` and `d_b = a' g`, summed over repeated batches. Vectors, where they are known to be such,
/// are treated as matrices of one row or column; where the rank is not declared, evaluation refuses a vector.
fn d_matmul(t: &mut Tape<'_>, c: &VjpCall<'_>) -> Gradients {
    let g = gradient(c)?;
    let (a, b) = (&c.inputs[0], &c.inputs[1]);
    let vectors = [rank(t, a) == Some(1), rank(t, b) == Some(1)];
    let as_row = if vectors[0] { unsqueeze(t, c, a, &[0]) } else { a.clone() };
    let as_column = if vectors[1] { unsqueeze(t, c, b, &[1]) } else { b.clone() };
    let g = match vectors {
        [false, false] => g.to_owned(),
        [true, false] => unsqueeze(t, c, g, &[-2]),
        [false, true] => unsqueeze(t, c, g, &[-1]),
        [true, true] => unsqueeze(t, c, g, &[0, 1]),
    };
    let mut grads = vec![None; 2];
    if wanted(c, 0) {
        let full = t.grad("MatMulT", &[&g, &as_column], &[("trans_b", Attr::Int(1))]);
        grads[0] = Some(back_to(t, &full, &as_row, a));
    }
    if wanted(c, 1) {
        let full = t.grad("MatMulT", &[&as_row, &g], &[("trans_a", Attr::Int(1))]);
        grads[1] = Some(back_to(t, &full, &as_column, b));
    }
    Ok(grads)
}

/// A gradient summed to the matrix that stands for an operand, and given the operand's own shape.
fn back_to(t: &mut Tape<'_>, full: &str, matrix: &str, operand: &str) -> String {
    let summed = t.sum_to(full, matrix);
    if matrix == operand {
        return summed;
    }
    let shape = t.op("Shape", &[operand]);
    t.op("Reshape", &[&summed, &shape])
}

fn d_gemm(t: &mut Tape<'_>, c: &VjpCall<'_>) -> Gradients {
    let g = gradient(c)?;
    let (a, b) = (c.inputs[0].as_str(), c.inputs[1].as_str());
    let [trans_a, trans_b] = transposes(c.node);
    let alpha = c.node.float("alpha", 1.0);
    let product = |t: &mut Tape<'_>, left: (&str, bool), right: (&str, bool)| {
        let attrs = [
            ("alpha", Attr::Float(alpha)),
            ("transA", Attr::Int(i64::from(left.1))),
            ("transB", Attr::Int(i64::from(right.1))),
        ];
        t.op_with("Gemm", &[left.0, right.0], &attrs)
    };
    let mut grads = vec![None; c.inputs.len()];
    if wanted(c, 0) {
        // d_a = g b', or its transpose
        grads[0] =
            Some(if trans_a { product(t, (b, trans_b), (g, true)) } else { product(t, (g, false), (b, !trans_b)) });
    }
    if wanted(c, 1) {
        grads[1] =
            Some(if trans_b { product(t, (g, true), (a, trans_a)) } else { product(t, (a, !trans_a), (g, false)) });
    }
    if wanted(c, 2) {
        let beta = t.scalar(c.node.float("beta", 1.0), g);
        let scaled = t.op("Mul", &[g, &beta]);
        grads[2] = Some(t.sum_to(&scaled, &c.inputs[2]));
    }
    Ok(grads)
}
