//! Concrete tensors of the evaluator.
//!
//! Values are *carried* in few machine types: every float (f16, bf16, f32, f64) in `f32`, or in `f64` when the evaluator
//! runs in double precision; every whole number in `i64`; bytes stay bytes until arithmetic needs them. The declared
//! type travels along, so that outputs can be stored as the graph promises.

use std::sync::Arc;

use bytes::Bytes;

use crate::ir::{DType, Tensor};

/// Precision of float arithmetic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compute {
    /// Floats are carried and computed in `f32`; what compiling and running use.
    F32,
    /// Floats are carried and computed in `f64`; what tests use for finite differences.
    F64,
}

/// The elements of an [`Array`], row-major. Cloning copies no elements.
#[derive(Clone, Debug, PartialEq)]
pub enum Buf {
    /// Floats in single precision.
    F32(Arc<Vec<f32>>),
    /// Floats in double precision.
    F64(Arc<Vec<f64>>),
    /// Whole numbers.
    I64(Arc<Vec<i64>>),
    /// Truth values.
    Bool(Arc<Vec<bool>>),
    /// `uint8` or `int8` elements, one byte each, not yet widened.
    Bytes(Bytes),
}

/// A concrete tensor. Cloning and reshaping copy no elements.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    /// Declared element type.
    pub dtype: DType,
    /// Shape; empty for a scalar.
    pub shape: Vec<usize>,
    /// Elements.
    pub buf: Buf,
}

/// Why an array could not be made or read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ArrayError {
    /// The element type is not one the evaluator carries.
    #[error("element type {0} is not one the evaluator computes with")]
    Type(DType),
    /// Another element type was expected.
    #[error("expected {expected}, found {found}")]
    Expected {
        /// What the reader wanted.
        expected: &'static str,
        /// What the array holds.
        found: DType,
    },
    /// A payload that is made on demand could not be made.
    #[error("the elements could not be produced: {0}")]
    Lazy(String),
    /// Element count and shape disagree.
    #[error("shape {shape:?} needs {needed} elements, found {found}")]
    Count {
        /// The shape.
        shape: Vec<usize>,
        /// Elements the shape needs.
        needed: usize,
        /// Elements there are.
        found: usize,
    },
}

impl Array {
    /// A float array in single precision.
    pub fn f32(shape: impl Into<Vec<usize>>, data: Vec<f32>) -> Array {
        Array { dtype: DType::F32, shape: shape.into(), buf: Buf::F32(Arc::new(data)) }.checked()
    }

    /// A float array in double precision.
    pub fn f64(shape: impl Into<Vec<usize>>, data: Vec<f64>) -> Array {
        Array { dtype: DType::F64, shape: shape.into(), buf: Buf::F64(Arc::new(data)) }.checked()
    }

    /// An `int64` array.
    pub fn i64(shape: impl Into<Vec<usize>>, data: Vec<i64>) -> Array {
        Array { dtype: DType::I64, shape: shape.into(), buf: Buf::I64(Arc::new(data)) }.checked()
    }

    /// A `bool` array.
    pub fn bool(shape: impl Into<Vec<usize>>, data: Vec<bool>) -> Array {
        Array { dtype: DType::Bool, shape: shape.into(), buf: Buf::Bool(Arc::new(data)) }.checked()
    }

    /// A scalar `int64`.
    pub fn scalar_i64(value: i64) -> Array {
        Array::i64([], vec![value])
    }

    /// The same array with another declared type.
    pub fn with_dtype(mut self, dtype: DType) -> Array {
        self.dtype = dtype;
        self
    }

    fn checked(self) -> Array {
        debug_assert_eq!(self.shape.iter().product::<usize>(), self.buf_len(), "shape {:?}", self.shape);
        self
    }

