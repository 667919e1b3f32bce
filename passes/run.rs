//! Running a part of a graph on concrete tensors.
//!
//! A [`Segment`] is a prepared part: which values are given, which are wanted, and the nodes in between in order, with
//! everything that depends on constants alone computed once. Values of any kind may be given, also constants: that is
//! how a candidate weight is judged without editing the graph.

use std::collections::HashMap;

use mbqc_kernels::{Format, Pool};

use crate::array::{Array, ArrayError, Compute};
use crate::ir::{Attr, DType, Def, Graph, Model, Node, NodeId, ValueId, walk};
use crate::ops::{self, Call, OpError};

/// Domains whose operators are our own: the op table wins over a model-local function there (the function is the body
/// that other runtimes use).
pub(crate) const OWN_DOMAINS: &[&str] = &["ai.mbqc", "ai.mbqc.grad"];

/// Tensors by value.
pub type Feeds = HashMap<ValueId, Array>;

/// Executes segments.
pub trait Runner: Sync {
    /// Prepares the part of the main graph between `fed` and `wanted`.
    fn prepare(&self, model: &Model, fed: &[ValueId], wanted: &[ValueId]) -> Result<Segment, RunError>;

    /// Computes the wanted values of a segment, in the order in which they were asked for. `observe` sees every node
    /// with its concrete inputs and outputs.
    fn run(
        &self,
        model: &Model,
        segment: &Segment,
        feeds: Feeds,
        observe: Option<&mut Observer<'_>>,
    ) -> Result<Vec<Array>, RunError>;

    /// Threads for work on samples. Results must not depend on their number.
    fn pool(&self) -> &Pool;

    /// Precision of float arithmetic.
    fn compute(&self) -> Compute;
}

/// Sees every node of a run: id, node, inputs, outputs.
pub type Observer<'o> = dyn FnMut(NodeId, &Node, &[Option<Array>], &[Array]) + 'o;

/// A prepared part of the main graph.
#[derive(Clone, Debug)]
pub struct Segment {
    fed: Vec<ValueId>,
    wanted: Vec<ValueId>,
    steps: Vec<Step>,
    constants: Vec<(ValueId, Array)>,
}

#[derive(Clone, Debug)]
struct Step {
    node: NodeId,
    /// Values nobody reads after this step.
    frees: Vec<ValueId>,
}

impl Segment {
    /// Nodes that a run evaluates, in order.
    pub fn nodes(&self) -> impl Iterator<Item = NodeId> {
        self.steps.iter().map(|step| step.node)
    }

    /// Values that a run must be given.
    pub fn fed(&self) -> &[ValueId] {
        &self.fed
    }

    /// Values that a run answers.
    pub fn wanted(&self) -> &[ValueId] {
        &self.wanted
    }

    /// Bytes of constants held ready.
    pub fn constant_bytes(&self) -> usize {
        self.constants.iter().map(|(_, array)| array.stored_bytes()).sum()
    }
}

/// Why a run failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RunError {
    /// An operator without a row in the op table and without a model-local function.
    #[error("node `{node}`: operator {op} is not in the op table (see `mbqc list ops`)")]
    UnknownOp {
        /// Which node.
        node: String,
        /// Its operator.
        op: String,
    },
    /// An evaluation failed.
    #[error("node `{node}` ({op}) with inputs {inputs}: {source}")]
    Op {
        /// Which node.
        node: String,
        /// Its operator.
        op: String,
        /// Types and shapes of its inputs.
        inputs: String,
        /// What was wrong.
        source: OpError,
    },
    /// A value that should have been given was not.
    #[error("value `{0}` is needed but was not given, and nothing in the graph computes it")]
    NotGiven(String),
    /// A constant that cannot be carried.
    #[error("constant `{name}`: {source}")]
    Constant {
        /// Its name.
        name: String,
        /// What was wrong.
        source: ArrayError,
    },
    /// The graph breaks a law.
    #[error(transparent)]
    Law(#[from] crate::ir::Error),
}

/// The evaluator: walks a segment's nodes over the op table.
#[derive(Debug)]
pub struct Walk {
    pool: Pool,
    compute: Compute,
    casts: HalfCasts,
}

