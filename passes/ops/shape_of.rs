//! Shapes as tensors.

use SampleAttr::Int;

use super::layout::{bools, case, ints, uniform};
use super::{Call, Flow, OpDef, OpError, SampleAttr, Vjp};
use crate::array::Array;

/// `Shape` and `Size`.
pub(super) const ROWS: &[OpDef] = &[
    OpDef {
        name: "Shape",
        domain: "",
        about: "The shape as an int64 vector, or the part of it from `start` to `end`",
        eval: shape,
        flow: Flow::Ends,
        vjp: Vjp::Zero,
        samples: &[
            case("all", &[uniform(&[2, 3, 4])], &[], &[]),
            case("part", &[uniform(&[2, 3, 4])], &[("start", Int(-2)), ("end", Int(2))], &[]),
            case("one", &[uniform(&[2, 3, 4])], &[("start", Int(1)), ("end", Int(2))], &[]),
            case("clamped", &[ints(&[2, 3], &[1])], &[("start", Int(-5)), ("end", Int(9))], &[]),
            case("nothing", &[bools(&[2, 3], &[true])], &[("start", Int(2)), ("end", Int(1))], &[]),
            case("scalar", &[uniform(&[])], &[], &[]),
            case("empty", &[uniform(&[0, 3])], &[], &[]),
        ],
    },
    OpDef {
        name: "Size",
        domain: "",
        about: "The number of elements as an int64 scalar",
        eval: size,
        flow: Flow::Ends,
        vjp: Vjp::Zero,
        samples: &[
            case("some", &[uniform(&[2, 3])], &[], &[]),
            case("none", &[ints(&[0, 3], &[])], &[], &[]),
            case("scalar", &[uniform(&[])], &[], &[]),
        ],
    },
];

fn shape(call: &Call<'_>) -> Result<Vec<Array>, OpError> {
    let x = call.input(0)?;
    let rank = x.rank() as i64;
    let bound = |at: i64| (if at < 0 { at.saturating_add(rank) } else { at }).clamp(0, rank) as usize;
    let (start, end) = (bound(call.node.int("start", 0)), bound(call.node.int("end", rank)));
    let part: Vec<i64> = x.shape.get(start..end).unwrap_or(&[]).iter().map(|&size| size as i64).collect();
    Ok(vec![Array::i64([part.len()], part)])
}

fn size(call: &Call<'_>) -> Result<Vec<Array>, OpError> {
    Ok(vec![Array::scalar_i64(call.input(0)?.len() as i64)])
}
