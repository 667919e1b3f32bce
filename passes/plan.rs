//! The plan: what will be done at every linear layer, and why the rest is left alone. A saved JSON file.

use serde::{Deserialize, Serialize};

use crate::facts::fold::Divided;
use crate::facts::groups::Kind;
use crate::facts::sites::{Other, Site};
use crate::ir::{Graph, GraphPath, Model};

/// Version of the file format.
pub const VERSION: u32 = 1;

/// Everything that a compilation decides.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Version of the file format.
    pub version: u32,
    /// The method that made it.
    pub method: String,
    /// SHA-256 of the model it was made for, data files included, lower-case hex.
    pub source: String,
    /// SHA-256 of the calibration file, where one was used.
    pub calibration: Option<String>,
    /// Switches and counts worth knowing later, as the driver reports them.
    pub settings: serde_json::Value,
    /// One entry per layer that will be quantized.
    pub recipes: Vec<Recipe>,
    /// The groups behind the recipes.
    pub groups: Vec<GroupPlan>,
    /// Every use of a weight that is left alone.
    pub skipped: Vec<Skipped>,
}

/// What will be done at one layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// The layer's key: the name of the node's output, with the way to its subgraph in front.
    pub site: String,
    /// Name for people.
    pub name: String,
    /// Name of the weight constant.
    pub weight: String,
    /// Output channels.
    pub n: usize,
    /// Input channels.
    pub k: usize,
    /// Format, such as `w3g128`.
    pub format: String,
    /// How a group's range becomes a scale and a zero point.
    pub range: RangeRule,
    /// The precision in which a scale divides weights into codes.
    pub scales: ScaleRule,
    /// Index into [`Plan::groups`] of the group whose scale multiplies the weight's columns.
    pub group: Option<usize>,
}

/// How a group's range becomes a scale and a zero point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RangeRule {
    /// Smallest and largest weight, as the reference code does.
    MinMax,
    /// The same, extended to contain zero.
    IncludeZero,
    /// Extended to contain zero, then shrunk where that lowers the weight error.
    Search,
}

/// The precision in which a scale divides weights into codes. It is stored in the activation type in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ScaleRule {
    /// As stored: rounded first, so that codes and stored scale belong together.
    Stored,
    /// In f32, as the reference code does.
    F32,
}

/// What will be done to a group.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupPlan {
    /// Name of the value that the group's layers read.
    pub input: String,
    /// Names of the layers, for people.
    pub sites: Vec<String>,
    /// Who absorbs 1/s, for people.
    pub producer: Option<String>,
    /// Why nobody does.
    pub declined: Option<String>,
    /// 1/s is put before the layers as a `Mul`; then no constant is divided.
    #[serde(default)]
    pub mul: bool,
    /// Name of the value at which the error was judged.
    pub judge: String,
    /// Attention or MLP.
    pub kind: Kind,
    /// Vision sensitivity over answer sensitivity at the judging point, as used.
    pub rho: Option<f64>,
    /// The chosen exponent.
    pub exponent: Option<f64>,
    /// Error of every candidate, in order; `None` where there is no finite one, because the scale takes a constant out of
    /// its type's range or the activations are not finite.
    pub losses: Vec<Option<f64>>,
    /// Share of the vision rows in the chosen candidate's weighted error.
    pub vision_share: Option<f64>,
    /// The equalisation scale s, `[k]`; empty when all ones.
    pub scale: Vec<f32>,
    /// The constants that absorb 1/s, where there are any; untouched while s is all ones.
    pub divided: Vec<DividedPlan>,
}

/// A constant that is divided by a group's scale along an axis.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DividedPlan {
    /// Name of the constant.
    pub constant: String,
    /// Name of the first output of the node that reads it.
    pub reader: String,
    /// Input slot of that node.
    pub slot: usize,
    /// Axis over channels.
    pub axis: usize,
    /// The entries along the axis that are divided, in the order of s, as runs `[start, length]`; none stands for all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub runs: Vec<[usize; 2]>,
}

