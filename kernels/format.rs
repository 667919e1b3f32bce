//! Weight formats: what is stored, which op carries it, what multiplies by it.

use crate::affine::Codes;
use crate::cuda::TileCodes;
use crate::dense::convert::{self, FloatType};
use crate::error::{Error, check_length, length};
use crate::integer::Epilogue;
use crate::pool::Pool;
use crate::tokens::Input;
use crate::{w2, w3, w4, w4a8, w8, w8a8};
use half::f16;
use half::slice::HalfFloatSliceExt;
use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

/// Every weight format: weights alone by bits, then weights and activations. A new one is a folder with a `static` value and
/// a line here.
pub const FORMATS: &[&Format] = &[&w2::FORMAT, &w3::FORMAT, &w4::FORMAT, &w8::FORMAT, &w4a8::FORMAT, &w8a8::FORMAT];

/// What a format quantizes, and what has a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// Weights alone (W3A16 and the like): affine codes with a scale and a zero point per group along k. Activations are
    /// floats; a kernel rounds them as far as the [`Accuracy`] that it is asked for allows.
    WeightOnly,
    /// Weights and activations (W8A8, W4A8): symmetric codes with a scale per output channel and no zero point, `group` is
    /// k. That activations are rounded to 8 bits, with a scale per token row, is part of what the product means:
    ///
    /// ```text
    /// t = max(max|x|, 1e-5) / 127 of a row,   p = round(x / t), half to even,   y = s_n t sum_k v p
    /// ```
    WeightActivation,
}

/// The shapes of what is stored for a weight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shapes {
    /// Of the codes, in bytes: `[n, ceil(k / group), group * bits / 8]`, or `[n, ceil(k * bits / 8)]`.
    pub b: Vec<usize>,
    /// Of the scales: `[n, ceil(k / group)]`, or `[n]`.
    pub scales: Vec<usize>,
    /// Of the zero points, in bytes: `[n, ceil(ceil(k / group) * bits / 8)]`; `None` if the format has none.
    pub zero_points: Option<Vec<usize>>,
}

/// What is stored for an output channel: how many scales, the bytes of a group's codes, and the bytes of all its zero points.
struct Row {
    groups: usize,
    block: usize,
    zeros: usize,
}

/// A stored layout with its arithmetic, as a value.
pub struct Format {
    /// The name without group size: `w3`.
    pub name: &'static str,
    /// What it does, in a sentence.
    pub about: &'static str,
    /// What is quantized.
    pub scheme: Scheme,
    /// Bits per code.
    pub bits: u32,
    /// Bits per zero point as stored, at least `bits`; 0 if there are none.
    pub zero_point_bits: u32,
    /// Codes to stored bytes. Panics if the codes have other bits, lengths that do not fit, or a group size or zero points
    /// that the format cannot store: all of that is the caller's mistake.
    pub pack: fn(&Codes) -> Packed,
    /// Stored bytes to codes. Answers any bytes with codes or an error.
    pub unpack: fn(&Stored<'_>) -> Result<Codes, Error>,
    /// The op that carries it.
    pub schema: Schema,
    /// What multiplies by it; the first is the reference.
    pub kernels: &'static [Kernel],
    /// How its codes lie for CUDA kernels; `None` if there are none.
    pub tiles: Option<&'static TileCodes>,
}

impl Format {
    /// The format that an ONNX op carries; `bits` is what its attribute of that name says, 4 where there is none.
    pub fn carried_by(domain: &str, op: &str, bits: i64) -> Option<&'static Format> {
        let carries = |schema: &Schema| schema.domain == domain && schema.op == op;
        let of_bits = |schema: &Schema| schema.bits.is_none_or(|own| own == bits);
        FORMATS.iter().copied().find(|format| carries(&format.schema) && of_bits(&format.schema))
    }

    /// The shapes of a weight of `n` output channels and `k` input channels in groups of `group` (which a format with a scale
    /// per output channel does not look at). Sizes that overflow are `usize::MAX`.
    pub fn shapes(&self, n: usize, k: usize, group: usize) -> Shapes {
        let Row { groups, block, zeros } = self.row(k, group);
        match self.scheme {
            Scheme::WeightOnly => {
                Shapes { b: vec![n, groups, block], scales: vec![n, groups], zero_points: Some(vec![n, zeros]) }
            }
            Scheme::WeightActivation => Shapes { b: vec![n, block], scales: vec![n], zero_points: None },
        }
    }

    fn row(&self, k: usize, group: usize) -> Row {
        let bits = self.bits as usize;
        match self.scheme {
            Scheme::WeightOnly => {
                let groups = k.div_ceil(group.max(1));
                let zeros = length(&[groups, self.zero_point_bits as usize]).div_ceil(8);
                Row { groups, block: length(&[group / 8, bits]), zeros }
            }
            Scheme::WeightActivation => Row { groups: 1, block: k.div_ceil(8 / bits), zeros: 0 },
        }
    }

