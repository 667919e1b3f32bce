//! Weights that lie transposed in the file.

use super::convert::{FloatType, convert};
use super::float::Float;
use crate::error::{Error, check_length, length};
use std::ops::Range;

/// Columns of the source (output channels) in a tile: a cache line and more of every row that it touches.
const WIDE: usize = 64;
/// Rows of the source (input channels) in a tile. Both tiles together are 32 KiB of f32 at most.
const TALL: usize = 64;

/// Rows `rows` of W out of W^T: reads `bytes: [k, n]` of `float`, writes `out: [rows.len(), k]`.
///
/// # Errors
///
/// If the lengths do not fit, or `rows` is not within `0..n`.
pub fn transpose_rows(
    float: FloatType,
    bytes: &[u8],
    k: usize,
    n: usize,
    rows: Range<usize>,
    out: &mut [f32],
) -> Result<(), Error> {
    check_length("the transposed weight", bytes.len(), length(&[n, k, float.size()]))?;
    if rows.end > n {
        return Err(Error::Length { what: "the range of rows", found: rows.end, expected: n });
    }
    check_length("the output", out.len(), length(&[rows.len(), k]))?;
    let size = float.size();
    let mut tile = [0.0f32; WIDE * TALL];
    for n0 in rows.clone().step_by(WIDE) {
        let wide = WIDE.min(rows.end - n0);
        for k0 in (0..k).step_by(TALL) {
            let tall = TALL.min(k - k0);
            for (i, row) in tile.chunks_mut(WIDE).take(tall).enumerate() {
                let start = ((k0 + i) * n + n0) * size;
                convert(float, &bytes[start..start + wide * size], &mut row[..wide]);
            }
            transpose_tile(&tile, wide, tall, &mut out[(n0 - rows.start) * k + k0..], k);
        }
    }
    Ok(())
}

/// `a: [rows, columns]`, with `stride` elements from row to row, to `out: [columns, rows]`.
pub(super) fn transpose<T: Float>(a: &[T], rows: usize, columns: usize, stride: usize, out: &mut [T]) {
    let mut tile = [T::ZERO; WIDE * TALL];
    for j in (0..columns).step_by(WIDE) {
        let wide = WIDE.min(columns - j);
        for i in (0..rows).step_by(TALL) {
            let tall = TALL.min(rows - i);
            for (row, line) in tile.chunks_mut(WIDE).take(tall).enumerate() {
                line[..wide].copy_from_slice(&a[(i + row) * stride + j..][..wide]);
            }
            transpose_tile(&tile, wide, tall, &mut out[j * rows + i..], rows);
        }
    }
}

/// `tile: [TALL, WIDE]` to columns of `out`, a matrix with `stride` elements per row: `wide` rows of `tall` elements.
///
/// Plain loops on purpose: squares of 4, 8 and 16 transposed in registers were not faster.
fn transpose_tile<T: Float>(tile: &[T; WIDE * TALL], wide: usize, tall: usize, out: &mut [T], stride: usize) {
    for j in 0..wide {
        let row = &mut out[j * stride..j * stride + tall];
        for (i, out) in row.iter_mut().enumerate() {
            *out = tile[i * WIDE + j];
        }
    }
}
