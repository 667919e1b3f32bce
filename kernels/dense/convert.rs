//! Little-endian bytes, as files hold them, to f32 and back. No alignment is asked for.

use crate::error::{Error, check_length};
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use half::{bf16, f16};

/// A floating-point type as stored in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FloatType {
    /// IEEE half precision.
    F16,
    /// bfloat16.
    BF16,
    /// IEEE single precision.
    F32,
    /// IEEE double precision.
    F64,
}

impl FloatType {
    /// Bytes per element.
    pub fn size(self) -> usize {
        match self {
            FloatType::F16 | FloatType::BF16 => 2,
            FloatType::F32 => 4,
            FloatType::F64 => 8,
        }
    }
}

/// Elements that are converted in one go: they stay in the first-level cache between the two steps.
const BLOCK: usize = 512;

/// `bytes: [n]` of `float` to `out: [n]`, the nearest f32 (f64 alone is rounded).
///
/// # Errors
///
/// If `bytes` is not as long as `out` asks for.
pub fn to_f32(float: FloatType, bytes: &[u8], out: &mut [f32]) -> Result<(), Error> {
    check_length("the bytes", bytes.len(), out.len() * float.size())?;
    convert(float, bytes, out);
    Ok(())
}

/// [`to_f32`] into a new vector.
///
/// # Errors
///
/// If `bytes` does not end with a whole element.
pub fn to_f32_vec(float: FloatType, bytes: &[u8]) -> Result<Vec<f32>, Error> {
    let mut out = vec![0.0; bytes.len() / float.size()];
    to_f32(float, bytes, &mut out)?;
    Ok(out)
}

/// `values` rounded to `float` (half to even), as little-endian bytes. Overflow gives infinities.
pub fn from_f32(float: FloatType, values: &[f32]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(values.len() * float.size());
    match float {
        FloatType::F16 => {
            let mut block = [f16::ZERO; BLOCK];
            for values in values.chunks(BLOCK) {
                block[..values.len()].convert_from_f32_slice(values);
                bytes.extend(block[..values.len()].iter().flat_map(|x| x.to_le_bytes()));
            }
        }
        FloatType::BF16 => bytes.extend(values.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes())),
        FloatType::F32 => bytes.extend(values.iter().flat_map(|x| x.to_le_bytes())),
        FloatType::F64 => bytes.extend(values.iter().flat_map(|&x| f64::from(x).to_le_bytes())),
    }
    bytes
}

/// [`to_f32`] for lengths that fit: what there is too much of either side is left alone.
pub(crate) fn convert(float: FloatType, bytes: &[u8], out: &mut [f32]) {
    match float {
        FloatType::F16 => {
            let mut block = [0u16; BLOCK];
            for (out, bytes) in out.chunks_mut(BLOCK).zip(bytes.chunks(2 * BLOCK)) {
                read_u16(bytes, &mut block);
                let halves: &[f16] = block[..out.len()].reinterpret_cast();
                halves.convert_to_f32_slice(out);
            }
        }
        FloatType::BF16 => widen_bf16(bytes, out),
        FloatType::F32 => {
            for (out, &bytes) in out.iter_mut().zip(bytes.as_chunks().0) {
                *out = f32::from_le_bytes(bytes);
            }
        }
        FloatType::F64 => {
            for (out, &bytes) in out.iter_mut().zip(bytes.as_chunks().0) {
                *out = f64::from_le_bytes(bytes) as f32;
            }
        }
    }
}

fn read_u16(bytes: &[u8], out: &mut [u16]) {
    for (out, &bytes) in out.iter_mut().zip(bytes.as_chunks().0) {
        *out = u16::from_le_bytes(bytes);
    }
}

multiversion! {
    /// A bfloat16 is the upper half of the f32 of the same value.
    fn widen_bf16(bytes: &[u8], out: &mut [f32]) {
        for (out, &bytes) in out.iter_mut().zip(bytes.as_chunks().0) {
            *out = f32::from_bits(u32::from(u16::from_le_bytes(bytes)) << 16);
        }
    }
}
