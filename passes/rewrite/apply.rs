//! From plan to graph: the only pass that knows formats.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use mbqc_kernels::affine::{Codes, ScaleType};
use mbqc_kernels::{Pool, Spec};

use crate::facts::sites::{Form, Site, Survey};
use crate::ir::{
    Attr, DType, Edit, Graph, GraphPath, Lazy, Model, NewNode, NodeId, Place, Sink, Tensor, Type, ValueId,
};
use crate::method::driver::matrix;
use crate::plan::{GroupPlan, Plan, RangeRule, Recipe, ScaleRule, path_text, site_key};
use crate::weights::{Scaling, WeightError, scale_type};

use super::fallback::{Fallback, body};

/// Which operators the result may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Our operators for 3 bits, with a body for other runtimes.
    Mbqc,
    /// Operators of stock onnxruntime only: 3-bit codes in 4-bit containers.
    Ort,
}

/// Precision of the arithmetic that quantized layers ask their kernels for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accuracy {
    /// f32 for 3 and 4 bits; int8 activations for 2 and 8 bits, whose f32 path in onnxruntime is 25 to 40 times slower.
    Auto,
    /// f32 everywhere.
    Exact,
    /// int8 activations everywhere.
    Fast,
}

/// How a plan is applied.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Which operators the result may use.
    pub target: Target,
    /// Body of 3-bit operators.
    pub fallback: Fallback,
    /// Precision of the arithmetic.
    pub accuracy: Accuracy,
}

/// Why a plan could not be applied.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ApplyError {
    /// The plan names something the model does not have.
    #[error(
        "the plan does not fit this model: {what} `{name}` {found}, expected {expected}; make the plan from the same \
         file, or compile without a plan"
    )]
    Misfit {
        /// Layer, constant or node.
        what: &'static str,
        /// Its name.
        name: String,
        /// What was found.
        found: String,
        /// What the plan expects.
        expected: String,
    },
    /// No body can be written.
    #[error("{0}")]
    Body(String),
    /// A weight cannot be quantized.
    #[error(transparent)]
    Weight(#[from] WeightError),
    /// A constant cannot take its scale.
    #[error("constant `{name}` divided by the scale of group `{group}` leaves the range of {dtype} ({value})")]
    Range {
        /// The constant.
        name: String,
        /// The group's input.
        group: String,
        /// The constant's type.
        dtype: DType,
        /// The value that does not fit.
        value: f64,
    },
    /// An edit broke a law.
    #[error(transparent)]
    Law(#[from] crate::ir::Error),
}

/// Applies a plan. Packed weights are made when the writer asks for them, one layer at a time.
pub fn apply(
    model: &Model,
    survey: &Survey,
    plan: &Plan,
    options: &Options,
    pool: &Arc<Pool>,
) -> Result<Model, ApplyError> {
    let mut pass = Pass {
        model,
        survey,
        plan,
        options,
        pool,
        packed: HashMap::new(),
        edits: HashMap::new(),
        uses_w3: false,
        sites: survey.sites.iter().enumerate().map(|(i, s)| (site_key(model, s), i)).collect(),
    };
    pass.fold_constants()?;
    for recipe in &plan.recipes {
        pass.quantize(recipe)?;
    }
    let mut result = model.clone();
    let edits = std::mem::take(&mut pass.edits);
    // Outer graphs first: subgraphs may name their new constants.
    let mut paths: Vec<GraphPath> = edits.keys().cloned().collect();
    paths.sort_by_key(|path| (path.len(), path.clone()));
    for path in &paths {
        let graph = result.graph_at_mut(path).ok_or(crate::ir::Error::NoNode(0))?;
        graph.apply(edits[path].rewrites.iter().cloned())?;
    }
    // What nobody reads any more goes last, inner graphs first.
    for path in paths.iter().rev() {
        let drops = edits[path].drops.iter().map(|name| Edit::DropUnread(name.clone()));
        if let Some(graph) = result.graph_at_mut(path) {
            graph.apply(drops)?;
        }
    }
    if pass.uses_w3 {
        let function = body(options.fallback, result.opset()).map_err(ApplyError::Body)?;
        result.import("ai.mbqc", 1);
        result.functions.extend(function);
    }
    if plan.recipes.iter().any(|r| !pass.own_op(&r.format)) || (pass.uses_w3 && options.fallback == Fallback::Ort) {
        result.import("com.microsoft", 1);
    }
    result.ir_version = result.ir_version.max(8);
    Ok(result)
}

/// Whether a site can be rewritten at all, and if not, why.
pub fn can_apply(model: &Model, site: &Site) -> Result<(), String> {
    let graph = model.graph_at(&site.path).ok_or("its graph is gone")?;
    if site.weight.read_as == DType::F64 {
        return Err("its arithmetic is in double precision".to_owned());
    }
    if site.form == Form::Left && rank(graph, site.x).is_none() {
        return Err("its weight is the first operand and the rank of the second is not declared".to_owned());
    }
    Ok(())
}

fn rank(graph: &Graph, value: ValueId) -> Option<usize> {
    match &graph.value(value).ty {
        Some(Type::Tensor(_, Some(dims))) => Some(dims.len()),
        _ => None,
    }
}

#[derive(Default)]
struct GraphEdits {
    rewrites: Vec<Edit>,
    drops: Vec<String>,
}

struct Pass<'a> {
    model: &'a Model,
    survey: &'a Survey,
    plan: &'a Plan,
    options: &'a Options,
    pool: &'a Arc<Pool>,
    /// Names of the packed constants, by owner, weight and format.
    packed: HashMap<(GraphPath, String, String), [String; 3]>,
    edits: HashMap<GraphPath, GraphEdits>,
    uses_w3: bool,
    sites: HashMap<String, usize>,
}

