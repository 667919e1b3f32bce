//! The coverage table that ends every compilation: every use of a weight, quantized or skipped with its reason.

use std::collections::{HashMap, HashSet};
use std::fmt::Write;

use indexmap::IndexMap;
use mbqc_kernels::FORMATS;
use mbqc_passes::facts::sites::Survey;
use mbqc_passes::ir::{Graph, GraphPath, Model, Node, NodeId};
use mbqc_passes::plan::{Plan, SkipKind, Skipped, path_text};
use serde::Serialize;

/// One line of the table.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Line {
    /// Layers.
    pub layers: usize,
    /// Weights in quantized layers.
    #[serde(skip_serializing_if = "is_zero")]
    pub weights: usize,
    /// Bytes before.
    pub before: usize,
    /// Bytes after.
    pub after: usize,
}

fn is_zero(count: &usize) -> bool {
    *count == 0
}

/// What a plan covers.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Coverage {
    /// Quantized layers by format.
    pub quantized: IndexMap<String, Line>,
    /// Uses of weights that are left alone, by reason.
    pub skipped: IndexMap<String, Line>,
    /// Linear layers that were asked for and cannot be quantized.
    pub unsupported: usize,
}

impl Coverage {
    /// Of a plan and the model it was applied to. Bytes are those of the constants, each counted once however many layers
    /// read it.
    pub fn of(plan: &Plan, survey: &Survey, result: &Model) -> Coverage {
        let mut coverage = Coverage::default();
        let before: HashMap<&str, usize> =
            survey.sites.iter().map(|s| (s.weight.name.as_str(), s.weight.tensor.stored_bytes())).collect();
        let packed = Packed::of(result);
        let (mut weights, mut kept, mut constants) = (HashSet::new(), HashSet::new(), HashSet::new());
        for recipe in &plan.recipes {
            let line = coverage.quantized.entry(recipe.format.clone()).or_default();
            line.layers += 1;
            if weights.insert(&recipe.weight) {
                line.weights += recipe.n * recipe.k;
                line.before += before.get(recipe.weight.as_str()).copied().unwrap_or(0);
            }
            for (place, bytes) in packed.constants(&recipe.site) {
                line.after += if constants.insert(place) { bytes } else { 0 };
            }
        }
        for Skipped { reason, weight, bytes, kind, .. } in &plan.skipped {
            let line = coverage.skipped.entry(reason.clone()).or_default();
            line.layers += 1;
            // A table that is shared with a quantized layer stays, too.
            line.before += if weights.insert(weight) { *bytes } else { 0 };
            line.after += if kept.insert(weight) { *bytes } else { 0 };
            coverage.unsupported += usize::from(*kind == SkipKind::Unsupported);
        }
        coverage
    }

    /// Number of quantized layers.
    pub fn layers(&self) -> usize {
        self.quantized.values().map(|line| line.layers).sum()
    }

    /// The table.
    pub fn table(&self) -> String {
        let mut text = String::new();
        let mb = |bytes: usize| bytes as f64 / 1e6;
        let _ =
            writeln!(text, "{:<10} {:>6} {:>14} {:>10} {:>10}", "format", "layers", "weights", "MB before", "MB after");
        for (format, line) in &self.quantized {
            let _ = writeln!(
                text,
                "{format:<10} {:>6} {:>14} {:>10.2} {:>10.2}",
                line.layers,
                line.weights,
                mb(line.before),
                mb(line.after)
            );
        }
        for (reason, line) in &self.skipped {
            let _ = writeln!(
                text,
                "{:<10} {:>6} {:>14} {:>10.2} {:>10.2}  {reason}",
                "left",
                line.layers,
                "",
                mb(line.before),
                mb(line.after)
            );
        }
        text
    }
}

/// The quantized layers of a model, by the value they compute.
struct Packed<'a> {
    model: &'a Model,
    /// Graph and producer of every value, by the way to the graph and the value's name.
    producers: HashMap<String, (GraphPath, NodeId)>,
}

impl<'a> Packed<'a> {
    fn of(model: &'a Model) -> Packed<'a> {
        let mut producers = HashMap::new();
        for path in model.graph_paths() {
            let (Some(graph), way) = (model.graph_at(&path), path_text(model, &path)) else { continue };
            for (id, node) in graph.nodes() {
                for &output in node.outputs.iter().flatten() {
                    producers.insert(format!("{way}{}", graph.name(output)), (path.clone(), id));
                }
            }
        }
        Packed { model, producers }
    }

    /// The constants of the layer with this key, with their bytes: codes, scales, zero points.
    fn constants(&self, site: &str) -> Vec<((GraphPath, String), usize)> {
        let Some((path, id)) = self.producers.get(site) else { return Vec::new() };
        let Some(graph) = self.model.graph_at(path) else { return Vec::new() };
        let Some(node) = quantized_behind(graph, *id, 3) else { return Vec::new() };
        let names = node.inputs.iter().skip(1).take(3).flatten().map(|&value| graph.name(value));
        names.filter_map(|name| self.constant(path, name)).collect()
    }

    /// The constant with this name, here or in a surrounding graph.
    fn constant(&self, path: &GraphPath, name: &str) -> Option<((GraphPath, String), usize)> {
        let mut path = path.clone();
        loop {
            let graph = self.model.graph_at(&path)?;
            if let Some(tensor) = graph.find(name).and_then(|value| graph.constant(value)) {
                return Some(((path, name.to_owned()), tensor.stored_bytes()));
            }
            path.pop()?;
        }
    }
}

/// The quantized node at `id` or a few steps before it, where a bias or a transposition follows the product.
fn quantized_behind(graph: &Graph, id: NodeId, steps: usize) -> Option<&Node> {
    let node = graph.node(id);
    if FORMATS.iter().any(|format| format.schema.domain == node.domain && format.schema.op == node.op) {
        return Some(node);
    }
    let steps = steps.checked_sub(1)?;
    let producers = node.inputs.iter().flatten().filter_map(|&value| graph.producer(value));
    producers.map(|(producer, _)| producer).find_map(|producer| quantized_behind(graph, producer, steps))
}
