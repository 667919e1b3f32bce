//! Numpy broadcasting, in one place.

use mbqc_kernels::Pool;

use super::OpError;
use crate::array::{Array, Buf};

/// Elements that one thread works on at a time.
const CHUNK: usize = 1 << 16;

/// The shape that all of `shapes` broadcast to.
pub(super) fn shape(shapes: &[&[usize]]) -> Result<Vec<usize>, OpError> {
    let rank = shapes.iter().map(|s| s.len()).max().unwrap_or(0);
    let mut out = vec![1; rank];
    for shape in shapes {
        for (size, &dim) in out[rank - shape.len()..].iter_mut().zip(*shape) {
            if dim == *size || dim == 1 {
                continue;
            }
            if *size != 1 {
                return Err(OpError::Shape(format!("shapes {shapes:?} do not broadcast")));
            }
            *size = dim;
        }
    }
    Ok(out)
}

/// How `N` operands are walked to fill an output: merged axes, outermost first, each with its length and the operands'
/// strides (0 where an operand is repeated).
struct Walk<const N: usize> {
    axes: Vec<(usize, [usize; N])>,
}

impl<const N: usize> Walk<N> {
    fn new(out: &[usize], shapes: [&[usize]; N]) -> Walk<N> {
        let mut axes: Vec<(usize, [usize; N])> = Vec::new();
        let mut steps = [1; N];
        for (back, &len) in out.iter().rev().enumerate() {
            let mut strides = [0; N];
            for (i, shape) in shapes.iter().enumerate() {
                let dim = if back < shape.len() { shape[shape.len() - 1 - back] } else { 1 };
                strides[i] = if dim == 1 { 0 } else { steps[i] };
                steps[i] *= dim;
            }
            if len == 1 {
                continue;
            }
            match axes.last_mut() {
                Some((inner, s)) if (0..N).all(|i| strides[i] == s[i] * *inner) => *inner *= len,
                _ => axes.push((len, strides)),
            }
        }
        axes.reverse();
        if axes.is_empty() {
            axes.push((out.iter().product(), [0; N]));
        }
        Walk { axes }
    }

    /// Calls `f(at, offsets, strides, len)` for the runs along the innermost axis that cover output elements
    /// `start..start + count`; `at` counts from `start`.
    fn runs(&self, start: usize, count: usize, mut f: impl FnMut(usize, [usize; N], [usize; N], usize)) {
        let Some(&(inner, strides)) = self.axes.last() else { return };
        let mut done = 0;
        while done < count {
            let mut rest = (start + done) / inner;
            let column = (start + done) % inner;
            let mut offsets = strides.map(|s| s * column);
            for (len, outer) in self.axes[..self.axes.len() - 1].iter().rev() {
                for (offset, stride) in offsets.iter_mut().zip(outer) {
                    *offset += stride * (rest % len);
                }
                rest /= len;
            }
            let len = (inner - column).min(count - done);
            f(done, offsets, strides, len);
            done += len;
        }
    }
}

/// Fills a vector of `len` elements chunk by chunk on the pool's threads: `f(start, chunk)`.
pub(super) fn fill<T: Copy + Default + Send>(pool: &Pool, len: usize, f: impl Fn(usize, &mut [T]) + Sync) -> Vec<T> {
    let mut out = vec![T::default(); len];
    if len < 4 * CHUNK {
        f(0, &mut out);
    } else {
        pool.for_each_chunk(&mut out, CHUNK, |i, chunk| f(i * CHUNK, chunk));
    }
    out
}

/// Fills a vector of `len` elements block by block: `f(i, block i)`; `len` is a multiple of `block`.
pub(super) fn fill_blocks<T: Copy + Default + Send>(
    pool: &Pool,
    len: usize,
    block: usize,
    f: impl Fn(usize, &mut [T]) + Sync,
) -> Vec<T> {
    let per_chunk = (CHUNK / block).max(1);
    let mut out = vec![T::default(); len];
    let each = |first: usize, part: &mut [T]| {
        part.chunks_exact_mut(block).enumerate().for_each(|(i, block)| f(first + i, block));
    };
    if len < 4 * CHUNK {
        each(0, &mut out);
    } else {
        pool.for_each_chunk(&mut out, per_chunk * block, |i, part| each(i * per_chunk, part));
    }
    out
}