impl Pass<'_> {
    fn edit(&mut self, path: &GraphPath, edit: Edit) {
        self.edits.entry(path.clone()).or_default().rewrites.push(edit);
    }

    fn own_op(&self, format: &str) -> bool {
        format.starts_with("w3") && self.options.target == Target::Mbqc
    }

    /// Divides the constants that absorb scales, except the weights of layers that are quantized: those take their
    /// divisors while they are rounded.
    fn fold_constants(&mut self) -> Result<(), ApplyError> {
        let graph = &self.model.graph;
        let uses = graph.uses();
        let quantized: Vec<&str> = self.plan.recipes.iter().map(|r| r.weight.as_str()).collect();
        for group in self.plan.groups.iter().filter(|g| !g.scale.is_empty()) {
            for divided in &group.divided {
                if quantized.contains(&divided.constant.as_str()) {
                    continue;
                }
                let misfit = |what, name: &str, found: &str, expected: String| ApplyError::Misfit {
                    what,
                    name: name.to_owned(),
                    found: found.to_owned(),
                    expected,
                };
                let value = graph.find(&divided.constant);
                let tensor = value.and_then(|v| graph.constant(v)).ok_or_else(|| {
                    misfit("constant", &divided.constant, "is not in the main graph", "a constant".to_owned())
                })?;
                let reader = graph.find(&divided.reader).and_then(|v| graph.producer(v)).ok_or_else(|| {
                    misfit("value", &divided.reader, "has no producer", "the node that reads the constant".to_owned())
                })?;
                if tensor.dims.get(divided.axis) != Some(&group.scale.len()) {
                    return Err(misfit(
                        "constant",
                        &divided.constant,
                        &format!("has shape {:?}", tensor.dims),
                        format!("{} entries along axis {}", group.scale.len(), divided.axis),
                    ));
                }
                let scaled = divide(tensor, &divided.constant, group, divided.axis)?;
                let value = value.expect("the constant was found above");
                if uses.count(value) == 1 {
                    self.edit(&Vec::new(), Edit::SetConst(value, scaled));
                } else {
                    let name = fresh(graph, &format!("{}.scaled", divided.constant));
                    self.edit(&Vec::new(), Edit::AddConst(name.clone(), scaled));
                    self.edit(&Vec::new(), Edit::SetInput(reader.0, divided.slot, name));
                }
            }
        }
        Ok(())
    }

    fn quantize(&mut self, recipe: &Recipe) -> Result<(), ApplyError> {
        let misfit = |found: String, expected: String| ApplyError::Misfit {
            what: "layer",
            name: recipe.site.clone(),
            found,
            expected,
        };
        let index = *self.sites.get(&recipe.site).ok_or_else(|| {
            misfit("is not in the model".to_owned(), format!("a layer that reads `{}`", recipe.weight))
        })?;
        let site = &self.survey.sites[index];
        if (site.n, site.k, site.weight.name.as_str()) != (recipe.n, recipe.k, recipe.weight.as_str()) {
            return Err(misfit(
                format!("has weight `{}` [{}, {}]", site.weight.name, site.n, site.k),
                format!("`{}` [{}, {}]", recipe.weight, recipe.n, recipe.k),
            ));
        }
        let spec: Spec = recipe.format.parse().map_err(|e: mbqc_kernels::Error| {
            misfit(format!("has format `{}`: {e}", recipe.format), "a format".into())
        })?;
        let names = self.pack(site, recipe, spec)?;
        let graph = self.model.graph_at(&site.path).ok_or(crate::ir::Error::NoNode(site.node.0))?;
        let node = graph.node(site.node);
        let x = graph.name(site.x).to_owned();
        let y = graph.name(site.y).to_owned();
        let mut quantized = NewNode::new("", &[], &[]);
        quantized.name.clone_from(&node.name);
        quantized.metadata.clone_from(&node.metadata);
        quantized.inputs = vec![x.clone(), names[0].clone(), names[1].clone(), names[2].clone()];
        quantized.outputs = vec![y.clone()];
        self.describe(&mut quantized, site, spec);
        match &site.form {
            Form::Right => {}
            Form::Left => {
                let rank = rank(graph, site.x).unwrap_or(2);
                let turned = fresh(graph, &format!("{y}/x"));
                let product = fresh(graph, &format!("{y}/product"));
                let path = site.path.clone();
                let id = site.node;
                quantized.inputs[0].clone_from(&turned);
                quantized.outputs[0].clone_from(&product);
                self.edit(&path, Edit::AddNode(swap_last(&x, &turned, rank), Place::Before(id)));
                self.replace(&path, id, quantized);
                self.edit(&path, Edit::AddNode(swap_last(&product, &y, rank), Place::After(id)));
                return Ok(());
            }
            Form::Gemm { beta, trans_a, c, .. } => {
                let path = site.path.clone();
                let id = site.node;
                if *trans_a {
                    let turned = fresh(graph, &format!("{y}/x"));
                    quantized.inputs[0].clone_from(&turned);
                    self.edit(&path, Edit::AddNode(swap_last(&x, &turned, 2), Place::Before(id)));
                }
                if let Some(c) = c.filter(|_| *beta != 0.0) {
                    let product = fresh(graph, &format!("{y}/product"));
                    quantized.outputs[0].clone_from(&product);
                    let mut addend = graph.name(c).to_owned();
                    let add_at = Place::After(id);
                    self.replace(&path, id, quantized);
                    let mut edits = Vec::new();
                    if *beta != 1.0 {
                        let factor = fresh(graph, &format!("{y}/beta"));
                        let scaled = fresh(graph, &format!("{y}/c"));
                        let constant = Tensor::floats(site.weight.read_as, [], &[*beta])
                            .unwrap_or_else(|| Tensor::f32s([], &[*beta]));
                        self.edit(&path, Edit::AddConst(factor.clone(), constant));
                        edits.push(NewNode::new("Mul", &[&addend, &factor], &[&scaled]).named(&scaled));
                        addend = scaled;
                    }
                    let name = if node.name.is_empty() { String::new() } else { format!("{}/Add", node.name) };
                    edits.push(NewNode::new("Add", &[&product, &addend], &[&y]).named(name));
                    for add in edits.into_iter().rev() {
                        self.edit(&path, Edit::AddNode(add, add_at));
                    }
                    return Ok(());
                }
                self.replace(&path, id, quantized);
                return Ok(());
            }
        }
        let (path, id) = (site.path.clone(), site.node);
        self.replace(&path, id, quantized);
        Ok(())
    }

    /// Replaces a layer's node; its old weight goes when nobody else reads it.
    fn replace(&mut self, path: &GraphPath, id: NodeId, with: NewNode) {
        let inputs: Vec<String> = self
            .model
            .graph_at(path)
            .map(|graph| graph.node(id).inputs.iter().flatten().map(|v| graph.name(*v).to_owned()).collect())
            .unwrap_or_default();
        let kept = with.inputs.clone();
        let edits = self.edits.entry(path.clone()).or_default();
        edits.rewrites.push(Edit::ReplaceNode(id, with));
        edits.drops.extend(inputs.into_iter().filter(|name| !kept.contains(name)));
    }

    fn describe(&mut self, node: &mut NewNode, site: &Site, spec: Spec) {
        let own = self.own_op(spec.format.name);
        let schema = &spec.format.schema;
        let accuracy = match self.options.accuracy {
            Accuracy::Auto => schema.accuracy_level,
            Accuracy::Exact => 1,
            Accuracy::Fast => 4,
        };
        let mut int = |name: &str, value: i64| node.attrs.push((name.to_owned(), Attr::Int(value)));
        int("K", i64::try_from(site.k).unwrap_or(i64::MAX));
        int("N", i64::try_from(site.n).unwrap_or(i64::MAX));
        if !own {
            int("bits", schema.bits.unwrap_or(4));
        }
        int("block_size", i64::try_from(spec.group).unwrap_or(i64::MAX));
        int("accuracy_level", accuracy);
        if own {
            self.uses_w3 = true;
            schema.domain.clone_into(&mut node.domain);
            schema.op.clone_into(&mut node.op);
        } else {
            "com.microsoft".clone_into(&mut node.domain);
            "MatMulNBits".clone_into(&mut node.op);
        }
    }

    /// The packed constants of a weight, made once however many layers share it.
    fn pack(&mut self, site: &Site, recipe: &Recipe, spec: Spec) -> Result<[String; 3], ApplyError> {
        let key = (site.weight.owner.clone(), site.weight.name.clone(), recipe.format.clone());
        if let Some(names) = self.packed.get(&key) {
            return Ok(names.clone());
        }
        let owner = self.model.graph_at(&site.weight.owner).ok_or(crate::ir::Error::NoNode(0))?;
        let scaling = self.scaling(site, recipe)?;
        let own = self.own_op(spec.format.name);
        let container = if own || spec.format.bits != 3 { spec.format } else { four_bits() };
        let source = Arc::new(PackedSource {
            matrix: matrix(site),
            scaling,
            spec,
            container,
            range: recipe.range,
            scale: match recipe.scales {
                ScaleRule::Stored => scale_type(site.weight.read_as),
                ScaleRule::F32 => mbqc_kernels::affine::ScaleType::F32,
            },
            pool: Arc::clone(self.pool),
            waiting: Mutex::default(),
        });
        let (n, groups) = (site.n, site.k.div_ceil(spec.group));
        let bits = container.bits as usize;
        let block = spec.group * bits / 8;
        let zero_bits = if bits == 3 { 4 } else { bits };
        let zero_row = (groups * zero_bits).div_ceil(8);
        let read_as = site.weight.read_as;
        let stem = format!("{}.{}", site.weight.name, recipe.format);
        let names = ["B", "scales", "zero_points"].map(|part| fresh(owner, &format!("{stem}.{part}")));
        let scale_bytes = read_as.bytes_for(n * groups).unwrap_or(0);
        let tensors = [
            lazy(DType::U8, vec![n, groups, block], n * groups * block, &source, PackedSource::codes),
            lazy(read_as, vec![n, groups], scale_bytes, &source, PackedSource::scales),
            lazy(DType::U8, vec![n, zero_row], n * zero_row, &source, PackedSource::zero_points),
        ];
        for (name, tensor) in names.iter().zip(tensors) {
            self.edit(&site.weight.owner.clone(), Edit::AddConst(name.clone(), tensor));
        }
        self.packed.insert(key, names.clone());
        Ok(names)
    }

    fn scaling(&self, site: &Site, recipe: &Recipe) -> Result<Scaling, ApplyError> {
        let mut scaling = Scaling::default();
        if let Form::Gemm { alpha, .. } = site.form
            && alpha != 1.0
        {
            scaling.all = Some(alpha);
        }
        let misfit = |found: String, expected: String| ApplyError::Misfit {
            what: "layer",
            name: format!("{}{}", path_text(self.model, &site.path), recipe.name),
            found,
            expected,
        };
        if let Some(index) = recipe.group {
            let group =
                self.plan.groups.get(index).ok_or_else(|| {
                    misfit(format!("names group {index}"), format!("below {}", self.plan.groups.len()))
                })?;
            if !group.scale.is_empty() {
                if group.scale.len() != site.k {
                    return Err(misfit(format!("has {} input channels", site.k), format!("{}", group.scale.len())));
                }
                scaling.columns = Some(group.scale.clone());
            }
        }
        let divides = |g: &&GroupPlan| !g.scale.is_empty() && g.divided.iter().any(|d| d.constant == site.weight.name);
        if let Some(group) = self.plan.groups.iter().find(divides) {
            if group.scale.len() != site.n {
                return Err(misfit(format!("has {} output channels", site.n), format!("{}", group.scale.len())));
            }
            scaling.rows = Some(group.scale.clone());
        }
        Ok(scaling)
    }
}

