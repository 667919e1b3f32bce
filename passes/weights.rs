//! Weights of linear layers as rows of output channels, from whatever the file stores.

use std::ops::Range;

use mbqc_kernels::affine::{self, Codes, Rounding, ScaleType};
use mbqc_kernels::dense::convert::{FloatType, to_f32};
use mbqc_kernels::dense::transpose_rows;
use mbqc_kernels::{Pool, Scheme, Spec};

use crate::facts::sites::Weight;
use crate::ir::{DType, Tensor};
use crate::plan::RangeRule;

/// Why a weight could not be read or quantized.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum WeightError {
    /// An element type that is not read.
    #[error("weight `{name}` is of type {dtype}; float, float16, bfloat16 and double can be quantized")]
    Type {
        /// Name of the constant.
        name: String,
        /// Its type.
        dtype: DType,
    },
    /// The arithmetic refused.
    #[error("weight `{name}` [{n}, {k}]: {source}")]
    Kernel {
        /// Name of the constant.
        name: String,
        /// Output channels.
        n: usize,
        /// Input channels.
        k: usize,
        /// What was wrong.
        source: mbqc_kernels::Error,
    },
}

/// What is done to a weight `[n, k]` before it is rounded: columns multiplied, then rows divided, then all multiplied.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scaling {
    /// Factor per input channel, `[k]`.
    pub columns: Option<Vec<f32>>,
    /// Divisor per output channel, `[n]`.
    pub rows: Option<Vec<f32>>,
    /// Factor of everything (Gemm's alpha); 1 when `None`.
    pub all: Option<f32>,
}

impl Scaling {
    fn apply(&self, w: &mut [f32], rows: Range<usize>, k: usize) {
        for (row, values) in rows.zip(w.chunks_mut(k)) {
            if let Some(columns) = &self.columns {
                for (v, s) in values.iter_mut().zip(columns) {
                    *v *= s;
                }
            }
            if let Some(divisors) = &self.rows {
                let divisor = divisors[row];
                for v in values.iter_mut() {
                    *v /= divisor;
                }
            }
            if let Some(factor) = self.all {
                for v in values.iter_mut() {
                    *v *= factor;
                }
            }
        }
    }
}

/// Weights in a block that is quantized at a time, unless that is less than [`LINE`] rows.
const BLOCK: usize = 1 << 18;

/// Output channels whose 16-bit weights fill two cache lines.
const LINE: usize = 64;

/// A weight of known size.
#[derive(Clone, Debug)]
pub struct Matrix {
    /// Where it lies.
    pub weight: Weight,
    /// Output channels.
    pub n: usize,
    /// Input channels.
    pub k: usize,
}

impl Matrix {
    fn kernel<T>(&self, result: Result<T, mbqc_kernels::Error>) -> Result<T, WeightError> {
        result.map_err(|source| WeightError::Kernel { name: self.weight.name.clone(), n: self.n, k: self.k, source })
    }

    /// Rows `[rows, k]` in f32.
    pub fn rows(&self, rows: Range<usize>) -> Result<Vec<f32>, WeightError> {
        let Tensor { dtype, .. } = self.weight.tensor;
        let mut out = vec![0.0; rows.len() * self.k];
        let float = float_type(dtype).ok_or_else(|| WeightError::Type { name: self.weight.name.clone(), dtype })?;
        let bytes = self.weight.tensor.bytes();
        if self.weight.rows_are_outputs {
            let width = self.k * float.size();
            let range = rows.start * width..rows.end * width;
            let slice = bytes.get(range).ok_or(mbqc_kernels::Error::Length {
                what: "the weight",
                found: bytes.len(),
                expected: self.n * width,
            });
            self.kernel(slice.and_then(|slice| to_f32(float, slice, &mut out)))?;
        } else {
            self.kernel(transpose_rows(float, bytes, self.k, self.n, rows, &mut out))?;
        }
        Ok(out)
    }

