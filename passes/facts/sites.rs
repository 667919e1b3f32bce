//! Sites: the linear layers of a model, found by dataflow; and every other node that carries weights, with the reason
//! why it is left alone.

use crate::ir::{Attr, DType, Def, Graph, GraphPath, Model, Node, NodeId, Tensor, Uses, ValueId, walk};

use super::names::layer_name;
use crate::plan::SkipKind;

/// A linear layer `y = x W^T` with a constant weight.
#[derive(Clone, Debug)]
pub struct Site {
    /// The graph it stands in.
    pub path: GraphPath,
    /// The MatMul or Gemm.
    pub node: NodeId,
    /// The node's label: unique in practice, used in plans and messages.
    pub label: String,
    /// A name people recognise; for display and globs.
    pub name: String,
    /// Its weight.
    pub weight: Weight,
    /// Output channels.
    pub n: usize,
    /// Input channels.
    pub k: usize,
    /// The activation it reads, `[.., k]` (for [`Form::Left`] `[.., k, tokens]`).
    pub x: ValueId,
    /// Output of the node itself.
    pub y: ValueId,
    /// Output after the bias, or `y` when there is none.
    pub out: ValueId,
    /// A bias added by a node of its own.
    pub bias: Option<Bias>,
    /// Which operand is the weight, and what else the operator does.
    pub form: Form,
    /// True for a final projection onto a vocabulary or classes.
    pub head: bool,
    /// Which part of the model it belongs to.
    pub tower: Tower,
}

/// A constant weight and how to read it.
#[derive(Clone, Debug)]
pub struct Weight {
    /// The graph that owns the constant.
    pub owner: GraphPath,
    /// Name of the constant (of the `Constant` node's output where it is an attribute).
    pub name: String,
    /// The stored tensor.
    pub tensor: Tensor,
    /// True when it is stored `[n, k]`, false when `[k, n]`.
    pub rows_are_outputs: bool,
    /// The element type in which the layer reads it: the stored one unless a Cast lies between.
    pub read_as: DType,
}

/// A bias that a separate `Add` brings in.
#[derive(Clone, Debug)]
pub struct Bias {
    /// The `Add`.
    pub node: NodeId,
    /// The constant vector of length n.
    pub value: ValueId,
}

/// Forms of a linear layer.
#[derive(Clone, Debug, PartialEq)]
pub enum Form {
    /// `MatMul(x, W)`.
    Right,
    /// `MatMul(W, x)`: tokens along the last axis.
    Left,
    /// `Gemm(x, W, C)` with its flags.
    Gemm {
        /// Factor of the product.
        alpha: f32,
        /// Factor of `c`.
        beta: f32,
        /// True when `x` is given transposed.
        trans_a: bool,
        /// The third input.
        c: Option<ValueId>,
    },
}

/// The part of a model that a site belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tower {
    /// Sees images only, in a graph that also has a token embedding.
    Vision,
    /// Sees tokens.
    Text,
    /// The graph has only one tower.
    Only,
}

/// A weight-bearing node that is not a site.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Other {
    /// The graph it stands in.
    pub path: GraphPath,
    /// Label of the node.
    pub label: String,
    /// Operator.
    pub op: String,
    /// Name of the weight.
    pub weight: String,
    /// Stored bytes of the weight.
    pub bytes: usize,
    /// Why it is no site.
    pub reason: String,
    /// What kind of reason it is.
    pub kind: SkipKind,
}

/// All weight-bearing nodes of a model.
#[derive(Clone, Debug, Default)]
pub struct Survey {
    /// The linear layers, in topological order within each graph.
    pub sites: Vec<Site>,
    /// The rest.
    pub others: Vec<Other>,
}

