//! Payloads of constants as text, both ways.

use bytes::Bytes;
use half::{bf16, f16};
use sha2::{Digest, Sha256};

use super::scan::{Number, ParseError, Scanner, quoted};
use crate::ir::{DType, Data, Lazy, Tensor};

/// How the elements of a type are written.
enum Style {
    F32,
    F64,
    /// Whole numbers of this many bytes, signed or not.
    Int(usize, bool),
    /// Bytes that hold several elements, or elements of unknown size.
    Packed,
    Text,
}

fn style(dtype: DType) -> Style {
    use DType as T;
    match dtype {
        T::F32 | T::C64 => Style::F32,
        T::F64 | T::C128 => Style::F64,
        T::I8 => Style::Int(1, true),
        T::U8 | T::Bool | T::F8E4M3FN | T::F8E4M3FNUZ | T::F8E5M2 | T::F8E5M2FNUZ | T::F8E8M0 => Style::Int(1, false),
        T::I16 => Style::Int(2, true),
        T::U16 | T::F16 | T::BF16 => Style::Int(2, false),
        T::I32 => Style::Int(4, true),
        T::U32 => Style::Int(4, false),
        T::I64 => Style::Int(8, true),
        T::U64 => Style::Int(8, false),
        T::U4 | T::I4 | T::F4E2M1 | T::U2 | T::I2 | T::Other(_) => Style::Packed,
        T::String => Style::Text,
    }
}

/// Numbers per element: two for complex types.
fn parts(dtype: DType) -> usize {
    if matches!(dtype, DType::C64 | DType::C128) { 2 } else { 1 }
}

/// A payload: values when there are at most `small` elements, else a digest.
pub(super) fn payload(tensor: &Tensor, small: usize, digests: bool) -> String {
    if let Data::Strings(strings) = &tensor.data {
        return braces(strings.iter().map(|text| quoted(text)));
    }
    let Some(Ok(bytes)) = tensor.load() else { return "[\"digest\": \"unknown\"]".to_owned() };
    if tensor.len() <= small {
        return values(tensor.dtype, &bytes);
    }
    let digest = if digests { digest(&bytes) } else { "-".to_owned() };
    match tensor.dtype {
        DType::Other(_) => format!("[\"digest\": \"{digest}\", \"length\": \"{}\"]", bytes.len()),
        _ => format!("[\"digest\": \"{digest}\"]"),
    }
}

/// The first 8 bytes of the SHA-256 of a payload.
fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

fn braces(items: impl Iterator<Item = String>) -> String {
    format!("{{{}}}", items.collect::<Vec<_>>().join(", "))
}

fn values(dtype: DType, bytes: &[u8]) -> String {
    match style(dtype) {
        Style::F32 => braces(bytes.as_chunks().0.iter().map(|&b| format!("{:?}", f32::from_le_bytes(b)))),
        Style::F64 => braces(bytes.as_chunks().0.iter().map(|&b| format!("{:?}", f64::from_le_bytes(b)))),
        Style::Int(width, signed) => braces(bytes.chunks_exact(width).map(|chunk| {
            let mut wide = [0; 16];
            wide[..width].copy_from_slice(chunk);
            let value = i128::from_le_bytes(wide);
            let negative = signed && chunk.last().is_some_and(|&high| high >= 0x80);
            (if negative { value - (1i128 << (8 * width)) } else { value }).to_string()
        })),
        Style::Packed | Style::Text => braces(bytes.iter().map(u8::to_string)),
    }
}

/// The constant whose payload comes next in the text.
pub(super) fn parse_payload(scan: &mut Scanner<'_>, dtype: DType, dims: Vec<usize>) -> Result<Tensor, ParseError> {
    let count = dims.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim));
    let count = count.filter(|&count| count.checked_mul(16).is_some_and(|bits| isize::try_from(bits).is_ok()));
    let Some(count) = count else { return Err(scan.error(format!("shape {dims:?} is too large"))) };
    if scan.matches('[') {
        return described(scan, dtype, dims, count);
    }
    scan.expect('{')?;
    if matches!(style(dtype), Style::Text) {
        let strings = list(scan, |scan| scan.string().map(Bytes::from))?;
        return match strings.len() {
            found if found == count => Ok(Tensor { dtype, dims, data: Data::Strings(strings) }),
            found => Err(wrong_count(scan, &dims, count, found)),
        };
    }
    let numbers = list(scan, Scanner::number)?;
    let needed = dtype.bytes_for(count);
    let (each, expected) = match style(dtype) {
        Style::Packed => (1, needed.unwrap_or(numbers.len())),
        _ => (parts(dtype), count * parts(dtype)),
    };
    if let (Style::Packed, Some(bits)) = (style(dtype), dtype.bits())
        && numbers.len() == count
        && (count > 1 || numbers.iter().any(|number| number.text.starts_with('-')))
    {
        let bytes = pack(scan, &numbers, bits)?;
        return Ok(Tensor::raw(dtype, dims, bytes));
    }
    if numbers.len() != expected {
        return Err(wrong_count(scan, &dims, expected, numbers.len() / each));
    }
    let mut bytes = Vec::with_capacity(needed.unwrap_or(numbers.len()));
    for number in &numbers {
        element(scan, dtype, number, &mut bytes)?;
    }
    Ok(Tensor::raw(dtype, dims, bytes))
}

fn wrong_count(scan: &Scanner<'_>, dims: &[usize], expected: usize, found: usize) -> ParseError {
    scan.error(format!("shape {dims:?} needs {expected} elements, found {found}"))
}

