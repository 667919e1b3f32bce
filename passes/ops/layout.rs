//! Moving elements, whatever their carrier: what the operators that compute nothing have in common.
//!
//! Two descriptions cover them all. A [`View`] reads the elements of an array along axes with fixed steps (transpose,
//! expand, slice); a list of *starts* names runs of equal length anywhere in an array (gather, scatter).

use std::sync::Arc;

use super::{FlowCall, OpError, Rows, VjpCall, carrier};
use crate::array::{Array, Buf};
use crate::ir::Attr;
use crate::rewrite::tape::Tape;

/// Evaluates an expression that makes a `Vec` of the elements' own type, and wraps it in the same carrier.
macro_rules! same_carrier {
    ($array:expr, $elements:ident => $made:expr) => {
        match &$array.buf {
            $crate::array::Buf::F32($elements) => $crate::array::Buf::F32(std::sync::Arc::new($made)),
            $crate::array::Buf::F64($elements) => $crate::array::Buf::F64(std::sync::Arc::new($made)),
            $crate::array::Buf::I64($elements) => $crate::array::Buf::I64(std::sync::Arc::new($made)),
            $crate::array::Buf::Bool($elements) => $crate::array::Buf::Bool(std::sync::Arc::new($made)),
            $crate::array::Buf::Bytes($elements) => $crate::array::Buf::Bytes(bytes::Bytes::from($made)),
        }
    };
}
pub(super) use same_carrier;

/// The indices of several axes, each named once.
pub(super) fn axes_of(axes: &[i64], rank: usize) -> Result<Vec<usize>, OpError> {
    let mut found = Vec::with_capacity(axes.len().min(rank));
    for &axis in axes {
        let index = carrier::axis(axis, rank)?;
        if found.contains(&index) {
            return Err(OpError::Shape(format!("axis {axis} is named twice in {axes:?} at rank {rank}")));
        }
        found.push(index);
    }
    Ok(found)
}

/// A position that may be counted from the end, if it is one of `len`.
pub(super) fn wrapped(index: i64, len: usize) -> Option<usize> {
    let from_start = if index < 0 { index.checked_add_unsigned(len as u64)? } else { index };
    usize::try_from(from_start).ok().filter(|&i| i < len)
}

/// Number of elements of a shape that may come from anywhere.
pub(super) fn count(shape: &[usize]) -> Result<usize, OpError> {
    shape
        .iter()
        .try_fold(1usize, |n, &d| n.checked_mul(d.max(1)))
        .filter(|&n| n <= isize::MAX as usize / 16)
        .map(|n| if shape.contains(&0) { 0 } else { n })
        .ok_or_else(|| OpError::Shape(format!("a tensor of shape {shape:?} does not fit in memory")))
}

/// Dimensions given as `int64`.
pub(super) fn dims(values: &[i64]) -> Result<Vec<usize>, OpError> {
    values
        .iter()
        .map(|&d| usize::try_from(d).map_err(|_| OpError::Shape(format!("a shape cannot be {values:?}"))))
        .collect()
}

/// An empty vector with room for `count` elements.
pub(super) fn room<T>(count: usize) -> Result<Vec<T>, OpError> {
    let mut made = Vec::new();
    match made.try_reserve_exact(count) {
        Ok(()) => Ok(made),
        Err(error) => Err(OpError::Shape(format!("{count} elements do not fit in memory: {error}"))),
    }
}

/// Elements from one step to the next along every axis.
pub(super) fn strides(shape: &[usize]) -> Vec<isize> {
    let mut steps = vec![1; shape.len()];
    for axis in (1..shape.len()).rev() {
        steps[axis - 1] = steps[axis] * shape[axis].max(1) as isize;
    }
    steps
}

/// A way to read an array: where it begins, and for every axis of the result its size and the step in the source.
pub(super) struct View {
    /// Position of the first element.
    pub(super) start: usize,
    /// (size, step) of every axis.
    pub(super) dims: Vec<(usize, isize)>,
}

impl View {
    /// All of a shape, in order.
    pub(super) fn of(shape: &[usize]) -> View {
        View { start: 0, dims: shape.iter().copied().zip(strides(shape)).collect() }
    }

    /// Shape of the result.
    pub(super) fn shape(&self) -> Vec<usize> {
        self.dims.iter().map(|dim| dim.0).collect()
    }

