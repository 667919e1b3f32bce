//! The machine types that operators compute in: floats in `f32` or `f64`, whole numbers in `i64`.

use std::borrow::Cow;
use std::ops::{Add, AddAssign, Div, Mul, Neg, Sub};
use std::sync::Arc;

use super::{Call, OpError};
use crate::array::{Array, ArrayError, Buf, Compute};
use crate::ir::DType;

/// A float carrier.
pub(super) trait Real:
    Copy
    + Default
    + PartialOrd
    + Send
    + Sync
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
    + 'static
{
    const ZERO: Self;
    const ONE: Self;
    const LOWEST: Self;
    /// The nearest number of this type.
    fn of(value: f64) -> Self;
    fn exp(self) -> Self;
    fn ln(self) -> Self;
    fn sqrt(self) -> Self;
    /// The elements of a float array, converted where they are carried in the other type.
    fn read(array: &Array) -> Result<Cow<'_, [Self]>, OpError>;
    /// The buffer that holds these elements.
    fn buf(values: Vec<Self>) -> Buf;
}

macro_rules! real {
    ($type:ty, $own:ident, $other:ident) => {
        impl Real for $type {
            const ZERO: Self = 0.0;
            const ONE: Self = 1.0;
            const LOWEST: Self = <$type>::NEG_INFINITY;
            fn of(value: f64) -> Self {
                value as $type
            }
            fn exp(self) -> Self {
                self.exp()
            }
            fn ln(self) -> Self {
                self.ln()
            }
            fn sqrt(self) -> Self {
                self.sqrt()
            }
            fn read(array: &Array) -> Result<Cow<'_, [Self]>, OpError> {
                match &array.buf {
                    Buf::$own(values) => Ok(Cow::Borrowed(values)),
                    Buf::$other(values) => Ok(Cow::Owned(values.iter().map(|&x| x as $type).collect())),
                    Buf::I64(_) | Buf::Bool(_) | Buf::Bytes(_) => {
                        Err(ArrayError::Expected { expected: "floats", found: array.dtype }.into())
                    }
                }
            }
            fn buf(values: Vec<Self>) -> Buf {
                Buf::$own(Arc::new(values))
            }
        }
    };
}
real!(f32, F32, F64);
real!(f64, F64, F32);

/// What an evaluation answers.
pub(super) type Outputs = Result<Vec<Array>, OpError>;

/// Runs the evaluation that fits the precision asked for.
pub(super) fn by_precision(
    call: &Call<'_>,
    single: fn(&Call<'_>) -> Outputs,
    double: fn(&Call<'_>) -> Outputs,
) -> Outputs {
    match call.compute {
        Compute::F32 => single(call),
        Compute::F64 => double(call),
    }
}

/// A float array of the declared type.
pub(super) fn floats<T: Real>(dtype: DType, shape: impl Into<Vec<usize>>, values: Vec<T>) -> Array {
    Array { dtype, shape: shape.into(), buf: T::buf(values) }
}

/// A truth-value array.
pub(super) fn bools(shape: impl Into<Vec<usize>>, values: Vec<bool>) -> Array {
    Array { dtype: DType::Bool, shape: shape.into(), buf: Buf::Bool(Arc::new(values)) }
}

/// The elements as whole numbers, borrowed where they are carried so.
pub(super) fn read_ints(array: &Array) -> Result<Cow<'_, [i64]>, OpError> {
    let values = match &array.buf {
        Buf::I64(values) => Cow::Borrowed(values.as_slice()),
        _ => Cow::Owned(array.to_i64s()?),
    };
    if array.dtype == DType::U64 && values.iter().any(|&v| v < 0) {
        return Err(OpError::Unsupported("a uint64 value beyond the range of int64".to_owned()));
    }
    Ok(values)
}

/// A whole-number (or truth-value) array of the declared type; values wrap to its width.
pub(super) fn ints(dtype: DType, shape: impl Into<Vec<usize>>, mut values: Vec<i64>) -> Array {
    let shape = shape.into();
    let wrap: fn(i64) -> i64 = match dtype {
        DType::I8 | DType::U8 => {
            let bytes: Vec<u8> = values.iter().map(|&v| v as u8).collect();
            return Array { dtype, shape, buf: Buf::Bytes(bytes.into()) };
        }
        DType::Bool => return bools(shape, values.iter().map(|&v| v != 0).collect()),
        DType::I16 => |v| i64::from(v as i16),
        DType::U16 => |v| i64::from(v as u16),
        DType::I32 => |v| i64::from(v as i32),
        DType::U32 => |v| i64::from(v as u32),
        _ => |v| v,
    };
    if !matches!(dtype, DType::I64 | DType::U64) {
        values.iter_mut().for_each(|v| *v = wrap(*v));
    }
    Array { dtype, shape, buf: Buf::I64(Arc::new(values)) }
}

/// `index` counted from the front, where a negative one counts from the back; at most `rank - 1`.
pub(super) fn axis(index: i64, rank: usize) -> Result<usize, OpError> {
    let from_front = if index < 0 { index + rank as i64 } else { index };
    usize::try_from(from_front)
        .ok()
        .filter(|&axis| axis < rank)
        .ok_or_else(|| OpError::Shape(format!("axis {index} is out of range for a tensor of rank {rank}")))
}

/// Folds a slice with an associative and commutative `f`, in eight lanes so that it vectorises; the order is fixed.
pub(super) fn fold<T: Copy>(values: &[T], init: T, f: impl Fn(T, T) -> T) -> T {
    let (chunks, rest) = values.as_chunks::<8>();
    let mut lanes = [init; 8];
    for chunk in chunks {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane = f(*lane, value);
        }
    }
    let total = lanes.into_iter().fold(init, &f);
    rest.iter().fold(total, |acc, &value| f(acc, value))
}
