//! Interpolation between grids, one axis after the other.

use std::sync::Arc;

use SampleAttr::{Float, Int, Ints, Str};

use super::layout::{absent, axes_of, case, count, dims, floats, ints, moved_rows, room, taken, uniform};
use super::{Call, Flow, FlowCall, OpDef, OpError, Rows, Sample, SampleAttr, Vjp};
use crate::array::{Array, Buf};
use crate::ir::Node;

/// `Resize`.
pub(super) const ROWS: &[OpDef] = &[OpDef {
    name: "Resize",
    domain: "",
    about: "Another size by nearest, linear or cubic interpolation along each axis",
    eval: resize,
    flow: Flow::Rule(flow),
    vjp: Vjp::Missing,
    samples: &[
        case("nearest, doubled", &[uniform(&[1, 1, 2, 3]), absent(), floats(&[4], &[1.0, 1.0, 2.0, 2.0])], &[], &[]),
        case(
            "nearest by floor",
            &[uniform(&[1, 1, 3, 4]), absent(), absent(), ints(&[4], &[1, 1, 2, 6])],
            &[
                ("mode", Str("nearest")),
                ("nearest_mode", Str("floor")),
                ("coordinate_transformation_mode", Str("asymmetric")),
            ],
            &[],
        ),
        case(
            "nearest by ceil",
            &[uniform(&[1, 1, 3, 3]), absent(), absent(), ints(&[4], &[1, 1, 5, 2])],
            &[("nearest_mode", Str("ceil"))],
            &[],
        ),
        case(
            "nearest, ties up",
            &[uniform(&[1, 1, 4, 4]), absent(), absent(), ints(&[4], &[1, 1, 2, 7])],
            &[("nearest_mode", Str("round_prefer_ceil")), ("coordinate_transformation_mode", Str("align_corners"))],
            &[],
        ),
        case(
            "linear",
            &[uniform(&[1, 2, 3, 3]), absent(), absent(), ints(&[4], &[1, 2, 5, 2])],
            &[("mode", Str("linear"))],
            &[],
        ),
        case(
            "linear by corners",
            &[uniform(&[1, 1, 3, 2]), absent(), absent(), ints(&[4], &[1, 1, 5, 4])],
            &[("mode", Str("linear")), ("coordinate_transformation_mode", Str("align_corners"))],
            &[],
        ),
        case(
            "linear as pytorch",
            &[uniform(&[1, 1, 4, 4]), absent(), floats(&[4], &[1.0, 1.0, 0.5, 0.3])],
            &[("mode", Str("linear")), ("coordinate_transformation_mode", Str("pytorch_half_pixel"))],
            &[],
        ),
        case(
            "cubic positions",
            &[uniform(&[1, 2, 4, 4]), absent(), absent(), ints(&[4], &[1, 2, 6, 5])],
            &[
                ("mode", Str("cubic")),
                ("coordinate_transformation_mode", Str("pytorch_half_pixel")),
                ("cubic_coeff_a", Float(-0.75)),
                ("nearest_mode", Str("floor")),
            ],
            &[],
        ),
        case(
            "cubic by scales",
            &[uniform(&[1, 1, 4, 5]), absent(), floats(&[4], &[1.0, 1.0, 1.6, 0.7])],
            &[("mode", Str("cubic")), ("cubic_coeff_a", Float(-0.5))],
            &[],
        ),
        case(
            "cubic, inside only",
            &[uniform(&[1, 1, 4, 4]), absent(), floats(&[4], &[1.0, 1.0, 2.0, 1.5])],
            &[
                ("mode", Str("cubic")),
                ("exclude_outside", Int(1)),
                ("coordinate_transformation_mode", Str("asymmetric")),
            ],
            &[],
        ),
        Sample {
            opset: 18,
            ..case(
                "axes",
                &[uniform(&[1, 2, 3, 3]), absent(), absent(), ints(&[2], &[4, 5])],
                &[("mode", Str("linear")), ("axes", Ints(&[2, 3]))],
                &[],
            )
        },
        Sample {
            opset: 11,
            ..case(
                "opset 11",
                &[uniform(&[1, 1, 3, 3]), floats(&[0], &[]), floats(&[0], &[]), ints(&[4], &[1, 1, 6, 6])],
                &[("mode", Str("cubic")), ("coordinate_transformation_mode", Str("half_pixel"))],
                &[],
            )
        },
        Sample {
            opset: 10,
            ..case("opset 10", &[uniform(&[1, 1, 2, 3]), floats(&[4], &[1.0, 1.0, 2.0, 1.5])], &[], &[])
        },
    ],
}];

/// One axis: old and new size, and new over old as the coordinates see it.
#[derive(Clone, Copy)]
struct Axis {
    old: usize,
    new: usize,
    scale: f32,
}