    /// Codes of the scaled weight.
    pub fn quantize(
        &self,
        scaling: &Scaling,
        spec: Spec,
        rule: RangeRule,
        scale: ScaleType,
        pool: &Pool,
    ) -> Result<Codes, WeightError> {
        let group = spec.group(self.k);
        let groups = self.k.div_ceil(group);
        let mut all = Codes {
            n: self.n,
            k: self.k,
            group,
            bits: spec.format.bits,
            codes: Vec::with_capacity(self.n * self.k),
            scales: Vec::with_capacity(self.n * groups),
            zero_points: Vec::with_capacity(self.n * groups),
        };
        for block in self.quantize_blocks(scaling, spec, rule, scale, pool, |codes| codes) {
            let block = block?;
            all.codes.extend_from_slice(&block.codes);
            all.scales.extend_from_slice(&block.scales);
            all.zero_points.extend_from_slice(&block.zero_points);
        }
        Ok(all)
    }

    /// Codes of the scaled weight, a block of output channels after the other in order. `keep` turns the codes of a block
    /// into what is wanted of them. Blocks are made in parallel, some at a time, so that whoever drops them holds a few
    /// megabytes per thread however large the weight is.
    pub fn quantize_blocks<'a, T: Send + 'a>(
        &'a self,
        scaling: &'a Scaling,
        spec: Spec,
        rule: RangeRule,
        scale: ScaleType,
        pool: &'a Pool,
        keep: impl Fn(Codes) -> T + Sync + 'a,
    ) -> impl Iterator<Item = Result<T, WeightError>> + 'a {
        let bits = spec.format.bits;
        let rounding = Rounding {
            bits,
            group: spec.group(self.k),
            range: match rule {
                RangeRule::MinMax => affine::Range::Reference,
                RangeRule::IncludeZero | RangeRule::Search => affine::Range::IncludeZero,
            },
            scale,
        };
        let quantize = move |w: &[f32], rows| match (spec.format.scheme, rule) {
            // The range is that of the largest magnitude, whatever the rule.
            (Scheme::WeightActivation, _) => affine::quantize_symmetric(w, rows, self.k, bits, scale),
            (Scheme::WeightOnly, RangeRule::Search) => affine::search_range(w, rows, self.k, &rounding),
            (Scheme::WeightOnly, _) => affine::quantize(w, rows, self.k, &rounding),
        };
        // Whole cache lines of a weight that is stored transposed.
        let block = (BLOCK / self.k.max(1)).clamp(LINE, 1024).next_multiple_of(LINE);
        let blocks = self.n.div_ceil(block);
        let batch = pool.threads() * 4;
        (0..blocks).step_by(batch).flat_map(move |first| {
            pool.map(batch.min(blocks - first), |i| {
                let start = (first + i) * block;
                let rows = start..self.n.min(start + block);
                let mut w = self.rows(rows.clone())?;
                scaling.apply(&mut w, rows.clone(), self.k);
                let codes = quantize(&w, rows.len());
                self.kernel(codes.map_err(|error| error.below(rows.start))).map(&keep)
            })
        })
    }

    /// A matrix `[n, k]` in f32 in the orientation in which the file stores the weight.
    pub fn as_stored(&self, w: Vec<f32>) -> Vec<f32> {
        if self.weight.rows_are_outputs {
            return w;
        }
        let mut out = vec![0.0; w.len()];
        for (row, values) in w.chunks(self.k).enumerate() {
            for (column, &v) in values.iter().enumerate() {
                out[column * self.n + row] = v;
            }
        }
        out
    }
}

/// The type as the kernels name it, if it is a float type that they read.
pub fn float_type(dtype: DType) -> Option<FloatType> {
    match dtype {
        DType::F32 => Some(FloatType::F32),
        DType::F16 => Some(FloatType::F16),
        DType::BF16 => Some(FloatType::BF16),
        DType::F64 => Some(FloatType::F64),
        _ => None,
    }
}

/// The scale type that belongs to a graph's activation type.
pub fn scale_type(activation: DType) -> ScaleType {
    match activation {
        DType::F16 => ScaleType::F16,
        DType::BF16 => ScaleType::BF16,
        _ => ScaleType::F32,
    }
}