/// `f(i)` for every row of `width` elements of a value of `len` elements.
pub(super) fn rows<T: Copy + Default + Send>(
    pool: &Pool,
    len: usize,
    width: usize,
    f: impl Fn(usize) -> T + Sync,
) -> Vec<T> {
    let count = len.checked_div(width).unwrap_or(0);
    let per_chunk = (CHUNK / width.max(1)).max(1);
    let mut out = vec![T::default(); count];
    let each = |first: usize, part: &mut [T]| {
        part.iter_mut().enumerate().for_each(|(i, out)| *out = f(first + i));
    };
    if len < 4 * CHUNK {
        each(0, &mut out);
    } else {
        pool.for_each_chunk(&mut out, per_chunk, |i, part| each(i * per_chunk, part));
    }
    out
}

/// `f` of every element.
pub(super) fn map<A: Copy + Sync, T: Copy + Default + Send>(pool: &Pool, a: &[A], f: impl Fn(A) -> T + Sync) -> Vec<T> {
    fill(pool, a.len(), |start, out: &mut [T]| {
        for (out, &a) in out.iter_mut().zip(&a[start..]) {
            *out = f(a);
        }
    })
}

/// `f` of two operands, broadcast to `out`, which [`shape`] computed.
pub(super) fn zip<A: Copy + Sync, B: Copy + Sync, T: Copy + Default + Send>(
    pool: &Pool,
    out: &[usize],
    (a_shape, a): (&[usize], &[A]),
    (b_shape, b): (&[usize], &[B]),
    f: impl Fn(A, B) -> T + Sync,
) -> Vec<T> {
    let walk = Walk::new(out, [a_shape, b_shape]);
    fill(pool, out.iter().product(), |start, out: &mut [T]| {
        walk.runs(start, out.len(), |at, [i, j], strides, len| {
            let out = &mut out[at..at + len];
            match strides {
                [0, 0] => out.fill(f(a[i], b[j])),
                [1, 0] => {
                    let b = b[j];
                    for (out, &a) in out.iter_mut().zip(&a[i..i + len]) {
                        *out = f(a, b);
                    }
                }
                [0, 1] => {
                    let a = a[i];
                    for (out, &b) in out.iter_mut().zip(&b[j..j + len]) {
                        *out = f(a, b);
                    }
                }
                [1, 1] => {
                    for ((out, &a), &b) in out.iter_mut().zip(&a[i..i + len]).zip(&b[j..j + len]) {
                        *out = f(a, b);
                    }
                }
                [s, t] => {
                    for (step, out) in out.iter_mut().enumerate() {
                        *out = f(a[i + s * step], b[j + t * step]);
                    }
                }
            }
        });
    })
}

/// Where `condition` holds the elements of `a`, else those of `b`, all broadcast to `out`.
pub(super) fn select<T: Copy + Default + Send + Sync>(
    pool: &Pool,
    out: &[usize],
    (c_shape, condition): (&[usize], &[bool]),
    (a_shape, a): (&[usize], &[T]),
    (b_shape, b): (&[usize], &[T]),
) -> Vec<T> {
    let walk = Walk::new(out, [c_shape, a_shape, b_shape]);
    fill(pool, out.iter().product(), |start, out: &mut [T]| {
        walk.runs(start, out.len(), |at, [h, i, j], [r, s, t], len| {
            for (step, out) in out[at..at + len].iter_mut().enumerate() {
                *out = if condition[h + r * step] { a[i + s * step] } else { b[j + t * step] };
            }
        });
    })
}

/// The array repeated to `out`; it must broadcast to that shape.
pub(super) fn expand(pool: &Pool, array: &Array, out: &[usize]) -> Result<Array, OpError> {
    if shape(&[&array.shape, out])? != out {
        return Err(OpError::Shape(format!("shape {:?} does not broadcast to {out:?}", array.shape)));
    }
    if array.shape == out {
        return Ok(array.clone());
    }
    fn repeat<T: Copy + Default + Send + Sync>(pool: &Pool, from: &[usize], data: &[T], out: &[usize]) -> Vec<T> {
        zip(pool, out, (from, data), (&[], &[()]), |x, ()| x)
    }
    let from = &array.shape;
    let buf = match &array.buf {
        Buf::F32(v) => Buf::F32(repeat(pool, from, v, out).into()),
        Buf::F64(v) => Buf::F64(repeat(pool, from, v, out).into()),
        Buf::I64(v) => Buf::I64(repeat(pool, from, v, out).into()),
        Buf::Bool(v) => Buf::Bool(repeat(pool, from, v, out).into()),
        Buf::Bytes(v) => Buf::Bytes(repeat(pool, from, v, out).into()),
    };
    Ok(Array { dtype: array.dtype, shape: out.to_vec(), buf })
}