    /// The elements seen. The view must stay inside the array.
    pub(super) fn read(&self, x: &Array) -> Result<Array, OpError> {
        let shape = self.shape();
        let total = count(&shape)?;
        let buf = same_carrier!(x, from => self.copied(from, total)?);
        Ok(Array { dtype: x.dtype, shape, buf })
    }

    /// The starts of runs of adjacent elements in the order they are seen, and the length of each run.
    pub(super) fn runs(&self) -> Result<(Vec<usize>, usize), OpError> {
        let total = count(&self.shape())?;
        if total == 0 {
            return Ok((Vec::new(), 1));
        }
        let mut dims = self.merged();
        let len = dims.pop_if(|last| last.1 == 1).map_or(1, |last| last.0);
        let mut starts = room(total / len)?;
        walk(&dims, self.start as isize, &mut |at| starts.push(at as usize));
        Ok((starts, len))
    }

    fn copied<T: Copy>(&self, from: &[T], total: usize) -> Result<Vec<T>, OpError> {
        let mut out = room(total)?;
        if total == 0 {
            return Ok(out);
        }
        let mut dims = self.merged();
        let (cols, col_step) = dims.pop().unwrap_or((1, 1));
        let turned = dims.pop_if(|last| last.1 == 1 && col_step > 1);
        walk(&dims, self.start as isize, &mut |at| {
            let at = at as usize;
            match (turned, col_step) {
                (Some((rows, _)), _) => turn(&from[at..], rows, cols, col_step as usize, &mut out),
                (None, 1) => out.extend_from_slice(&from[at..at + cols]),
                (None, 0) => out.extend(std::iter::repeat_n(from[at], cols)),
                (None, _) => out.extend((0..cols as isize).map(|j| from[(at as isize + j * col_step) as usize])),
            }
        });
        Ok(out)
    }

    /// The axes that matter: without those of size one, and with neighbours joined that are walked in one go.
    fn merged(&self) -> Vec<(usize, isize)> {
        let mut merged: Vec<(usize, isize)> = Vec::with_capacity(self.dims.len());
        for &(size, step) in self.dims.iter().filter(|dim| dim.0 != 1) {
            match merged.last_mut() {
                Some(last) if last.1 == step * size as isize => *last = (last.0 * size, step),
                _ => merged.push((size, step)),
            }
        }
        merged
    }
}

/// Visits every position of nested axes, the last one fastest.
fn walk(dims: &[(usize, isize)], at: isize, visit: &mut dyn FnMut(isize)) {
    match dims {
        [] => visit(at),
        [(size, step), inner @ ..] => {
            for i in 0..*size as isize {
                walk(inner, at + i * step, visit);
            }
        }
    }
}

/// Appends `rows` by `cols` elements, of which `(i, j)` lies at `i + j * step`; tile by tile, for the cache's sake.
fn turn<T: Copy>(from: &[T], rows: usize, cols: usize, step: usize, out: &mut Vec<T>) {
    const TILE: usize = 32;
    let base = out.len();
    out.resize(base + rows * cols, from[0]);
    let out = &mut out[base..];
    for row in (0..rows).step_by(TILE) {
        for col in (0..cols).step_by(TILE) {
            for i in row..rows.min(row + TILE) {
                for j in col..cols.min(col + TILE) {
                    out[i * cols + j] = from[i + j * step];
                }
            }
        }
    }
}

/// The runs of `len` elements that begin at `starts`, one after the other.
pub(super) fn picked(x: &Array, starts: &[usize], len: usize, shape: Vec<usize>) -> Result<Array, OpError> {
    fn each<T: Copy>(from: &[T], starts: &[usize], len: usize) -> Result<Vec<T>, OpError> {
        let mut out = room(starts.len() * len)?;
        match len {
            1 => out.extend(starts.iter().map(|&at| from[at])),
            _ => starts.iter().for_each(|&at| out.extend_from_slice(&from[at..at + len])),
        }
        Ok(out)
    }
    debug_assert_eq!(count(&shape), Ok(starts.len() * len));
    let buf = same_carrier!(x, from => each(from, starts, len)?);
    Ok(Array { dtype: x.dtype, shape, buf })
}

/// The elements at these indices along an axis.
pub(super) fn taken(x: &Array, axis: usize, indices: &[usize]) -> Result<Array, OpError> {
    let mut shape = x.shape.clone();
    shape[axis] = indices.len();
    let (starts, len) = axis_runs(&x.shape, axis, indices)?;
    picked(x, &starts, len, shape)
}

