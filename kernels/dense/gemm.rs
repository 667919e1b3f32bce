//! Matrix products, by the `gemm` crate underneath.

use super::float::Float;
use crate::pool::Pool;
use std::marker::PhantomData;

/// Rows and columns of a tile of C. The grid of tiles depends on the shape alone, and a tile is computed by one thread with
/// all of k, so that C does not depend on the number of threads.
const TILE_ROWS: usize = 256;
const TILE_COLUMNS: usize = 256;

/// A matrix in a slice, with any (non-negative) strides.
#[derive(Clone, Copy, Debug)]
pub struct Mat<'a, T> {
    data: &'a [T],
    row_stride: usize,
    column_stride: usize,
}

impl<'a, T> Mat<'a, T> {
    /// Row-major with `columns` columns: element `(i, j)` is `data[i * columns + j]`.
    pub fn rows(data: &'a [T], columns: usize) -> Mat<'a, T> {
        Mat::strided(data, columns, 1)
    }

    /// Element `(i, j)` is `data[i * row_stride + j * column_stride]`.
    pub fn strided(data: &'a [T], row_stride: usize, column_stride: usize) -> Mat<'a, T> {
        Mat { data, row_stride, column_stride }
    }

    /// The transposed matrix; nothing is copied.
    pub fn t(self) -> Mat<'a, T> {
        Mat { data: self.data, row_stride: self.column_stride, column_stride: self.row_stride }
    }

    /// Rows from `row` on.
    fn skip_rows(self, row: usize) -> Mat<'a, T> {
        Mat { data: &self.data[row * self.row_stride..], ..self }
    }

    /// Whether elements `(0, 0)` to `(rows - 1, columns - 1)` lie within the slice.
    fn holds(&self, rows: usize, columns: usize) -> bool {
        if rows == 0 || columns == 0 {
            return true;
        }
        let last = (rows - 1).checked_mul(self.row_stride).zip((columns - 1).checked_mul(self.column_stride));
        last.and_then(|(down, right)| down.checked_add(right)).is_some_and(|last| last < self.data.len())
    }
}

/// What happens to the former content of C.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accumulate {
    /// `C = A B`; the former content is not read.
    Replace,
    /// `C += A B`.
    Add,
}

/// `C = A B` or `C += A B` with `a: [m, k]`, `b: [k, n]`, `c: [m, n]` row-major. An empty sum (k = 0) is 0.
///
/// Bit-identical for any number of threads.
///
/// # Panics
///
/// If a slice is too short for its shape, or `c` is not `m * n` long.
#[expect(clippy::too_many_arguments, reason = "the three sizes and three matrices of a product")]
pub fn gemm<T: Float>(
    m: usize,
    n: usize,
    k: usize,
    a: Mat<'_, T>,
    b: Mat<'_, T>,
    c: &mut [T],
    accumulate: Accumulate,
    pool: &Pool,
) {
    assert_eq!(c.len(), m * n, "c is [m, n]");
    assert!(a.holds(m, k), "a is [m, k] with its strides");
    assert!(b.holds(k, n), "b is [k, n] with its strides");
    if m == 0 || n == 0 {
        return;
    }
    if k == 0 {
        if accumulate == Accumulate::Replace {
            c.fill(T::ZERO);
        }
        return;
    }
    let (tiles_down, tiles_across) = (m.div_ceil(TILE_ROWS), n.div_ceil(TILE_COLUMNS));
    let c = Tiles::new(c, n);
    pool.map(tiles_down * tiles_across, |tile| {
        let (i, j) = (tile / tiles_across * TILE_ROWS, tile % tiles_across * TILE_COLUMNS);
        let (rows, columns) = (TILE_ROWS.min(m - i), TILE_COLUMNS.min(n - j));
        let (a, b) = (a.skip_rows(i), b.t().skip_rows(j).t());
        #[expect(unsafe_code, reason = "threads write disjoint tiles of one slice")]
        // SAFETY: tiles of the grid are disjoint, and no tile is handed out twice.
        unsafe {
            gemm_tile(rows, columns, k, a, b, &c, (i, j), accumulate);
        }
    });
}

/// A row-major matrix of which threads write disjoint rectangles.
pub(crate) struct Tiles<'a, T> {
    start: *mut T,
    length: usize,
    columns: usize,
    matrix: PhantomData<&'a mut [T]>,
}

#[expect(unsafe_code, reason = "a raw pointer into a slice that is borrowed mutably for as long as the value lives")]
// SAFETY: the pointer is only used by `gemm_tile`, whose callers write disjoint rectangles.
unsafe impl<T: Send> Sync for Tiles<'_, T> {}

impl<'a, T> Tiles<'a, T> {
    pub(crate) fn new(data: &'a mut [T], columns: usize) -> Tiles<'a, T> {
        Tiles { start: data.as_mut_ptr(), length: data.len(), columns, matrix: PhantomData }
    }
}

/// One product on the calling thread: `a: [m, k]`, `b: [k, n]`, into the rectangle of `c` whose first element is at
/// `(row, column)`.
///
/// # Safety
///
/// No other thread may access that rectangle of `c` meanwhile.
///
/// # Panics
///
/// If a matrix does not hold its shape.
#[expect(unsafe_code, reason = "the gemm crate takes pointers")]
#[expect(clippy::too_many_arguments, reason = "the three sizes and three matrices of a product")]
pub(crate) unsafe fn gemm_tile<T: Float>(
    m: usize,
    n: usize,
    k: usize,
    a: Mat<'_, T>,
    b: Mat<'_, T>,
    c: &Tiles<'_, T>,
    (row, column): (usize, usize),
    accumulate: Accumulate,
) {
    assert!(a.holds(m, k) && b.holds(k, n), "a is [m, k] and b is [k, n]");
    assert!(column + n <= c.columns && (row + m) * c.columns <= c.length, "the rectangle lies in c");
    // Slices are at most isize::MAX bytes long, and a stride beyond the slice is never followed.
    let stride = |stride: usize| isize::try_from(stride).unwrap_or(isize::MAX);
    // SAFETY: the assertions above keep every access within its slice; the caller keeps others out of the rectangle.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c.start.add(row * c.columns + column),
            1,
            stride(c.columns),
            accumulate == Accumulate::Add,
            a.data.as_ptr(),
            stride(a.column_stride),
            stride(a.row_stride),
            b.data.as_ptr(),
            stride(b.column_stride),
            stride(b.row_stride),
            T::ONE,
            T::ONE,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}
