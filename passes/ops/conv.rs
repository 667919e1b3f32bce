//! Convolutions, as matrix products over patches.

use super::carrier::{Outputs, Real, by_precision, floats};
use super::product::{Accumulate, Mat, gemm};
use super::rules::{Gradients, gradient, only_first, wanted};
use super::{Call, Flow, Input, OpDef, OpError, Sample, SampleAttr, Vjp, VjpCall, broadcast};
use crate::ir::{Attr, Node};
use crate::rewrite::tape::{GRAD_DOMAIN, Tape};

/// The operators of this family.
pub(super) const ROWS: &[OpDef] = &[CONV, CONV_GRAD];

const CONV: OpDef = OpDef {
    name: "Conv",
    domain: "",
    about: "Convolution over 1, 2 or 3 axes, with groups, strides, padding and dilation.",
    eval: |c| by_precision(c, conv::<f32>, conv::<f64>),
    flow: Flow::Ends,
    vjp: Vjp::Rule(d_conv),
    samples: &[
        Sample::new("patches", &[Input::uniform(&[1, 3, 4, 4]), Input::uniform(&[2, 3, 2, 2]), Input::uniform(&[2])])
            .attrs(&[("strides", SampleAttr::Ints(&[2, 2])), ("kernel_shape", SampleAttr::Ints(&[2, 2]))])
            .grads(&[0]),
        Sample::new("padded", &[Input::uniform(&[2, 1, 3, 4]), Input::uniform(&[2, 1, 3, 3])])
            .attrs(&[("pads", SampleAttr::Ints(&[1, 0, 1, 2]))])
            .grads(&[0]),
        Sample::new("depthwise, strided", &[Input::uniform(&[1, 2, 5, 4]), Input::uniform(&[4, 1, 3, 2])])
            .attrs(&[
                ("group", SampleAttr::Int(2)),
                ("strides", SampleAttr::Ints(&[2, 1])),
                ("pads", SampleAttr::Ints(&[1, 1, 1, 1])),
            ])
            .grads(&[0]),
        Sample::new("dilated line", &[Input::uniform(&[2, 2, 7]), Input::uniform(&[3, 2, 3]), Input::uniform(&[3])])
            .attrs(&[("dilations", SampleAttr::Ints(&[2]))])
            .grads(&[0]),
        Sample::new("volume", &[Input::uniform(&[1, 2, 2, 3, 3]), Input::uniform(&[2, 2, 2, 2, 2])]).grads(&[0]),
        Sample::new("pointwise", &[Input::uniform(&[2, 3, 2, 2]), Input::uniform(&[4, 3, 1, 1])]).grads(&[0]),
        Sample::new("same, upper", &[Input::uniform(&[1, 1, 4, 5]), Input::uniform(&[1, 1, 2, 3])])
            .attrs(&[("auto_pad", SampleAttr::Str("SAME_UPPER")), ("strides", SampleAttr::Ints(&[1, 2]))])
            .grads(&[0]),
        Sample::new("same, lower", &[Input::uniform(&[1, 1, 4, 5]), Input::uniform(&[1, 1, 2, 3])])
            .attrs(&[("auto_pad", SampleAttr::Str("SAME_LOWER"))])
            .grads(&[0]),
        Sample::new("valid", &[Input::uniform(&[1, 1, 5, 5]), Input::uniform(&[2, 1, 2, 2])])
            .attrs(&[("auto_pad", SampleAttr::Str("VALID")), ("strides", SampleAttr::Ints(&[2, 2]))])
            .grads(&[0]),
        Sample::new("no images", &[Input::uniform(&[0, 3, 4, 4]), Input::uniform(&[2, 3, 2, 2])]),
    ],
};

const CONV_GRAD: OpDef = OpDef {
    name: "ConvGrad",
    domain: GRAD_DOMAIN,
    about: "Gradient of a convolution's input, from that of its output, its weight and its input (for the shape).",
    eval: |c| by_precision(c, conv_grad::<f32>, conv_grad::<f64>),
    flow: Flow::Ends,
    vjp: Vjp::Missing,
    samples: &[
        Sample::new(
            "patches",
            &[Input::uniform(&[1, 2, 2, 2]), Input::uniform(&[2, 3, 2, 2]), Input::uniform(&[1, 3, 4, 4])],
        )
        .attrs(&[("strides", SampleAttr::Ints(&[2, 2]))])
        .opset(1),
        Sample::new(
            "rest of the image unseen",
            &[Input::uniform(&[1, 2, 2, 1]), Input::uniform(&[2, 1, 2, 2]), Input::uniform(&[1, 1, 5, 3])],
        )
        .attrs(&[("strides", SampleAttr::Ints(&[2, 2]))])
        .opset(1),
    ],
};