/// The runs that lie at these indices along an axis.
pub(super) fn axis_runs(shape: &[usize], axis: usize, indices: &[usize]) -> Result<(Vec<usize>, usize), OpError> {
    let outer = count(&shape[..axis])?;
    let len = count(&shape[axis + 1..])?;
    let mut starts = room(count(&[outer, indices.len()])?)?;
    for block in 0..outer {
        starts.extend(indices.iter().map(|&index| (block * shape[axis] + index) * len));
    }
    Ok((starts, len))
}

/// What happens where an element is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reduction {
    /// The last one written stays.
    Replace,
    /// Sum, in the order of the writes.
    Add,
    /// Product.
    Mul,
    /// Larger of the two.
    Max,
    /// Smaller of the two.
    Min,
}

/// `data` with the runs of `updates` written at `starts`, in order; in place where nobody else holds the data.
pub(super) fn written(
    data: Array,
    updates: &Array,
    starts: &[usize],
    len: usize,
    reduction: Reduction,
) -> Result<Array, OpError> {
    fn put<T: Copy>(mut out: Vec<T>, updates: &[T], starts: &[usize], len: usize, join: impl Fn(T, T) -> T) -> Vec<T> {
        for (run, &at) in updates.chunks_exact(len.max(1)).zip(starts) {
            for (to, &from) in out[at..at + len].iter_mut().zip(run) {
                *to = join(*to, from);
            }
        }
        out
    }
    macro_rules! put {
        ($carrier:ident, $data:expr, $updates:expr, $join:expr) => {
            Buf::$carrier(Arc::new(put(Arc::unwrap_or_clone($data), $updates, starts, len, $join)))
        };
    }
    debug_assert_eq!(updates.len(), starts.len() * len);
    let updates = carried_like(&data, updates)?;
    let Array { dtype, shape, buf } = data;
    let buf = match (buf, &updates.buf, reduction) {
        (Buf::F32(x), Buf::F32(u), Reduction::Replace) => put!(F32, x, u, |_, b| b),
        (Buf::F32(x), Buf::F32(u), Reduction::Add) => put!(F32, x, u, |a, b| a + b),
        (Buf::F32(x), Buf::F32(u), Reduction::Mul) => put!(F32, x, u, |a, b| a * b),
        (Buf::F32(x), Buf::F32(u), Reduction::Max) => put!(F32, x, u, f32::max),
        (Buf::F32(x), Buf::F32(u), Reduction::Min) => put!(F32, x, u, f32::min),
        (Buf::F64(x), Buf::F64(u), Reduction::Replace) => put!(F64, x, u, |_, b| b),
        (Buf::F64(x), Buf::F64(u), Reduction::Add) => put!(F64, x, u, |a, b| a + b),
        (Buf::F64(x), Buf::F64(u), Reduction::Mul) => put!(F64, x, u, |a, b| a * b),
        (Buf::F64(x), Buf::F64(u), Reduction::Max) => put!(F64, x, u, f64::max),
        (Buf::F64(x), Buf::F64(u), Reduction::Min) => put!(F64, x, u, f64::min),
        (Buf::I64(x), Buf::I64(u), Reduction::Replace) => put!(I64, x, u, |_, b| b),
        (Buf::I64(x), Buf::I64(u), Reduction::Add) => put!(I64, x, u, i64::wrapping_add),
        (Buf::I64(x), Buf::I64(u), Reduction::Mul) => put!(I64, x, u, i64::wrapping_mul),
        (Buf::I64(x), Buf::I64(u), Reduction::Max) => put!(I64, x, u, i64::max),
        (Buf::I64(x), Buf::I64(u), Reduction::Min) => put!(I64, x, u, i64::min),
        (Buf::Bool(x), Buf::Bool(u), Reduction::Replace) => put!(Bool, x, u, |_, b| b),
        (Buf::Bytes(x), Buf::Bytes(u), Reduction::Replace) => {
            Buf::Bytes(put(Vec::from(x), u, starts, len, |_, b| b).into())
        }
        _ => return Err(OpError::Unsupported(format!("reduction {reduction:?} of elements of type {dtype}"))),
    };
    Ok(Array { dtype, shape, buf })
}

/// Zeros of a shape, of the type of `like`.
pub(super) fn zeros(like: &Array, shape: &[usize]) -> Result<Array, OpError> {
    let total = count(shape)?;
    fn filled<T: Copy + Default>(_: &[T], total: usize) -> Result<Vec<T>, OpError> {
        let mut out = room(total)?;
        out.resize(total, T::default());
        Ok(out)
    }
    let buf = same_carrier!(like, elements => filled(elements, total)?);
    Ok(Array { dtype: like.dtype, shape: shape.to_vec(), buf })
}

