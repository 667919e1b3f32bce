//! From plan to graph: the only pass that knows formats.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use mbqc_kernels::affine::ScaleType;
use mbqc_kernels::{FORMATS, Format, Pool, Schema, Scheme, Spec};

use crate::facts::sites::{Form, Site, Survey};
use crate::ir::{Attr, DType, Edit, GraphPath, Model, NewNode, NodeId, Place, Tensor, Type, fresh_name};
use crate::method::driver::matrix;
use crate::plan::{DividedPlan, GroupPlan, Plan, Recipe, ScaleRule, path_text, site_key};
use crate::weights::{Scaling, WeightError, scale_type};

use super::fallback::{Fallback, body, is_body};

mod check;
mod divide;
mod packed;

pub use check::check;
use divide::{Refused, divide};
use packed::{PackedSource, Packing, lazy};

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
    /// The closest for 3 and 4 bits; int8 activations for 2 and 8 bits, whose f32 path in onnxruntime is 25 to 40 times slower.
    Auto,
    /// The closest arithmetic everywhere.
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

/// The domain of our operators.
const OWN: &str = "ai.mbqc";

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
        products: HashMap::new(),
        folded: HashMap::new(),
        edits: HashMap::new(),
        names: model.names(),
        ops: Vec::new(),
        sites: survey.sites.iter().enumerate().map(|(i, s)| (site_key(model, s), i)).collect(),
    };
    pass.check_groups()?;
    pass.fold_constants()?;
    let mut seen = HashSet::new();
    for recipe in &plan.recipes {
        if !seen.insert(&recipe.site) {
            return Err(ApplyError::Misfit {
                what: "layer",
                name: recipe.site.clone(),
                found: "occurs twice".to_owned(),
                expected: "one recipe for a layer".to_owned(),
            });
        }
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
    for schema in pass.ops {
        result.import(schema.domain, schema.version);
        if schema.domain == OWN {
            bring_body(&mut result, schema.op, options.fallback)?;
        }
    }
    result.ir_version = result.ir_version.max(8);
    Ok(result)
}

/// Adds the function body of one of our operators, unless a model that was compiled in part before brings it along.
fn bring_body(model: &mut Model, op: &str, fallback: Fallback) -> Result<(), ApplyError> {
    if let Some(known) = model.function(OWN, op) {
        return if is_body(known) {
            Ok(())
        } else {
            Err(ApplyError::Body(format!(
                "the model brings a function `{OWN}::{op}` whose nodes are not those that mbqc writes, so its layers would \
                 compute something else; compile the original model, or use --target ort"
            )))
        };
    }
    let function = body(op, fallback, model.opset()).map_err(ApplyError::Body)?;
    if let Some(function) = function {
        for (domain, version) in function.opsets.iter().filter(|(domain, _)| !domain.is_empty()) {
            model.import(domain, *version);
        }
        model.functions.push(function);
    }
    Ok(())
}

