//! Who can absorb the inverse of an equalisation scale.
//!
//! A group's layers read `x` with k channels. Instead of `x` they are to read `x / s`; so somebody before them has to divide. The
//! search walks back from `x` to the first constant that has one entry per channel: the gain of a norm, a gain that is
//! multiplied in, the rows of a linear layer's weight. On the way there may be anything that moves channels without mixing
//! them: views, transposes, selections, the product of attention probabilities with values, a ReLU. What those do to
//! channels is replayed from the producer on with a `Layout`, which also shows whether someone else reads a channel that
//! would be divided.

use crate::ir::{DType, Def, Graph, Node, NodeId, Uses, ValueId};

use super::layout::{self, Layout, Unclear};
use super::sites::{Form, Site, Survey};

/// Constants that are divided by s.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fold {
    /// What absorbs: a gain, a norm, a linear layer; for the report.
    pub producer: String,
    /// The constants.
    pub divided: Vec<Divided>,
    /// The index of the site whose rows are divided, when the producer is one.
    pub site: Option<usize>,
    /// No constant absorbs 1/s: it is put before the layers as a `Mul`.
    pub mul: bool,
}

impl Fold {
    /// A `Mul` before the layers, where no constant absorbs 1/s for this reason.
    pub fn by_mul(reason: &str) -> Fold {
        Fold { producer: format!("a Mul before the layers ({reason})"), divided: Vec::new(), site: None, mul: true }
    }
}

/// No constant absorbs a group's 1/s.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Declined {
    /// Why.
    pub reason: String,
    /// Whether the layers can take a scale nevertheless, by a `Mul` with 1/s before them.
    pub mul: bool,
}

/// One constant that a fold divides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Divided {
    /// Name of the constant.
    pub constant: String,
    /// The node that reads it on this way.
    pub node: NodeId,
    /// Input slot of that node.
    pub slot: usize,
    /// The axis over channels.
    pub axis: usize,
    /// Entries along that axis.
    pub entries: usize,
    /// For each of the group's k channels the entry that feeds it.
    pub channels: Vec<usize>,
}

/// The constants that absorb 1/s of the sites that read `input`, all of them through views, or why there are none.
pub fn fold(graph: &Graph, survey: &Survey, uses: &Uses, input: ValueId, sites: &[usize]) -> Result<Fold, Declined> {
    Folds { graph, survey, uses }.find(input, sites)
}

/// The graph with what a search for folds asks of it.
struct Folds<'a> {
    graph: &'a Graph,
    survey: &'a Survey,
    uses: &'a Uses,
}

/// What a walk starts from: the value that the group reads, and its channels.
#[derive(Clone, Copy)]
struct Goal {
    input: ValueId,
    k: usize,
}

/// One node on the way from producer to group, and the input slot through which the way goes.
type Step = (NodeId, usize);

/// Longest way that is looked at; attention with a fused qkv layer takes about ten.
const LONGEST: usize = 24;

