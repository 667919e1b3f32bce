//! Sparse initializers, seen as the dense tensors they stand for.

use bytes::Bytes;
use mbqc_passes::ir::{Lazy, Tensor};

/// Sparse tensors that would be larger than this are refused: a few bytes of a file may promise any size.
const LARGEST: usize = 1 << 34;

/// The dense tensor of a sparse one; its elements are made on demand.
///
/// `indices` hold either positions in the flattened tensor (shape `[n]`) or coordinates (shape `[n, rank]`).
pub(super) fn dense(dims: &[i64], values: Option<Tensor>, indices: Option<Tensor>) -> Result<Tensor, String> {
    let (Some(values), Some(indices)) = (values, indices) else {
        return Err("found a sparse tensor without values or without indices, expected both".to_owned());
    };
    let dims: Vec<usize> = dims
        .iter()
        .map(|&dim| usize::try_from(dim).map_err(|_| format!("found dimension {dim}, expected zero or more")))
        .collect::<Result<_, _>>()?;
    let Some(width) = values.dtype.bits().filter(|bits| bits % 8 == 0).map(|bits| bits as usize / 8) else {
        return Err(format!("found a sparse tensor of {}, expected whole bytes; store it densely", values.dtype));
    };
    let size = dims.iter().try_fold(width, |product, &dim| product.checked_mul(dim));
    let Some(size) = size.filter(|&size| size <= LARGEST) else {
        return Err(format!("found shape {dims:?}, expected at most {LARGEST} bytes when stored densely"));
    };
    let found = indices.to_i64().ok_or_else(|| format!("found indices of {}, expected int64", indices.dtype))?;
    let starts = starts(&found, &indices.dims, &dims, values.len(), width)?;
    let dtype = values.dtype;
    let values = values.load().ok_or("found strings, which cannot be sparse")??;
    let make = move || {
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(size).map_err(|error| format!("{size} bytes for a sparse tensor: {error}"))?;
        bytes.resize(size, 0);
        for (&start, value) in starts.iter().zip(values.chunks_exact(width)) {
            bytes[start..start + width].copy_from_slice(value);
        }
        Ok(Bytes::from(bytes))
    };
    Ok(Tensor::lazy(dtype, dims, Lazy::new(size, make)))
}

/// The byte at which each value starts.
fn starts(found: &[i64], shape: &[usize], dims: &[usize], values: usize, width: usize) -> Result<Vec<usize>, String> {
    let len: usize = dims.iter().product();
    let position = |row: &[i64]| -> Option<usize> {
        if let [flat] = row
            && shape.len() == 1
        {
            return usize::try_from(*flat).ok().filter(|&at| at < len);
        }
        row.iter().zip(dims).try_fold(0, |at, (&index, &dim)| {
            let index = usize::try_from(index).ok().filter(|&index| index < dim)?;
            Some(at * dim + index)
        })
    };
    let columns = match shape {
        [rows] if *rows == values => 1,
        [rows, rank] if *rows == values && *rank == dims.len() && *rank > 0 => *rank,
        _ => {
            let rank = dims.len();
            return Err(format!("found indices of shape {shape:?}, expected [{values}] or [{values}, {rank}]"));
        }
    };
    found
        .chunks_exact(columns)
        .map(|row| position(row).map(|at| at * width).ok_or_else(|| format!("index {row:?} lies outside {dims:?}")))
        .collect()
}
