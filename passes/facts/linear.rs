//! A MatMul or Gemm with a constant operand as a site, or why it is none.

use crate::ir::{DType, Graph, Model, NodeId, Uses, ValueId};
use crate::plan::SkipKind;

use super::names::layer_name;
use super::places::Place;
use super::resolve::resolve;
use super::sites::{Bias, Form, Site, Weight};
use super::towers::Towers;

/// Why a MatMul or Gemm with a constant operand is no site.
pub(super) struct NoSite {
    pub(super) kind: SkipKind,
    pub(super) reason: String,
}

impl From<String> for NoSite {
    fn from(reason: String) -> NoSite {
        NoSite { kind: SkipKind::Unsupported, reason }
    }
}

impl From<&str> for NoSite {
    fn from(reason: &str) -> NoSite {
        NoSite::from(reason.to_owned())
    }
}

/// What is known about the graph in which a layer stands.
pub(super) struct Surroundings<'m, 'p> {
    pub(super) model: &'m Model,
    pub(super) place: &'p Place<'m>,
    pub(super) towers: &'p Towers,
}

impl Surroundings<'_, '_> {
    /// The site at a node whose input `slot` shows the constant `weight`. `tied` says that rows of the weight are looked
    /// up elsewhere.
    pub(super) fn site(
        &self,
        id: NodeId,
        slot: usize,
        weight: &Weight,
        transposed: bool,
        tied: bool,
    ) -> Result<Site, NoSite> {
        let (graph, uses) = (self.place.graph, &self.place.uses);
        let node = graph.node(id);
        let tensor = &weight.tensor;
        if !matches!(tensor.dtype, DType::F32 | DType::F16 | DType::BF16 | DType::F64) {
            return Err(format!("its weight is of type {}; float weights are quantized", tensor.dtype).into());
        }
        let [d0, d1] = tensor.dims[..] else {
            return Err(format!("its weight has shape {:?}; only matrices are quantized", tensor.dims).into());
        };
        let gemm = node.is("Gemm");
        let trans_b = gemm && node.int("transB", 0) != 0;
        let left = slot == 0;
        if gemm && left {
            return Err("the constant is Gemm's first operand; only a constant second operand is a linear layer".into());
        }
        let owner = self.model.graph_at(&weight.owner).ok_or("the graph of its weight is gone")?;
        if owner.find(&weight.name).is_some_and(|v| owner.inputs().contains(&v)) {
            return Err("its weight is also a graph input and may be overridden".into());
        }
        // Right: the product wants [k, n]; stored as such unless transposed an odd number of times. Left: wants [n, k].
        let rows_are_outputs = if left { !transposed } else { transposed ^ trans_b };
        let (n, k) = if rows_are_outputs { (d0, d1) } else { (d1, d0) };
        if k == 1 {
            let reason = "it has one input channel: an outer product, no linear layer".to_owned();
            return Err(NoSite { kind: SkipKind::NotLinear, reason });
        }
        let x = node.input(usize::from(left)).ok_or("its activation operand is absent")?;
        if self.place.is_constant(x) {
            return Err("both operands are constant".into());
        }
        let y = node.output(0).ok_or("it has no output")?;
        let bias = if gemm || left { None } else { bias_of(graph, uses, y, n) };
        let out = bias.as_ref().and_then(|b| graph.node(b.node).output(0)).unwrap_or(y);
        let form = match (gemm, left) {
            (true, _) => Form::Gemm {
                alpha: node.float("alpha", 1.0),
                beta: node.float("beta", 1.0),
                trans_a: node.int("transA", 0) != 0,
                c: node.input(2),
            },
            (false, true) => Form::Left,
            (false, false) => Form::Right,
        };
        let bias_name = match (&bias, &form) {
            (Some(bias), _) => Some(graph.name(bias.value)),
            (None, Form::Gemm { c: Some(c), .. }) => Some(graph.name(*c)),
            _ => None,
        };
        let label = graph.label(id);
        Ok(Site {
            path: self.place.path.clone(),
            node: id,
            name: layer_name(node, &weight.name, bias_name, &label),
            label,
            weight: Weight { rows_are_outputs, ..weight.clone() },
            n,
            k,
            x,
            y,
            out,
            head: self.ends_the_graph(out, tied || n >= 2 * k),
            bias,
            form,
            tower: self.towers.of_value(x),
        })
    }

    /// True when the value goes to graph outputs through nothing but views, selections of rows, functions of single
    /// elements, scalars that are added or multiplied (as the capping of logits is written), and choices of the largest.
    /// Unless `wide`, such an output has to be called `logits`, or a choice of the largest has to be made: a layer at the end
    /// of a graph may as well give features.
    fn ends_the_graph(&self, value: ValueId, wide: bool) -> bool {
        let (graph, uses) = (self.place.graph, &self.place.uses);
        let mut says_so = wide;
        let mut stack = vec![value];
        while let Some(value) = stack.pop() {
            says_so |= uses.is_output(value) && graph.name(value) == "logits";
            if uses.of(value).is_empty() && !uses.is_output(value) {
                return false;
            }
            for &(reader, slot) in uses.of(value) {
                let node = graph.node(reader);
                let scalar = |slot: usize| node.input(slot).is_some_and(|v| self.is_scalar(v));
                let chooses = slot == 0 && CHOOSING.iter().any(|op| node.is(op));
                says_so |= chooses;
                let passes = if SCALED.iter().any(|op| node.is(op)) {
                    slot <= 1 && scalar(1 - slot)
                } else {
                    slot == 0 && PASSED.iter().any(|op| node.is(op))
                };
                match node.output(0) {
                    Some(next) if passes => stack.push(next),
                    // What becomes of the choice is not the layer's concern.
                    _ if chooses || node.is("Shape") => {}
                    _ => return false,
                }
            }
        }
        says_so
    }

    fn is_scalar(&self, value: ValueId) -> bool {
        resolve(self.model, &self.place.path, value).is_some_and(|(constant, _)| constant.tensor.len() == 1)
    }
}

/// What may follow a final projection.
const PASSED: &[&str] = &[
    "Cast",
    "Clip",
    "Dropout",
    "Flatten",
    "Gather",
    "Identity",
    "LogSoftmax",
    "Neg",
    "Reshape",
    "Sigmoid",
    "Slice",
    "Softmax",
    "Squeeze",
    "Tanh",
    "Transpose",
    "Unsqueeze",
];

/// What chooses the largest of a row.
const CHOOSING: &[&str] = &["ArgMax", "TopK"];

/// The same, with a scalar as the other operand.
const SCALED: &[&str] = &["Add", "Div", "Mul", "Sub"];

/// The `Add` of a constant vector of length n right behind `y`, when it is `y`'s only reader.
fn bias_of(graph: &Graph, uses: &Uses, y: ValueId, n: usize) -> Option<Bias> {
    let [(reader, slot)] = uses.of(y) else { return None };
    let node = graph.node(*reader);
    if uses.is_output(y) || !node.is("Add") || *slot > 1 {
        return None;
    }
    let value = node.input(1 - slot)?;
    let tensor = graph.constant(value)?;
    let is_row = tensor.len() == n && tensor.dims.last() == Some(&n);
    is_row.then_some(Bias { node: *reader, value })
}