/// Operators that carry weights, the input slots where they may stand, and why they are no sites (empty for those that
/// can be).
#[rustfmt::skip]
const WEIGHT_OPS: &[(&str, &[usize], &str)] = &[
    ("MatMul", &[0, 1], ""),
    ("Gemm", &[0, 1], ""),
    ("Conv", &[1], "a convolution; only linear layers are quantized"),
    ("ConvTranspose", &[1], "a transposed convolution; only linear layers are quantized"),
    ("Gather", &[0], "an embedding table; kept as it is"),
    ("Einsum", &[0, 1], "an Einsum with a constant operand; only MatMul and Gemm are sites"),
    ("LSTM", &[1, 2], "a recurrent layer; only linear layers are quantized"),
    ("GRU", &[1, 2], "a recurrent layer; only linear layers are quantized"),
    ("RNN", &[1, 2], "a recurrent layer; only linear layers are quantized"),
    ("FusedMatMul", &[0, 1], "a fused operator of onnxruntime's optimizer; compile the graph as exported, before optimization"),
    ("FusedGemm", &[0, 1], "a fused operator of onnxruntime's optimizer; compile the graph as exported, before optimization"),
    ("FusedConv", &[1], "a convolution; only linear layers are quantized"),
    ("Attention", &[1], "a packed qkv weight inside a fused operator; compile the graph as exported, before optimization"),
    ("EmbedLayerNormalization", &[2, 3, 4], "an embedding table; kept as it is"),
    ("MatMulNBits", &[1], "already quantized"),
    ("MbqMatMulW3", &[1], "already quantized"),
    ("GatherBlockQuantized", &[0], "already quantized"),
    ("MatMulInteger", &[0, 1], "already quantized"),
    ("QLinearMatMul", &[3], "already quantized"),
    ("QLinearConv", &[3], "already quantized"),
    ("ConvInteger", &[1], "already quantized"),
    ("DynamicQuantizeMatMul", &[1], "already quantized"),
    ("MatMulBnb4", &[1], "already quantized"),
    ("QMoE", &[2, 5], "already quantized"),
    ("MoE", &[2, 4], "a mixture of experts inside one operator"),
];

/// Finds all weight-bearing nodes.
pub fn survey(model: &Model) -> Result<Survey, crate::ir::Error> {
    let mut found = Survey::default();
    for path in model.graph_paths() {
        let Some(graph) = model.graph_at(&path) else { continue };
        let towers = Towers::of(graph)?;
        let uses = graph.uses();
        for id in walk::topological(graph)? {
            let node = graph.node(id);
            if model.function(&node.domain, &node.op).is_some() && node.domain != "ai.mbqc" {
                continue;
            }
            let Some((_, slots, reason)) = WEIGHT_OPS.iter().find(|row| row.0 == node.op) else { continue };
            for &slot in *slots {
                let Some(weight) = node.input(slot).and_then(|v| resolve(model, &path, v)) else { continue };
                let answer = match weight {
                    _ if !reason.is_empty() => Err((*reason).to_owned()),
                    Resolved::Quantized(_) => {
                        Err("already quantized (the weight comes from DequantizeLinear)".to_owned())
                    }
                    Resolved::Plain(ref weight, transposed) => {
                        site(model, &path, id, slot, weight, transposed, &towers, &uses)
                    }
                };
                let weight = weight.into_weight();
                match answer {
                    Ok(site) => found.sites.push(*site),
                    Err(reason) if is_matrix(&weight.tensor) => found.others.push(Other {
                        path: path.clone(),
                        label: graph.label(id),
                        op: node.qualified_op(),
                        weight: weight.name,
                        bytes: weight.tensor.stored_bytes(),
                        kind: kind_of(&node.op, &reason),
                        reason,
                    }),
                    Err(_) => {}
                }
            }
        }
    }
    Ok(found)
}

fn kind_of(op: &str, reason: &str) -> SkipKind {
    match op {
        _ if reason.starts_with("already quantized") => SkipKind::Quantized,
        "Gather" | "EmbedLayerNormalization" | "Conv" | "ConvTranspose" | "FusedConv" => SkipKind::NotLinear,
        _ => SkipKind::Unsupported,
    }
}

/// At least two dimensions larger than one: anything less is a vector, a scale or a position.
fn is_matrix(tensor: &Tensor) -> bool {
    tensor.dims.iter().filter(|&&d| d > 1).count() >= 2
}

