//! The quantized layers of a model with their stored parts, for whoever multiplies by them one at a time.

use bytes::Bytes;
use mbqc_kernels::dense::convert::FloatType;
use mbqc_kernels::{Kernel, Scales, Stored};
use mbqc_passes::ir::{Attr, DType, Graph, GraphPath, Model, Node, Tensor};
use mbqc_passes::ops::QuantizedLayer;
use mbqc_passes::weights::float_type;

/// A quantized layer with its stored parts, which are views of the file where they can be.
#[derive(Debug)]
pub struct Layer {
    /// Its node.
    pub name: String,
    /// Format, shape, accuracy.
    pub layer: QuantizedLayer,
    /// What multiplies by it on a CPU.
    pub kernel: &'static Kernel,
    codes: Bytes,
    scales: Bytes,
    scale_type: FloatType,
    zero_points: Option<Bytes>,
}

impl Layer {
    /// What a kernel reads; it was checked.
    pub fn stored(&self) -> Stored<'_> {
        self.layer.stored(&self.codes, Scales::Bytes(self.scale_type, &self.scales), self.zero_points.as_deref())
    }

    /// Bytes of a weight: codes, scales, zero points.
    pub fn weight_bytes(&self) -> usize {
        self.codes.len() + self.scales.len() + self.zero_points.as_ref().map_or(0, Bytes::len)
    }
}

/// The layers whose parts are constants, in the order of the graphs, and why others are not among them.
pub fn layers(model: &Model) -> (Vec<Layer>, Vec<String>) {
    let (mut layers, mut left) = (Vec::new(), Vec::new());
    for path in model.graph_paths() {
        let Some(graph) = model.graph_at(&path) else { continue };
        for (id, node) in graph.nodes() {
            // A node of another meaning that shares a name with ours is told, not timed.
            if !mbqc_kernels::FORMATS.iter().any(|format| format.schema.op == node.op) {
                continue;
            }
            match layer(model, &path, graph, node, graph.label(id)) {
                Ok(layer) => layers.push(layer),
                Err(why) => left.push(format!("node `{}`: {why}", graph.label(id))),
            }
        }
    }
    (layers, left)
}

fn layer(model: &Model, path: &GraphPath, graph: &Graph, node: &Node, name: String) -> Result<Layer, String> {
    let layer = QuantizedLayer::read(&node.domain, &node.op, |name| match node.attr(name) {
        Some(Attr::Int(value)) => Some(*value),
        _ => None,
    })
    .map_err(|error| error.to_string())?;
    let part = |name: &str| -> Result<Option<&Tensor>, String> {
        let slot = layer.format.schema.slot(name).and_then(|slot| node.inputs.get(slot).copied().flatten());
        let Some(value) = slot else { return Ok(None) };
        let name = graph.name(value);
        // A branch may take its weight from a graph around it.
        let around = (0..=path.len()).rev().filter_map(|depth| model.graph_at(&path[..depth].to_vec()));
        let found = around.into_iter().find_map(|graph| graph.constant(graph.find(name)?));
        found.map(Some).ok_or_else(|| format!("`{name}` is computed, no constant"))
    };
    let load = |tensor: &Tensor| match tensor.load() {
        Some(bytes) => bytes,
        None => Err(format!("a tensor of {} without bytes", tensor.dtype)),
    };
    let required = |name: &str| part(name)?.ok_or_else(|| format!("input {name} is left out"));
    if !matches!(part("g_idx"), Ok(None)) {
        return Err("g_idx is given; onnxruntime computes it wrongly, so nothing writes it".to_owned());
    }
    let (codes, scales) = (required("B")?, required("scales")?);
    for (name, tensor) in [("B", Some(codes)), ("zero_points", part("zero_points")?)] {
        if let Some(tensor) = tensor.filter(|tensor| tensor.dtype != DType::U8) {
            return Err(format!("input {name} has type {}, expected {}", tensor.dtype, DType::U8));
        }
    }
    let scale_type = float_type(scales.dtype).ok_or_else(|| format!("scales of type {}", scales.dtype))?;
    let zero_points = part("zero_points")?.map(load).transpose()?;
    let (codes, scales) = (load(codes)?, load(scales)?);
    let stored = layer.stored(&codes, Scales::Bytes(scale_type, &scales), zero_points.as_deref());
    stored.check(layer.format).map_err(|error| error.to_string())?;
    let kernel = layer.format.kernel(layer.accuracy, layer.k, layer.group);
    Ok(Layer { name, layer, kernel, codes, scales, scale_type, zero_points })
}