/// The axes with their new sizes; scales and sizes are the last two inputs, or scales the only one (operator set 10).
fn axes(call: &Call<'_>, shape: &[usize]) -> Result<Vec<Axis>, OpError> {
    let given = |slot: usize| call.optional(slot).filter(|x| !x.is_empty());
    let named = match call.node.ints("axes") {
        Some(axes) => axes_of(axes, shape.len())?,
        None => (0..shape.len()).collect(),
    };
    let (scales, sizes) = if call.opset < 11 { (given(1), None) } else { (given(2), given(3)) };
    let misfit =
        |found: usize| OpError::Shape(format!("{found} sizes or scales for {} axes of shape {shape:?}", named.len()));
    let mut axes: Vec<Axis> = shape.iter().map(|&size| Axis { old: size, new: size, scale: 1.0 }).collect();
    match (scales, sizes) {
        (_, Some(sizes)) => {
            let sizes = dims(&sizes.to_i64s()?)?;
            if sizes.len() != named.len() {
                return Err(misfit(sizes.len()));
            }
            for (&axis, &new) in named.iter().zip(&sizes) {
                let old = axes[axis].old;
                axes[axis] = Axis { old, new, scale: new as f32 / old.max(1) as f32 };
            }
        }
        (Some(scales), None) => {
            let scales = scales.to_f64s();
            if scales.len() != named.len() {
                return Err(misfit(scales.len()));
            }
            for (&axis, &scale) in named.iter().zip(&scales) {
                if !(scale.is_finite() && scale > 0.0) {
                    return Err(OpError::Shape(format!("scales {scales:?} of Resize must be positive")));
                }
                let (old, scale) = (axes[axis].old, scale as f32);
                axes[axis] = Axis { old, new: (old as f32 * scale).floor() as usize, scale };
            }
        }
        (None, None) => return Err(OpError::MissingInput(3)),
    }
    if let Some(axis) = axes.iter().find(|axis| axis.old == 0 && axis.new > 0) {
        return Err(OpError::Shape(format!("shape {shape:?} has nothing to make {} elements of", axis.new)));
    }
    count(&axes.iter().map(|axis| axis.new).collect::<Vec<_>>())?;
    Ok(axes)
}

/// How a place of the new grid is found in the old one. In single precision, as other runtimes do: on ties the choice
/// of a neighbour depends on the rounding.
fn coordinates(node: &Node, opset: i64) -> Result<fn(Axis, f32) -> f32, OpError> {
    let default = if opset < 11 { "asymmetric" } else { "half_pixel" };
    let half_pixel = |axis: Axis, x: f32| (x + 0.5) / axis.scale - 0.5;
    Ok(match node.string("coordinate_transformation_mode").unwrap_or(default) {
        "half_pixel" => half_pixel,
        "asymmetric" => |axis, x| x / axis.scale,
        "pytorch_half_pixel" => |axis, x| if axis.new > 1 { (x + 0.5) / axis.scale - 0.5 } else { 0.0 },
        "align_corners" => |axis, x| if axis.new > 1 { x * (axis.old - 1) as f32 / (axis.new - 1) as f32 } else { 0.0 },
        "half_pixel_symmetric" => |axis, x| {
            let adjustment = axis.new as f32 / (axis.scale * axis.old as f32);
            let offset = axis.old as f32 / 2.0 * (1.0 - adjustment);
            offset + (x + 0.5) / axis.scale - 0.5
        },
        mode => {
            return Err(OpError::Unsupported(format!("coordinate_transformation_mode `{mode}` of Resize")));
        }
    })
}

fn resize(call: &Call<'_>) -> Result<Vec<Array>, OpError> {
    let x = call.input(0)?;
    let node = call.node;
    if node.int("antialias", 0) != 0 {
        return Err(OpError::Unsupported("antialias of Resize; expected 0".to_owned()));
    }
    if let Some(policy) = node.string("keep_aspect_ratio_policy").filter(|&policy| policy != "stretch") {
        return Err(OpError::Unsupported(format!("keep_aspect_ratio_policy `{policy}` of Resize; expected stretch")));
    }
    let axes = axes(call, &x.shape)?;
    let from = coordinates(node, call.opset)?;
    let place = |axis: Axis, to: usize| if axis.scale == 1.0 { to as f32 } else { from(axis, to as f32) };
    let changed = axes.iter().enumerate().filter(|(_, axis)| axis.new != axis.old || axis.scale != 1.0);
    let mut out = x.clone();
    match node.string("mode").unwrap_or("nearest") {
        "nearest" => {
            let nearest = nearest(node, call.opset)?;
            for (i, &axis) in changed {
                let last = axis.old as f32 - 1.0;
                let indices: Vec<usize> =
                    (0..axis.new).map(|to| nearest(axis, place(axis, to)).clamp(0.0, last) as usize).collect();
                out = taken(&out, i, &indices)?;
            }
        }
        "linear" => {
            for (i, &axis) in changed {
                let taps: Vec<Vec<Tap>> = (0..axis.new).map(|to| linear(axis, place(axis, to))).collect();
                out = mixed(&out, i, &taps)?;
            }
        }
        "cubic" => {
            let a = f64::from(node.float("cubic_coeff_a", -0.75));
            let inside_only = node.int("exclude_outside", 0) != 0;
            for (i, &axis) in changed {
                let taps: Vec<Vec<Tap>> =
                    (0..axis.new).map(|to| cubic(axis, place(axis, to), a, inside_only)).collect();
                out = mixed(&out, i, &taps)?;
            }
        }
        mode => return Err(OpError::Unsupported(format!("mode `{mode}` of Resize"))),
    }
    Ok(vec![out])
}