impl Folds<'_> {
    /// Who divides `input`, which the sites read: the constants, or why there are none.
    fn find(&self, input: ValueId, sites: &[usize]) -> Result<Fold, Declined> {
        let k = self.common_k(sites).map_err(|reason| Declined { reason, mul: false })?;
        let mut readers = Vec::new();
        let all_read = |readers: &[usize]| match sites.iter().find(|site| !readers.contains(site)) {
            Some(&stray) => Err(format!("`{}` does not read it", self.survey.sites[stray].name)),
            None => Ok(()),
        };
        let folded = self
            .only_read_by(input, sites, &mut readers)
            .and_then(|()| all_read(&readers))
            .and_then(|()| self.absorb(input, Goal { input, k }, &mut Vec::new()));
        folded.map_err(|reason| Declined { reason, mul: true })
    }

    /// The input channels of the sites, or why none of them can take a scale.
    fn common_k(&self, sites: &[usize]) -> Result<usize, String> {
        let mut k = 0;
        for &index in sites {
            let site = &self.survey.sites[index];
            k = site.k;
            if matches!(site.form, Form::Left | Form::Gemm { trans_a: true, .. }) {
                return Err(format!("`{}` reads its activation with tokens along the last axis", site.name));
            }
            if self.sites_with_weight_of(site) > 1 {
                return Err(format!("weight `{}` is shared with another layer", site.weight.name));
            }
        }
        Ok(k)
    }

    fn sites_with_weight_of(&self, site: &Site) -> usize {
        let same = |other: &&Site| (&other.weight.owner, &other.weight.name) == (&site.weight.owner, &site.weight.name);
        self.survey.sites.iter().filter(same).count()
    }

    /// Every reader of `value`, through views, is a site of the group that reads it as its activation; those are noted.
    fn only_read_by(&self, value: ValueId, sites: &[usize], found: &mut Vec<usize>) -> Result<(), String> {
        if self.uses.is_output(value) {
            return Err(format!("`{}` is a graph output", self.graph.name(value)));
        }
        for &(reader, slot) in self.uses.of(value) {
            let reads_activation = sites.iter().find(|&&index| {
                let site = &self.survey.sites[index];
                let activation = usize::from(site.form == Form::Left);
                site.path.is_empty() && site.node == reader && slot == activation
            });
            found.extend(reads_activation);
            let node = self.graph.node(reader);
            if reads_activation.is_some() || node.is("Shape") {
                continue;
            }
            let view = slot == 0 && is_view(node);
            match node.output(0).filter(|_| view) {
                Some(next) => self.only_read_by(next, sites, found)?,
                None => return Err(self.also_read(value, reader)),
            }
        }
        Ok(())
    }

    fn also_read(&self, value: ValueId, reader: NodeId) -> String {
        let op = self.graph.node(reader).qualified_op();
        format!("`{}` is also read by {op} `{}`", self.graph.name(value), self.graph.label(reader))
    }

    /// Walks back from `value`. `way` holds the nodes between it and the group, the nearest to the group first.
    fn absorb(&self, value: ValueId, goal: Goal, way: &mut Vec<Step>) -> Result<Fold, String> {
        let Some((producer, output)) = self.graph.producer(value) else {
            return Err(format!("`{}` is an input or a constant", self.graph.name(value)));
        };
        let node = self.graph.node(producer);
        let label = || format!("{} `{}`", node.qualified_op(), self.graph.label(producer));
        if way.len() > LONGEST {
            return Err(format!("no producer found before {}", label()));
        }
        let is = |ops: &[&str]| ops.iter().any(|op| node.is(op));
        if output == 0 && is(&["LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"]) {
            return self.absorb_in_norm(producer, value, goal, way);
        }
        if self.site_at(producer).is_some() {
            return self.absorb_in_site(producer, value, goal, way);
        }
        if is(&["Mul"]) {
            for slot in [1, 0] {
                if let Some(entries) = node.input(slot).and_then(|v| self.vector(v)) {
                    let gain = (producer, slot, entries);
                    return self.settle(label(), &[gain], None, value, entries, goal, way);
                }
            }
        }
        let computed = |slot: usize| node.input(slot).is_some_and(|v| self.graph.shown_constant(v).is_none());
        if is(&["Add"]) && computed(0) && computed(1) {
            return Err(format!("{} adds two computed values", label()));
        }
        // The inputs through which channels may come; of a product the second factor first, because exporters write
        // silu(gate) * up.
        let slots: &[usize] = match () {
            () if is(&["Mul"]) => &[1, 0],
            () if is(&["Add"]) => &[0, 1],
            () if is(&["MatMul"]) => &[1],
            () if is(THROUGH) && !cuts_off(node) => &[0],
            () => return Err(format!("{} cannot absorb a scale per channel", label())),
        };
        let mut why = None;
        for &slot in slots {
            let Some(before) = node.input(slot).filter(|v| self.graph.shown_constant(*v).is_none()) else { continue };
            way.push((producer, slot));
            let found = self.absorb(before, goal, way);
            way.pop();
            match found {
                Ok(fold) => return Ok(fold),
                Err(reason) => why = why.or(Some(reason)),
            }
        }
        Err(why.unwrap_or_else(|| format!("{} reads constants only", label())))
    }

    /// Length of a constant vector that runs along the last axis and nobody can override; no scalar.
    fn vector(&self, value: ValueId) -> Option<usize> {
        let tensor = self.graph.shown_constant(value).filter(|_| !self.graph.inputs().contains(&value))?;
        let row = tensor.dtype.is_float() && tensor.len() > 1 && tensor.dims.last() == Some(&tensor.len());
        row.then_some(tensor.len())
    }

    fn site_at(&self, node: NodeId) -> Option<usize> {
        self.survey.sites.iter().position(|site| site.path.is_empty() && site.node == node)
    }

    fn absorb_in_norm(&self, norm: NodeId, value: ValueId, goal: Goal, way: &[Step]) -> Result<Fold, String> {
        let node = self.graph.node(norm);
        let label = format!("{} `{}`", node.op, self.graph.label(norm));
        let entries = node.input(1).and_then(|v| self.vector(v));
        let entries = entries.ok_or_else(|| format!("{label} has no constant gain along its last axis"))?;
        let mut parts = vec![(norm, 1, entries)];
        if let Some(bias) = node.input(2) {
            if self.vector(bias) != Some(entries) {
                let name = self.graph.name(bias);
                return Err(format!("the bias `{name}` of {label} is not a constant of length {entries}"));
            }
            parts.push((norm, 2, entries));
        }
        self.settle(label, &parts, None, value, entries, goal, way)
    }

    fn absorb_in_site(&self, producer: NodeId, value: ValueId, goal: Goal, way: &[Step]) -> Result<Fold, String> {
        let label = self.graph.label(producer);
        let Some(index) = self.site_at(producer) else {
            return Err(format!("`{label}` is not a layer with a constant weight"));
        };
        let site = &self.survey.sites[index];
        if site.form == Form::Left {
            return Err(format!("`{label}` has its output channels along another axis than the last"));
        }
        let weight = &site.weight;
        if !weight.owner.is_empty() || self.readers(&weight.name) > 1 {
            return Err(format!("weight `{}` of `{label}` is shared with another node", weight.name));
        }
        let slot = self.graph.node(producer).inputs.iter().position(|v| *v != Some(site.x)).unwrap_or(1);
        let mut parts = vec![(producer, slot, site.n)];
        if let Form::Gemm { c: Some(c), .. } = site.form {
            if self.vector(c) != Some(site.n) {
                return Err(format!("the third input of Gemm `{label}` is not a constant of length {}", site.n));
            }
            parts.push((producer, 2, site.n));
        }
        let mut fold = self.settle(format!("linear `{}`", site.name), &parts, Some(index), value, site.n, goal, way)?;
        fold.divided[0].constant.clone_from(&weight.name);
        fold.divided[0].axis = usize::from(!weight.rows_are_outputs);
        Ok(fold)
    }

    /// Who reads a constant in the end, through what only shows it: nodes of all kinds.
    fn readers(&self, name: &str) -> usize {
        fn count(folds: &Folds<'_>, value: ValueId) -> usize {
            let through = |&(reader, slot): &(NodeId, usize)| {
                let node = folds.graph.node(reader);
                let shows = slot == 0 && ["Transpose", "Cast", "Identity"].iter().any(|op| node.is(op));
                node.output(0).filter(|_| shows).map_or(1, |next| count(folds, next))
            };
            folds.uses.of(value).iter().map(through).sum::<usize>() + usize::from(folds.uses.is_output(value))
        }
        match self.graph.find(name).filter(|&v| matches!(self.graph.value(v).def, Def::Const(_) | Def::Node(..))) {
            Some(value) => count(self, value),
            None => 0,
        }
    }

    /// Replays the way from the producer's output `start` with `entries` channels along its last axis to the group, which
    /// reads `k` channels, and makes the fold out of the constants `parts` (node, slot, length).
    #[expect(clippy::too_many_arguments, reason = "what is known at the end of the walk")]
    fn settle(
        &self,
        producer: String,
        parts: &[(NodeId, usize, usize)],
        site: Option<usize>,
        start: ValueId,
        entries: usize,
        goal: Goal,
        way: &[Step],
    ) -> Result<Fold, String> {
        let mut value = start;
        let mut layout = Layout::of_output(entries, layout::rank(self.graph, start));
        let mut biases = Vec::new();
        let mut elsewhere: Vec<(NodeId, ValueId, Layout)> = Vec::new();
        let unclear = |node: NodeId, why: Unclear| {
            format!("{} `{}` {why}", self.graph.node(node).qualified_op(), self.graph.label(node))
        };
        for (at, &(id, slot)) in way.iter().enumerate().rev() {
            if self.uses.is_output(value) {
                return Err(format!("`{}` is a graph output", self.graph.name(value)));
            }
            for &(reader, reads) in self.uses.of(value).iter().filter(|&&other| other != (id, slot)) {
                let node = self.graph.node(reader);
                if reader == id && !node.is("Split") {
                    return Err(self.also_read(value, reader));
                }
                if node.is("Shape") {
                    continue;
                }
                // Others may read other channels.
                let outputs = if node.is("Split") { node.outputs.len() } else { 1 };
                for output in 0..outputs {
                    let theirs = layout.select(self.graph, reader, output);
                    let theirs = theirs.ok().filter(|_| reads == 0).ok_or_else(|| self.also_read(value, reader))?;
                    elsewhere.push((reader, value, theirs));
                }
            }
            let node = self.graph.node(id);
            let nearer = at.checked_sub(1).and_then(|at| self.graph.node(way[at].0).input(way[at].1));
            let next = if at == 0 { goal.input } else { nearer.unwrap_or(goal.input) };
            let output = node.outputs.iter().position(|v| *v == Some(next)).unwrap_or(0);
            if node.is("Split") {
                for other in (0..node.outputs.len()).filter(|&o| o != output && node.output(o).is_some()) {
                    let theirs = layout.select(self.graph, id, other).map_err(|why| unclear(id, why))?;
                    elsewhere.push((id, value, theirs));
                }
            }
            if node.is("Add") {
                let bias = node.input(1 - slot).filter(|v| self.graph.shown_constant(*v).is_some());
                let bias = bias.ok_or_else(|| unclear(id, Unclear("adds two computed values")))?;
                let last = layout.last().filter(|tags| self.vector(bias) == Some(tags.len()));
                let tags =
                    last.ok_or_else(|| unclear(id, Unclear("adds something else than one number per channel")))?;
                biases.push((id, 1 - slot, tags));
            } else {
                layout = layout.after(self.graph, id, slot, output).map_err(|why| unclear(id, why))?;
            }
            value = next;
        }
        let channels = layout.last().filter(|tags| tags.len() == goal.k).ok_or_else(|| {
            format!("{producer} has {entries} channels, which do not arrive as the {} channels that are read", goal.k)
        })?;
        let mut fed = vec![usize::MAX; entries];
        for (j, &channel) in channels.iter().enumerate() {
            if std::mem::replace(&mut fed[channel], j) != usize::MAX {
                return Err(format!("{producer} feeds several of the {} channels with one of its own", goal.k));
            }
        }
        for (reader, value, theirs) in &elsewhere {
            if theirs.tags().any(|channel| fed[channel] != usize::MAX) {
                return Err(self.also_read(*value, *reader));
            }
        }
        let mut divided: Vec<Divided> = Vec::new();
        for &(node, slot, entries) in parts {
            divided.extend(self.divided(node, slot, entries, channels.clone()));
        }
        for (node, slot, tags) in biases {
            let at = |channel: &usize| tags.iter().position(|tag| tag == channel);
            let entries: Option<Vec<usize>> = channels.iter().map(at).collect();
            let entries = entries.ok_or_else(|| unclear(node, Unclear("adds to other channels")))?;
            divided.extend(self.divided(node, slot, tags.len(), entries));
        }
        Ok(Fold { producer, divided, site, mul: false })
    }

    fn divided(&self, node: NodeId, slot: usize, entries: usize, channels: Vec<usize>) -> Option<Divided> {
        let value = self.graph.node(node).input(slot)?;
        let axis = self.graph.shown_constant(value).map_or(0, |t| t.dims.len().saturating_sub(1));
        Some(Divided { constant: self.graph.name(value).to_owned(), node, slot, axis, entries, channels })
    }
}

/// A cast to whole numbers: what a scale before it does is not what it does behind it.
pub(super) fn cuts_off(node: &Node) -> bool {
    node.is("Cast") && i32::try_from(node.int("to", 0)).is_ok_and(|to| !DType::from_onnx(to).is_float())
}

/// Whether a node shows its first input to the layers behind it with its channels kept apart.
fn is_view(node: &Node) -> bool {
    VIEWS.iter().any(|op| node.is(op)) && !cuts_off(node)
}

/// What stands between a value and the layers that read it and keeps channels apart.
const VIEWS: &[&str] = &["Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Cast", "Dropout"];

/// Operators through whose first input channels pass unmixed; [`Layout::after`] says where to.
const THROUGH: &[&str] = &[
    "Identity",
    "Cast",
    "Dropout",
    "Div",
    "Relu",
    "LeakyRelu",
    "Reshape",
    "Flatten",
    "Squeeze",
    "Unsqueeze",
    "Transpose",
    "Split",
    "Slice",
    "Gather",
];
