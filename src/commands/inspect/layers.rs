//! Linear layers: those that can be quantized, and those that are.

use mbqc_kernels::{Format, Scheme, Spec};
use mbqc_passes::facts::sites::{Form, Site, Survey, Tower};
use mbqc_passes::ir::Model;
use mbqc_passes::plan::{SkipKind, path_text};
use mbqc_passes::rewrite::apply::can_apply;
use serde::Serialize;

/// A linear layer with a float weight.
#[derive(Serialize)]
pub(super) struct Layer {
    pub(super) name: String,
    pub(super) node: String,
    pub(super) weight: String,
    pub(super) form: String,
    pub(super) n: usize,
    pub(super) k: usize,
    pub(super) dtype: String,
    pub(super) bytes: usize,
    pub(super) tower: &'static str,
    pub(super) head: bool,
    /// Why it cannot be quantized all the same.
    pub(super) obstacle: Option<String>,
}

/// A layer whose weight is quantized already.
#[derive(Serialize)]
pub(super) struct Quantized {
    pub(super) node: String,
    pub(super) op: String,
    pub(super) weight: String,
    /// Such as `w3g128`, where the operator tells.
    pub(super) format: Option<String>,
    pub(super) n: Option<usize>,
    pub(super) k: Option<usize>,
    pub(super) bytes: usize,
}

/// The layers of a survey.
pub(super) fn layers(model: &Model, survey: &Survey) -> Vec<Layer> {
    let one = |site: &Site| Layer {
        name: site.name.clone(),
        node: format!("{}{}", path_text(model, &site.path), site.label),
        weight: site.weight.name.clone(),
        form: form(site),
        n: site.n,
        k: site.k,
        dtype: site.weight.tensor.dtype.to_string(),
        bytes: site.weight.tensor.stored_bytes(),
        tower: match site.tower {
            Tower::Vision => "vision",
            Tower::Text => "text",
            Tower::Only => "-",
        },
        head: site.head,
        obstacle: can_apply(model, site).err(),
    };
    survey.sites.iter().map(one).collect()
}

/// The product as it is written in the graph.
fn form(site: &Site) -> String {
    let flags = |alpha: f32, beta: f32, trans_a: bool| {
        let mut flags = Vec::new();
        if alpha != 1.0 {
            flags.push(format!("alpha {alpha}"));
        }
        if beta != 1.0 {
            flags.push(format!("beta {beta}"));
        }
        if trans_a {
            flags.push("transA".to_owned());
        }
        if flags.is_empty() { String::new() } else { format!(" {}", flags.join(" ")) }
    };
    let product = match &site.form {
        Form::Right => "MatMul(x, W)".to_owned(),
        Form::Left => "MatMul(W, x)".to_owned(),
        Form::Gemm { alpha, beta, trans_a, c } => {
            let operands = if c.is_some() { "x, W, c" } else { "x, W" };
            format!("Gemm({operands}){}", flags(*alpha, *beta, *trans_a))
        }
    };
    if site.bias.is_some() { product + " + b" } else { product }
}

/// The nodes of a survey that are quantized already.
pub(super) fn quantized(model: &Model, survey: &Survey) -> Vec<Quantized> {
    let mut found = Vec::new();
    for other in survey.others.iter().filter(|o| o.kind == SkipKind::Quantized) {
        let node = other.node(model);
        let size = |name: &str| node.and_then(|n| usize::try_from(n.int(name, -1)).ok());
        let format = node.and_then(|n| Format::carried_by(&n.domain, &n.op, n.int("bits", 4)));
        found.push(Quantized {
            node: match &other.function {
                Some(function) => format!("{function}/{}", other.label),
                None => format!("{}{}", path_text(model, &other.path), other.label),
            },
            op: other.op.clone(),
            weight: other.weight.clone(),
            format: format.and_then(|format| {
                let grouped = format.scheme == Scheme::WeightOnly;
                let group = if grouped { Some(size("block_size")?) } else { None };
                Some(Spec { format, group }.to_string())
            }),
            n: size("N"),
            k: size("K"),
            bytes: other.bytes,
        });
    }
    found
}
