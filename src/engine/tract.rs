//! Emitted graphs in [tract](https://github.com/sonos/tract): its ONNX reader with our quantized layers.
//!
//! ```no_run
//! use tract_onnx::prelude::*;
//!
//! # fn main() -> TractResult<()> {
//! let mut model = mbqc::engine::tract::onnx().model_for_path("vision.w3.onnx")?;
//! model.set_input_fact(0, f32::fact([1, 3, 224, 224]).into())?;
//! let plan = model.into_optimized()?.into_runnable()?;
//! let outputs = plan.run(tvec!(Tensor::zero::<f32>(&[1, 3, 224, 224])?.into()))?;
//! # let _ = outputs;
//! # Ok(())
//! # }
//! ```
//!
//! The ops are those of `ai.mbqc`, and `com.microsoft::MatMulNBits` of 2, 4 and 8 bits, in groups of any multiple of 8;
//! the latter takes the place of tract's own, which refuses 8 bits and unpacks 4 bits in groups other than of 32 to f32.
//! Weights stay tensors of the stored bytes; a product reads them as they are, on the calling thread, and gives what our
//! own evaluator gives. In graphs of half precision the two differ by roundings: tract
//! keeps values between operators in f16, the evaluator in f32. Which other operators run, tract decides: nothing else is
//! added.

use mbqc_kernels::{self as kernels, Epilogue, FORMATS, Pool, Scales, Stored};
use mbqc_passes::array::Array;
use mbqc_passes::ir::DType;
use mbqc_passes::ops::QuantizedLayer;
use tract_onnx::Onnx;
use tract_onnx::model::{ParsingContext, optional_inputs};
use tract_onnx::pb::NodeProto;
use tract_onnx::pb::attribute_proto::AttributeType;
use tract_onnx::tract_hir::internal::*;

/// tract's ONNX reader, with [`register`]'s ops, for graphs that mbqc has written.
///
/// Shapes that the file declares for inner values are not read: exporters write symbols there that tract cannot reconcile
/// with those of the inputs. Give inputs their shapes (`set_input_fact`) where a graph with symbolic ones is refused.
pub fn onnx() -> Onnx {
    let mut onnx = tract_onnx::onnx().with_ignore_value_info(true);
    register(&mut onnx);
    onnx
}

/// Makes a reader know the ops of quantized layers, in place of its own ones of the same names.
///
/// tract finds ops by name alone. A node of one of these names in another domain is an error when the model is read, as is
/// one with attributes that no format has; inputs of wrong types or lengths are errors when it is typed or run.
pub fn register(onnx: &mut Onnx) {
    for format in FORMATS {
        onnx.op_register.insert(format.schema.op, build);
    }
}

/// An array of our evaluator as a tensor of its declared type.
///
/// # Errors
///
/// If tract has no such type.
pub fn tensor(array: &Array) -> TractResult<Tensor> {
    let shape = &array.shape;
    let (carried, to) = match array.dtype {
        DType::F32 => (Tensor::from_shape(shape, array.as_f32()?)?, DatumType::F32),
        DType::F16 => (Tensor::from_shape(shape, array.as_f32()?)?, DatumType::F16),
        DType::Bool => (Tensor::from_shape(shape, &array.to_bools()?)?, DatumType::Bool),
        DType::I64 => (Tensor::from_shape(shape, &array.to_i64s()?)?, DatumType::I64),
        DType::I32 => (Tensor::from_shape(shape, &array.to_i64s()?)?, DatumType::I32),
        DType::U8 => (Tensor::from_shape(shape, &array.to_i64s()?)?, DatumType::U8),
        other => bail!("an array of type {other}, expected float, float16, bool, int64, int32 or uint8"),
    };
    Ok(carried.cast_to_dt(to)?.into_owned())
}

