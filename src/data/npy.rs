//! One array in numpy's `.npy` format.
//!
//! The bytes stay as they are stored until an [`Array`] is asked for: a stack of images is sliced, never widened.
//! Big-endian elements and Fortran order are converted on reading.

use bytes::Bytes;
use mbqc_passes::array::{Array, ArrayError, Compute};
use mbqc_passes::ir::{DType, Tensor};

const MAGIC: &[u8] = b"\x93NUMPY";
/// numpy aligns the data to this many bytes.
const ALIGN: usize = 64;

/// Element type of an [`Npy`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Elem {
    /// Numbers and truth values.
    Number(DType),
    /// Text of this many UTF-32 units (`<U`).
    Unicode(usize),
    /// Text of this many bytes (`|S`).
    Ascii(usize),
}

impl Elem {
    fn size(self) -> Option<usize> {
        match self {
            Elem::Number(dtype) => dtype.bytes_for(1),
            Elem::Unicode(units) => units.checked_mul(4),
            Elem::Ascii(bytes) => Some(bytes),
        }
    }

    /// Bytes that change places when the byte order does.
    fn word(self) -> usize {
        match self {
            Elem::Number(dtype) => dtype.bytes_for(1).unwrap_or(1),
            Elem::Unicode(_) => 4,
            Elem::Ascii(_) => 1,
        }
    }
}

/// An array as stored: row-major, little-endian, not widened. Cloning and slicing copy no elements.
#[derive(Clone, Debug, PartialEq)]
pub struct Npy {
    /// Element type.
    pub elem: Elem,
    /// Shape; empty for a scalar.
    pub shape: Vec<usize>,
    data: Bytes,
}

/// Why an array could not be read or written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NpyError {
    /// Not the format, or cut off.
    #[error("bad .npy header: {0}")]
    Header(String),
    /// Python objects are stored as pickles, which are programs; they are not read.
    #[error("holds Python objects (dtype object); save it with a number or text type, for example .astype('int64')")]
    Object,
    /// A type without a carrier.
    #[error("element type '{0}' is not supported (bool, int8..64, uint8..64, float16/32/64 and text are)")]
    Type(String),
    /// Fewer elements than the shape needs.
    #[error("shape {shape:?} needs {needed} bytes, found {found}")]
    Short {
        /// The shape.
        shape: Vec<usize>,
        /// Bytes it needs.
        needed: usize,
        /// Bytes there are.
        found: usize,
    },
    /// Numbers were wanted, but it holds text, or the other way round.
    #[error("expected {expected}, found {found:?}")]
    Expected {
        /// What was wanted.
        expected: &'static str,
        /// What it is.
        found: Elem,
    },
    /// The array cannot be carried.
    #[error(transparent)]
    Array(#[from] ArrayError),
}

impl Npy {
    /// Reads a whole `.npy` file.
    pub fn parse(bytes: &Bytes) -> Result<Npy, NpyError> {
        let (header, start) = Header::read(bytes)?;
        let (elem, big_endian) = element(&header.descr)?;
        let size = elem.size().ok_or_else(|| NpyError::Type(header.descr.clone()))?;
        let needed = header.shape.iter().try_fold(size, |product, &dim| product.checked_mul(dim));
        let needed = needed.ok_or_else(|| NpyError::Header(format!("shape {:?} is too large", header.shape)))?;
        let found = bytes.len() - start;
        if found < needed {
            return Err(NpyError::Short { shape: header.shape, needed, found });
        }
        let mut data = bytes.slice(start..start + needed);
        if big_endian && elem.word() > 1 {
            let mut swapped = data.to_vec();
            swapped.chunks_exact_mut(elem.word()).for_each(<[u8]>::reverse);
            data = swapped.into();
        }
        if header.fortran && header.shape.len() > 1 {
            data = row_major(&data, &header.shape, size).into();
        }
        Ok(Npy { elem, shape: header.shape, data })
    }