fn four_bits() -> &'static mbqc_kernels::Format {
    mbqc_kernels::FORMATS.iter().find(|f| f.name == "w4").expect("law: the list of formats has w4")
}

/// Quantizes a weight when the writer asks, block by block. Each of the three parts comes out of the same pass over the
/// weight: scales and zero points, the small ones, wait from then on until they are asked for, which is soon, since they
/// follow the codes in the file. A part that is asked for again is made anew.
struct PackedSource {
    matrix: crate::weights::Matrix,
    scaling: Scaling,
    spec: Spec,
    /// The format whose bytes are stored: another one than the codes' where 3-bit codes go into 4-bit containers.
    container: &'static mbqc_kernels::Format,
    range: RangeRule,
    scale: ScaleType,
    pool: Arc<Pool>,
    waiting: Mutex<Waiting>,
}

/// Parts that were made and not yet asked for.
#[derive(Default)]
struct Waiting {
    scales: Option<Vec<u8>>,
    zero_points: Option<Vec<u8>>,
}

impl PackedSource {
    /// Hands the packed codes to `sink`.
    fn codes(&self, sink: &mut Sink<'_>) -> Result<(), String> {
        let dtype = self.matrix.weight.read_as;
        let (mut scales, mut zero_points) = (Vec::new(), Vec::new());
        let pack = |codes| (self.container.pack)(&Codes { bits: self.container.bits, ..codes });
        let Self { matrix, scaling, spec, range, scale, pool, .. } = self;
        for packed in matrix.quantize_blocks(scaling, *spec, *range, *scale, pool, pack) {
            let packed = packed.map_err(|error| error.to_string())?;
            let stored = Tensor::floats(dtype, packed.scale_dims, &packed.scales);
            let stored = stored.ok_or_else(|| format!("scales cannot be stored as {dtype}"))?;
            scales.extend_from_slice(stored.bytes());
            zero_points.extend_from_slice(&packed.zero_points);
            sink(&packed.b)?;
        }
        let mut waiting = self.waiting()?;
        *waiting = Waiting { scales: Some(scales), zero_points: Some(zero_points) };
        Ok(())
    }