    /// `x W^T` and what follows it, `[rows, outputs]`, by the fastest kernel that is accurate enough.
    ///
    /// # Errors
    ///
    /// If lengths do not fit one another, or the stored bytes are none of this format.
    pub fn product(&self, product: &Product<'_>, accuracy: Accuracy, pool: &Pool) -> Result<Vec<f32>, Error> {
        // Sizes come from files: nothing is allocated before the bytes that they promise were seen.
        let Product { x, rows, w, epilogue } = product;
        w.check(self)?;
        x.check(*rows, w.k)?;
        let outputs = if epilogue.gated { w.n / 2 } else { w.n };
        let size = length(&[*rows, outputs]);
        let mut y = Vec::new();
        // Without input channels nothing bounds the others.
        y.try_reserve_exact(size).map_err(|_| Error::Length { what: "y", found: 0, expected: size })?;
        y.resize(size, 0.0);
        (self.kernel(accuracy, w.k, w.group).run)(product, &mut y, pool)?;
        Ok(y)
    }

    /// The fastest kernel for weights of that shape that is at least so accurate: the last such of [`Format::kernels`].
    pub fn kernel(&self, accuracy: Accuracy, k: usize, group: usize) -> &'static Kernel {
        let serves = |kernel: &&Kernel| kernel.accuracy <= accuracy && (kernel.fits)(k, group);
        self.kernels.iter().rfind(serves).expect("the reference is accurate and fits any weight")
    }
}

impl fmt::Debug for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Format").field("name", &self.name).field("bits", &self.bits).finish_non_exhaustive()
    }
}

/// The ONNX op that carries a format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schema {
    /// Its domain.
    pub domain: &'static str,
    /// Its type, unique across domains.
    pub op: &'static str,
    /// The version of the domain that has it.
    pub version: i64,
    /// Its inputs in order. Those with a `?` may be left out.
    pub inputs: &'static [&'static str],
    /// The value of the attribute `bits`; `None` if the op has no such attribute because its name says it. The attributes
    /// `K` and `N` are common to all, `block_size` and `accuracy_level` to [`Scheme::WeightOnly`].
    pub bits: Option<i64>,
    /// `accuracy_level` unless the user asks otherwise: 1 is the closest arithmetic, 4 allows int8 activations.
    pub accuracy_level: i64,
}

impl Schema {
    /// The place of an input among the op's inputs, by its name without `?`.
    pub fn slot(&self, input: &str) -> Option<usize> {
        self.inputs.iter().position(|name| name.trim_end_matches('?') == input)
    }
}

/// The bytes that are stored.
#[derive(Clone, Debug, PartialEq)]
pub struct Packed {
    /// The shapes of the parts.
    pub shapes: Shapes,
    /// The codes.
    pub b: Vec<u8>,
    /// The zero points, if the format has any.
    pub zero_points: Vec<u8>,
    /// The scales, already rounded to the type that they will be stored in.
    pub scales: Vec<f32>,
}

impl Packed {
    /// What a kernel reads, for a weight of `k` input channels and a group size of `group`.
    pub fn stored(&self, k: usize, group: usize) -> Stored<'_> {
        Stored {
            n: self.shapes.b[0],
            k,
            group,
            b: &self.b,
            scales: Scales::F32(&self.scales),
            zero_points: self.shapes.zero_points.as_ref().map(|_| &self.zero_points[..]),
        }
    }
}

