//! What is known about a graph, as one document.

use std::path::PathBuf;

use indexmap::IndexMap;
use mbqc_passes::facts::groups::{Kind, groups};
use mbqc_passes::facts::modality::find_merge;
use mbqc_passes::facts::segments::cut;
use mbqc_passes::facts::sites::survey;
use mbqc_passes::ir::{Dim, Graph, Type, ValueId};
use serde::Serialize;

use super::layers::{Layer, Quantized, layers, quantized};
use crate::Error;
use crate::calibration::logits_output;
use crate::onnx::File;

/// What `mbqc inspect` tells about a graph.
#[derive(Serialize)]
pub(super) struct Facts {
    pub(super) role: &'static str,
    pub(super) file: PathBuf,
    pub(super) bytes: usize,
    pub(super) data: Vec<DataFile>,
    pub(super) ir_version: i64,
    pub(super) opsets: IndexMap<String, i64>,
    pub(super) producer: String,
    /// The notes of this compiler.
    pub(super) metadata: IndexMap<String, String>,
    pub(super) functions: Vec<String>,
    pub(super) inputs: Vec<String>,
    pub(super) outputs: Vec<String>,
    /// Counts of operators by domain, subgraphs included.
    pub(super) ops: IndexMap<String, IndexMap<String, usize>>,
    pub(super) layers: Vec<Layer>,
    pub(super) quantized: Vec<Quantized>,
    /// The output that sensitivities refer to.
    pub(super) logits: Option<String>,
    pub(super) groups: Vec<GroupFacts>,
    pub(super) necks: Vec<String>,
    pub(super) coverage: Coverage,
    pub(super) merge: Option<MergeFacts>,
}

#[derive(Serialize)]
pub(super) struct DataFile {
    pub(super) file: PathBuf,
    pub(super) bytes: usize,
}

#[derive(Serialize)]
pub(super) struct GroupFacts {
    pub(super) input: String,
    pub(super) k: usize,
    pub(super) layers: Vec<String>,
    pub(super) kind: Kind,
    pub(super) judge: String,
    /// Who absorbs the inverse of a scale.
    pub(super) producer: Option<String>,
    /// Why nobody does.
    pub(super) declined: Option<String>,
}

/// Every node that carries weights: linear layers, quantized ones, and the rest by reason.
#[derive(Default, Serialize)]
pub(super) struct Coverage {
    pub(super) linear: Count,
    pub(super) quantized: Count,
    pub(super) others: IndexMap<String, Count>,
}

#[derive(Default, Serialize)]
pub(super) struct Count {
    pub(super) nodes: usize,
    pub(super) bytes: usize,
}

impl Count {
    fn add(&mut self, bytes: usize) {
        self.nodes += 1;
        self.bytes += bytes;
    }
}

#[derive(Serialize)]
pub(super) struct MergeFacts {
    pub(super) value: String,
    pub(super) ids: String,
    pub(super) image_token: i64,
}

impl Facts {
    /// Looks at a file's model.
    pub(super) fn of(role: &'static str, file: &File) -> Result<Facts, Error> {
        let law = |source| Error::Law { pass: "reading", source };
        let model = &file.model;
        let graph = &model.graph;
        let found = survey(model).map_err(law)?;
        let name = |v: ValueId| graph.name(v).to_owned();
        let logits = logits_output(None, graph, file.source.path()).ok();
        let wanted: Vec<ValueId> = logits.into_iter().collect();
        let groups = groups(graph, &found, &wanted).map_err(law)?;
        let mut coverage = Coverage::default();
        for site in &found.sites {
            coverage.linear.add(site.weight.tensor.stored_bytes());
        }
        let quantized = quantized(model, &found);
        for layer in &quantized {
            coverage.quantized.add(layer.bytes);
        }
        for other in found.others.iter().filter(|o| o.kind != mbqc_passes::plan::SkipKind::Quantized) {
            coverage.others.entry(format!("{}: {}", other.op, other.reason)).or_default().add(other.bytes);
        }
        Ok(Facts {
            role,
            file: file.source.path().to_owned(),
            bytes: file.source.file_bytes(),
            data: file.source.data_files().map(|(p, bytes)| DataFile { file: p.to_owned(), bytes }).collect(),
            ir_version: model.ir_version,
            opsets: model.opsets.iter().map(|(d, v)| (domain(d).to_owned(), *v)).collect(),
            producer: model.producer.clone(),
            metadata: model.metadata.iter().filter(|(k, _)| k.starts_with("mbqc.")).cloned().collect(),
            functions: model.functions.iter().map(|f| format!("{}::{}", domain(&f.domain), f.name)).collect(),
            inputs: graph.inputs().iter().map(|v| typed(graph, *v)).collect(),
            outputs: graph.outputs().iter().map(|v| typed(graph, *v)).collect(),
            ops: count_ops(model),
            layers: layers(model, &found),
            quantized,
            logits: logits.map(name),
            groups: groups
                .iter()
                .map(|group| GroupFacts {
                    input: name(group.input),
                    k: group.k,
                    layers: group.sites.iter().map(|&s| found.sites[s].name.clone()).collect(),
                    kind: group.kind,
                    judge: name(group.judge),
                    producer: group.fold.as_ref().ok().map(|f| f.producer.clone()),
                    declined: group.fold.as_ref().err().map(|declined| declined.reason.clone()),
                })
                .collect(),
            necks: cut(graph, &wanted).map_err(law)?.necks.into_iter().map(name).collect(),
            coverage,
            merge: find_merge(graph).map_err(law)?.map(|merge| MergeFacts {
                value: name(merge.value),
                ids: name(merge.ids),
                image_token: merge.image_token,
            }),
        })
    }

    /// Number of pieces in which the graph is streamed: one more than necks before the output.
    pub(super) fn segments(&self) -> usize {
        1 + self.necks.iter().filter(|neck| Some(*neck) != self.logits.as_ref()).count()
    }
}

/// The standard domain has a name of its own in reports.
fn domain(domain: &str) -> &str {
    if domain.is_empty() { "ai.onnx" } else { domain }
}

/// Operators by domain, most frequent first.
fn count_ops(model: &mbqc_passes::ir::Model) -> IndexMap<String, IndexMap<String, usize>> {
    let mut counts: IndexMap<String, IndexMap<String, usize>> = IndexMap::new();
    for graph in model.graph_paths().iter().filter_map(|path| model.graph_at(path)) {
        for (_, node) in graph.nodes() {
            let ops = counts.entry(domain(&node.domain).to_owned()).or_default();
            *ops.entry(node.op.clone()).or_default() += 1;
        }
    }
    counts.sort_keys();
    for ops in counts.values_mut() {
        ops.sort_by(|a, x, b, y| y.cmp(x).then(a.cmp(b)));
    }
    counts
}

/// A value's name, type and shape: `input_ids int64[batch, 8]`.
pub(super) fn typed(graph: &Graph, value: ValueId) -> String {
    let dim = |dim: &Dim| match dim {
        Dim::Size(size) => size.to_string(),
        Dim::Symbol(name) => name.clone(),
        Dim::Unknown => "?".to_owned(),
    };
    let ty = match &graph.value(value).ty {
        Some(Type::Tensor(dtype, Some(dims))) => {
            format!("{dtype}[{}]", dims.iter().map(dim).collect::<Vec<_>>().join(", "))
        }
        Some(Type::Tensor(dtype, None)) => format!("{dtype}[..]"),
        Some(Type::Other) => "not a tensor".to_owned(),
        None => "of undeclared type".to_owned(),
    };
    format!("{} {ty}", graph.name(value))
}