enum Resolved {
    /// The constant, and whether an odd number of transposes lies between it and the reader.
    Plain(Weight, bool),
    /// A constant behind a DequantizeLinear.
    Quantized(Weight),
}

impl Resolved {
    fn into_weight(self) -> Weight {
        match self {
            Resolved::Plain(weight, _) | Resolved::Quantized(weight) => weight,
        }
    }
}

/// Follows a value back to the constant it shows, through Transpose, Cast, Identity and `Constant` nodes, and out of
/// subgraphs.
fn resolve(model: &Model, path: &GraphPath, value: ValueId) -> Option<Resolved> {
    let mut path = path.clone();
    let mut value = value;
    let mut transposed = false;
    let mut read_as = None;
    loop {
        let graph = model.graph_at(&path)?;
        let entry = graph.value(value);
        let weight = |tensor: &Tensor| Weight {
            owner: path.clone(),
            name: entry.name.clone(),
            tensor: tensor.clone(),
            rows_are_outputs: false,
            read_as: read_as.unwrap_or(tensor.dtype),
        };
        match &entry.def {
            Def::Const(tensor) => return Some(Resolved::Plain(weight(tensor), transposed)),
            Def::Input => return None,
            Def::Outer => {
                let name = entry.name.clone();
                loop {
                    path.pop()?;
                    if let Some(found) = model.graph_at(&path)?.find(&name) {
                        value = found;
                        break;
                    }
                }
            }
            Def::Node(producer, _) => {
                let node = graph.node(*producer);
                match node.op.as_str() {
                    "Identity" => value = node.input(0)?,
                    "Cast" => {
                        let to = i32::try_from(node.int("to", 0)).ok().map(DType::from_onnx);
                        read_as = read_as.or(to);
                        value = node.input(0)?;
                    }
                    "Transpose" => {
                        let swaps = match node.ints("perm") {
                            None => true,
                            Some(perm) => {
                                let rank = perm.len();
                                if perm.iter().enumerate().all(|(i, &p)| i as i64 == p) {
                                    false
                                } else if rank == 2 {
                                    true
                                } else {
                                    return None;
                                }
                            }
                        };
                        transposed ^= swaps;
                        value = node.input(0)?;
                    }
                    "Constant" => {
                        let Some(Attr::Tensor(tensor)) = node.attr("value") else { return None };
                        return Some(Resolved::Plain(weight(tensor), transposed));
                    }
                    "DequantizeLinear" => {
                        return match resolve(model, &path, node.input(0)?)? {
                            Resolved::Plain(w, _) | Resolved::Quantized(w) => Some(Resolved::Quantized(w)),
                        };
                    }
                    _ => return None,
                }
            }
        }
    }
}

