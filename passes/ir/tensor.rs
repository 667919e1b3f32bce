//! Constant tensors: bytes that are usually a view of a memory-mapped file.

use std::sync::Arc;

use bytes::Bytes;
use half::{bf16, f16};

use super::DType;

/// A constant. Cloning copies no payload.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// Element type.
    pub dtype: DType,
    /// Dimensions; empty for a scalar.
    pub dims: Vec<usize>,
    /// Payload.
    pub data: Data,
}

/// The payload of a [`Tensor`].
#[derive(Clone, Debug, PartialEq)]
pub enum Data {
    /// Little-endian elements, row-major, sub-byte types packed low bits first; for a mapped file a view of it.
    Raw(Bytes),
    /// Strings, one per element.
    Strings(Vec<Bytes>),
    /// Bytes as in [`Data::Raw`] that are made when somebody asks for them.
    Lazy(Lazy),
}

/// Takes the pieces of a payload in order.
pub type Sink<'a> = dyn FnMut(&[u8]) -> Result<(), String> + 'a;

type Produce = dyn Fn(&mut Sink<'_>) -> Result<(), String> + Send + Sync;

/// A payload of known length that is computed on demand and not kept, so that a model larger than memory can be
/// written piece by piece. Two are equal when they are clones of one another.
#[derive(Clone)]
pub struct Lazy {
    len: usize,
    produce: Arc<Produce>,
}

impl Lazy {
    /// A payload of `len` bytes that `produce` makes, the same bytes at every call.
    pub fn new(len: usize, produce: impl Fn() -> Result<Bytes, String> + Send + Sync + 'static) -> Lazy {
        Lazy::in_pieces(len, move |sink| sink(&produce()?))
    }

    /// A payload of `len` bytes that `produce` hands over piece by piece, the same bytes at every call. It stops at the
    /// first error and answers it.
    pub fn in_pieces(
        len: usize,
        produce: impl Fn(&mut Sink<'_>) -> Result<(), String> + Send + Sync + 'static,
    ) -> Lazy {
        Lazy { len, produce: Arc::new(produce) }
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True when there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Makes the bytes and holds them all. Answers a message when that fails or when their number is not the promised
    /// one.
    pub fn produce(&self) -> Result<Bytes, String> {
        let mut bytes = Vec::with_capacity(self.len);
        self.produce_into(&mut |piece| {
            bytes.extend_from_slice(piece);
            Ok(())
        })?;
        Ok(bytes.into())
    }

    /// Makes the bytes and hands them to `sink` piece by piece. Answers a message when either of them fails or when the
    /// number of bytes is not the promised one.
    pub fn produce_into(&self, sink: &mut Sink<'_>) -> Result<(), String> {
        let mut found = 0;
        (self.produce)(&mut |piece| {
            found += piece.len();
            sink(piece)
        })?;
        if found == self.len {
            Ok(())
        } else {
            Err(format!("a payload of {} bytes was promised, {found} were produced", self.len))
        }
    }

    /// A number that clones share and that no other payload alive has.
    pub fn identity(&self) -> usize {
        Arc::as_ptr(&self.produce).cast::<()>().addr()
    }
}

impl PartialEq for Lazy {
    fn eq(&self, other: &Lazy) -> bool {
        self.len == other.len && Arc::ptr_eq(&self.produce, &other.produce)
    }
}

impl std::fmt::Debug for Lazy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lazy").field("len", &self.len).finish_non_exhaustive()
    }
}

impl Tensor {
    /// A tensor over raw little-endian bytes.
    pub fn raw(dtype: DType, dims: impl Into<Vec<usize>>, bytes: impl Into<Bytes>) -> Tensor {
        Tensor { dtype, dims: dims.into(), data: Data::Raw(bytes.into()) }
    }

    /// A tensor whose raw little-endian bytes are made on demand.
    pub fn lazy(dtype: DType, dims: impl Into<Vec<usize>>, lazy: Lazy) -> Tensor {
        Tensor { dtype, dims: dims.into(), data: Data::Lazy(lazy) }
    }

    /// An `int64` tensor.
    pub fn i64s(dims: impl Into<Vec<usize>>, values: &[i64]) -> Tensor {
        Tensor::raw(DType::I64, dims, values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>())
    }

    /// A `float` tensor.
    pub fn f32s(dims: impl Into<Vec<usize>>, values: &[f32]) -> Tensor {
        Tensor::raw(DType::F32, dims, values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>())
    }

    /// Floating-point values stored as `dtype` (one of the types of [`DType::is_float`]), rounded to nearest even.
    pub fn floats(dtype: DType, dims: impl Into<Vec<usize>>, values: &[f32]) -> Option<Tensor> {
        let bytes: Vec<u8> = match dtype {
            DType::F32 => return Some(Tensor::f32s(dims, values)),
            DType::F16 => values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect(),
            DType::BF16 => values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect(),
            DType::F64 => values.iter().flat_map(|&v| f64::from(v).to_le_bytes()).collect(),
            _ => return None,
        };
        Some(Tensor::raw(dtype, dims, bytes))
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.dims.iter().product()
    }

    /// True when there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Raw little-endian bytes that are there already; empty for strings and for a payload made on demand
    /// ([`Tensor::load`] makes it).
    pub fn bytes(&self) -> &[u8] {
        match &self.data {
            Data::Raw(bytes) => bytes,
            Data::Strings(_) | Data::Lazy(_) => &[],
        }
    }

    /// Raw little-endian bytes, made now if they are made on demand; `None` for strings. Copies nothing.
    pub fn load(&self) -> Option<Result<Bytes, String>> {
        match &self.data {
            Data::Raw(bytes) => Some(Ok(bytes.clone())),
            Data::Lazy(lazy) => Some(lazy.produce()),
            Data::Strings(_) => None,
        }
    }

    /// Stored size in bytes.
    pub fn stored_bytes(&self) -> usize {
        match &self.data {
            Data::Raw(bytes) => bytes.len(),
            Data::Strings(strings) => strings.iter().map(Bytes::len).sum(),
            Data::Lazy(lazy) => lazy.len(),
        }
    }

    /// All elements as `i64` when the type is a whole number or bool.
    pub fn to_i64(&self) -> Option<Vec<i64>> {
        fn each<const N: usize>(bytes: &[u8], read: impl Fn([u8; N]) -> i64) -> Vec<i64> {
            bytes.as_chunks::<N>().0.iter().map(|&chunk| read(chunk)).collect()
        }
        let bytes = self.load()?.ok()?;
        let bytes = bytes.as_ref();
        Some(match self.dtype {
            DType::Bool | DType::U8 => each::<1>(bytes, |b| i64::from(b[0])),
            DType::I8 => each::<1>(bytes, |b| i64::from(i8::from_le_bytes(b))),
            DType::I16 => each(bytes, |b| i64::from(i16::from_le_bytes(b))),
            DType::U16 => each(bytes, |b| i64::from(u16::from_le_bytes(b))),
            DType::I32 => each(bytes, |b| i64::from(i32::from_le_bytes(b))),
            DType::U32 => each(bytes, |b| i64::from(u32::from_le_bytes(b))),
            DType::I64 => each(bytes, i64::from_le_bytes),
            DType::U64 => each(bytes, |b| u64::from_le_bytes(b).cast_signed()),
            _ => return None,
        })
    }

    /// All elements as `f64` when the type is floating point.
    pub fn to_f64(&self) -> Option<Vec<f64>> {
        fn each<const N: usize>(bytes: &[u8], read: impl Fn([u8; N]) -> f64) -> Vec<f64> {
            bytes.as_chunks::<N>().0.iter().map(|&chunk| read(chunk)).collect()
        }
        let bytes = self.load()?.ok()?;
        let bytes = bytes.as_ref();
        Some(match self.dtype {
            DType::F32 => each(bytes, |b| f64::from(f32::from_le_bytes(b))),
            DType::F64 => each(bytes, f64::from_le_bytes),
            DType::F16 => each(bytes, |b| f16::from_le_bytes(b).to_f64()),
            DType::BF16 => each(bytes, |b| bf16::from_le_bytes(b).to_f64()),
            _ => return None,
        })
    }

    /// The single element of a one-element tensor, as `f64`, whatever its numeric type.
    pub fn scalar(&self) -> Option<f64> {
        if self.len() != 1 {
            return None;
        }
        match self.to_f64() {
            Some(values) => values.first().copied(),
            None => self.to_i64()?.first().map(|&v| v as f64),
        }
    }
}