/// What a `Cast` to a half type does to floats that are carried in single precision.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HalfCasts {
    /// Rounds: the function the graph computes where it runs.
    #[default]
    Round,
    /// Keeps the value: the function of the model before it was exported in half precision.
    Keep,
}

impl Walk {
    /// An evaluator with these threads and this precision.
    pub fn new(pool: Pool, compute: Compute) -> Walk {
        Walk { pool, compute, casts: HalfCasts::Round }
    }

    /// The same evaluator with another meaning of casts to half types.
    pub fn with_casts(self, casts: HalfCasts) -> Walk {
        Walk { casts, ..self }
    }

    fn fold(&self, model: &Model, segment: &mut Segment, known: &mut HashMap<ValueId, Array>) -> Result<(), RunError> {
        let graph = &model.graph;
        let scope = Scope::main(model);
        let mut kept = Vec::new();
        for step in std::mem::take(&mut segment.steps) {
            let node = graph.node(step.node);
            let captured = crate::ir::graph::captured(node);
            let foldable = captured.is_empty()
                && node.inputs.iter().flatten().all(|v| known.contains_key(v))
                && !node.op.starts_with("Random")
                && Format::carried_by(&node.domain, &node.op, node.int("bits", 4)).is_none();
            if foldable {
                let outputs = self.eval_node(&scope, graph, step.node, &|v| known.get(&v).cloned())?;
                for (slot, array) in outputs.into_iter().enumerate() {
                    if let Some(value) = node.output(slot) {
                        known.insert(value, array);
                    }
                }
            } else {
                kept.push(step);
            }
        }
        segment.steps = kept;
        Ok(())
    }

    fn eval_node(
        &self,
        scope: &Scope<'_>,
        graph: &Graph,
        id: NodeId,
        lookup: &dyn Fn(ValueId) -> Option<Array>,
    ) -> Result<Vec<Array>, RunError> {
        let node = graph.node(id);
        let mut inputs = Vec::with_capacity(node.inputs.len());
        for input in &node.inputs {
            inputs.push(match input {
                Some(v) => Some(lookup(*v).ok_or_else(|| RunError::NotGiven(graph.name(*v).to_owned()))?),
                None => None,
            });
        }
        if node.is("If") {
            return self.eval_if(scope, graph, id, &inputs, lookup);
        }
        if !OWN_DOMAINS.contains(&node.domain.as_str())
            && let Some(function) = scope.model.function(&node.domain, &node.op)
        {
            return self.eval_function(scope, function, node, inputs);
        }
        let Some(op) = ops::find(&node.domain, &node.op) else {
            return Err(RunError::UnknownOp { node: graph.label(id), op: node.qualified_op() });
        };
        if self.casts == HalfCasts::Keep
            && node.is("Cast")
            && matches!(node.int("to", 0), 10 | 16)
            && let Some(Some(array)) = inputs.first()
            && array.dtype.is_float()
        {
            let to = if node.int("to", 0) == 10 { DType::F16 } else { DType::BF16 };
            return Ok(vec![array.clone().with_dtype(to)]);
        }
        let attrs = scope.resolve(node);
        let node = attrs.as_ref().unwrap_or(node);
        let opset = scope.opset_of(&node.domain);
        let call = Call { node, inputs: &inputs, opset, compute: self.compute, pool: &self.pool };
        (op.eval)(&call).map_err(|source| RunError::Op {
            node: graph.label(id),
            op: node.qualified_op(),
            inputs: describe(&inputs),
            source,
        })
    }

    fn eval_if(
        &self,
        scope: &Scope<'_>,
        graph: &Graph,
        id: NodeId,
        inputs: &[Option<Array>],
        lookup: &dyn Fn(ValueId) -> Option<Array>,
    ) -> Result<Vec<Array>, RunError> {
        let node = graph.node(id);
        let fail = |source: OpError| RunError::Op {
            node: graph.label(id),
            op: "If".to_owned(),
            inputs: describe(inputs),
            source,
        };
        let condition = inputs.first().cloned().flatten().ok_or_else(|| fail(OpError::MissingInput(0)))?;
        let taken = condition.to_bools().map_err(|e| fail(e.into()))?.first().copied().unwrap_or(false);
        let branch = if taken { "then_branch" } else { "else_branch" };
        let Some(Attr::Graph(body)) = node.attr(branch) else {
            return Err(fail(OpError::Unsupported(format!("attribute {branch} is missing"))));
        };
        let outer = |name: &str| graph.find(name).and_then(lookup);
        self.eval_graph(scope, body, HashMap::new(), &outer)
    }