/// A tensor as an array of our evaluator; whole numbers, tract's symbolic ones included, become `int64`.
///
/// # Errors
///
/// If the tensor holds none of the types of [`tensor`], or symbols.
pub fn array(tensor: &Tensor) -> TractResult<Array> {
    let shape = tensor.shape();
    let floats = || TractResult::Ok(tensor.cast_to::<f32>()?.try_as_plain_ram()?.as_slice::<f32>()?.to_vec());
    Ok(match tensor.datum_type() {
        DatumType::F32 => Array::f32(shape, floats()?),
        DatumType::F16 => Array::f32(shape, floats()?).with_dtype(DType::F16),
        DatumType::Bool => Array::bool(shape, tensor.try_as_plain_ram()?.as_slice::<bool>()?.to_vec()),
        DatumType::I64 | DatumType::I32 | DatumType::U8 | DatumType::TDim => {
            let wide = tensor.cast_to::<i64>()?;
            Array::i64(shape, wide.try_as_plain_ram()?.as_slice::<i64>()?.to_vec())
        }
        other => bail!("a tensor of type {other:?}, expected F32, F16, Bool, I64, I32 or U8"),
    })
}

/// The layer of a node.
fn build(_: &ParsingContext<'_>, node: &NodeProto) -> TractResult<(Box<dyn InferenceOp>, Vec<String>)> {
    let name = if node.name.is_empty() { node.output.first() } else { Some(&node.name) };
    let label = || format!("node `{}` ({}::{})", name.map_or("", String::as_str), node.domain, node.op_type);
    let integer = |name: &str| {
        let found = node.attribute.iter().find(|attribute| attribute.name == name)?;
        (found.r#type == AttributeType::Int as i32).then_some(found.i)
    };
    let layer = QuantizedLayer::read(&node.domain, &node.op_type, integer).with_context(label)?;
    let schema = &layer.format.schema;
    for (slot, input) in schema.inputs.iter().enumerate().filter(|(_, input)| !input.ends_with('?')) {
        if node.input.get(slot).is_none_or(String::is_empty) {
            bail!("{}: input {input} is required but absent", label());
        }
    }
    if node.input.len() > schema.inputs.len() {
        bail!("{}: {} inputs, expected at most {}", label(), node.input.len(), schema.inputs.len());
    }
    let place = |input| schema.slot(input).and_then(|slot| optional_inputs(node).nth(slot).flatten());
    if place("g_idx").is_some() {
        bail!("{}: g_idx is given, expected none; mbqc writes none", label());
    }
    Ok((expand(Product { layer, zero_points: place("zero_points"), bias: place("bias") }), vec![]))
}

/// `x W^T + bias`, with inputs `A: [.., k]`, `B`, `scales` and the optional ones as the format's schema has them.
#[derive(Clone, Debug)]
struct Product {
    layer: QuantizedLayer,
    /// Place of the zero points among the inputs that are present.
    zero_points: Option<usize>,
    /// Place of the bias among the inputs that are present, `[n]`.
    bias: Option<usize>,
}

impl PartialEq for Product {
    fn eq(&self, other: &Product) -> bool {
        let parts = |product: &Product| {
            let Product { layer: QuantizedLayer { format, k, n, group, accuracy }, zero_points, bias } = product;
            (format.name, *k, *n, *group, *accuracy, *zero_points, *bias)
        };
        parts(self) == parts(other)
    }
}

impl Eq for Product {}

impl Product {
    /// The weight of the op's inputs; `None` while some of them are not known.
    fn weight<'a>(&self, input: impl Fn(usize) -> Option<&'a Tensor>) -> TractResult<Option<Stored<'a>>> {
        let zero_points = self.zero_points.map(&input);
        let (Some(b), Some(scales), None | Some(Some(_))) = (input(1), input(2), zero_points) else { return Ok(None) };
        let scales = scales.try_as_plain_ram()?;
        let scales = match scales.datum_type() {
            DatumType::F16 => Scales::F16(scales.as_slice()?),
            _ => Scales::F32(scales.as_slice()?),
        };
        let bytes = |tensor: &'a Tensor| tensor.try_as_plain_ram()?.as_slice::<u8>();
        let zero_points = zero_points.flatten().map(bytes).transpose()?;
        Ok(Some(self.layer.stored(bytes(b)?, scales, zero_points)))
    }

    /// The inputs by place, name and the types they may have.
    fn typed_inputs(&self) -> impl Iterator<Item = (usize, &'static str, &'static [DatumType])> {
        const FLOATS: &[DatumType] = &[DatumType::F32, DatumType::F16];
        const BYTES: &[DatumType] = &[DatumType::U8];
        let required = [(0, "A", FLOATS), (1, "B", BYTES), (2, "scales", FLOATS)];
        let zero_points = self.zero_points.map(|place| (place, "zero_points", BYTES));
        required.into_iter().chain(zero_points).chain(self.bias.map(|place| (place, "bias", FLOATS)))
    }
}

