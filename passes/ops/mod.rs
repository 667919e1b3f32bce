//! The op table: for every operator how it is evaluated, how token rows pass through it, and its reverse-mode rule.
//!
//! One file per family of operators; a row of [`OPS`] is a `const` of that file, named once in the family's `ROWS` and
//! nowhere else. Generic tests walk the list: `eval` against onnxruntime, `vjp` against finite differences, `flow` by
//! changing vision rows only.

mod binary;
mod broadcast;
mod carrier;
mod cast;
mod compare;
mod concat;
mod conv;
mod einsum;
mod expand;
mod gather;
mod generate;
mod grad;
mod grad_index;
mod layout;
mod linear;
mod norm;
mod pad;
mod quantized;
mod reduce;
mod reshape;
mod resize;
mod rules;
mod sample;
mod scatter;
mod select;
mod shape_of;
mod slice;
mod softmax;
mod transpose;
mod unary;

pub use quantized::QuantizedLayer;

use mbqc_kernels::Pool;

use crate::array::{Array, ArrayError, Compute};
use crate::ir::{Attr, Node};
use crate::rewrite::tape::Tape;

/// One operator.
pub struct OpDef {
    /// Operator name.
    pub name: &'static str,
    /// Operator domain; empty for the standard one.
    pub domain: &'static str,
    /// What it does, in a sentence.
    pub about: &'static str,
    /// Concrete tensors in, concrete tensors out.
    pub eval: fn(&Call<'_>) -> Result<Vec<Array>, OpError>,
    /// How token rows pass through.
    pub flow: Flow,
    /// Reverse-mode rule.
    pub vjp: Vjp,
    /// What the generic tests try.
    pub samples: &'static [Sample],
}

/// One evaluation.
#[derive(Clone, Copy)]
pub struct Call<'a> {
    /// The node; attributes are read from here.
    pub node: &'a Node,
    /// Inputs; `None` where an optional input is left out.
    pub inputs: &'a [Option<Array>],
    /// Version of the operator set of the node's domain.
    pub opset: i64,
    /// Precision of float arithmetic.
    pub compute: Compute,
    /// Threads; results must not depend on their number.
    pub pool: &'a Pool,
}

impl<'a> Call<'a> {
    /// A required input.
    pub fn input(&self, slot: usize) -> Result<&'a Array, OpError> {
        self.inputs.get(slot).and_then(Option::as_ref).ok_or(OpError::MissingInput(slot))
    }

    /// An optional input.
    pub fn optional(&self, slot: usize) -> Option<&'a Array> {
        self.inputs.get(slot).and_then(Option::as_ref)
    }
}

/// Why an evaluation failed; the scheduler adds the node's name.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum OpError {
    /// A required input is absent.
    #[error("input {0} is required but absent")]
    MissingInput(usize),
    /// An input's shape does not fit.
    #[error("{0}")]
    Shape(String),
    /// An attribute, type or mode that is not supported.
    #[error("{0}")]
    Unsupported(String),
    /// An element type does not fit.
    #[error(transparent)]
    Array(#[from] ArrayError),
    /// A kernel refused.
    #[error("{0}")]
    Kernel(String),
}

/// Which rows of a value are tokens, for concrete shapes: element `e` (row-major) belongs to token
/// `(e / inner) % len` of its space. Reshaping changes none of the three numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rows {
    /// Which sequence the tokens are of.
    pub space: Space,
    /// Number of tokens.
    pub len: usize,
    /// Elements between one token and the next.
    pub inner: usize,
}

/// The sequences a value's rows can belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Space {
    /// Positions of the decoder's token sequence: text and merged image tokens.
    Tokens,
    /// Patches or features of the images alone, before the merge.
    Vision,
}

impl Rows {
    /// The axis of a shape whose steps are exactly the tokens, if there is one.
    pub fn axis(&self, shape: &[usize]) -> Option<usize> {
        let mut inner = 1;
        for axis in (0..shape.len()).rev() {
            if inner == self.inner && shape[axis] == self.len {
                return Some(axis);
            }
            inner *= shape[axis];
            if inner > self.inner {
                return None;
            }
        }
        None
    }