    fn eval_function(
        &self,
        scope: &Scope<'_>,
        function: &crate::ir::Function,
        call: &Node,
        inputs: Vec<Option<Array>>,
    ) -> Result<Vec<Array>, RunError> {
        let resolved = scope.resolve(call);
        let inner = Scope {
            model: scope.model,
            opsets: &function.opsets,
            attrs: Some(resolved.as_ref().unwrap_or(call).attrs.as_slice()),
        };
        let body = &function.body;
        let mut feeds = HashMap::new();
        for (value, array) in body.inputs().iter().zip(inputs) {
            if let Some(array) = array {
                feeds.insert(*value, array);
            }
        }
        self.eval_graph(&inner, body, feeds, &|_| None)
    }

    /// Evaluates a whole (sub)graph.
    fn eval_graph(
        &self,
        scope: &Scope<'_>,
        graph: &Graph,
        mut known: HashMap<ValueId, Array>,
        outer: &dyn Fn(&str) -> Option<Array>,
    ) -> Result<Vec<Array>, RunError> {
        for id in walk::topological(graph)? {
            let lookup = |v: ValueId| self.lookup(graph, &known, outer, v);
            let outputs = self.eval_node(scope, graph, id, &lookup)?;
            for (slot, array) in outputs.into_iter().enumerate() {
                if let Some(value) = graph.node(id).output(slot) {
                    known.insert(value, array);
                }
            }
        }
        let wanted = graph.outputs().iter();
        wanted
            .map(|&v| self.lookup(graph, &known, outer, v).ok_or_else(|| RunError::NotGiven(graph.name(v).to_owned())))
            .collect()
    }

    fn lookup(
        &self,
        graph: &Graph,
        known: &HashMap<ValueId, Array>,
        outer: &dyn Fn(&str) -> Option<Array>,
        value: ValueId,
    ) -> Option<Array> {
        if let Some(array) = known.get(&value) {
            return Some(array.clone());
        }
        match &graph.value(value).def {
            Def::Const(tensor) => Array::from_tensor(tensor, self.compute).ok(),
            Def::Outer => outer(graph.name(value)),
            Def::Input | Def::Node(..) => None,
        }
    }
}

/// What names mean where a node stands: operator sets, and inside a function the attributes of the call.
struct Scope<'a> {
    model: &'a Model,
    opsets: &'a [(String, i64)],
    attrs: Option<&'a [(String, Attr)]>,
}