impl Expansion for Product {
    fn name(&self) -> StaticName {
        Op::name(self)
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        solver: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        check_input_arity(inputs, self.typed_inputs().count())?;
        check_output_arity(outputs, 1)?;
        solver.equals(&outputs[0].datum_type, &inputs[0].datum_type)?;
        solver.given(&inputs[0].rank, move |solver, rank| {
            let Some(last) = usize::try_from(rank).ok().and_then(|rank| rank.checked_sub(1)) else {
                bail!("input A is a scalar; its last axis must be K = {}", self.layer.k);
            };
            solver.equals(&outputs[0].rank, rank)?;
            for axis in 0..last {
                solver.equals(&outputs[0].shape[axis], &inputs[0].shape[axis])?;
            }
            solver.equals(&outputs[0].shape[last], self.layer.n.to_dim())
        })
    }

    fn wire(&self, prefix: &str, model: &mut TypedModel, inputs: &[OutletId]) -> TractResult<TVec<OutletId>> {
        model.wire_node(prefix, self.clone(), inputs)
    }
}

impl Op for Product {
    fn name(&self) -> StaticName {
        self.layer.format.schema.op.into()
    }

    fn info(&self) -> TractResult<Vec<String>> {
        let QuantizedLayer { k, n, .. } = self.layer;
        Ok(vec![format!("{} k: {k} n: {n}", self.layer.spec())])
    }

    op_as_typed_op!();
}

impl EvalOp for Product {
    op_out_of_plan!();

    fn eval(&self, _: &EvalContext<'_>, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let x: &Tensor = inputs.first().context("input A is absent")?;
        let rows = self.layer.rows(x.shape())?;
        let weight = self.weight(|place| inputs.get(place).map(|value| &**value))?.context("an input is absent")?;
        let single = x.cast_to::<f32>()?;
        let bias = self.bias.map(|place| inputs[place].cast_to::<f32>()).transpose()?;
        let bias = bias.as_ref().map(|bias| bias.try_as_plain_ram()?.as_slice::<f32>()).transpose()?;
        let single = single.try_as_plain_ram()?.as_slice::<f32>()?;
        let product = kernels::Product { x: single.into(), rows, w: weight, epilogue: Epilogue::bias(bias) };
        let y = self.layer.format.product(&product, self.layer.accuracy, &Pool::single())?;
        let mut shape: TVec<usize> = x.shape().into();
        if let Some(last) = shape.last_mut() {
            *last = self.layer.n;
        }
        let y = Tensor::from_shape(&shape, &y)?.cast_to_dt(x.datum_type())?.into_owned();
        Ok(tvec!(y.into_tvalue()))
    }
}

impl TypedOp for Product {
    as_op!();

    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        for (place, name, types) in self.typed_inputs() {
            let fact = inputs.get(place).with_context(|| format!("input {name} is absent"))?;
            if !types.contains(&fact.datum_type) {
                bail!("input {name} is of type {:?}, expected one of {types:?}", fact.datum_type);
            }
        }
        let QuantizedLayer { format, k, n, .. } = self.layer;
        let mut shape = inputs[0].shape.to_tvec();
        let Some(last) = shape.last_mut() else { bail!("input A is a scalar; its last axis must be K = {k}") };
        // A symbolic axis is checked when it is known.
        if last.to_i64().is_ok_and(|last| last != k as i64) {
            bail!("input A has shape {:?}; its last axis must be K = {k}", inputs[0].shape);
        }
        *last = n.to_dim();
        if let Some(weight) = self.weight(|place| inputs[place].konst.as_deref())? {
            weight.check(format)?;
        }
        if let Some(place) = self.bias
            && let Some(bias) = inputs[place].shape.as_concrete()
            && bias.iter().product::<usize>() != n
        {
            bail!("the bias has shape {bias:?}, expected [{n}]");
        }
        Ok(tvec!(inputs[0].datum_type.fact(shape)))
    }

    fn cost(&self, inputs: &[&TypedFact]) -> TractResult<TVec<(Cost, TDim)>> {
        // The last axis of A is k: its volume is rows times k.
        Ok(tvec!((Cost::FMA(f32::datum_type()), inputs[0].shape.volume() * self.layer.n)))
    }
}