/// The same values, carried as `like` is: an `int8` result of arithmetic may be carried wide, a constant narrow.
pub(super) fn carried_like(like: &Array, x: &Array) -> Result<Array, OpError> {
    let buf = match (&like.buf, &x.buf) {
        (Buf::F32(_), Buf::F32(_))
        | (Buf::F64(_), Buf::F64(_))
        | (Buf::I64(_), Buf::I64(_))
        | (Buf::Bool(_), Buf::Bool(_))
        | (Buf::Bytes(_), Buf::Bytes(_)) => return Ok(x.clone()),
        (Buf::F64(_), Buf::F32(_)) => Buf::F64(Arc::new(x.to_f64s())),
        (Buf::F32(_), Buf::F64(v)) => Buf::F32(Arc::new(v.iter().map(|&v| v as f32).collect())),
        (Buf::I64(_), Buf::Bytes(_)) => Buf::I64(Arc::new(x.to_i64s()?)),
        (Buf::Bytes(_), Buf::I64(v)) => Buf::Bytes(v.iter().map(|&v| v as u8).collect()),
        _ => return Err(OpError::Unsupported(format!("elements of types {} and {} together", like.dtype, x.dtype))),
    };
    Ok(Array { dtype: like.dtype, shape: x.shape.clone(), buf })
}

/// Rows of an output whose token axis is that of input `slot`, moved by `to`; none where the axis changes its size.
pub(super) fn moved_rows(
    call: &FlowCall<'_>,
    slot: usize,
    output: usize,
    to: impl FnOnce(usize) -> Option<usize>,
) -> Option<Rows> {
    let (space, axis) = call.axis(slot)?;
    let len = call.rows.get(slot).copied().flatten()?.len;
    let shape = &call.outputs.get(output)?.shape;
    let axis = to(axis)?;
    (shape.get(axis) == Some(&len)).then(|| Rows::along(space, shape, axis))
}

/// Rows of input `slot` where the first output has the same elements in the same places.
pub(super) fn same_rows(call: &FlowCall<'_>, slot: usize) -> Option<Rows> {
    let same = call.inputs.get(slot)?.as_ref()?.shape == call.outputs.first()?.shape;
    call.rows.get(slot).copied().flatten().filter(|_| same)
}

/// Name of an input that must be there.
pub(super) fn input<'c>(call: &'c VjpCall<'_>, slot: usize) -> Result<&'c str, String> {
    let name = call.inputs.get(slot).map(String::as_str).filter(|name| !name.is_empty());
    name.ok_or_else(|| format!("input {slot} of {} is required but absent", call.node.qualified_op()))
}

/// Appends a reshape of `g` to the shape of `like`.
pub(super) fn reshape_like(tape: &mut Tape<'_>, g: &str, like: &str, opset: i64) -> String {
    let shape = tape.op("Shape", &[like]);
    let zeros_are_sizes: &[(&str, Attr)] = if opset >= 14 { &[("allowzero", Attr::Int(1))] } else { &[] };
    tape.op_with("Reshape", &[g, &shape], zeros_are_sizes)
}

/// Appends zeros of the shape and type of `like`.
pub(super) fn zeros_like(tape: &mut Tape<'_>, like: &str) -> String {
    let shape = tape.op("Shape", &[like]);
    let zeros = tape.op("ConstantOfShape", &[&shape]);
    tape.op("CastLike", &[&zeros, like])
}

/// Appends a vector with the sizes of `x` along one axis.
pub(super) fn size_along(tape: &mut Tape<'_>, x: &str, axis: i64) -> String {
    let shape = tape.op("Shape", &[x]);
    let axis = tape.ints(&[axis]);
    tape.op("Gather", &[&shape, &axis])
}

#[cfg(test)]
mod tests {
    use mbqc_kernels::Pool;

    use super::*;
    use crate::array::Compute;
    use crate::ir::{DType, Node, Tensor};
    use crate::ops::{Call, Fill, Sample, Space, find};

    fn node(op: &str, attrs: Vec<(String, Attr)>, outputs: usize) -> Node {
        Node {
            name: String::new(),
            domain: String::new(),
            op: op.to_owned(),
            overload: String::new(),
            inputs: Vec::new(),
            outputs: vec![None; outputs],
            attrs,
            metadata: Vec::new(),
            origin: None,
        }
    }