    /// Stores an array with its declared type; `bfloat16`, which numpy lacks, becomes `float32`.
    pub fn from_array(array: &Array) -> Result<Npy, NpyError> {
        let tensor = match array.dtype {
            DType::BF16 => array.clone().with_dtype(DType::F32).to_tensor()?,
            _ => array.to_tensor()?,
        };
        let elem = Elem::Number(tensor.dtype);
        let (_, size) = (descr(elem).ok_or_else(|| NpyError::Type(tensor.dtype.to_string()))?, elem.size());
        let (needed, found) = (array.len() * size.unwrap_or(0), tensor.bytes().len());
        if needed != found {
            return Err(NpyError::Short { shape: array.shape.clone(), needed, found });
        }
        Ok(Npy { elem, shape: array.shape.clone(), data: Bytes::copy_from_slice(tensor.bytes()) })
    }

    /// Stores a list of strings.
    pub fn from_strings<S: AsRef<str>>(strings: &[S]) -> Npy {
        let width = strings.iter().map(|s| s.as_ref().chars().count()).max().unwrap_or(0).max(1);
        let mut data = Vec::with_capacity(strings.len() * width * 4);
        for (nth, text) in strings.iter().enumerate() {
            data.extend(text.as_ref().chars().flat_map(|c| u32::from(c).to_le_bytes()));
            data.resize((nth + 1) * width * 4, 0);
        }
        Npy { elem: Elem::Unicode(width), shape: vec![strings.len()], data: data.into() }
    }

    /// Entry `index` of the leading axis, which is kept with size 1; `None` for a scalar or beyond the end.
    pub fn entry(&self, index: usize) -> Option<Npy> {
        let (&len, rest) = self.shape.split_first()?;
        if index >= len {
            return None;
        }
        let bytes = self.data.len() / len;
        let shape = std::iter::once(1).chain(rest.iter().copied()).collect();
        Some(Npy { elem: self.elem, shape, data: self.data.slice(index * bytes..(index + 1) * bytes) })
    }

    /// The same elements under another shape of the same count.
    pub fn reshaped(&self, shape: Vec<usize>) -> Result<Npy, NpyError> {
        let count = |dims: &[usize]| dims.iter().try_fold(1_usize, |product, &dim| product.checked_mul(dim));
        let (needed, found) = (count(&shape), count(&self.shape));
        if needed != found {
            let found = found.unwrap_or(0);
            return Err(ArrayError::Count { shape, needed: needed.unwrap_or(usize::MAX), found }.into());
        }
        Ok(Npy { shape, ..self.clone() })
    }

    /// The array, floats in single precision under their declared type, bytes as they are.
    pub fn to_array(&self) -> Result<Array, NpyError> {
        match self.elem {
            Elem::Number(dtype) => {
                let tensor = Tensor::raw(dtype, self.shape.clone(), self.data.clone());
                Ok(Array::from_tensor(&tensor, Compute::F32)?)
            }
            found => Err(NpyError::Expected { expected: "numbers", found }),
        }
    }

    /// The elements of a text array.
    pub fn strings(&self) -> Result<Vec<String>, NpyError> {
        let count: usize = self.shape.iter().product();
        let text: fn(&[u8]) -> String = match self.elem {
            Elem::Unicode(_) => |bytes| {
                let units = bytes.as_chunks::<4>().0.iter().map(|&unit| u32::from_le_bytes(unit));
                let chars = units.map(|unit| char::from_u32(unit).unwrap_or(char::REPLACEMENT_CHARACTER));
                chars.collect::<String>()
            },
            Elem::Ascii(_) => |bytes| String::from_utf8_lossy(bytes).into_owned(),
            found @ Elem::Number(_) => return Err(NpyError::Expected { expected: "text", found }),
        };
        let size = self.elem.size().unwrap_or(0);
        let each = (0..count).map(|i| text(&self.data[i * size..(i + 1) * size]).trim_end_matches('\0').to_owned());
        Ok(each.collect())
    }