fn list<'a, T>(
    scan: &mut Scanner<'a>,
    mut item: impl FnMut(&mut Scanner<'a>) -> Result<T, ParseError>,
) -> Result<Vec<T>, ParseError> {
    let mut items = Vec::new();
    if scan.matches('}') {
        return Ok(items);
    }
    loop {
        items.push(item(scan)?);
        if !scan.matches(',') {
            scan.expect('}')?;
            return Ok(items);
        }
    }
}

fn element(scan: &Scanner<'_>, dtype: DType, number: &Number<'_>, out: &mut Vec<u8>) -> Result<(), ParseError> {
    let wrong = || scan.error(format!("`{}` is not a value of {dtype}", number.text));
    match style(dtype) {
        Style::F32 => out.extend(number.text.parse::<f32>().map_err(|_| wrong())?.to_le_bytes()),
        Style::F64 => out.extend(number.text.parse::<f64>().map_err(|_| wrong())?.to_le_bytes()),
        Style::Int(..) if number.is_float && matches!(dtype, DType::F16 | DType::BF16) => {
            let value = number.text.parse::<f32>().map_err(|_| wrong())?;
            let bits =
                if dtype == DType::F16 { f16::from_f32(value).to_bits() } else { bf16::from_f32(value).to_bits() };
            out.extend(bits.to_le_bytes());
        }
        Style::Int(width, signed) => {
            let value = number.text.parse::<i128>().map_err(|_| wrong())?;
            let bits = 8 * width as u32;
            let (low, high) = if signed { (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) } else { (0, (1 << bits) - 1) };
            if !(low..=high).contains(&value) {
                return Err(wrong());
            }
            out.extend(&value.to_le_bytes()[..width]);
        }
        Style::Packed | Style::Text => out.push(number.text.parse().map_err(|_| wrong())?),
    }
    Ok(())
}

/// Elements of `bits` bits each, the first in the lowest bits.
fn pack(scan: &Scanner<'_>, numbers: &[Number<'_>], bits: u32) -> Result<Vec<u8>, ParseError> {
    let per_byte = (8 / bits) as usize;
    let (low, high) = (-(1i32 << (bits - 1)), (1i32 << bits) - 1);
    let mut bytes = vec![0u8; numbers.len().div_ceil(per_byte)];
    for (at, number) in numbers.iter().enumerate() {
        let value = number.text.parse::<i32>().ok().filter(|value| (low..=high).contains(value));
        let value = value.ok_or_else(|| scan.error(format!("`{}` does not fit in {bits} bits", number.text)))?;
        let shift = (at % per_byte) as u32 * bits;
        bytes[at / per_byte] |= ((value & high) as u8) << shift;
    }
    Ok(bytes)
}

/// Elements that a fixture may ask a generator for; keeps a mistyped shape from eating the memory.
const SEEDED: usize = 1 << 26;

/// `"digest": "…"` or `"seed": "…"`, the rest of the brackets.
fn described(scan: &mut Scanner<'_>, dtype: DType, dims: Vec<usize>, count: usize) -> Result<Tensor, ParseError> {
    let (mut seed, mut scale, mut length) = (None, 1.0f64, dtype.bytes_for(count));
    loop {
        let key = scan.text()?;
        scan.expect(':')?;
        let value = scan.text()?;
        let wrong = |what: &str| scan.error(format!("\"{key}\" is {value:?}, expected {what}"));
        match key.as_str() {
            "seed" => seed = Some(value.parse::<u64>().map_err(|_| wrong("a whole number"))?),
            "scale" => scale = value.parse().map_err(|_| wrong("a number"))?,
            "length" if dtype.bits().is_none() => length = Some(value.parse().map_err(|_| wrong("a whole number"))?),
            _ => {}
        }
        if !scan.matches(',') {
            scan.expect(']')?;
            break;
        }
    }
    let Some(seed) = seed else {
        let length = length.ok_or_else(|| scan.error(format!("a constant of {dtype} needs its values")))?;
        let missing = || Err("the text holds only a digest of this constant".to_owned());
        return Ok(Tensor::lazy(dtype, dims, Lazy::new(length, missing)));
    };
    if count > SEEDED {
        return Err(scan.error(format!("shape {dims:?} is too large for \"seed\"; {SEEDED} elements is the most")));
    }
    let mut state = SplitMix(seed);
    let made = match dtype {
        float if float.is_float() => {
            let values: Vec<f32> = (0..count).map(|_| (f64::from(state.unit()) * scale) as f32).collect();
            Tensor::floats(float, dims, &values)
        }
        _ => match style(dtype) {
            Style::Int(1, _) | Style::Packed if dtype != DType::Bool => length.map(|length| {
                let bytes: Vec<u8> = (0..length).map(|_| (state.next() >> 56) as u8).collect();
                Tensor::raw(dtype, dims, bytes)
            }),
            _ => None,
        },
    };
    made.ok_or_else(|| scan.error(format!("\"seed\" makes floats and types of up to 8 bits, not {dtype}")))
}

/// The generator behind `"seed"`: SplitMix64 (Steele, Lea and Flood, 2014) whose first state is the seed. A float is
/// `(2 k + 1) / 2^23 - 1` for the upper 23 bits `k` of a draw: uniform in (-1, 1), exact in single precision. A byte is
/// the upper 8 bits of a draw.
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn unit(&mut self) -> f32 {
        let k = (self.next() >> 41) as u32;
        (2 * k + 1) as f32 / 8_388_608.0 - 1.0
    }
}