/// The geometry of a convolution on concrete shapes.
struct Geometry {
    images: usize,
    groups: usize,
    /// Channels of one group, in and out.
    c_in: usize,
    c_out: usize,
    input: Vec<usize>,
    kernel: Vec<usize>,
    output: Vec<usize>,
    strides: Vec<usize>,
    dilations: Vec<usize>,
    before: Vec<usize>,
}

impl Geometry {
    fn new(node: &Node, x: &[usize], w: &[usize]) -> Result<Geometry, OpError> {
        let misfit = |what: &str| OpError::Shape(format!("Conv of shape {x:?} with weight {w:?}: {what}"));
        let (&[images, channels, ref input @ ..], &[out_channels, c_in, ref kernel @ ..]) = (x, w) else {
            return Err(misfit("ranks of 3 and more are needed"));
        };
        let axes = input.len();
        let groups = usize::try_from(node.int("group", 1)).unwrap_or(0);
        if kernel.len() != axes || axes == 0 || groups == 0 || c_in * groups != channels || out_channels % groups != 0 {
            return Err(misfit("ranks, channels or groups do not fit"));
        }
        let list = |name: &str, default: usize, len: usize| -> Result<Vec<usize>, OpError> {
            let Some(values) = node.ints(name) else { return Ok(vec![default; len]) };
            let values: Option<Vec<usize>> = values.iter().map(|&v| usize::try_from(v).ok()).collect();
            values.filter(|v| v.len() == len).ok_or_else(|| misfit(&format!("attribute {name} does not fit")))
        };
        let (strides, dilations) = (list("strides", 1, axes)?, list("dilations", 1, axes)?);
        if strides.contains(&0) || dilations.contains(&0) || kernel.contains(&0) {
            return Err(misfit("a stride, dilation or kernel size is 0"));
        }
        let mut pads = list("pads", 0, 2 * axes)?;
        let reach: Vec<usize> = kernel.iter().zip(&dilations).map(|(&k, &d)| (k - 1) * d + 1).collect();
        let auto = node.string("auto_pad").unwrap_or("NOTSET");
        for i in 0..axes {
            match auto {
                "NOTSET" => {}
                "VALID" => (pads[i], pads[axes + i]) = (0, 0),
                "SAME_UPPER" | "SAME_LOWER" => {
                    let steps = input[i].div_ceil(strides[i]);
                    let total = (steps.saturating_sub(1) * strides[i] + reach[i]).saturating_sub(input[i]);
                    let (less, more) = (total / 2, total.div_ceil(2));
                    (pads[i], pads[axes + i]) = if auto == "SAME_UPPER" { (less, more) } else { (more, less) };
                }
                other => return Err(misfit(&format!("auto_pad = {other} is not known"))),
            }
        }
        let mut output = Vec::with_capacity(axes);
        for i in 0..axes {
            let room = (input[i] + pads[i] + pads[axes + i]).checked_sub(reach[i]);
            output.push(room.ok_or_else(|| misfit("the kernel is larger than the padded input"))? / strides[i] + 1);
        }
        pads.truncate(axes);
        Ok(Geometry {
            images,
            groups,
            c_in,
            c_out: out_channels / groups,
            input: input.to_vec(),
            kernel: kernel.to_vec(),
            output,
            strides,
            dilations,
            before: pads,
        })
    }

    fn input_volume(&self) -> usize {
        self.input.iter().product()
    }

    fn output_volume(&self) -> usize {
        self.output.iter().product()
    }

    /// Rows of the patch matrix of one group: its channels times the kernel's volume.
    fn patch(&self) -> usize {
        self.c_in * self.kernel.iter().product::<usize>()
    }

    fn output_shape(&self) -> Vec<usize> {
        [&[self.images, self.groups * self.c_out], self.output.as_slice()].concat()
    }

    /// Calls `f(output position, input position)` for every place where a row of the patch matrix meets the input of one
    /// image and group.
    fn meet(&self, row: usize, mut f: impl FnMut(usize, usize)) {
        let last = self.kernel.len() - 1;
        let mut rest = row;
        let mut at = vec![0; self.kernel.len()];
        for (at, &size) in at.iter_mut().zip(&self.kernel).rev() {
            *at = rest % size;
            rest /= size;
        }
        let channel = rest * self.input_volume();
        // Where an axis' output position reads, before the padding is taken off.
        let reads = |axis: usize, out: usize| out * self.strides[axis] + at[axis] * self.dilations[axis];
        let lines = self.output_volume() / self.output[last].max(1);
        for line in 0..lines {
            let (mut rest, mut base, mut step, mut inside) = (line, 0, self.input[last], true);
            for axis in (0..last).rev() {
                let position = reads(axis, rest % self.output[axis]).wrapping_sub(self.before[axis]);
                rest /= self.output[axis];
                inside &= position < self.input[axis];
                base += position.wrapping_mul(step) * usize::from(inside);
                step *= self.input[axis];
            }
            if !inside {
                continue;
            }
            for out in 0..self.output[last] {
                let position = reads(last, out).wrapping_sub(self.before[last]);
                if position < self.input[last] {
                    f(line * self.output[last] + out, channel + base + position);
                }
            }
        }
    }
}