    fn scales(&self, sink: &mut Sink<'_>) -> Result<(), String> {
        sink(&self.small(|waiting| waiting.scales.take())?)
    }

    fn zero_points(&self, sink: &mut Sink<'_>) -> Result<(), String> {
        sink(&self.small(|waiting| waiting.zero_points.take())?)
    }

    fn small(&self, take: fn(&mut Waiting) -> Option<Vec<u8>>) -> Result<Vec<u8>, String> {
        let found = take(&mut *self.waiting()?);
        if let Some(found) = found {
            return Ok(found);
        }
        self.codes(&mut |_| Ok(()))?;
        let made = take(&mut *self.waiting()?);
        made.ok_or_else(|| "another thread took the part that was just made".to_owned())
    }

    fn waiting(&self) -> Result<MutexGuard<'_, Waiting>, String> {
        self.waiting.lock().map_err(|_| "a worker panicked".to_owned())
    }
}

fn lazy(
    dtype: DType,
    dims: Vec<usize>,
    len: usize,
    source: &Arc<PackedSource>,
    part: fn(&PackedSource, &mut Sink<'_>) -> Result<(), String>,
) -> Tensor {
    let source = Arc::clone(source);
    Tensor::lazy(dtype, dims, Lazy::in_pieces(len, move |sink| part(&source, sink)))
}

/// A name that the graph does not have yet.
fn fresh(graph: &Graph, base: &str) -> String {
    if graph.find(base).is_none() {
        return base.to_owned();
    }
    let numbered = (1..).map(|i| format!("{base}_{i}")).find(|name| graph.find(name).is_none());
    numbered.unwrap_or_default()
}

fn swap_last(from: &str, to: &str, rank: usize) -> NewNode {
    let mut perm: Vec<i64> = (0..rank as i64).collect();
    perm.swap(rank - 1, rank - 2);
    NewNode::new("Transpose", &[from], &[to]).named(to).attr("perm", Attr::Ints(perm))
}

/// The constant with every entry divided by the group's scale at its place along `axis`, in its own type.
fn divide(tensor: &Tensor, name: &str, group: &GroupPlan, axis: usize) -> Result<Tensor, ApplyError> {
    let inner: usize = tensor.dims[axis + 1..].iter().product();
    let values = tensor.to_f64().unwrap_or_default();
    let mut scaled = Vec::with_capacity(values.len());
    for (i, v) in values.iter().enumerate() {
        let s = group.scale[i / inner % group.scale.len()];
        scaled.push(*v as f32 / s);
    }
    let range = |value: f64| ApplyError::Range {
        name: name.to_owned(),
        group: group.input.clone(),
        dtype: tensor.dtype,
        value,
    };
    let result = Tensor::floats(tensor.dtype, tensor.dims.clone(), &scaled).ok_or_else(|| range(f64::NAN))?;
    match result.to_f64().unwrap_or_default().into_iter().find(|v| !v.is_finite()) {
        Some(value) => Err(range(value)),
        None => Ok(result),
    }
}