    /// Type and shape in words, such as `uint8[128, 128, 3]`.
    pub fn describe(&self) -> String {
        match self.elem {
            Elem::Number(dtype) => format!("{dtype}{:?}", self.shape),
            Elem::Unicode(_) | Elem::Ascii(_) => format!("text{:?}", self.shape),
        }
    }

    /// A whole `.npy` file, as numpy would write it.
    pub fn encode(&self) -> Result<Vec<u8>, NpyError> {
        let descr = descr(self.elem).ok_or_else(|| NpyError::Type(self.describe()))?;
        let dims: String = match self.shape.as_slice() {
            [one] => format!("{one},"),
            many => many.iter().map(usize::to_string).collect::<Vec<_>>().join(", "),
        };
        let mut text = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({dims}), }}");
        let before = MAGIC.len() + 4;
        while !(before + text.len() + 1).is_multiple_of(ALIGN) {
            text.push(' ');
        }
        text.push('\n');
        let length = u16::try_from(text.len()).map_err(|_| NpyError::Header("rank too large".to_owned()))?;
        let mut out = Vec::with_capacity(before + text.len() + self.data.len());
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&[1, 0]);
        out.extend_from_slice(&length.to_le_bytes());
        out.extend_from_slice(text.as_bytes());
        out.extend_from_slice(&self.data);
        Ok(out)
    }
}

/// numpy's name, one per type that is read and written.
#[rustfmt::skip]
const NUMBERS: &[(&str, DType)] = &[
    ("b1", DType::Bool),
    ("i1", DType::I8),  ("i2", DType::I16), ("i4", DType::I32), ("i8", DType::I64),
    ("u1", DType::U8),  ("u2", DType::U16), ("u4", DType::U32), ("u8", DType::U64),
    ("f2", DType::F16), ("f4", DType::F32), ("f8", DType::F64),
];

fn descr(elem: Elem) -> Option<String> {
    match elem {
        Elem::Number(dtype) => {
            let (name, _) = NUMBERS.iter().find(|row| row.1 == dtype)?;
            Some(format!("{}{name}", if elem.size() == Some(1) { '|' } else { '<' }))
        }
        Elem::Unicode(units) => Some(format!("<U{units}")),
        Elem::Ascii(bytes) => Some(format!("|S{bytes}")),
    }
}

/// Element type of a description such as `<f4`, and whether it is big-endian.
fn element(descr: &str) -> Result<(Elem, bool), NpyError> {
    let name = descr.trim_start_matches(['<', '>', '|', '=']);
    let unknown = || NpyError::Type(descr.to_owned());
    let elem = if let Some((_, dtype)) = NUMBERS.iter().find(|row| row.0 == name) {
        Elem::Number(*dtype)
    } else if name.starts_with('O') {
        return Err(NpyError::Object);
    } else if let Some(units) = name.strip_prefix('U') {
        Elem::Unicode(units.parse().map_err(|_| unknown())?)
    } else if let Some(bytes) = name.strip_prefix('S') {
        Elem::Ascii(bytes.parse().map_err(|_| unknown())?)
    } else {
        return Err(unknown());
    };
    Ok((elem, descr.starts_with('>')))
}

/// Elements of `size` bytes in Fortran order brought into row-major order.
fn row_major(data: &[u8], shape: &[usize], size: usize) -> Vec<u8> {
    let strides: Vec<usize> = shape
        .iter()
        .scan(size, |stride, &dim| {
            let this = *stride;
            *stride *= dim;
            Some(this)
        })
        .collect();
    let mut out = Vec::with_capacity(data.len());
    let mut index = vec![0; shape.len()];
    while out.len() < data.len() {
        let at: usize = index.iter().zip(&strides).map(|(i, stride)| i * stride).sum();
        out.extend_from_slice(&data[at..at + size]);
        for axis in (0..shape.len()).rev() {
            index[axis] += 1;
            if index[axis] < shape[axis] {
                break;
            }
            index[axis] = 0;
        }
    }
    out
}