/// Whether a site can be rewritten at all, and if not, why.
pub fn can_apply(model: &Model, site: &Site) -> Result<(), String> {
    let graph = model.graph_at(&site.path).ok_or("its graph is gone")?;
    if site.weight.read_as == DType::F64 {
        return Err("its arithmetic is in double precision".to_owned());
    }
    match graph.rank(site.x) {
        None if site.form == Form::Left => {
            Err("its weight is the first operand and the rank of the second is not declared".to_owned())
        }
        Some(rank @ (0 | 1)) => {
            Err(format!("its activation has {rank} axes; the quantized operators need tokens and channels"))
        }
        _ => Ok(()),
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
    /// Names of the packed constants.
    packed: HashMap<Packing, Vec<String>>,
    /// By group and value the product of that value and the group's 1/s.
    products: HashMap<(usize, String), String>,
    /// By node and slot of the main graph what is read there instead, where a fold made a constant of its own.
    folded: HashMap<(NodeId, usize), String>,
    edits: HashMap<GraphPath, GraphEdits>,
    /// Names of all graphs, and those that the edits so far take.
    names: HashSet<String>,
    /// The operators that were put in.
    ops: Vec<Schema>,
    sites: HashMap<String, usize>,
}

impl Pass<'_> {
    fn edit(&mut self, path: &GraphPath, edit: Edit) {
        self.edits.entry(path.clone()).or_default().rewrites.push(edit);
    }

    fn fresh(&mut self, base: &str) -> String {
        fresh_name(&mut self.names, base)
    }

    /// What carries a format's codes: its own operator, or for stock runtimes the smallest stock container.
    fn container(&self, format: &'static Format) -> &'static Format {
        let stock = |f: &&&Format| f.schema.domain != OWN && f.scheme == format.scheme && f.bits >= format.bits;
        if self.options.target == Target::Mbqc || format.schema.domain != OWN {
            return format;
        }
        FORMATS.iter().filter(stock).min_by_key(|f| f.bits).copied().unwrap_or(format)
    }

    fn check_groups(&self) -> Result<(), ApplyError> {
        for group in &self.plan.groups {
            if let Some(bad) = group.scale.iter().find(|s| !(s.is_finite() && **s > 0.0)) {
                return Err(ApplyError::Misfit {
                    what: "group",
                    name: group.input.clone(),
                    found: format!("has a scale of {bad}"),
                    expected: "finite numbers above zero".to_owned(),
                });
            }
        }
        Ok(())
    }

    /// What each place of a constant of `entries` places is divided by where the node with the output `reader` reads it as input
    /// `slot`: the scales of all groups that it feeds.
    fn divisors(
        &self,
        constant: &str,
        reader: &str,
        slot: usize,
        entries: usize,
    ) -> Result<Option<Vec<f32>>, ApplyError> {
        let mut divisors = None;
        for group in self.plan.groups.iter().filter(|g| !g.scale.is_empty()) {
            let here = |d: &&DividedPlan| d.slot == slot && d.constant == constant && d.reader == reader;
            for divided in group.divided.iter().filter(here) {
                let all = divisors.get_or_insert_with(|| vec![1.0f32; entries]);
                let channels = divided.channels(entries);
                let fits = channels.len() == group.scale.len() && channels.iter().all(|&c| c < entries);
                if !fits {
                    return Err(ApplyError::Misfit {
                        what: "constant",
                        name: constant.to_owned(),
                        found: format!("has {entries} entries along its axis, {} of which are divided", channels.len()),
                        expected: format!(
                            "one for each of the {} scales of group `{}`",
                            group.scale.len(),
                            group.input
                        ),
                    });
                }
                for (&channel, s) in channels.iter().zip(&group.scale) {
                    all[channel] *= s;
                }
            }
        }
        Ok(divisors)
    }

    /// Divides the constants that absorb scales, except the weights of layers that are quantized: those take their
    /// divisors while they are rounded.
    fn fold_constants(&mut self) -> Result<(), ApplyError> {
        let graph = &self.model.graph;
        let uses = graph.uses();
        let quantized: HashSet<&str> = self.plan.recipes.iter().map(|r| r.weight.as_str()).collect();
        let mut done = HashSet::new();
        let groups = self.plan.groups.iter().filter(|g| !g.scale.is_empty());
        for (group, divided) in groups.flat_map(|g| g.divided.iter().map(move |d| (g, d))) {
            let constant = divided.constant.as_str();
            if quantized.contains(constant) {
                continue;
            }
            let misfit = |what, name: &str, found: String, expected: &str| ApplyError::Misfit {
                what,
                name: name.to_owned(),
                found,
                expected: expected.to_owned(),
            };
            let value = graph.find(constant);
            let tensor = value.and_then(|v| graph.shown_constant(v));
            let (Some(value), Some(tensor)) = (value, tensor) else {
                return Err(misfit("constant", constant, "is not in the main graph".to_owned(), "a constant"));
            };
            let reader = graph.find(&divided.reader).and_then(|v| graph.producer(v)).ok_or_else(|| {
                let expected = "the node that reads the constant";
                misfit("value", &divided.reader, "has no producer".to_owned(), expected)
            })?;
            let Some(&entries) = tensor.dims.get(divided.axis) else {
                let found = format!("has shape {:?}", tensor.dims);
                return Err(misfit("constant", constant, found, &format!("an axis {}", divided.axis)));
            };
            // One copy for all groups that this constant feeds through this reader.
            let Some(divisors) = self.divisors(constant, &divided.reader, divided.slot, entries)? else { continue };
            if !done.insert((constant, reader.0, divided.slot)) {
                continue;
            }
            let refused = |refused| match refused {
                Refused::Type => misfit("constant", constant, format!("is of type {}", tensor.dtype), "a float type"),
                Refused::Leaves(value) => ApplyError::Range {
                    name: constant.to_owned(),
                    group: group.input.clone(),
                    dtype: tensor.dtype,
                    value: f64::from(value),
                },
            };
            let scaled = divide(tensor, divisors, divided.axis).map_err(refused)?;
            let main = GraphPath::new();
            if uses.count(value) == 1 && graph.constant(value).is_some() {
                self.edit(&main, Edit::SetConst(value, scaled));
                continue;
            }
            let name = self.fresh(&format!("{constant}.scaled"));
            self.edit(&main, Edit::AddConst(name.clone(), scaled));
            // Behind a view only the constant itself can be replaced; then it has no other reader.
            let direct = graph.node(reader.0).input(divided.slot) == Some(value);
            let readers = uses.of(value).iter().copied();
            let readers = if direct { vec![(reader.0, divided.slot)] } else { readers.collect() };
            for (node, slot) in readers {
                self.edit(&main, Edit::SetInput(node, slot, name.clone()));
                self.folded.insert((node, slot), name.clone());
            }
            self.edits.entry(main).or_default().drops.push(constant.to_owned());
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
        if self.options.target == Target::Ort && spec.format.scheme == Scheme::WeightActivation {
            return Err(misfit(
                format!("has format `{spec}`, which no operator of onnxruntime carries"),
                "a weight-only format for this target; without --target ort a body of standard operators goes with the \
                 model, which onnxruntime executes"
                    .to_owned(),
            ));
        }
        let parts = self.pack(site, recipe, spec)?;
        let graph = self.model.graph_at(&site.path).ok_or(crate::ir::Error::NoNode(site.node.0))?;
        let node = graph.node(site.node);
        let x = self.scaled_input(site, recipe, graph.name(site.x))?;
        let y = graph.name(site.y).to_owned();
        let mut quantized = NewNode::new("", &[], &[]);
        quantized.name.clone_from(&node.name);
        quantized.metadata.clone_from(&node.metadata);
        quantized.inputs = std::iter::once(x.clone()).chain(parts).collect();
        quantized.outputs = vec![y.clone()];
        self.describe(&mut quantized, site, spec);
        match &site.form {
            Form::Right => {}
            Form::Left => {
                let rank = graph.rank(site.x).unwrap_or(2);
                let turned = self.fresh(&format!("{y}/x"));
                let product = self.fresh(&format!("{y}/product"));
                let path = site.path.clone();
                let id = site.node;
                quantized.inputs[0].clone_from(&turned);
                quantized.outputs[0].clone_from(&product);
                self.edit(&path, Edit::AddNode(swap_last(&x, &turned, rank), Place::Before(id)));
                self.replace(&path, id, quantized, site.weight.read_as);
                self.edit(&path, Edit::AddNode(swap_last(&product, &y, rank), Place::After(id)));
                return Ok(());
            }
            Form::Gemm { beta, trans_a, c, .. } => {
                let path = site.path.clone();
                let id = site.node;
                if *trans_a {
                    let turned = self.fresh(&format!("{y}/x"));
                    quantized.inputs[0].clone_from(&turned);
                    self.edit(&path, Edit::AddNode(swap_last(&x, &turned, 2), Place::Before(id)));
                }
                if let Some(c) = c.filter(|_| *beta != 0.0) {
                    let product = self.fresh(&format!("{y}/product"));
                    quantized.outputs[0].clone_from(&product);
                    let folded = self.folded.get(&(id, 2)).filter(|_| path.is_empty());
                    let mut addend = folded.map_or_else(|| graph.name(c).to_owned(), String::clone);
                    let add_at = Place::After(id);
                    self.replace(&path, id, quantized, site.weight.read_as);
                    let mut edits = Vec::new();
                    if *beta != 1.0 {
                        let factor = self.fresh(&format!("{y}/beta"));
                        let scaled = self.fresh(&format!("{y}/c"));
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
                self.replace(&path, id, quantized, site.weight.read_as);
                return Ok(());
            }
        }
        let (path, id) = (site.path.clone(), site.node);
        self.replace(&path, id, quantized, site.weight.read_as);
        Ok(())
    }

    /// Replaces a layer's node, which computes values of type `read_as`; its old weight goes when nobody else reads it.
    fn replace(&mut self, path: &GraphPath, id: NodeId, with: NewNode, read_as: DType) {
        let inputs: Vec<String> = self
            .model
            .graph_at(path)
            .map(|graph| graph.node(id).inputs.iter().flatten().map(|v| graph.name(*v).to_owned()).collect())
            .unwrap_or_default();
        let kept = with.inputs.clone();
        let gone: Vec<String> = inputs.into_iter().filter(|name| !kept.contains(name)).collect();
        let own = with.domain == OWN;
        let outputs = with.outputs.clone();
        self.edit(path, Edit::ReplaceNode(id, with));
        // Who infers types has no schema of our operators.
        for output in outputs.into_iter().filter(|_| own) {
            self.edit(path, Edit::Declare(output, Type::Tensor(read_as, None)));
        }
        // A weight may lie in a surrounding graph.
        for depth in 0..=path.len() {
            self.edits.entry(path[..depth].to_vec()).or_default().drops.extend(gone.iter().cloned());
        }
    }

    fn describe(&mut self, node: &mut NewNode, site: &Site, spec: Spec) {
        let schema = &self.container(spec.format).schema;
        let accuracy = match self.options.accuracy {
            // What the codes ask for, whatever carries them.
            Accuracy::Auto => spec.format.schema.accuracy_level,
            Accuracy::Exact => 1,
            Accuracy::Fast => 4,
        };
        let mut int = |name: &str, value: i64| node.attrs.push((name.to_owned(), Attr::Int(value)));
        int("K", i64::try_from(site.k).unwrap_or(i64::MAX));
        int("N", i64::try_from(site.n).unwrap_or(i64::MAX));
        if let Some(bits) = schema.bits {
            int("bits", bits);
        }
        if let Some(group) = spec.group {
            int("block_size", i64::try_from(group).unwrap_or(i64::MAX));
            int("accuracy_level", accuracy);
        }
        schema.domain.clone_into(&mut node.domain);
        schema.op.clone_into(&mut node.op);
        if !self.ops.contains(schema) {
            self.ops.push(*schema);
        }
    }

    /// The packed constants of a weight, made once however many layers share it: codes, scales, and zero points if the format
    /// has any.
    fn pack(&mut self, site: &Site, recipe: &Recipe, spec: Spec) -> Result<Vec<String>, ApplyError> {
        let source = PackedSource {
            matrix: matrix(site),
            scaling: self.scaling(site, recipe)?,
            spec,
            container: self.container(spec.format),
            range: recipe.range,
            scale: match recipe.scales {
                ScaleRule::Stored => scale_type(site.weight.read_as),
                ScaleRule::F32 => ScaleType::F32,
            },
            pool: Arc::clone(self.pool),
            waiting: std::sync::Mutex::default(),
        };
        let key = Packing::of(site, &source);
        if let Some(names) = self.packed.get(&key) {
            return Ok(names.clone());
        }
        let source = Arc::new(source);
        let shapes = source.container.shapes(site.n, site.k, spec.group(site.k));
        let read_as = site.weight.read_as;
        let stem = format!("{}.{}", site.weight.name, recipe.format);
        let owner = site.weight.owner.clone();
        let mut parts = vec![
            ("B", lazy(DType::U8, shapes.b, &source, PackedSource::codes)),
            ("scales", lazy(read_as, shapes.scales, &source, PackedSource::scales)),
        ];
        if let Some(shape) = shapes.zero_points {
            parts.push(("zero_points", lazy(DType::U8, shape, &source, PackedSource::zero_points)));
        }
        let mut names = Vec::with_capacity(parts.len());
        for (part, tensor) in parts {
            let name = self.fresh(&format!("{stem}.{part}"));
            self.edit(&owner, Edit::AddConst(name.clone(), tensor));
            names.push(name);
        }
        self.packed.insert(key, names.clone());
        Ok(names)
    }

    /// The group of a recipe with its index, where its scale is not all ones.
    fn scaled_group(&self, site: &Site, recipe: &Recipe) -> Result<Option<(usize, &GroupPlan)>, ApplyError> {
        let misfit = |found: String, expected: String| ApplyError::Misfit {
            what: "layer",
            name: format!("{}{}", path_text(self.model, &site.path), recipe.name),
            found,
            expected,
        };
        let Some(index) = recipe.group else { return Ok(None) };
        let groups = &self.plan.groups;
        let group = groups
            .get(index)
            .ok_or_else(|| misfit(format!("names group {index}"), format!("below {}", groups.len())))?;
        match group.scale.len() {
            0 => Ok(None),
            len if len == site.k => Ok(Some((index, group))),
            len => Err(misfit(format!("has {} input channels", site.k), format!("{len}"))),
        }
    }

    /// The name of what a layer reads instead of `x`: where its group's 1/s is put before the layers, their product.
    fn scaled_input(&mut self, site: &Site, recipe: &Recipe, x: &str) -> Result<String, ApplyError> {
        let Some((index, group)) = self.scaled_group(site, recipe)?.filter(|(_, group)| group.mul) else {
            return Ok(x.to_owned());
        };
        let misfit = |found: &str, expected: &str| ApplyError::Misfit {
            what: "layer",
            name: recipe.site.clone(),
            found: found.to_owned(),
            expected: expected.to_owned(),
        };
        if !site.path.is_empty() || matches!(site.form, Form::Left | Form::Gemm { trans_a: true, .. }) {
            let found = "has no channels along the last axis of a value of the main graph";
            return Err(misfit(found, "a layer before which a Mul can stand"));
        }
        if let Some(product) = self.products.get(&(index, x.to_owned())) {
            return Ok(product.clone());
        }
        let dtype = site.weight.read_as;
        let inverse: Vec<f32> = group.scale.iter().map(|s| 1.0 / s).collect();
        let inverse = Tensor::floats(dtype, [inverse.len()], &inverse);
        let stored =
            inverse.as_ref().and_then(Tensor::to_f64).ok_or_else(|| misfit("is of no float type", "floats"))?;
        if let Some(value) = stored.into_iter().find(|v| !v.is_finite() || *v == 0.0) {
            let (name, group) = ("1/s".to_owned(), group.input.clone());
            return Err(ApplyError::Range { name, group, dtype, value });
        }
        // Before the first of the group's layers that read it in the file, so that a sorted file stays sorted.
        let members = self.plan.recipes.iter().filter(|other| other.group == Some(index));
        let members = members.filter_map(|other| Some(&self.survey.sites[*self.sites.get(&other.site)?]));
        let readers: HashSet<NodeId> = members.filter(|other| other.x == site.x).map(|other| other.node).collect();
        let first = self.model.graph.nodes().map(|(id, _)| id).find(|id| readers.contains(id)).unwrap_or(site.node);
        let main = GraphPath::new();
        let input = group.input.clone();
        let constant = self.fresh(&format!("{input}.inverse_scale"));
        let product = self.fresh(&format!("{x}.scaled"));
        self.edits
            .entry(main.clone())
            .or_default()
            .rewrites
            .extend(inverse.map(|tensor| Edit::AddConst(constant.clone(), tensor)));
        let node = NewNode::new("Mul", &[x, &constant], &[&product]).named(&product);
        self.edit(&main, Edit::AddNode(node, Place::Before(first)));
        self.products.insert((index, x.to_owned()), product.clone());
        Ok(product)
    }

    fn scaling(&self, site: &Site, recipe: &Recipe) -> Result<Scaling, ApplyError> {
        let mut scaling = Scaling::default();
        if let Form::Gemm { alpha, .. } = site.form
            && alpha != 1.0
        {
            scaling.all = Some(alpha);
        }
        if let Some((_, group)) = self.scaled_group(site, recipe)? {
            scaling.columns = Some(group.scale.clone());
        }
        if site.path.is_empty() {
            let output = self.model.graph.name(site.y);
            scaling.rows = self.divisors(&site.weight.name, output, usize::from(site.form != Form::Left), site.n)?;
        }
        Ok(scaling)
    }
}

fn swap_last(from: &str, to: &str, rank: usize) -> NewNode {
    let mut perm: Vec<i64> = (0..rank as i64).collect();
    perm.swap(rank - 1, rank - 2);
    NewNode::new("Transpose", &[from], &[to]).named(to).attr("perm", Attr::Ints(perm))
}