    /// The same rows, if elements that lie `stride` apart in runs of `len` belong to one token each; for operators that
    /// mix such runs.
    pub fn apart(self, len: usize, stride: usize) -> Option<Rows> {
        let (mixed, period) = (len * stride, self.inner * self.len);
        let inside = mixed > 0 && self.inner.is_multiple_of(mixed);
        let outside = period > 0 && stride.is_multiple_of(period);
        (len == 1 || inside || outside).then_some(self)
    }

    /// The rows of the value in which such a run has become a single element.
    pub fn without_axis(self, len: usize, stride: usize) -> Option<Rows> {
        let rows = self.apart(len, stride)?;
        let inside = len * stride > 0 && self.inner.is_multiple_of(len * stride);
        Some(if inside { Rows { inner: self.inner / len, ..rows } } else { rows })
    }

    /// The rows of a value of this shape whose tokens lie along `axis`.
    pub fn along(space: Space, shape: &[usize], axis: usize) -> Rows {
        Rows { space, len: shape[axis], inner: shape[axis + 1..].iter().product() }
    }
}

/// How token rows pass through an operator.
#[derive(Clone, Copy)]
pub enum Flow {
    /// Numpy broadcasting: an output element belongs to the token its input elements belong to.
    Elementwise,
    /// Outputs have the elements of input 0 in the same order (reshapes, casts) or differ only along other axes.
    Keep,
    /// A rule on concrete shapes: for every output its rows.
    Rule(fn(&FlowCall<'_>) -> Vec<Option<Rows>>),
    /// Rows end here: shape and index arithmetic, or a mixture of tokens.
    Ends,
}

/// What a flow rule may look at.
#[derive(Clone, Copy)]
pub struct FlowCall<'a> {
    /// The node.
    pub node: &'a Node,
    /// Concrete inputs.
    pub inputs: &'a [Option<Array>],
    /// Concrete outputs.
    pub outputs: &'a [Array],
    /// Rows of the inputs.
    pub rows: &'a [Option<Rows>],
    /// Version of the operator set of the node's domain.
    pub opset: i64,
}

impl FlowCall<'_> {
    /// The token axis of an input, if its rows lie along one.
    pub fn axis(&self, slot: usize) -> Option<(Space, usize)> {
        let rows = self.rows.get(slot).copied().flatten()?;
        let shape = &self.inputs.get(slot)?.as_ref()?.shape;
        Some((rows.space, rows.axis(shape)?))
    }
}

/// The rule of [`Flow::Elementwise`] on concrete shapes; token space wins over vision space.
pub fn elementwise_flow(call: &FlowCall<'_>) -> Vec<Option<Rows>> {
    let rows = |out: &Array| {
        let mut best: Option<Rows> = None;
        for (slot, input) in call.inputs.iter().enumerate() {
            let (Some(array), Some((space, axis))) = (input, call.axis(slot)) else { continue };
            let axis = axis + out.rank() - array.rank();
            if out.shape[axis] == array.shape[axis + array.rank() - out.rank()] && out.shape[axis] > 0 {
                let candidate = Rows::along(space, &out.shape, axis);
                if best.is_none_or(|b| space < b.space) {
                    best = Some(candidate);
                }
            }
        }
        best
    };
    call.outputs.iter().map(rows).collect()
}

/// A reverse-mode rule: appends nodes and answers, for every input, the name of its gradient where there is one.
pub type VjpRule = fn(&mut Tape<'_>, &VjpCall<'_>) -> Result<Vec<Option<String>>, String>;

