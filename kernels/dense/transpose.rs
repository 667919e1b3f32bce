//! Weights that lie transposed in the file.

use super::convert::{FloatType, convert};
use crate::error::{Error, check_length};
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
    check_length("the transposed weight", bytes.len(), n * k * float.size())?;
    if rows.end > n {
        return Err(Error::Length { what: "the range of rows", found: rows.end, expected: n });
    }
    check_length("the output", out.len(), rows.len() * k)?;
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

multiversion! {
    /// `tile: [TALL, WIDE]` to columns of `out`, a matrix with `stride` elements per row: `wide` rows of `tall` elements.
    fn transpose_tile(tile: &[f32; WIDE * TALL], wide: usize, tall: usize, out: &mut [f32], stride: usize) {
        for j in 0..wide {
            let row = &mut out[j * stride..j * stride + tall];
            for (i, out) in row.iter_mut().enumerate() {
                *out = tile[i * WIDE + j];
            }
        }
    }
}
