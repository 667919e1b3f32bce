//! Constants divided by a scale, in their own type.

use std::sync::Arc;

use mbqc_kernels::dense::convert::to_f32;

use crate::ir::{DType, Lazy, Sink, Tensor};
use crate::weights::float_type;

/// Elements that are divided at a time.
const PIECE: usize = 1 << 16;

/// A constant that is divided along an axis when the writer asks for it, piece by piece.
struct Division {
    tensor: Tensor,
    /// One divisor per place along the axis.
    divisors: Vec<f32>,
    /// Elements from one place along the axis to the next.
    inner: usize,
}

/// Why a constant cannot be divided.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Refused {
    /// It is not of a float type.
    Type,
    /// A quotient is not finite in the constant's type.
    Leaves(f32),
}

/// `tensor / divisors` along `axis`, where each entry has the divisor of its place; in the tensor's own type, rounded to
/// nearest even. Looks at every quotient once now.
pub(super) fn divide(tensor: &Tensor, divisors: Vec<f32>, axis: usize) -> Result<Tensor, Refused> {
    let inner = tensor.dims[axis + 1..].iter().product();
    let division = Division { tensor: tensor.clone(), divisors, inner };
    let mut left = None;
    let looked = division.pieces(&mut |quotients| {
        left = left.or(quotients.iter().copied().find(|v| !v.is_finite()));
        Ok(())
    });
    match (looked, left) {
        (Err(_), _) => Err(Refused::Type),
        (Ok(()), Some(value)) => Err(Refused::Leaves(value)),
        (Ok(()), None) => {
            let (dtype, dims, len) = (tensor.dtype, tensor.dims.clone(), tensor.stored_bytes());
            let division = Arc::new(division);
            Ok(Tensor::lazy(dtype, dims, Lazy::in_pieces(len, move |sink| division.write(sink))))
        }
    }
}

impl Division {
    /// The quotients as they will be stored, in f32, some at a time.
    fn pieces(&self, each: &mut dyn FnMut(&[f32]) -> Result<(), String>) -> Result<(), String> {
        let dtype = self.tensor.dtype;
        let float = float_type(dtype).ok_or_else(|| format!("{dtype} is no float type"))?;
        let bytes = self.tensor.load().ok_or("strings cannot be divided")??;
        let mut values = Vec::new();
        for (piece, bytes) in bytes.chunks(PIECE * float.size()).enumerate() {
            values.clear();
            values.resize(bytes.len() / float.size(), 0.0);
            to_f32(float, bytes, &mut values).map_err(|error| error.to_string())?;
            for (i, v) in values.iter_mut().enumerate() {
                *v /= self.divisors[(piece * PIECE + i) / self.inner % self.divisors.len()];
                *v = match dtype {
                    DType::F16 => half::f16::from_f32(*v).to_f32(),
                    DType::BF16 => half::bf16::from_f32(*v).to_f32(),
                    _ => *v,
                };
            }
            each(&values)?;
        }
        Ok(())
    }

    fn write(&self, sink: &mut Sink<'_>) -> Result<(), String> {
        let dtype = self.tensor.dtype;
        self.pieces(&mut |quotients| {
            let stored = Tensor::floats(dtype, [quotients.len()], quotients);
            sink(stored.ok_or_else(|| format!("{dtype} is no float type"))?.bytes())
        })
    }
}