#[expect(clippy::too_many_arguments, reason = "the facts of one graph, computed once by the caller")]
fn site(
    model: &Model,
    path: &GraphPath,
    id: NodeId,
    slot: usize,
    weight: &Weight,
    transposed: bool,
    towers: &Towers,
    uses: &Uses,
) -> Result<Box<Site>, String> {
    let graph = model.graph_at(path).ok_or("its graph is gone")?;
    let node = graph.node(id);
    let tensor = &weight.tensor;
    if !matches!(tensor.dtype, DType::F32 | DType::F16 | DType::BF16 | DType::F64) {
        return Err(format!("its weight is of type {}; float weights are quantized", tensor.dtype));
    }
    let [d0, d1] = tensor.dims[..] else {
        return Err(format!("its weight has shape {:?}; only matrices are quantized", tensor.dims));
    };
    if !is_matrix(tensor) {
        return Err(format!("its weight has shape {:?}: a vector, not a matrix", tensor.dims));
    }
    let gemm = node.op == "Gemm";
    let trans_b = gemm && node.int("transB", 0) != 0;
    let left = slot == 0;
    if gemm && left {
        return Err("the constant is Gemm's first operand; only a constant second operand is a linear layer".to_owned());
    }
    // Right: the product wants [k, n]; stored as such unless transposed an odd number of times. Left: wants [n, k].
    let rows_are_outputs = if left { !transposed } else { transposed ^ trans_b };
    let (n, k) = if rows_are_outputs { (d0, d1) } else { (d1, d0) };
    let other = if left { 1 } else { 0 };
    let x = node.input(other).ok_or("its activation operand is absent")?;
    if resolve(model, path, x).is_some() {
        return Err("both operands are constant".to_owned());
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
    Ok(Box::new(Site {
        path: path.clone(),
        node: id,
        name: layer_name(node, &weight.name, bias_name, &label),
        label,
        weight: Weight { rows_are_outputs, ..weight.clone() },
        n,
        k,
        x,
        y,
        out,
        head: is_head(graph, uses, out, n, k, &weight.name),
        bias,
        form,
        tower: towers.of_value(x),
    }))
}

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

/// True when the output goes to a graph output through nothing but casts and views, and the layer widens at least
/// twofold or shares its weight with an embedding table.
fn is_head(graph: &Graph, uses: &Uses, out: ValueId, n: usize, k: usize, weight: &str) -> bool {
    let mut value = out;
    let direct = loop {
        if uses.is_output(value) {
            break true;
        }
        let [(reader, _)] = uses.of(value) else { break false };
        let node = graph.node(*reader);
        let view = matches!(node.op.as_str(), "Cast" | "Identity" | "Reshape" | "Squeeze" | "Unsqueeze");
        match node.output(0).filter(|_| view) {
            Some(next) => value = next,
            None => break false,
        }
    };
    let tied = graph.find(weight).is_some_and(|w| uses.of(w).iter().any(|(node, _)| graph.node(*node).is("Gather")));
    direct && (tied || n >= 2 * k)
}

/// Which values depend on token ids.
struct Towers {
    has_embedding: bool,
    text: Vec<bool>,
}

impl Towers {
    /// A token embedding is a `Gather` on a float table whose indices come from a whole-number graph input through
    /// nothing but casts, views and clips.
    fn of(graph: &Graph) -> Result<Towers, crate::ir::Error> {
        let mut embeddings = Vec::new();
        for (_, node) in graph.nodes().filter(|(_, node)| node.is("Gather")) {
            let table = node.input(0).and_then(|v| graph.constant(v));
            let is_table = table.is_some_and(|t| t.dtype.is_float() && t.dims.len() == 2);
            if let (true, Some(indices), Some(output)) = (is_table, node.input(1), node.output(0))
                && comes_from_ids(graph, indices)
            {
                embeddings.push(output);
            }
        }
        Ok(Towers { has_embedding: !embeddings.is_empty(), text: walk::reached_from(graph, &embeddings)? })
    }

    fn of_value(&self, value: ValueId) -> Tower {
        match (self.has_embedding, self.text[value.0 as usize]) {
            (false, _) => Tower::Only,
            (true, true) => Tower::Text,
            (true, false) => Tower::Vision,
        }
    }
}

fn comes_from_ids(graph: &Graph, mut value: ValueId) -> bool {
    use crate::ir::Type;
    loop {
        match &graph.value(value).def {
            Def::Input => {
                return match &graph.value(value).ty {
                    Some(Type::Tensor(dtype, _)) => dtype.is_int(),
                    _ => true,
                };
            }
            Def::Const(_) | Def::Outer => return false,
            Def::Node(producer, _) => {
                let node = graph.node(*producer);
                let passes = matches!(
                    node.op.as_str(),
                    "Cast" | "Identity" | "Reshape" | "Clip" | "Unsqueeze" | "Squeeze" | "Flatten" | "Where"
                );
                let next = if node.op == "Where" { node.input(2) } else { node.input(0) };
                match next.filter(|_| passes) {
                    Some(next) => value = next,
                    None => return false,
                }
            }
        }
    }
}

/// True for nodes that [`survey`] may report.
pub fn bears_weights(node: &Node) -> bool {
    WEIGHT_OPS.iter().any(|row| row.0 == node.op)
}