fn nearest(node: &Node, opset: i64) -> Result<fn(Axis, f32) -> f32, OpError> {
    if opset < 11 {
        return Ok(|axis, x| if axis.scale < 1.0 { x.ceil() } else { x.floor() });
    }
    Ok(match node.string("nearest_mode").unwrap_or("round_prefer_floor") {
        "round_prefer_floor" => |_, x| (x - 0.5).ceil(),
        "round_prefer_ceil" => |_, x| (x + 0.5).floor(),
        "floor" => |_, x| x.floor(),
        "ceil" => |_, x| x.ceil(),
        mode => return Err(OpError::Unsupported(format!("nearest_mode `{mode}` of Resize"))),
    })
}

/// An element of the old grid and its weight.
type Tap = (usize, f64);

fn linear(axis: Axis, x: f32) -> Vec<Tap> {
    let x = x.clamp(0.0, axis.old as f32 - 1.0);
    let low = x.floor() as usize;
    let part = f64::from(x - x.floor());
    vec![(low, 1.0 - part), ((low + 1).min(axis.old - 1), part)]
}

/// Cubic convolution (Keys 1981) with the coefficient `a`; beyond the border the border element is repeated, or left
/// out and the other weights scaled up.
fn cubic(axis: Axis, x: f32, a: f64, inside_only: bool) -> Vec<Tap> {
    let low = x.floor();
    let t = f64::from(x - low);
    let near = |t: f64| ((a + 2.0) * t - (a + 3.0)) * t * t + 1.0;
    let far = |t: f64| ((a * t - 5.0 * a) * t + 8.0 * a) * t - 4.0 * a;
    let last = axis.old as i64 - 1;
    let taps = (low as i64 - 1..).zip([far(t + 1.0), near(t), near(1.0 - t), far(2.0 - t)]);
    let taps: Vec<(i64, f64)> = taps.filter(|&(at, _)| !inside_only || (0..=last).contains(&at)).collect();
    let total: f64 = if inside_only { taps.iter().map(|tap| tap.1).sum() } else { 1.0 };
    taps.into_iter().map(|(at, weight)| (at.clamp(0, last) as usize, weight / total)).collect()
}

/// Every new place along an axis is a weighted sum of old ones.
fn mixed(x: &Array, axis: usize, taps: &[Vec<Tap>]) -> Result<Array, OpError> {
    let mut shape = x.shape.clone();
    shape[axis] = taps.len();
    let total = count(&shape)?;
    let inner: usize = x.shape[axis + 1..].iter().product();
    let block = x.shape[axis] * inner;
    let outer: usize = x.shape[..axis].iter().product();
    let sum = |at: &dyn Fn(usize) -> f64| -> Result<Vec<f64>, OpError> {
        let mut out = room(total)?;
        for start in (0..outer).map(|i| i * block) {
            for taps in taps {
                out.extend((0..inner).map(|inside| {
                    taps.iter().map(|&(from, weight)| weight * at(start + from * inner + inside)).sum::<f64>()
                }));
            }
        }
        Ok(out)
    };
    let buf = match &x.buf {
        Buf::F32(v) => Buf::F32(Arc::new(sum(&|at| f64::from(v[at]))?.into_iter().map(|v| v as f32).collect())),
        Buf::F64(v) => Buf::F64(Arc::new(sum(&|at| v[at])?)),
        Buf::I64(_) | Buf::Bool(_) | Buf::Bytes(_) => {
            return Err(OpError::Unsupported(format!("interpolation between elements of type {}", x.dtype)));
        }
    };
    Ok(Array { dtype: x.dtype, shape, buf })
}

/// Axes that keep their size keep their rows.
fn flow(call: &FlowCall<'_>) -> Vec<Option<Rows>> {
    vec![moved_rows(call, 0, 0, Some)]
}
