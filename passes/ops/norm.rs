//! Normalisation by mean and variance.

use super::carrier::{Outputs, Real, axis, by_precision, floats, fold};
use super::rules::{Gradients, flatten, gradient, reduce, unflatten, wanted};
use super::{Call, Flow, FlowCall, Input, OpDef, OpError, Rows, Sample, SampleAttr, Vjp, VjpCall, broadcast};
use crate::array::Array;
use crate::ir::{Attr, DType};
use crate::rewrite::tape::Tape;

/// The operators of this family.
pub(super) const ROWS: &[OpDef] = &[LAYER_NORM, SIMPLIFIED, SIMPLIFIED_CONTRIB, RMS_NORM, BATCH_NORM];

const LAYER_NORM: OpDef = OpDef {
    name: "LayerNormalization",
    domain: "",
    about: "Trailing axes shifted to mean 0 and scaled to variance 1, then by a gain and a bias.",
    eval: |c| by_precision(c, |c| layer_norm::<f32>(c, Centre::Mean), |c| layer_norm::<f64>(c, Centre::Mean)),
    flow: Flow::Rule(flow),
    vjp: Vjp::Rule(|t, c| d_layer_norm(t, c, Centre::Mean)),
    samples: &[
        Sample::new("gain and bias", &[X, GAIN, Input::uniform(&[4])]).grads(&[0, 1, 2]),
        Sample::new("gain alone", &[X, GAIN]).grads(&[0, 1]),
        Sample::new("two axes", &[X, Input::positive(&[3, 4]), Input::uniform(&[3, 4])])
            .attrs(&[("axis", SampleAttr::Int(1)), ("epsilon", SampleAttr::Float(0.1))])
            .grads(&[0, 1, 2]),
        Sample::new("two axes from the back", &[X, Input::positive(&[3, 4])])
            .attrs(&[("axis", SampleAttr::Int(-2))])
            .grads(&[0, 1]),
        Sample::new("all outputs", &[X, GAIN, Input::uniform(&[4])]).outputs(3).grads(&[0]),
        Sample::new("empty", &[Input::uniform(&[0, 4]), GAIN]),
    ],
};

const SIMPLIFIED: OpDef = OpDef {
    name: "SimplifiedLayerNormalization",
    domain: "",
    about: "Trailing axes scaled to mean square 1, then by a gain: what onnxruntime writes for RMSNormalization.",
    eval: |c| by_precision(c, |c| layer_norm::<f32>(c, Centre::Zero), |c| layer_norm::<f64>(c, Centre::Zero)),
    flow: Flow::Rule(flow),
    vjp: Vjp::Rule(|t, c| d_layer_norm(t, c, Centre::Zero)),
    samples: &[
        Sample::new("gain", &[X, GAIN]).grads(&[0, 1]),
        Sample::new("other epsilon", &[X, GAIN]).attrs(&[("epsilon", SampleAttr::Float(0.1))]).grads(&[0, 1]),
        Sample::new("two axes", &[X, Input::positive(&[3, 4])]).attrs(&[("axis", SampleAttr::Int(1))]).grads(&[0, 1]),
    ],
};

const SIMPLIFIED_CONTRIB: OpDef = OpDef {
    domain: "com.microsoft",
    samples: &[
        Sample::new("gain", &[X, GAIN]).opset(1).grads(&[0, 1]),
        Sample::new("two axes", &[X, Input::positive(&[3, 4])])
            .attrs(&[("axis", SampleAttr::Int(1))])
            .opset(1)
            .grads(&[0, 1]),
    ],
    ..SIMPLIFIED
};

const RMS_NORM: OpDef = OpDef {
    name: "RMSNormalization",
    about: "Trailing axes scaled to mean square 1, then by a gain.",
    samples: &[
        Sample::new("gain", &[X, GAIN]).opset(23).grads(&[0, 1]),
        Sample::new("two axes", &[X, Input::positive(&[3, 4])])
            .attrs(&[("axis", SampleAttr::Int(-2)), ("epsilon", SampleAttr::Float(0.1))])
            .opset(23)
            .grads(&[0, 1]),
        Sample::new("one gain for all", &[X, Input::positive(&[1])]).opset(23).grads(&[0, 1]),
    ],
    ..SIMPLIFIED
};