impl<'a> Scope<'a> {
    fn main(model: &'a Model) -> Scope<'a> {
        Scope { model, opsets: &model.opsets, attrs: None }
    }

    fn opset_of(&self, domain: &str) -> i64 {
        let standard = |d: &str| d.is_empty() || d == "ai.onnx";
        let same = |d: &str| d == domain || (standard(d) && standard(domain));
        self.opsets.iter().find(|(d, _)| same(d)).map_or(1, |(_, version)| *version)
    }

    /// The node with references to the call's attributes replaced, if it has any.
    fn resolve(&self, node: &Node) -> Option<Node> {
        let given = self.attrs?;
        if !node.attrs.iter().any(|(_, attr)| matches!(attr, Attr::Ref(..))) {
            return None;
        }
        let mut resolved = node.clone();
        resolved.attrs = node
            .attrs
            .iter()
            .filter_map(|(key, attr)| match attr {
                Attr::Ref(name, _) => given.iter().find(|(k, _)| k == name).map(|(_, a)| (key.clone(), a.clone())),
                plain => Some((key.clone(), plain.clone())),
            })
            .collect();
        Some(resolved)
    }
}

impl Runner for Walk {
    fn prepare(&self, model: &Model, fed: &[ValueId], wanted: &[ValueId]) -> Result<Segment, RunError> {
        let graph = &model.graph;
        let is_fed: std::collections::HashSet<ValueId> = fed.iter().copied().collect();
        let mut needed = vec![false; graph.node_bound()];
        let mut seen = vec![false; graph.value_bound()];
        let mut stack = wanted.to_vec();
        let mut constants = HashMap::new();
        while let Some(value) = stack.pop() {
            if is_fed.contains(&value) || std::mem::replace(&mut seen[value.0 as usize], true) {
                continue;
            }
            match &graph.value(value).def {
                Def::Const(tensor) => {
                    let array = Array::from_tensor(tensor, self.compute)
                        .map_err(|source| RunError::Constant { name: graph.name(value).to_owned(), source })?;
                    constants.insert(value, array);
                }
                Def::Node(node, _) => {
                    if !std::mem::replace(&mut needed[node.0 as usize], true) {
                        stack.extend(graph.reads(*node));
                    }
                }
                Def::Input | Def::Outer => return Err(RunError::NotGiven(graph.name(value).to_owned())),
            }
        }
        let order = walk::topological(graph)?;
        let steps =
            order.into_iter().filter(|id| needed[id.0 as usize]).map(|node| Step { node, frees: Vec::new() }).collect();
        let mut segment = Segment { fed: fed.to_vec(), wanted: wanted.to_vec(), steps, constants: Vec::new() };
        self.fold(model, &mut segment, &mut constants)?;
        plan_frees(graph, &mut segment);
        let mut read = vec![false; graph.value_bound()];
        for id in segment.steps.iter().map(|step| step.node) {
            for value in graph.reads(id) {
                read[value.0 as usize] = true;
            }
        }
        for value in wanted {
            read[value.0 as usize] = true;
        }
        constants.retain(|value, _| read[value.0 as usize]);
        segment.constants = constants.into_iter().collect();
        segment.constants.sort_by_key(|(value, _)| *value);
        Ok(segment)
    }

    fn run(
        &self,
        model: &Model,
        segment: &Segment,
        feeds: Feeds,
        mut observe: Option<&mut Observer<'_>>,
    ) -> Result<Vec<Array>, RunError> {
        let graph = &model.graph;
        let scope = Scope::main(model);
        let mut known = feeds;
        for value in &segment.fed {
            match known.remove(value) {
                Some(array) => known.insert(*value, array.carried(self.compute)),
                None => return Err(RunError::NotGiven(graph.name(*value).to_owned())),
            };
        }
        let constants: HashMap<ValueId, &Array> = segment.constants.iter().map(|(v, a)| (*v, a)).collect();
        for step in &segment.steps {
            let node = graph.node(step.node);
            let lookup = |v: ValueId| known.get(&v).or_else(|| constants.get(&v).copied()).cloned();
            let outputs = self.eval_node(&scope, graph, step.node, &lookup)?;
            if let Some(observe) = observe.as_deref_mut() {
                let inputs: Vec<Option<Array>> = node.inputs.iter().map(|v| v.and_then(&lookup)).collect();
                observe(step.node, node, &inputs, &outputs);
            }
            for (slot, array) in outputs.into_iter().enumerate() {
                if let Some(value) = node.output(slot) {
                    known.insert(value, array);
                }
            }
            for value in &step.frees {
                known.remove(value);
            }
        }
        segment
            .wanted
            .iter()
            .map(|v| {
                let array = known.get(v).or_else(|| constants.get(v).copied()).cloned();
                array.ok_or_else(|| RunError::NotGiven(graph.name(*v).to_owned()))
            })
            .collect()
    }

    fn pool(&self) -> &Pool {
        &self.pool
    }

    fn compute(&self) -> Compute {
        self.compute
    }
}

/// After which step each computed value can be dropped.
fn plan_frees(graph: &Graph, segment: &mut Segment) {
    let mut kept: Vec<bool> = vec![false; graph.value_bound()];
    for value in &segment.wanted {
        kept[value.0 as usize] = true;
    }
    for step in segment.steps.iter_mut().rev() {
        let node = graph.node(step.node);
        for value in graph.reads(step.node).chain(node.outputs.iter().flatten().copied()) {
            if !std::mem::replace(&mut kept[value.0 as usize], true) {
                step.frees.push(value);
            }
        }
    }
}

fn describe(inputs: &[Option<Array>]) -> String {
    let each = inputs.iter().map(|input| match input {
        Some(array) => format!("{}{:?}", array.dtype, array.shape),
        None => "-".to_owned(),
    });
    format!("[{}]", each.collect::<Vec<_>>().join(", "))
}