    fn buf_len(&self) -> usize {
        match &self.buf {
            Buf::F32(v) => v.len(),
            Buf::F64(v) => v.len(),
            Buf::I64(v) => v.len(),
            Buf::Bool(v) => v.len(),
            Buf::Bytes(v) => v.len(),
        }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Bytes that the elements take in memory.
    pub fn stored_bytes(&self) -> usize {
        match &self.buf {
            Buf::F32(v) => v.len() * 4,
            Buf::F64(v) => v.len() * 8,
            Buf::I64(v) => v.len() * 8,
            Buf::Bool(v) => v.len(),
            Buf::Bytes(v) => v.len(),
        }
    }

    /// True when there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of dimensions.
    pub fn rank(&self) -> usize {
        self.shape.len()
    }

    /// The same elements under another shape of the same count.
    pub fn reshaped(&self, shape: impl Into<Vec<usize>>) -> Result<Array, ArrayError> {
        let shape = shape.into();
        let needed: usize = shape.iter().product();
        if needed != self.len() {
            return Err(ArrayError::Count { shape, needed, found: self.len() });
        }
        Ok(Array { dtype: self.dtype, shape, buf: self.buf.clone() })
    }

    /// The array of a constant, floats carried as `compute` says.
    pub fn from_tensor(tensor: &Tensor, compute: Compute) -> Result<Array, ArrayError> {
        let shape = tensor.dims.clone();
        let raw = &tensor.load().ok_or(ArrayError::Type(DType::String))?.map_err(ArrayError::Lazy)?;
        let tensor = &Tensor::raw(tensor.dtype, shape.clone(), raw.clone());
        let needed = tensor.len();
        if tensor.dtype.bytes_for(needed) != Some(raw.len()) {
            return Err(ArrayError::Count { shape, needed, found: raw.len() });
        }
        let buf = match tensor.dtype {
            DType::U8 | DType::I8 => Buf::Bytes(raw.clone()),
            DType::Bool => Buf::Bool(Arc::new(raw.iter().map(|&b| b != 0).collect())),
            float if float.is_float() => {
                let wide = || tensor.to_f64().ok_or(ArrayError::Type(float));
                match compute {
                    Compute::F64 => Buf::F64(Arc::new(wide()?)),
                    Compute::F32 => Buf::F32(Arc::new(narrow(float, raw).map_or_else(wide_to_f32(wide), Ok)?)),
                }
            }
            int => Buf::I64(Arc::new(tensor.to_i64().ok_or(ArrayError::Type(int))?)),
        };
        Ok(Array { dtype: tensor.dtype, shape, buf })
    }

    /// A constant of the declared type; floats are rounded to nearest even, whole numbers wrap.
    pub fn to_tensor(&self) -> Result<Tensor, ArrayError> {
        let dims = self.shape.clone();
        let bytes: Vec<u8> = match (&self.buf, self.dtype) {
            (Buf::Bytes(bytes), _) => return Ok(Tensor::raw(self.dtype, dims, bytes.clone())),
            (Buf::Bool(v), _) => v.iter().map(|&b| u8::from(b)).collect(),
            (Buf::F32(v), float) => {
                return Tensor::floats(float, dims, v).ok_or(ArrayError::Type(float));
            }
            (Buf::F64(v), DType::F64) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
            (Buf::F64(v), float) => {
                let single: Vec<f32> = v.iter().map(|&x| x as f32).collect();
                return Tensor::floats(float, dims, &single).ok_or(ArrayError::Type(float));
            }
            (Buf::I64(v), int) => {
                let width = int.bits().filter(|_| int.is_int()).ok_or(ArrayError::Type(int))? as usize / 8;
                v.iter().flat_map(|x| x.to_le_bytes().into_iter().take(width)).collect()
            }
        };
        Ok(Tensor::raw(self.dtype, dims, bytes))
    }

    /// The elements as single-precision floats.
    pub fn as_f32(&self) -> Result<&[f32], ArrayError> {
        match &self.buf {
            Buf::F32(v) => Ok(v),
            _ => Err(ArrayError::Expected { expected: "floats in single precision", found: self.dtype }),
        }
    }

    /// The elements as double-precision floats.
    pub fn as_f64(&self) -> Result<&[f64], ArrayError> {
        match &self.buf {
            Buf::F64(v) => Ok(v),
            _ => Err(ArrayError::Expected { expected: "floats in double precision", found: self.dtype }),
        }
    }

    /// The elements as whole numbers; bytes are widened, truth values become 0 and 1.
    pub fn to_i64s(&self) -> Result<Vec<i64>, ArrayError> {
        Ok(match &self.buf {
            Buf::I64(v) => v.to_vec(),
            Buf::Bool(v) => v.iter().map(|&b| i64::from(b)).collect(),
            Buf::Bytes(v) if self.dtype == DType::I8 => v.iter().map(|&b| i64::from(b.cast_signed())).collect(),
            Buf::Bytes(v) => v.iter().map(|&b| i64::from(b)).collect(),
            Buf::F32(_) | Buf::F64(_) => {
                return Err(ArrayError::Expected { expected: "whole numbers", found: self.dtype });
            }
        })
    }

    /// The elements as truth values; whole numbers are true when not zero.
    pub fn to_bools(&self) -> Result<Vec<bool>, ArrayError> {
        match &self.buf {
            Buf::Bool(v) => Ok(v.to_vec()),
            _ => Ok(self.to_i64s()?.into_iter().map(|v| v != 0).collect()),
        }
    }

    /// The elements as `f64`, whatever the numeric type.
    pub fn to_f64s(&self) -> Vec<f64> {
        match &self.buf {
            Buf::F32(v) => v.iter().map(|&x| f64::from(x)).collect(),
            Buf::F64(v) => v.to_vec(),
            _ => self.to_i64s().unwrap_or_default().into_iter().map(|v| v as f64).collect(),
        }
    }

    /// The only element of a one-element array of whole numbers.
    pub fn to_scalar_i64(&self) -> Result<i64, ArrayError> {
        match self.to_i64s()?.as_slice() {
            [value] => Ok(*value),
            many => Err(ArrayError::Count { shape: vec![], needed: 1, found: many.len() }),
        }
    }

    /// Floats converted to the carrier that `compute` asks for; other types unchanged.
    pub fn carried(self, compute: Compute) -> Array {
        let buf = match (self.buf, compute) {
            (Buf::F32(v), Compute::F64) => Buf::F64(Arc::new(v.iter().map(|&x| f64::from(x)).collect())),
            (Buf::F64(v), Compute::F32) => Buf::F32(Arc::new(v.iter().map(|&x| x as f32).collect())),
            (same, _) => same,
        };
        Array { buf, ..self }
    }
}

fn narrow(dtype: DType, raw: &[u8]) -> Option<Vec<f32>> {
    use half::slice::HalfFloatSliceExt;
    match dtype {
        DType::F32 => Some(raw.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect()),
        DType::F16 => {
            let halves: Vec<half::f16> = raw.as_chunks::<2>().0.iter().map(|&b| half::f16::from_le_bytes(b)).collect();
            let mut out = vec![0.0; halves.len()];
            halves.convert_to_f32_slice(&mut out);
            Some(out)
        }
        DType::BF16 => Some(raw.as_chunks::<2>().0.iter().map(|&b| half::bf16::from_le_bytes(b).to_f32()).collect()),
        _ => None,
    }
}

fn wide_to_f32<E>(wide: impl FnOnce() -> Result<Vec<f64>, E>) -> impl FnOnce() -> Result<Vec<f32>, E> {
    || Ok(wide()?.into_iter().map(|x| x as f32).collect())
}
