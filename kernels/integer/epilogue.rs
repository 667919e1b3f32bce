//! What is done to a product before it is stored.

use crate::dense::elementary::sigmoid_f32;
use crate::error::{Error, check_length, length};
use std::marker::PhantomData;
use std::slice;

/// What is done to `v = W x`: `y = v + bias + residual`, or with a gate `y = silu(v_gate) * v_up + residual`, where the bias
/// has been added to v.
#[derive(Clone, Copy, Debug, Default)]
pub struct Epilogue<'a> {
    /// `[n]`.
    pub bias: Option<&'a [f32]>,
    /// The weight is two, one above the other, `[gate; up]` with n/2 rows each, and there are n/2 outputs. `silu(v)` is
    /// `v / (1 + exp(-v))`, as `v` times [`sigmoid`](crate::dense::sigmoid) in f32.
    pub gated: bool,
    /// `[rows, outputs]`, added last.
    pub residual: Option<&'a [f32]>,
}

impl<'a> Epilogue<'a> {
    /// A bias and nothing else.
    pub fn bias(bias: Option<&'a [f32]>) -> Epilogue<'a> {
        Epilogue { bias, ..Epilogue::default() }
    }

    /// The columns of y for a weight of `n` output channels: `n`, or half of it for a gate.
    ///
    /// # Errors
    ///
    /// If bias, residual or y are not as long as they must be, or a gated weight has an odd number of channels.
    pub fn outputs(&self, rows: usize, n: usize, y: usize) -> Result<usize, Error> {
        let outputs = if self.gated { n / 2 } else { n };
        if self.gated {
            check_length("the gated weight (output channels)", n, 2 * outputs)?;
        }
        self.bias.map_or(Ok(()), |bias| check_length("the bias", bias.len(), n))?;
        self.residual.map_or(Ok(()), |x| check_length("the residual", x.len(), length(&[rows, outputs])))?;
        check_length("y", y, length(&[rows, outputs]))?;
        Ok(outputs)
    }

    /// Applies it to a whole product `v: [rows, n]`, into `y: [rows, outputs]`.
    ///
    /// # Errors
    ///
    /// As [`Epilogue::outputs`].
    pub fn apply(&self, v: &[f32], rows: usize, n: usize, y: &mut [f32]) -> Result<(), Error> {
        check_length("the product", v.len(), length(&[rows, n]))?;
        let outputs = self.outputs(rows, n, y.len())?;
        for (row, (v, y)) in v.chunks(n.max(1)).zip(y.chunks_mut(outputs.max(1))).enumerate() {
            for (j, y) in y.iter_mut().enumerate() {
                let up = if self.gated { v[outputs + j] } else { 0.0 };
                *y = self.finish(row, j, v[j], up, outputs);
            }
        }
        Ok(())
    }

    /// The output at `(row, j)` from `v[j]` and, for a gate, `v[j + outputs]`.
    #[inline(always)]
    fn finish(&self, row: usize, j: usize, v: f32, up: f32, outputs: usize) -> f32 {
        let biased = |v: f32, channel: usize| self.bias.map_or(v, |bias| v + bias[channel]);
        let v = biased(v, j);
        let v = if self.gated { v * sigmoid_f32(v) * biased(up, outputs + j) } else { v };
        self.residual.map_or(v, |residual| v + residual[row * outputs + j])
    }
}

/// The output of a product, of which threads write disjoint columns.
pub(crate) struct Output<'a> {
    start: *mut f32,
    rows: usize,
    columns: usize,
    epilogue: Epilogue<'a>,
    slice: PhantomData<&'a mut [f32]>,
}

#[expect(unsafe_code, reason = "a raw pointer into a slice that is borrowed mutably for as long as the value lives")]
// SAFETY: the pointer is only used by `set_columns`, whose callers write disjoint columns.
unsafe impl Sync for Output<'_> {}

impl<'a> Output<'a> {
    /// `y: [rows, outputs]` for a weight of `n` channels, whose lengths [`Epilogue::outputs`] has checked.
    pub(crate) fn new(y: &'a mut [f32], rows: usize, n: usize, epilogue: Epilogue<'a>) -> Output<'a> {
        let columns = if epilogue.gated { n / 2 } else { n };
        assert_eq!(y.len(), rows * columns, "y was checked");
        Output { start: y.as_mut_ptr(), rows, columns, epilogue, slice: PhantomData }
    }

    /// The channel of the weight that column `j` needs beside channel `j`.
    pub(crate) fn partner(&self, j: usize) -> Option<usize> {
        self.epilogue.gated.then_some(j + self.columns)
    }

    /// Stores outputs of a row from column `first` on, given the products with those channels and with their partners.
    ///
    /// # Safety
    ///
    /// No other thread accesses these columns meanwhile.
    ///
    /// # Panics
    ///
    /// If there are no such elements, or not as many partners.
    #[inline(always)]
    #[expect(unsafe_code, reason = "threads write disjoint columns of one slice")]
    pub(crate) unsafe fn set_columns(&self, row: usize, first: usize, own: &[f32], up: &[f32]) {
        assert!(row < self.rows && first <= self.columns && own.len() <= self.columns - first, "elements of y");
        // SAFETY: the elements lie in the slice; the caller keeps others away from these columns.
        let y = unsafe { slice::from_raw_parts_mut(self.start.add(row * self.columns + first), own.len()) };
        let Epilogue { bias, gated, residual } = self.epilogue;
        if gated {
            assert_eq!(own.len(), up.len(), "a partner for each");
            for (j, (y, (&own, &up))) in y.iter_mut().zip(own.iter().zip(up)).enumerate() {
                *y = self.epilogue.finish(row, first + j, own, up, self.columns);
            }
            return;
        }
        // The same as `finish`, a step for all at a time.
        y.copy_from_slice(own);
        if let Some(bias) = bias {
            for (y, &bias) in y.iter_mut().zip(&bias[first..]) {
                *y += bias;
            }
        }
        if let Some(residual) = residual {
            for (y, &residual) in y.iter_mut().zip(&residual[row * self.columns + first..]) {
                *y += residual;
            }
        }
    }
}
