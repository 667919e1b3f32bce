//! Rows by class: who an element of a value belongs to.

use crate::array::Array;
use crate::facts::modality::Class;
use crate::ops::{Rows, Space};

use super::driver::Error;

/// Class of row `row` of a value whose rows are `rows`. Rows of unknown meaning count as prompt.
///
/// `rows` was traced on one sample; only what holds for every sample is used of it: the space, and (by callers) the number
/// of elements per row. The number of tokens is this sample's.
pub fn class_of(rows: Option<Rows>, row: usize, classes: &[Class]) -> Class {
    match rows {
        Some(Rows { space: Space::Tokens, .. }) => {
            classes.get(row % classes.len().max(1)).copied().unwrap_or(Class::Prompt)
        }
        Some(Rows { space: Space::Vision, .. }) => Class::Vision,
        None => Class::Prompt,
    }
}

/// Per class: sum of |x|, sum of x^2, number of elements.
pub(super) fn sums_by_class(
    array: &Array,
    rows: Option<Rows>,
    classes: &[Class],
) -> Result<[(f64, f64, usize); 3], Error> {
    let data = array.as_f32().map_err(|e| Error::Internal(e.to_string()))?;
    let inner = rows.map_or(array.shape.last().copied().unwrap_or(1), |r| r.inner).max(1);
    let mut sums = [(0.0, 0.0, 0); 3];
    for (row, values) in data.chunks(inner).enumerate() {
        let slot = match class_of(rows, row, classes) {
            Class::Vision => 0,
            Class::Answer => 1,
            Class::Prompt => 2,
            Class::Padding => continue,
        };
        let (mut abs, mut square) = (0.0, 0.0);
        for &v in values {
            abs += f64::from(v.abs());
            square += f64::from(v) * f64::from(v);
        }
        sums[slot].0 += abs;
        sums[slot].1 += square;
        sums[slot].2 += values.len();
    }
    Ok(sums)
}