const BATCH_NORM: OpDef = OpDef {
    name: "BatchNormalization",
    domain: "",
    about: "Every channel (axis 1) shifted and scaled by the mean and variance of the training data.",
    eval: |c| by_precision(c, batch_norm::<f32>, batch_norm::<f64>),
    flow: Flow::Keep,
    vjp: Vjp::Rule(d_batch_norm),
    samples: &[
        Sample::new(
            "image",
            &[
                Input::uniform(&[2, 3, 2, 2]),
                Input::positive(&[3]),
                Input::uniform(&[3]),
                Input::uniform(&[3]),
                Input::positive(&[3]),
            ],
        )
        .grads(&[0]),
        Sample::new(
            "vectors, other epsilon",
            &[
                Input::uniform(&[2, 3]),
                Input::positive(&[3]),
                Input::uniform(&[3]),
                Input::uniform(&[3]),
                Input::positive(&[3]),
            ],
        )
        .attrs(&[("epsilon", SampleAttr::Float(0.1))])
        .grads(&[0]),
    ],
};

const X: Input = Input::uniform(&[2, 3, 4]);
const GAIN: Input = Input::positive(&[4]);

/// What the elements are measured from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Centre {
    Mean,
    Zero,
}

const EPSILON: f32 = 1e-5;

fn layer_norm<T: Real>(call: &Call<'_>, centre: Centre) -> Outputs {
    let (x, gain) = (call.input(0)?, call.input(1)?);
    let first = axis(call.node.int("axis", -1), x.rank())?;
    let trailing = &x.shape[first..];
    let width: usize = trailing.iter().product();
    let epsilon = T::of(f64::from(call.node.float("epsilon", EPSILON)));
    let data = T::read(x)?;
    let full = |array: &Array| broadcast::expand(call.pool, array, trailing);
    let gain = full(gain)?;
    let gain = T::read(&gain)?;
    let bias = call.optional(2).map(full).transpose()?;
    let bias = bias.as_ref().map(T::read).transpose()?;
    let wide = T::of(width as f64);

    let moments: Vec<(T, T)> = broadcast::rows(call.pool, data.len(), width, |row| {
        let x = &data[row * width..][..width];
        let mean = match centre {
            Centre::Mean => fold(x, T::ZERO, |a, b| a + b) / wide,
            Centre::Zero => T::ZERO,
        };
        let mut lanes = [T::ZERO; 8];
        let (chunks, rest) = x.as_chunks::<8>();
        for chunk in chunks {
            for (lane, &value) in lanes.iter_mut().zip(chunk) {
                *lane += (value - mean) * (value - mean);
            }
        }
        let mut sum = lanes.into_iter().fold(T::ZERO, |a, b| a + b);
        for &value in rest {
            sum += (value - mean) * (value - mean);
        }
        (mean, T::ONE / (sum / wide + epsilon).sqrt())
    });
    let out = broadcast::fill_blocks(call.pool, data.len(), width.max(1), |row, out: &mut [T]| {
        let x = &data[row * width..][..width];
        let (mean, scale) = moments[row];
        match &bias {
            Some(bias) => {
                for (((out, &x), &gain), &bias) in out.iter_mut().zip(x).zip(gain.iter()).zip(bias.iter()) {
                    *out = (x - mean) * scale * gain + bias;
                }
            }
            None => {
                for ((out, &x), &gain) in out.iter_mut().zip(x).zip(gain.iter()) {
                    *out = (x - mean) * scale * gain;
                }
            }
        }
    });
    let mut outputs = vec![floats(x.dtype, x.shape.clone(), out)];
    if call.node.outputs.len() > 1 {
        let mut shape = x.shape.clone();
        shape[first..].fill(1);
        let (mean, scale): (Vec<T>, Vec<T>) = moments.into_iter().unzip();
        if centre == Centre::Mean {
            outputs.push(floats(DType::F32, shape.clone(), mean));
        }
        outputs.push(floats(DType::F32, shape, scale));
    }
    Ok(outputs)
}

/// The axes that are normalised, as what they are on concrete shapes.
fn flow(call: &FlowCall<'_>) -> Vec<Option<Rows>> {
    let answer = |out: &Array| {
        let rows = call.rows.first().copied().flatten()?;
        let shape = &call.inputs.first()?.as_ref()?.shape;
        let first = axis(call.node.int("axis", -1), shape.len()).ok()?;
        let width = shape[first..].iter().product();
        if out.shape == *shape { rows.apart(width, 1) } else { rows.without_axis(width, 1) }
    };
    call.outputs.iter().map(answer).collect()
}