/// `y = w patches(x) + b`: `w: [c_out, patch]`, patches `[patch, output]`, for every image and group.
fn conv<T: Real>(call: &Call<'_>) -> Outputs {
    let (x, w) = (call.input(0)?, call.input(1)?);
    let geometry = Geometry::new(call.node, &x.shape, &w.shape)?;
    let (data, weight) = (T::read(x)?, T::read(w)?);
    let (patch, area, volume) = (geometry.patch(), geometry.output_volume(), geometry.input_volume());
    let shape = geometry.output_shape();
    let mut out = vec![T::ZERO; shape.iter().product()];
    if out.is_empty() {
        return Ok(vec![floats(x.dtype, shape, out)]);
    }
    for (item, out) in out.chunks_exact_mut(geometry.c_out * area).enumerate() {
        let group = item % geometry.groups;
        let own = &data[item * geometry.c_in * volume..][..geometry.c_in * volume];
        let patches = broadcast::fill_blocks(call.pool, patch * area, area, |row, out: &mut [T]| {
            geometry.meet(row, |to, from| out[to] = own[from]);
        });
        let weight = &weight[group * geometry.c_out * patch..][..geometry.c_out * patch];
        let (left, right) = (Mat::rows(weight, patch), Mat::rows(&patches, area));
        gemm(geometry.c_out, area, patch, left, right, out, Accumulate::Replace, call.pool);
    }
    if let Some(bias) = call.optional(2) {
        let bias = T::read(bias)?;
        if bias.len() != shape[1] {
            return Err(OpError::Shape(format!("Conv with {} channels and a bias of {}", shape[1], bias.len())));
        }
        for (at, plane) in out.chunks_exact_mut(area).enumerate() {
            plane.iter_mut().for_each(|y| *y += bias[at % shape[1]]);
        }
    }
    Ok(vec![floats(x.dtype, shape, out)])
}

/// `d_patches = w' g`, added up where patches overlap.
fn conv_grad<T: Real>(call: &Call<'_>) -> Outputs {
    let (g, w, x) = (call.input(0)?, call.input(1)?, call.input(2)?);
    let geometry = Geometry::new(call.node, &x.shape, &w.shape)?;
    if g.shape != geometry.output_shape() {
        let expected = geometry.output_shape();
        return Err(OpError::Shape(format!("a gradient of shape {:?} for an output of {expected:?}", g.shape)));
    }
    let (data, weight) = (T::read(g)?, T::read(w)?);
    let (patch, area, volume) = (geometry.patch(), geometry.output_volume(), geometry.input_volume());
    let mut out = vec![T::ZERO; x.len()];
    if out.is_empty() || data.is_empty() {
        return Ok(vec![floats(g.dtype, x.shape.clone(), out)]);
    }
    let mut patches = vec![T::ZERO; patch * area];
    for (item, out) in out.chunks_exact_mut(geometry.c_in * volume).enumerate() {
        let group = item % geometry.groups;
        let weight = &weight[group * geometry.c_out * patch..][..geometry.c_out * patch];
        let own = &data[item * geometry.c_out * area..][..geometry.c_out * area];
        let (left, right) = (Mat::rows(weight, patch).t(), Mat::rows(own, area));
        gemm(patch, area, geometry.c_out, left, right, &mut patches, Accumulate::Replace, call.pool);
        for (row, patch) in patches.chunks_exact(area).enumerate() {
            geometry.meet(row, |from, to| out[to] += patch[from]);
        }
    }
    Ok(vec![floats(g.dtype, x.shape.clone(), out)])
}

fn d_conv(t: &mut Tape<'_>, c: &VjpCall<'_>) -> Gradients {
    let g = gradient(c)?;
    if wanted(c, 1) || wanted(c, 2) {
        return Err("only its first input can be differentiated".to_owned());
    }
    let attrs: Vec<(&str, Attr)> = c.node.attrs.iter().map(|(name, attr)| (name.as_str(), attr.clone())).collect();
    Ok(only_first(c, t.grad("ConvGrad", &[g, &c.inputs[1], &c.inputs[0]], &attrs)))
}