/// Scales as they lie in memory or in a file.
#[derive(Clone, Copy, Debug)]
pub enum Scales<'a> {
    /// In memory.
    F32(&'a [f32]),
    /// In memory.
    F16(&'a [f16]),
    /// Little-endian bytes of the type, at any address.
    Bytes(FloatType, &'a [u8]),
}

impl<'a> Scales<'a> {
    /// The number of scales.
    pub fn len(&self) -> usize {
        match self {
            Scales::F32(scales) => scales.len(),
            Scales::F16(scales) => scales.len(),
            Scales::Bytes(float, bytes) => bytes.len() / float.size(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All of them, as f32.
    pub fn to_f32(&self) -> Vec<f32> {
        match self {
            Scales::F32(scales) => scales.to_vec(),
            Scales::F16(scales) => scales.to_f32_vec(),
            Scales::Bytes(float, bytes) => {
                let mut scales = vec![0.0; self.len()];
                convert::convert(*float, bytes, &mut scales);
                scales
            }
        }
    }

    /// Little-endian bytes of 16 bits or 32, and of which type.
    pub(crate) fn to_bytes(self) -> (FloatType, Cow<'a, [u8]>) {
        let singles = |scales: &[f32]| scales.iter().flat_map(|scale| scale.to_le_bytes()).collect();
        match self {
            Scales::F32(scales) => (FloatType::F32, singles(scales)),
            Scales::F16(scales) => (FloatType::F16, scales.iter().flat_map(|scale| scale.to_le_bytes()).collect()),
            Scales::Bytes(FloatType::F64, _) => (FloatType::F32, singles(&self.to_f32())),
            Scales::Bytes(float, bytes) => (float, Cow::Borrowed(bytes)),
        }
    }

    fn slice(&self, places: Range<usize>) -> Scales<'a> {
        match self {
            Scales::F32(scales) => Scales::F32(&scales[places]),
            Scales::F16(scales) => Scales::F16(&scales[places]),
            Scales::Bytes(float, bytes) => {
                Scales::Bytes(*float, &bytes[places.start * float.size()..places.end * float.size()])
            }
        }
    }
}

/// A weight as it lies in a file or in memory: what a kernel reads. Layouts are those of [`Packed`].
#[derive(Clone, Copy, Debug)]
pub struct Stored<'a> {
    /// Output channels.
    pub n: usize,
    /// Input channels.
    pub k: usize,
    /// Weights per group along k; k if a scale belongs to an output channel.
    pub group: usize,
    /// The codes.
    pub b: &'a [u8],
    /// The scales.
    pub scales: Scales<'a>,
    /// The zero points; without them every zero point is `2^(bits-1)`.
    pub zero_points: Option<&'a [u8]>,
}

impl<'a> Stored<'a> {
    /// The same weight, output channels `rows` alone. Rows lie one after another in all three parts, so nothing is copied.
    ///
    /// # Panics
    ///
    /// If `rows` is not within `0..n`, or the parts were not checked and are too short.
    pub fn rows(&self, rows: Range<usize>) -> Stored<'a> {
        assert!(rows.start <= rows.end && rows.end <= self.n, "rows {rows:?} of {}", self.n);
        let part = |length: usize| {
            let row = length / self.n.max(1);
            rows.start * row..rows.end * row
        };
        Stored {
            n: rows.len(),
            b: &self.b[part(self.b.len())],
            scales: self.scales.slice(part(self.scales.len())),
            zero_points: self.zero_points.map(|zeros| &zeros[part(zeros.len())]),
            ..*self
        }
    }

    /// `Ok` if the parts are as long as the shape and the format say.
    ///
    /// # Errors
    ///
    /// If they are not, or the format has no such groups. Zero points are looked at when they are read.
    pub fn check(&self, format: &Format) -> Result<(), Error> {
        match format.scheme {
            Scheme::WeightOnly if self.group == 0 || !self.group.is_multiple_of(8) => {
                return Err(Error::Group { group: self.group });
            }
            Scheme::WeightOnly => {}
            Scheme::WeightActivation => check_length("the group (a whole row)", self.group, self.k.max(1))?,
        }
        // Lengths alone: every product comes by here.
        let row = format.row(self.k, self.group);
        check_length("the packed codes", self.b.len(), length(&[self.n, row.groups, row.block]))?;
        check_length("the scales", self.scales.len(), length(&[self.n, row.groups]))?;
        self.zero_points
            .map_or(Ok(()), |zeros| check_length("the packed zero points", zeros.len(), length(&[self.n, row.zeros])))
    }
}

/// What a kernel computes: `y = x W^T`, and what its epilogue makes of it.
#[derive(Clone, Copy, Debug)]
pub struct Product<'a> {
    /// `[rows, k]`.
    pub x: Input<'a>,
    /// Token rows.
    pub rows: usize,
    /// `[n, k]`.
    pub w: Stored<'a>,
    /// Bias and what else is done before the output is stored.
    pub epilogue: Epilogue<'a>,
}

/// How closely a kernel computes what a format means; the first is the closest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Accuracy {
    /// f32 arithmetic.
    Single,
    /// Activations of 16 bits in groups along k: outputs to 5e-5 of their size (root mean squares; twice that where all
    /// magnitudes of a group are equal but one, so that they are rounded alike).
    Int16,
    /// Activations of 8 bits in groups along k: outputs to about 1e-2 of their size.
    Int8,
}

impl Accuracy {
    /// What `accuracy_level` of `MatMulNBits` and of our ops allows: 4 is int8 activations; every other level, 0 (which says
    /// nothing) included, is the closest that is fast, 16 bits.
    pub fn of_level(level: i64) -> Accuracy {
        if level == 4 { Accuracy::Int8 } else { Accuracy::Int16 }
    }
}

/// The signature of a kernel: the product, `y: [rows, outputs]` and threads. `outputs` is n, or n/2 with a gate.
///
/// For weights alone its meaning is `y = sum_g s_g * (sum_k q * x - z_g * sum_k x)`, accumulated in f32, whatever the order;
/// for weights and activations see [`Scheme::WeightActivation`].
pub type Run = for<'a> fn(&Product<'a>, &mut [f32], &Pool) -> Result<(), Error>;

/// A function that multiplies by a format.
pub struct Kernel {
    /// Its name, unique within the format.
    pub name: &'static str,
    /// How it works and when it is the right one.
    pub about: &'static str,
    /// How closely it computes what the format means.
    pub accuracy: Accuracy,
    /// Whether it is made for weights of that many input channels and that group size.
    pub fits: fn(k: usize, group: usize) -> bool,
    /// The product.
    pub run: Run,
}

impl fmt::Debug for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kernel").field("name", &self.name).finish_non_exhaustive()
    }
}