impl DividedPlan {
    /// A constant that a fold divides.
    pub fn of(graph: &Graph, divided: &Divided) -> DividedPlan {
        DividedPlan {
            constant: divided.constant.clone(),
            reader: graph.node(divided.node).output(0).map_or("", |v| graph.name(v)).to_owned(),
            slot: divided.slot,
            axis: divided.axis,
            runs: DividedPlan::runs_of(&divided.channels, divided.entries),
        }
    }

    /// The entries that are divided, in the order of s, of a constant with `entries` along the axis.
    pub fn channels(&self, entries: usize) -> Vec<usize> {
        match self.runs[..] {
            [] => (0..entries).collect(),
            // Whatever a file says: no more than there are.
            _ => self.runs.iter().flat_map(|&[start, len]| start..start.saturating_add(len.min(entries))).collect(),
        }
    }

    /// The entries `channels` of `entries` as [`DividedPlan::runs`] has them.
    pub fn runs_of(channels: &[usize], entries: usize) -> Vec<[usize; 2]> {
        if channels.iter().copied().eq(0..entries) {
            return Vec::new();
        }
        let mut runs: Vec<[usize; 2]> = Vec::new();
        for &channel in channels {
            match runs.last_mut() {
                Some([start, len]) if *start + *len == channel => *len += 1,
                _ => runs.push([channel, 1]),
            }
        }
        runs
    }
}

/// A use of a weight that is left alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Skipped {
    /// Label of the node.
    pub node: String,
    /// Operator.
    pub op: String,
    /// Name of the weight.
    pub weight: String,
    /// Stored bytes of the weight.
    pub bytes: usize,
    /// Why.
    pub reason: String,
    /// What kind of reason it is.
    pub kind: SkipKind,
}

/// Kinds of reasons to leave a weight alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SkipKind {
    /// A default or an option says so.
    Asked,
    /// It is no linear layer (an embedding, a convolution).
    NotLinear,
    /// It is quantized already.
    Quantized,
    /// A linear layer that was asked for and cannot be quantized; what `--strict` refuses.
    Unsupported,
}

impl Skipped {
    /// What is no site.
    pub fn of_other(other: &Other) -> Skipped {
        Skipped {
            node: match &other.function {
                Some(function) => format!("{function}/{}", other.label),
                None => other.label.clone(),
            },
            op: other.op.clone(),
            weight: other.weight.clone(),
            bytes: other.bytes,
            reason: other.reason.clone(),
            kind: other.kind,
        }
    }

    /// A linear layer that is left alone for `reason`.
    pub fn of_site(site: &Site, op: &str, kind: SkipKind, reason: impl Into<String>) -> Skipped {
        Skipped {
            node: if site.name == site.label { site.label.clone() } else { format!("{} ({})", site.label, site.name) },
            op: op.to_owned(),
            weight: site.weight.name.clone(),
            bytes: site.weight.tensor.stored_bytes(),
            reason: reason.into(),
            kind,
        }
    }
}

/// The key of a site in plans: the name of its output, with the way to its subgraph in front.
pub fn site_key(model: &Model, site: &Site) -> String {
    let output = model.graph_at(&site.path).map_or("", |graph| graph.name(site.y));
    let way = path_text(model, &site.path);
    if way.is_empty() { output.to_owned() } else { format!("{way}{output}") }
}

/// The way to a subgraph, as `node.attribute/`; empty for the main graph.
pub fn path_text(model: &Model, path: &GraphPath) -> String {
    let mut text = String::new();
    let mut graph = Some(&model.graph);
    for &(node, attr, index) in path {
        let Some(current) = graph else { break };
        let entry = current.get_node(node).and_then(|n| n.attrs.get(attr));
        text += &format!("{}.{}/", current.label(node), entry.map_or("", |(name, _)| name));
        graph = entry.and_then(|(_, attr)| attr.graphs().get(index));
    }
    text
}