/// What the header says.
struct Header {
    descr: String,
    fortran: bool,
    shape: Vec<usize>,
}

impl Header {
    /// The header and where the data starts.
    fn read(bytes: &[u8]) -> Result<(Header, usize), NpyError> {
        let bad = |reason: &str| NpyError::Header(reason.to_owned());
        let rest = bytes.strip_prefix(MAGIC).ok_or_else(|| bad("the magic number is missing"))?;
        let (length, text_at) = match rest {
            [1, _, a, b, ..] => (usize::from(u16::from_le_bytes([*a, *b])), MAGIC.len() + 4),
            [2 | 3, _, a, b, c, d, ..] => (u32::from_le_bytes([*a, *b, *c, *d]) as usize, MAGIC.len() + 6),
            [major, ..] if *major > 3 => return Err(NpyError::Header(format!("unknown version {major}"))),
            _ => return Err(bad("cut off")),
        };
        let text = bytes[text_at..].get(..length).ok_or_else(|| bad("cut off"))?;
        let text = std::str::from_utf8(text).map_err(|_| bad("not text"))?;
        let field = |key: &str| {
            let quoted = [format!("'{key}'"), format!("\"{key}\"")];
            let at = quoted.iter().find_map(|key| text.find(key.as_str()).map(|at| at + key.len()));
            let value = at.and_then(|at| text[at..].trim_start().strip_prefix(':'));
            value.map(str::trim_start).ok_or_else(|| NpyError::Header(format!("no {key}")))
        };
        let descr = field("descr")?;
        let quote = descr.chars().next().filter(|c| matches!(c, '\'' | '"'));
        let Some(quote) = quote else {
            return Err(NpyError::Type("a record".to_owned()));
        };
        let descr = descr[1..].split(quote).next().unwrap_or_default().to_owned();
        let order = field("fortran_order")?;
        let fortran = order.starts_with("True");
        if !fortran && !order.starts_with("False") {
            return Err(bad("fortran_order is neither True nor False"));
        }
        let dims = field("shape")?.strip_prefix('(').and_then(|dims| dims.split_once(')'));
        let dims = dims.ok_or_else(|| bad("shape is not a tuple"))?.0;
        let dims = dims.split(',').map(|dim| dim.trim().trim_end_matches('L')).filter(|dim| !dim.is_empty());
        let shape = dims.map(|dim| dim.parse().map_err(|_| NpyError::Header(format!("bad dimension {dim:?}"))));
        let shape = shape.collect::<Result<Vec<usize>, NpyError>>()?;
        Ok((Header { descr, fortran, shape }, text_at + length))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(header: &str, data: &[u8]) -> Bytes {
        let mut out = MAGIC.to_vec();
        out.extend_from_slice(&[1, 0]);
        out.extend_from_slice(&(header.len() as u16).to_le_bytes());
        out.extend_from_slice(header.as_bytes());
        out.extend_from_slice(data);
        out.into()
    }

    fn read(descr: &str, fortran: &str, shape: &str, data: &[u8]) -> Result<Npy, NpyError> {
        let header = format!("{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}\n");
        Npy::parse(&file(&header, data))
    }

    #[test]
    fn reads_what_numpy_writes() {
        let npy = read("'<i4'", "False", "(2,)", &[1, 0, 0, 0, 0xfe, 0xff, 0xff, 0xff]).unwrap();
        assert_eq!(npy.to_array().unwrap().to_i64s().unwrap(), [1, -2]);
        let big = read("'>i2'", "False", "(2,)", &[0, 1, 0xff, 0xfe]).unwrap();
        assert_eq!(big.to_array().unwrap().to_i64s().unwrap(), [1, -2]);
        let half = read("'<f2'", "False", "()", &[0x00, 0x3e]).unwrap().to_array().unwrap();
        assert_eq!((half.dtype, half.as_f32().unwrap()), (DType::F16, &[1.5][..]));
        let text = read("'<U2'", "False", "(1,)", &[0xe9, 0, 0, 0, 0, 0, 0, 0]).unwrap();
        assert_eq!(text.strings().unwrap(), ["é"]);
        assert_eq!(read("'|S3'", "False", "(1,)", b"ab\0").unwrap().strings().unwrap(), ["ab"]);
    }

    #[test]
    fn fortran_order_becomes_row_major() {
        let npy = read("'|u1'", "True", "(2, 3)", &[1, 4, 2, 5, 3, 6]).unwrap();
        assert_eq!(npy.to_array().unwrap().to_i64s().unwrap(), [1, 2, 3, 4, 5, 6]);
    }

    #[test]
    fn entries_are_not_widened() {
        let npy = read("'|u1'", "False", "(2, 2)", &[1, 2, 3, 4]).unwrap();
        let array = npy.entry(1).unwrap().to_array().unwrap();
        assert_eq!((array.shape.as_slice(), array.stored_bytes()), (&[1, 2][..], 2));
        assert_eq!(array.to_i64s().unwrap(), [3, 4]);
        assert!(npy.entry(2).is_none());
    }

    #[test]
    fn round_trips_every_type() {
        for (_, dtype) in NUMBERS {
            let array = match dtype {
                DType::Bool => Array::bool([2], vec![true, false]),
                float if float.is_float() => Array::f32([2], vec![0.5, -3.0]).with_dtype(*dtype),
                DType::U8 | DType::I8 => {
                    Npy { elem: Elem::Number(*dtype), shape: vec![2], data: vec![1, 200].into() }.to_array().unwrap()
                }
                int => Array::i64([2], vec![1, 200]).with_dtype(*int),
            };
            let bytes = Npy::from_array(&array).unwrap().encode().unwrap();
            assert_eq!(bytes.len() % ALIGN, 2 * dtype.bytes_for(1).unwrap() % ALIGN);
            assert_eq!(Npy::parse(&bytes.into()).unwrap().to_array().unwrap(), array, "{dtype}");
        }
        let text = Npy::from_strings(&["cap", "", "größe"]);
        assert_eq!(Npy::parse(&text.encode().unwrap().into()).unwrap().strings().unwrap(), ["cap", "", "größe"]);
    }

    #[test]
    fn says_what_is_wrong() {
        let check = |result: Result<Npy, NpyError>, expected: &str| {
            let message = result.unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        };
        check(read("'|O'", "False", "(2,)", &[]), "Python objects");
        check(read("[('a', '<i4')]", "False", "(2,)", &[]), "a record");
        check(read("'<c8'", "False", "(2,)", &[]), "'<c8' is not supported");
        check(read("'<i8'", "False", "(2,)", &[0; 15]), "needs 16 bytes, found 15");
        check(read("'<i8'", "False", "(4611686018427387904, 4)", &[]), "too large");
        check(read("'<i8'", "False", "(-1,)", &[]), "bad dimension");
        check(read("'<i8'", "0", "(1,)", &[]), "fortran_order");
        check(Npy::parse(&Bytes::from_static(b"PK\x03\x04")), "magic");
    }

    #[test]
    fn never_panics_on_cut_or_changed_bytes() {
        let bytes = Npy::from_array(&Array::i64([2, 2], vec![1, 2, 3, 4])).unwrap().encode().unwrap();
        for at in 0..bytes.len() {
            let _ = Npy::parse(&bytes[..at].to_vec().into());
            for value in [0, b'\'', b'(', b',', 0xff] {
                let mut changed = bytes.clone();
                changed[at] = value;
                if let Ok(npy) = Npy::parse(&changed.into()) {
                    let _ = (npy.to_array(), npy.strings(), npy.entry(0));
                }
            }
        }
    }
}
