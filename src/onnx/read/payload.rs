//! The elements of a TensorProto as bytes: raw, or converted from the field its type is stored in.

use bytes::Bytes;
use mbqc_passes::ir::{DType, Data};

use crate::onnx::proto::TensorProto;

/// Name, type and shape of a tensor, checked; the payload is looked at separately.
pub(super) struct Shape {
    pub(super) dtype: DType,
    pub(super) dims: Vec<usize>,
    /// Elements; dims multiply to it without overflow.
    pub(super) count: usize,
    /// Bytes the elements take, where the type has a fixed size.
    pub(super) bytes: Option<usize>,
}

/// Type and shape of a tensor.
pub(super) fn shape(tensor: &TensorProto) -> Result<Shape, String> {
    let dtype = DType::from_onnx(tensor.data_type.unwrap_or(0));
    let dims: Vec<usize> = tensor
        .dims
        .iter()
        .map(|&dim| usize::try_from(dim).map_err(|_| format!("found dimension {dim}, expected zero or more")))
        .collect::<Result<_, _>>()?;
    let too_big = || format!("shape {dims:?} of {dtype} is larger than memory addresses reach");
    let count = dims.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim)).ok_or_else(too_big)?;
    let bytes = match dtype.bits() {
        Some(_) => Some(dtype.bytes_for(count).filter(|&n| isize::try_from(n).is_ok()).ok_or_else(too_big)?),
        None => None,
    };
    Ok(Shape { dtype, dims, count, bytes })
}

/// The payload a tensor holds inside the message.
pub(super) fn inline(tensor: &TensorProto, shape: &Shape) -> Result<Data, String> {
    if tensor.segment.is_some() {
        return Err("the tensor is one segment of several; merge the segments into one tensor".to_owned());
    }
    if shape.dtype == DType::String {
        return match tensor.string_data.len() {
            found if found == shape.count => Ok(Data::Strings(tensor.string_data.clone())),
            found => Err(format!("shape {:?} needs {} strings, found {found}", shape.dims, shape.count)),
        };
    }
    if let Some(raw) = tensor.raw_data.as_ref().filter(|raw| !raw.is_empty()) {
        return match shape.bytes {
            Some(needed) if needed != raw.len() => Err(wrong_length(shape, "raw_data", needed, raw.len())),
            _ => Ok(Data::Raw(raw.clone())),
        };
    }
    typed(tensor, shape).map(Data::Raw)
}

fn wrong_length(shape: &Shape, field: &str, needed: usize, found: usize) -> String {
    format!("{} of shape {:?} needs {needed} bytes in {field}, found {found}", shape.dtype, shape.dims)
}

/// Elements stored one by one in the field that ONNX prescribes for the type.
fn typed(tensor: &TensorProto, shape: &Shape) -> Result<Bytes, String> {
    use DType as T;
    let (field, bytes): (&str, Vec<u8>) = match shape.dtype {
        T::F32 | T::C64 => ("float_data", tensor.float_data.iter().flat_map(|v| v.to_le_bytes()).collect()),
        T::F64 | T::C128 => ("double_data", tensor.double_data.iter().flat_map(|v| v.to_le_bytes()).collect()),
        T::I64 => ("int64_data", tensor.int64_data.iter().flat_map(|v| v.to_le_bytes()).collect()),
        T::U64 => ("uint64_data", tensor.uint64_data.iter().flat_map(|v| v.to_le_bytes()).collect()),
        T::U32 => ("uint64_data", narrow::<4>(shape.dtype, tensor.uint64_data.iter().map(|&v| i128::from(v)))?),
        T::I32 => ("int32_data", tensor.int32_data.iter().flat_map(|v| v.to_le_bytes()).collect()),
        T::I16 | T::U16 | T::F16 | T::BF16 => {
            ("int32_data", narrow::<2>(shape.dtype, tensor.int32_data.iter().map(|&v| i128::from(v)))?)
        }
        // Types of 8 bits one by one; types of 4 and 2 bits two and four to an entry, already packed.
        T::I8
        | T::U8
        | T::Bool
        | T::F8E4M3FN
        | T::F8E4M3FNUZ
        | T::F8E5M2
        | T::F8E5M2FNUZ
        | T::F8E8M0
        | T::U4
        | T::I4
        | T::F4E2M1
        | T::U2
        | T::I2 => ("int32_data", narrow::<1>(shape.dtype, tensor.int32_data.iter().map(|&v| i128::from(v)))?),
        // A type this list does not know: the file layer keeps what is there.
        T::String | T::Other(_) => ("raw_data", Vec::new()),
    };
    match shape.bytes {
        Some(needed) if needed != bytes.len() => Err(wrong_length(shape, field, needed, bytes.len())),
        _ => Ok(Bytes::from(bytes)),
    }
}

/// Values cut to `N` bytes each; signed and unsigned readings of those bytes are accepted, as exporters write both.
fn narrow<const N: usize>(dtype: DType, values: impl Iterator<Item = i128>) -> Result<Vec<u8>, String> {
    let (low, high) = (-(1i128 << (8 * N - 1)), (1i128 << (8 * N)) - 1);
    let mut bytes = Vec::with_capacity(values.size_hint().0 * N);
    for value in values {
        if !(low..=high).contains(&value) {
            return Err(format!("found the stored value {value}, expected {low} to {high} for {dtype}"));
        }
        bytes.extend_from_slice(&value.to_le_bytes()[..N]);
    }
    Ok(bytes)
}