fn d_layer_norm(t: &mut Tape<'_>, c: &VjpCall<'_>, centre: Centre) -> Gradients {
    let g = gradient(c)?;
    let (x, gain) = (&c.inputs[0], &c.inputs[1]);
    let axis = c.node.int("axis", -1);
    // With an axis counted from the back its neighbours are known; from the front the rank would be needed, so the
    // axes are made one.
    let flat = axis >= 0;
    let axes: Vec<i64> = if flat { vec![1] } else { (axis..0).collect() };
    let mut grads = vec![None; c.inputs.len()];
    let whole = |t: &mut Tape<'_>, name: &str| if flat { flatten(t, name, axis) } else { name.to_owned() };

    let from = whole(t, x);
    let centred = match centre {
        Centre::Mean => {
            let mean = reduce(t, c, "ReduceMean", &from, &axes);
            t.op("Sub", &[&from, &mean])
        }
        Centre::Zero => from,
    };
    let square = t.op("Mul", &[&centred, &centred]);
    let variance = reduce(t, c, "ReduceMean", &square, &axes);
    let epsilon = t.scalar(c.node.float("epsilon", EPSILON), x);
    let padded = t.op("Add", &[&variance, &epsilon]);
    let deviation = t.op("Sqrt", &[&padded]);
    let normal = t.op("Div", &[&centred, &deviation]);
    if wanted(c, 0) {
        // (h - mean(h) - n mean(h n)) / deviation, with h = g gain and n the normalised input
        let h = t.op("Mul", &[g, gain]);
        let h = whole(t, &h);
        let product = t.op("Mul", &[&h, &normal]);
        let along = reduce(t, c, "ReduceMean", &product, &axes);
        let lost = t.op("Mul", &[&normal, &along]);
        let mut rest = t.op("Sub", &[&h, &lost]);
        if centre == Centre::Mean {
            let mean = reduce(t, c, "ReduceMean", &h, &axes);
            rest = t.op("Sub", &[&rest, &mean]);
        }
        let d_x = t.op("Div", &[&rest, &deviation]);
        grads[0] = Some(if flat { unflatten(t, &d_x, x) } else { d_x });
    }
    if wanted(c, 1) {
        let normal = if flat { unflatten(t, &normal, x) } else { normal };
        let product = t.op("Mul", &[g, &normal]);
        grads[1] = Some(t.sum_to(&product, gain));
    }
    if wanted(c, 2) {
        grads[2] = Some(t.sum_to(g, &c.inputs[2]));
    }
    Ok(grads)
}

fn batch_norm<T: Real>(call: &Call<'_>) -> Outputs {
    let x = call.input(0)?;
    if call.node.int("training_mode", 0) != 0 || call.node.outputs.iter().skip(1).any(Option::is_some) {
        return Err(OpError::Unsupported("BatchNormalization in training mode".to_owned()));
    }
    let channels = *x.shape.get(1).ok_or_else(|| OpError::Shape("BatchNormalization needs a rank of 2".to_owned()))?;
    let per_channel = |slot| -> Result<_, OpError> {
        let values = T::read(call.input(slot)?)?;
        if values.len() == channels {
            return Ok(values);
        }
        Err(OpError::Shape(format!("input {slot} has {} elements for {channels} channels", values.len())))
    };
    let (gain, bias, mean, variance) = (per_channel(1)?, per_channel(2)?, per_channel(3)?, per_channel(4)?);
    let epsilon = T::of(f64::from(call.node.float("epsilon", EPSILON)));
    let mut out = T::read(x)?.into_owned();
    let inner: usize = x.shape[2..].iter().product();
    for (at, plane) in out.chunks_exact_mut(inner.max(1)).enumerate() {
        let c = at % channels;
        let scale = gain[c] / (variance[c] + epsilon).sqrt();
        for value in plane {
            *value = (*value - mean[c]) * scale + bias[c];
        }
    }
    Ok(vec![floats(x.dtype, x.shape.clone(), out)])
}

fn d_batch_norm(t: &mut Tape<'_>, c: &VjpCall<'_>) -> Gradients {
    let g = gradient(c)?;
    if (1..5).any(|slot| wanted(c, slot)) {
        return Err("only its first input can be differentiated".to_owned());
    }
    // A linear map of its input: the same node without mean and bias.
    let (gain, variance) = (&c.inputs[1], &c.inputs[4]);
    let zero = t.op("Sub", &[gain, gain]);
    let attrs = [("epsilon", Attr::Float(c.node.float("epsilon", EPSILON)))];
    let mut grads = vec![None; c.inputs.len()];
    grads[0] = Some(t.op_with("BatchNormalization", &[g, gain, &zero, &zero, variance], &attrs));
    Ok(grads)
}