    fn eval(node: &Node, inputs: &[Option<Array>], opset: i64) -> Result<Vec<Array>, OpError> {
        let op = find("", &node.op).ok_or_else(|| OpError::Unsupported(node.op.clone()))?;
        (op.eval)(&Call { node, inputs, opset, compute: Compute::F32, pool: &Pool::single() })
    }

    /// The numbers 0 and 1 in turn, which every carrier can hold.
    fn carriers(shape: &[usize]) -> Vec<Array> {
        let total = count(shape).unwrap();
        let bits: Vec<u8> = (0..total).map(|i| u8::from(i % 3 == 1)).collect();
        let bytes = Tensor::raw(DType::U8, shape, bits.clone());
        vec![
            Array::i64(shape, bits.iter().map(|&b| i64::from(b)).collect()),
            Array::f32(shape, bits.iter().map(|&b| f32::from(b)).collect()),
            Array::f64(shape, bits.iter().map(|&b| f64::from(b)).collect()),
            Array::bool(shape, bits.iter().map(|&b| b == 1).collect()),
            Array::from_tensor(&bytes, Compute::F32).unwrap(),
        ]
    }

    fn other_input(sample: &Sample, slot: usize) -> Option<Array> {
        let input = &sample.inputs[slot];
        let total = count(input.shape).unwrap();
        match input.fill {
            Fill::Ints(values) | Fill::Int32s(values) => {
                Some(Array::i64(input.shape, values.iter().copied().cycle().take(total).collect()))
            }
            Fill::Bools(values) => Some(Array::bool(input.shape, values.iter().copied().cycle().take(total).collect())),
            Fill::Absent | Fill::Floats(_) | Fill::Uniform | Fill::Positive => None,
        }
    }

    #[test]
    fn every_carrier_moves_alike() {
        let ops = [
            "Reshape",
            "Squeeze",
            "Unsqueeze",
            "Flatten",
            "Transpose",
            "Expand",
            "Tile",
            "Concat",
            "Split",
            "Slice",
            "Gather",
            "GatherND",
            "GatherElements",
            "ScatterND",
            "ScatterElements",
            "Compress",
            "TopK",
            "Trilu",
            "Pad",
        ];
        let mut compared = 0;
        for op in ops.map(|name| find("", name).unwrap()) {
            let moves = |s: &&Sample| {
                let plain = s.attrs.iter().all(|(name, _)| !matches!(*name, "reduction" | "value"));
                plain && matches!(s.inputs[0].fill, Fill::Uniform)
            };
            for sample in op.samples.iter().filter(moves) {
                let attrs = sample.attrs.iter().map(|(name, attr)| ((*name).to_owned(), attr.to_attr())).collect();
                let node = node(op.name, attrs, sample.outputs);
                let with = |carrier: usize| {
                    let inputs: Vec<Option<Array>> = (0..sample.inputs.len())
                        .map(|slot| match sample.inputs[slot].fill {
                            Fill::Uniform => Some(carriers(sample.inputs[slot].shape)[carrier].clone()),
                            _ => other_input(sample, slot),
                        })
                        .collect();
                    let outputs = eval(&node, &inputs, sample.opset).unwrap();
                    outputs.into_iter().map(|y| (y.shape.clone(), y.to_f64s())).collect::<Vec<_>>()
                };
                for carrier in 1..5 {
                    assert_eq!(with(carrier), with(0), "{}/{} with carrier {carrier}", op.name, sample.name);
                    compared += 1;
                }
            }
        }
        assert!(compared > 200, "{compared} comparisons");
    }

    #[test]
    fn tensors_in_attributes() {
        let value = |tensor: Tensor| vec![("value".to_owned(), Attr::Tensor(tensor))];
        let constant = node("Constant", value(Tensor::i64s([2], &[3, 4])), 1);
        assert_eq!(eval(&constant, &[], 17), Ok(vec![Array::i64([2], vec![3, 4])]));
        let filled = node("ConstantOfShape", value(Tensor::i64s([1], &[7])), 1);
        let shape = Array::i64([2], vec![1, 3]);
        assert_eq!(eval(&filled, &[Some(shape)], 17), Ok(vec![Array::i64([1, 3], vec![7; 3])]));
    }

