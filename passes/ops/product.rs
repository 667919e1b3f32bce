//! Stand-in for the dense kernels until they arrive; the same names and the same meaning.

use super::carrier::Real;
use mbqc_kernels::Pool;

#[derive(Clone, Copy)]
pub(super) struct Mat<'a, T> {
    data: &'a [T],
    row_stride: usize,
    column_stride: usize,
}

impl<'a, T> Mat<'a, T> {
    pub(super) fn rows(data: &'a [T], columns: usize) -> Mat<'a, T> {
        Mat { data, row_stride: columns, column_stride: 1 }
    }
    pub(super) fn t(self) -> Mat<'a, T> {
        Mat { data: self.data, row_stride: self.column_stride, column_stride: self.row_stride }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Accumulate {
    Replace,
}

#[expect(clippy::too_many_arguments, reason = "the three sizes and three matrices of a product")]
pub(super) fn gemm<T: Real>(
    m: usize,
    n: usize,
    k: usize,
    a: Mat<'_, T>,
    b: Mat<'_, T>,
    c: &mut [T],
    _accumulate: Accumulate,
    _pool: &Pool,
) {
    for i in 0..m {
        for j in 0..n {
            let mut sum = T::ZERO;
            for l in 0..k {
                sum += a.data[i * a.row_stride + l * a.column_stride] * b.data[l * b.row_stride + j * b.column_stride];
            }
            c[i * n + j] = sum;
        }
    }
}
