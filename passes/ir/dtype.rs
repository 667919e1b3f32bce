//! Element types of tensors, with ONNX's numbering and text names.

/// An element type. The variants are ONNX's `TensorProto.DataType`; a number this list does not know is carried along
/// unchanged in [`DType::Other`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the names are ONNX's own")]
pub enum DType {
    F32,
    U8,
    I8,
    U16,
    I16,
    I32,
    I64,
    String,
    Bool,
    F16,
    F64,
    U32,
    U64,
    C64,
    C128,
    BF16,
    F8E4M3FN,
    F8E4M3FNUZ,
    F8E5M2,
    F8E5M2FNUZ,
    U4,
    I4,
    F4E2M1,
    F8E8M0,
    U2,
    I2,
    Other(i32),
}

/// (type, ONNX number, bits per element or 0 when not fixed, name in the text syntax)
#[rustfmt::skip]
const TABLE: &[(DType, i32, u32, &str)] = &[
    (DType::F32,         1, 32,  "float"),
    (DType::U8,          2, 8,   "uint8"),
    (DType::I8,          3, 8,   "int8"),
    (DType::U16,         4, 16,  "uint16"),
    (DType::I16,         5, 16,  "int16"),
    (DType::I32,         6, 32,  "int32"),
    (DType::I64,         7, 64,  "int64"),
    (DType::String,      8, 0,   "string"),
    (DType::Bool,        9, 8,   "bool"),
    (DType::F16,        10, 16,  "float16"),
    (DType::F64,        11, 64,  "double"),
    (DType::U32,        12, 32,  "uint32"),
    (DType::U64,        13, 64,  "uint64"),
    (DType::C64,        14, 64,  "complex64"),
    (DType::C128,       15, 128, "complex128"),
    (DType::BF16,       16, 16,  "bfloat16"),
    (DType::F8E4M3FN,   17, 8,   "float8e4m3fn"),
    (DType::F8E4M3FNUZ, 18, 8,   "float8e4m3fnuz"),
    (DType::F8E5M2,     19, 8,   "float8e5m2"),
    (DType::F8E5M2FNUZ, 20, 8,   "float8e5m2fnuz"),
    (DType::U4,         21, 4,   "uint4"),
    (DType::I4,         22, 4,   "int4"),
    (DType::F4E2M1,     23, 4,   "float4e2m1"),
    (DType::F8E8M0,     24, 8,   "float8e8m0"),
    (DType::U2,         25, 2,   "uint2"),
    (DType::I2,         26, 2,   "int2"),
];

impl DType {
    /// The type ONNX gives this number.
    pub fn from_onnx(code: i32) -> DType {
        TABLE.iter().find(|row| row.1 == code).map_or(DType::Other(code), |row| row.0)
    }

    /// ONNX's number for the type.
    pub fn onnx(self) -> i32 {
        match self {
            DType::Other(code) => code,
            known => TABLE.iter().find(|row| row.0 == known).map_or(0, |row| row.1),
        }
    }

    /// Bits per element, where that is fixed.
    pub fn bits(self) -> Option<u32> {
        TABLE.iter().find(|row| row.0 == self).map(|row| row.2).filter(|&bits| bits > 0)
    }

    /// The name in ONNX's text syntax, such as `float16`.
    pub fn name(self) -> &'static str {
        TABLE.iter().find(|row| row.0 == self).map_or("undefined", |row| row.3)
    }

    /// The type with this name in ONNX's text syntax.
    pub fn from_name(name: &str) -> Option<DType> {
        TABLE.iter().find(|row| row.3 == name).map(|row| row.0)
    }

    /// A floating-point type that the evaluator carries (16 bits or more).
    pub fn is_float(self) -> bool {
        matches!(self, DType::F32 | DType::F16 | DType::F64 | DType::BF16)
    }

    /// A whole-number type of 8 to 64 bits.
    pub fn is_int(self) -> bool {
        use DType::{I8, I16, I32, I64, U8, U16, U32, U64};
        matches!(self, U8 | I8 | U16 | I16 | I32 | I64 | U32 | U64)
    }

    /// Bytes that `len` elements take when stored raw (sub-byte types packed).
    pub fn bytes_for(self, len: usize) -> Option<usize> {
        self.bits().and_then(|bits| len.checked_mul(bits as usize)).map(|bits| bits.div_ceil(8))
    }
}

impl std::fmt::Display for DType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            DType::Other(code) => write!(f, "type#{code}"),
            known => f.write_str(known.name()),
        }
    }
}