    #[test]
    fn absurd_sizes_are_refused() {
        let huge = Some(Array::i64([2], vec![i64::MAX, 3]));
        let none_of_huge = Some(Array::i64([2], vec![0, i64::MAX]));
        for shape in [huge, none_of_huge] {
            let x = Some(Array::f32([1, 1], vec![1.0]));
            assert!(matches!(
                eval(&node("ConstantOfShape", vec![], 1), std::slice::from_ref(&shape), 17),
                Err(OpError::Shape(_))
            ));
            assert!(matches!(eval(&node("Tile", vec![], 1), &[x.clone(), shape.clone()], 17), Err(OpError::Shape(_))));
            assert!(matches!(eval(&node("Expand", vec![], 1), &[x, shape], 17), Err(OpError::Shape(_))));
        }
    }

    /// Rows of the first output when the tokens of the inputs lie along the given axes.
    fn rows(op: &str, attrs: &[(&str, Attr)], inputs: &[(Array, Option<usize>)]) -> Option<(usize, usize)> {
        let attrs = attrs.iter().map(|(name, attr)| ((*name).to_owned(), attr.clone())).collect();
        let node = node(op, attrs, 1);
        let along = |(x, axis): &(Array, Option<usize>)| axis.map(|axis| Rows::along(Space::Tokens, &x.shape, axis));
        let rows: Vec<Option<Rows>> = inputs.iter().map(along).collect();
        let inputs: Vec<Option<Array>> = inputs.iter().map(|(x, _)| Some(x.clone())).collect();
        let outputs = eval(&node, &inputs, 17).unwrap();
        let call = FlowCall { node: &node, inputs: &inputs, outputs: &outputs, rows: &rows, opset: 17 };
        let crate::ops::Flow::Rule(rule) = find("", op).unwrap().flow else { return None };
        rule(&call)[0].map(|rows| (rows.len, rows.inner))
    }

    #[test]
    fn rows_follow_their_axis() {
        let x = |shape: &[usize]| Array::f32(shape, vec![0.5; count(shape).unwrap()]);
        let at = |values: &[i64]| (Array::i64([values.len()], values.to_vec()), None);
        let axis = |axis: i64| [("axis", Attr::Int(axis))];
        let perm = [("perm", Attr::Ints(vec![0, 2, 1, 3]))];
        assert_eq!(rows("Transpose", &perm, &[(x(&[1, 3, 2, 5]), Some(1))]), Some((3, 5)));
        // A cache of length zero leaves the tokens as they are, a longer one does not.
        let joined = |past: usize| rows("Concat", &axis(1), &[(x(&[2, past, 4]), None), (x(&[2, 3, 4]), Some(1))]);
        assert_eq!(joined(0), Some((3, 4)));
        assert_eq!(joined(1), None);
        assert_eq!(rows("Concat", &axis(-1), &[(x(&[3, 2]), Some(0)), (x(&[3, 2]), Some(0))]), Some((3, 4)));
        // Channels may be cut, tokens not.
        let cut = |along: i64| rows("Slice", &[], &[(x(&[2, 3, 4]), Some(1)), at(&[1]), at(&[2]), at(&[along])]);
        assert_eq!(cut(2), Some((3, 1)));
        assert_eq!(cut(1), None);
        let reversed = [(x(&[3, 4]), Some(0)), at(&[-1]), at(&[i64::MIN]), at(&[0]), at(&[-1])];
        assert_eq!(rows("Slice", &[], &reversed), None);
        // An embedding: rows of the indices.
        let ids = (Array::i64([1, 3], vec![0, 1, 0]), Some(1));
        assert_eq!(rows("Gather", &axis(0), &[(x(&[2, 4]), None), ids]), Some((3, 4)));
        let index = (Array::i64([2], vec![0, 1]), None);
        assert_eq!(rows("Gather", &axis(0), &[(x(&[2, 3, 4]), Some(1)), index]), Some((3, 4)));
        assert_eq!(rows("Expand", &[], &[(x(&[1, 3, 1]), Some(1)), at(&[2, 3, 5])]), Some((3, 5)));
        assert_eq!(rows("Expand", &[], &[(x(&[1, 1, 4]), Some(1)), at(&[1, 3, 4])]), None);
        assert_eq!(rows("Pad", &[], &[(x(&[3, 4]), Some(0)), at(&[0, 1, 0, 1])]), Some((3, 6)));
        assert_eq!(rows("Pad", &[], &[(x(&[3, 4]), Some(0)), at(&[1, 0, 0, 0])]), None);
    }
}
