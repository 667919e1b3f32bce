//! Samples of the op table as models, inputs and evaluations.

use mbqc_kernels::Pool;
use mbqc_passes::array::{Array, Buf, Compute};
use mbqc_passes::ir::{DType, Dim, GraphBuilder, Model, NewNode, Type};
use mbqc_passes::ops::{Call, Fill, OPS, OpDef, OpError, Sample};
use mbqc_passes::rewrite::tape::GRAD_DOMAIN;

/// Operators without samples: their weights are packed by the kernels, whose own tests evaluate them.
pub(crate) const UNSAMPLED: &[&str] =
    &["com.microsoft::MatMulNBits", "ai.mbqc::MbqMatMulW3", "ai.mbqc::MbqMatMulW4A8", "ai.mbqc::MbqMatMulW8A8"];

/// Every sample of every operator.
pub(crate) fn all() -> impl Iterator<Item = (&'static OpDef, &'static Sample)> {
    ops().flat_map(|op| op.samples.iter().map(move |sample| (op, sample)))
}

/// Every operator.
pub(crate) fn ops() -> impl Iterator<Item = &'static OpDef> {
    OPS.iter().flat_map(|family| family.iter())
}

/// `domain::Op`, or `Op` in the standard domain.
pub(crate) fn op_key(op: &OpDef) -> String {
    if op.domain.is_empty() { op.name.to_owned() } else { format!("{}::{}", op.domain, op.name) }
}

/// What a sample is called in the goldens and in messages.
pub(crate) fn key(op: &OpDef, sample: &Sample) -> String {
    format!("{}/{}", op_key(op), sample.name)
}

/// A small generator of uniform numbers (splitmix64), seeded by a text.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: &str) -> Random {
        let hash = |state: u64, byte: u8| (state ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        Random(seed.bytes().fold(0xcbf2_9ce4_8422_2325, hash))
    }

    /// Uniform in (0, 1).
    pub(crate) fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Uniform in (low, high).
    pub(crate) fn within(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }
}

/// The inputs of a sample, floats carried as `compute` says.
pub(crate) fn inputs(op: &OpDef, sample: &Sample, compute: Compute) -> Vec<Option<Array>> {
    fn repeat<T: Copy>(values: &[T], len: usize) -> Vec<T> {
        values.iter().copied().cycle().take(len).collect()
    }
    let fill = |(slot, input): (usize, &mbqc_passes::ops::Input)| {
        let len = input.shape.iter().product();
        let mut random = Random::new(&format!("{}/{slot}", key(op, sample)));
        let mut draw = |low, high| (0..len).map(|_| random.within(low, high) as f32).collect();
        let array = match input.fill {
            Fill::Absent => return None,
            Fill::Uniform => Array::f32(input.shape, draw(-2.0, 2.0)),
            Fill::Positive => Array::f32(input.shape, draw(0.5, 2.0)),
            Fill::Floats(values) => Array::f32(input.shape, repeat(values, len)),
            Fill::Ints(values) => Array::i64(input.shape, repeat(values, len)),
            Fill::Int32s(values) => Array::i64(input.shape, repeat(values, len)).with_dtype(DType::I32),
            Fill::Bools(values) => Array::bool(input.shape, repeat(values, len)),
        };
        Some(array.carried(compute))
    };
    sample.inputs.iter().enumerate().map(fill).collect()
}

/// Name of an input or output of the model of a sample.
pub(crate) fn input_name(slot: usize) -> String {
    format!("x{slot}")
}

/// A model of one node.
pub(crate) fn model(op: &OpDef, sample: &Sample) -> Model {
    let mut builder = GraphBuilder::new(op.name);
    let arrays = inputs(op, sample, Compute::F32);
    let mut names = Vec::new();
    for (slot, array) in arrays.iter().enumerate() {
        let Some(array) = array else {
            names.push(String::new());
            continue;
        };
        let dims = array.shape.iter().map(|&dim| Dim::Size(dim)).collect();
        let ty = Type::Tensor(array.dtype, Some(dims));
        builder.input(&input_name(slot), Some(ty)).expect("sample inputs have names of their own");
        names.push(input_name(slot));
    }
    let outputs: Vec<String> = (0..sample.outputs).map(|slot| format!("y{slot}")).collect();
    let spec = NewNode {
        name: "node".to_owned(),
        domain: op.domain.to_owned(),
        op: op.name.to_owned(),
        inputs: names,
        outputs: outputs.clone(),
        attrs: sample.attrs.iter().map(|(name, attr)| ((*name).to_owned(), attr.to_attr())).collect(),
        ..NewNode::default()
    };
    builder.node(spec, None).expect("sample outputs have names of their own");
    for output in &outputs {
        builder.output(output, None);
    }
    let mut model = Model { ir_version: 10, graph: builder.finish(), ..Model::default() };
    model.import(op.domain, sample.opset);
    model.import("", if op.domain.is_empty() { sample.opset } else { 18 });
    model.import(GRAD_DOMAIN, 1);
    model
}

/// Evaluates the node of a sample on these inputs.
pub(crate) fn evaluate(
    op: &OpDef,
    sample: &Sample,
    model: &Model,
    inputs: &[Option<Array>],
    compute: Compute,
) -> Result<Vec<Array>, OpError> {
    let pool = Pool::new(2);
    let (_, node) = model.graph.nodes().next().expect("the model has one node");
    (op.eval)(&Call { node, inputs, opset: sample.opset, compute, pool: &pool })
}

/// The elements as floats, whatever their type.
pub(crate) fn numbers(array: &Array) -> Vec<f64> {
    array.to_f64s()
}

/// Whether the elements are floats.
pub(crate) fn is_float(array: &Array) -> bool {
    matches!(array.buf, Buf::F32(_) | Buf::F64(_))
}