/// Reverse-mode rule of an operator.
#[derive(Clone, Copy)]
pub enum Vjp {
    /// Appends nodes that compute the gradients of the inputs from those of the outputs.
    Rule(VjpRule),
    /// The outputs do not depend on float inputs in a differentiable way (comparisons, indices, shapes).
    Zero,
    /// A gradient exists but is not to be had, for this reason.
    Stop(&'static str),
    /// Nobody has written the rule yet.
    Missing,
}

/// What a reverse-mode rule sees: names of values in the graph that is being extended.
pub struct VjpCall<'a> {
    /// The forward node; attributes are read from here.
    pub node: &'a Node,
    /// Names of the inputs; empty where absent.
    pub inputs: Vec<String>,
    /// Names of the outputs; empty where absent.
    pub outputs: Vec<String>,
    /// For every output the name of its gradient, where it has one.
    pub d_outputs: Vec<Option<String>>,
    /// For every input whether its gradient is wanted; a rule may answer `None` where not.
    pub wants: Vec<bool>,
    /// Version of the operator set of the node's domain.
    pub opset: i64,
}

/// A case of the generic tests: a single node with generated inputs.
pub struct Sample {
    /// What is special about it; unique within the operator.
    pub name: &'static str,
    /// Inputs; [`Fill::Absent`] for an optional one left out.
    pub inputs: &'static [Input],
    /// Attributes.
    pub attrs: &'static [(&'static str, SampleAttr)],
    /// Number of outputs.
    pub outputs: usize,
    /// Operator set version.
    pub opset: i64,
    /// Inputs (by slot) whose gradient is checked against finite differences.
    pub grads: &'static [usize],
}

/// An input of a [`Sample`].
pub struct Input {
    /// Shape.
    pub shape: &'static [usize],
    /// How it is filled.
    pub fill: Fill,
}

/// How an input of a [`Sample`] is filled.
#[derive(Clone, Copy, Debug)]
pub enum Fill {
    /// Left out.
    Absent,
    /// Floats, uniform in (-2, 2), from a generator seeded by sample and slot.
    Uniform,
    /// Floats, uniform in (0.5, 2).
    Positive,
    /// These floats, repeated.
    Floats(&'static [f32]),
    /// These `int64`s, repeated.
    Ints(&'static [i64]),
    /// These `int32`s, repeated.
    Int32s(&'static [i64]),
    /// These truth values, repeated.
    Bools(&'static [bool]),
}

/// An attribute of a [`Sample`].
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "the variants are ONNX's attribute types")]
pub enum SampleAttr {
    Int(i64),
    Float(f32),
    Ints(&'static [i64]),
    Floats(&'static [f32]),
    Str(&'static str),
}

impl SampleAttr {
    /// As a node attribute.
    pub fn to_attr(self) -> Attr {
        match self {
            SampleAttr::Int(v) => Attr::Int(v),
            SampleAttr::Float(v) => Attr::Float(v),
            SampleAttr::Ints(v) => Attr::Ints(v.to_vec()),
            SampleAttr::Floats(v) => Attr::Floats(v.to_vec()),
            SampleAttr::Str(v) => Attr::str(v),
        }
    }
}

/// All operators, family by family.
#[rustfmt::skip]
pub const OPS: &[&[OpDef]] = &[
    unary::ROWS,
    binary::ROWS,
    compare::ROWS,
    cast::ROWS,
    reduce::ROWS,
    softmax::ROWS,
    norm::ROWS,
    linear::ROWS,
    conv::ROWS,
    einsum::ROWS,
    grad::ROWS,
    concat::ROWS,
    expand::ROWS,
    gather::ROWS,
    generate::ROWS,
    grad_index::ROWS,
    pad::ROWS,
    reshape::ROWS,
    resize::ROWS,
    quantized::ROWS,
    scatter::ROWS,
    select::ROWS,
    shape_of::ROWS,
    slice::ROWS,
    transpose::ROWS,
];

/// The operator with this domain and name (`ai.onnx` is the standard domain).
pub fn find(domain: &str, name: &str) -> Option<&'static OpDef> {
    let domain = if domain == "ai.onnx" { "" } else { domain };
    OPS.iter().flat_map(|family| family.iter()).find(|op| op.name == name && op.domain == domain)
}
