//! The compiler over a corpus of real exports: every weight-bearing node is accounted for, every graph that holds float
//! linear layers compiles into one that computes what it should, and our evaluator agrees with onnxruntime.
//!
//! The corpus is found as `tests/support` says; without it these tests have nothing to do.

mod support;

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::Path;

use mbqc::data::npz;
use mbqc::onnx::{ReadOptions, read};
use mbqc_kernels::Pool;
use mbqc_passes::array::Compute;
use mbqc_passes::facts::sites::{Form, Other, Site, survey};
use mbqc_passes::ir::{Attr, DType, Def, Graph, Model, Node, Tensor, ValueId};
use mbqc_passes::plan::SkipKind;
use mbqc_passes::run::{Feeds, RunError, Runner, Walk};
use serde::Deserialize;
use serde_json::{Value, json};

use support::{Export, Outcome, compile, corpus, difference, oracle, python, tell};

type Counts = BTreeMap<String, usize>;

// --- accounting ------------------------------------------------------------------------------------------------------

/// An independent count of the weight-bearing nodes of every graph lies beside the corpus, by the way they are written. It
/// knows no tables, and weights only that are constants or lie one operator behind one; the others are left out of the
/// comparison and have the next test.
#[test]
fn every_weight_bearing_node_is_accounted_for() -> Outcome {
    let Some(exports) = corpus()? else { return Ok(()) };
    let (mut sites, mut others, mut uncounted) = (0, 0, 0);
    let mut problems = Vec::new();
    for export in &exports {
        let file = read(&export.path, &ReadOptions::default())?;
        let found = survey(&file.model)?;
        let mut counted = Counts::new();
        for site in &found.sites {
            *counted.entry(style_of_site(&file.model, site)).or_default() += 1;
        }
        for other in &found.others {
            match style_of_other(&file.model, other) {
                Some(style) => *counted.entry(style).or_default() += 1,
                None => uncounted += 1,
            }
        }
        let expected = expected_styles(&export.path)?;
        if counted != expected {
            problems.push(format!("{}: found {counted:?}, counted independently {expected:?}", export.name));
        }
        sites += found.sites.len();
        others += found.others.len();
    }
    tell(&format!(
        "corpus: {} graphs, {sites} linear layers and {others} other uses of weights, {uncounted} of them tables and weights \
         further behind",
        exports.len()
    ));
    assert!(problems.is_empty(), "{}", problems.join("\n"));
    Ok(())
}

fn expected_styles(model: &Path) -> Result<Counts, Box<dyn std::error::Error>> {
    let meta: Value = serde_json::from_slice(&fs::read(model.with_file_name("meta.json"))?)?;
    let file = model.file_name().unwrap_or_default().to_string_lossy();
    let graphs = meta["graphs"].as_array().ok_or("meta.json without graphs")?;
    let graph = graphs.iter().find(|g| g["file"] == *file).ok_or_else(|| format!("meta.json does not know {file}"))?;
    Ok(serde_json::from_value(graph["analysis"]["linear_styles"].clone())?)
}

fn style_of_site(model: &Model, site: &Site) -> String {
    let Some(graph) = model.graph_at(&site.path) else { return String::new() };
    let node = graph.node(site.node);
    match &site.form {
        Form::Gemm { c, .. } => {
            let turned = if node.int("transB", 0) == 0 { "" } else { " transB=1" };
            let plus = if c.is_some() { " +C" } else { "" };
            format!("Gemm(const){turned}{plus}")
        }
        Form::Right | Form::Left => matmul_style(graph, node, usize::from(site.form == Form::Right)),
    }
}

/// `MatMul(const)`, with the operator behind which the constant lies, and whether an `Add` of a constant follows.
fn matmul_style(graph: &Graph, node: &Node, slot: usize) -> String {
    let behind = node.input(slot).and_then(|v| graph.producer(v)).map(|(id, _)| graph.node(id).op.as_str());
    let behind = behind.filter(|op| *op != "Constant").map_or(String::new(), |op| format!("<-{op}"));
    let uses = graph.uses();
    let constant = |v| matches!(graph.value(v).def, Def::Const(_)) || producer_is(graph, v, "Constant");
    let added = node.output(0).is_some_and(|y| {
        uses.of(y).iter().any(|(reader, slot)| {
            let reader = graph.node(*reader);
            reader.is("Add") && reader.input(1 - slot).is_some_and(constant)
        })
    });
    format!("MatMul(const{behind}){}", if added { "+Add" } else { "" })
}

fn producer_is(graph: &Graph, value: ValueId, op: &str) -> bool {
    graph.producer(value).is_some_and(|(id, _)| graph.node(id).is(op))
}

/// The style of the independent count; `None` for what is no part of it.
fn style_of_other(model: &Model, other: &Other) -> Option<String> {
    let node = other.node(model)?;
    let graph = model.graph_at(&other.path)?;
    Some(match node.op.as_str() {
        "Conv" => {
            let rank = node.input(1).and_then(|v| graph.constant(v)).map_or(0, |t| t.dims.len());
            format!("Conv{}d{}", rank.saturating_sub(2), if node.int("group", 1) > 1 { " grouped" } else { "" })
        }
        "MatMulInteger" => "MatMulInteger".to_owned(),
        "Attention" => "com.microsoft::Attention(packed qkv weight input)".to_owned(),
        _ if other.kind == SkipKind::NotLinear || node.op == "GatherBlockQuantized" => return None,
        "MatMul" if other.reason.starts_with(BEHIND) => return None,
        "MatMul" => matmul_style(graph, node, 1),
        _ => node.qualified_op(),
    })
}

/// How the reason begins where a linear layer's weight is cut from or put together of constants.
const BEHIND: &str = "its weight reaches the ";

/// Every constant of a float or quantized type with two dimensions above one, by a walk of the test's own: backwards from
/// operands for weights, and by direct readers for the rest.
#[test]
fn every_constant_that_may_be_a_weight_is_listed() -> Outcome {
    let Some(exports) = corpus()? else { return Ok(()) };
    let (mut constants, mut small, mut parameters, mut pairs) = (0, 0, 0, 0);
    let (mut sites, mut others, mut reasons) = (0, 0, Counts::new());
    let mut problems = Vec::new();
    for export in &exports {
        let file = read(&export.path, &ReadOptions::default())?;
        let found = survey(&file.model)?;
        sites += found.sites.len();
        others += found.others.len();
        for other in &found.others {
            *reasons.entry(format!("{:?} {}", other.kind, other.reason)).or_default() += 1;
        }
        let named: HashSet<&str> = found.sites.iter().map(|s| s.weight.name.as_str()).collect();
        let named: HashSet<&str> = named.into_iter().chain(found.others.iter().map(|o| o.weight.as_str())).collect();
        let used: HashSet<(&str, &str)> = found
            .sites
            .iter()
            .map(|s| (s.label.as_str(), s.weight.name.as_str()))
            .chain(found.others.iter().map(|o| (o.label.as_str(), o.weight.as_str())))
            .collect();
        let bodies = file.model.functions.iter().filter(|f| !f.domain.starts_with("ai.mbqc")).map(|f| &f.body);
        let mut graphs: Vec<&Graph> = std::iter::once(&file.model.graph).chain(bodies).collect();
        let mut at = 0;
        while let Some(&graph) = graphs.get(at) {
            at += 1;
            graphs.extend(graph.nodes().flat_map(|(_, node)| node.attrs.iter().flat_map(|(_, attr)| attr.graphs())));
            let uses = graph.uses();
            for (id, value) in graph.values() {
                let Some(tensor) = constant_of(graph, id).filter(|t| could_be_weight(t)) else { continue };
                constants += 1;
                let readers: Vec<(&str, usize)> =
                    uses.of(id).iter().map(|&(node, slot)| (graph.node(node).op.as_str(), slot)).collect();
                if !readers.is_empty() && readers.iter().all(|reader| SCALES.contains(reader)) {
                    parameters += 1;
                } else if tensor.len() < 256 && !readers.iter().any(|(op, _)| PRODUCTS.contains(op)) {
                    small += 1;
                } else if !named.contains(value.name.as_str()) {
                    problems.push(format!("{}: `{}` {:?} read by {readers:?}", export.name, value.name, tensor.dims));
                }
            }
            for (id, node) in graph.nodes().filter(|(_, node)| PRODUCTS.contains(&node.op.as_str())) {
                let behind: Vec<_> = node.inputs.iter().flatten().map(|&v| constants_behind(graph, v)).collect();
                // What is computed from constants alone is a constant itself, such as the rows of a position table.
                let computed = behind.iter().any(Option::is_none);
                for name in behind.into_iter().take(2).flatten().flatten().filter(|_| computed) {
                    pairs += 1;
                    if !used.contains(&(graph.label(id).as_str(), name)) {
                        problems.push(format!("{}: `{name}` at {}", export.name, graph.label(id)));
                    }
                }
            }
        }
    }
    tell(&format!(
        "corpus: {constants} constants that may be weights ({parameters} of them scales and zero points, {small} small tables), \
         {pairs} pairs of a constant and a product, convolution or lookup; {sites} sites, {others} others: {reasons:#?}"
    ));
    assert!(problems.is_empty(), "{}", problems.join("\n"));
    Ok(())
}

const PRODUCTS: &[&str] = &["MatMul", "Gemm", "Conv", "Gather", "MatMulInteger", "MatMulNBits", "GatherBlockQuantized"];

/// Slots of scales and zero points.
const SCALES: &[(&str, usize)] = &[
    ("DequantizeLinear", 1),
    ("DequantizeLinear", 2),
    ("MatMulNBits", 2),
    ("MatMulNBits", 3),
    ("GatherBlockQuantized", 2),
    ("GatherBlockQuantized", 3),
];

fn constant_of(graph: &Graph, value: ValueId) -> Option<&Tensor> {
    match graph.value(value).def {
        Def::Node(id, _) if graph.node(id).is("Constant") => match graph.node(id).attr("value") {
            Some(Attr::Tensor(tensor)) => Some(tensor),
            _ => None,
        },
        _ => graph.constant(value),
    }
}

fn could_be_weight(tensor: &Tensor) -> bool {
    let stored = tensor.dtype != DType::Bool && tensor.dtype.bits().is_some_and(|bits| bits <= 16);
    let float = matches!(tensor.dtype, DType::F32 | DType::F64);
    (stored || float) && tensor.dims.iter().filter(|&&d| d > 1).count() > 1
}

/// The constants behind a value that may be weights, when there is nothing but constants behind it.
fn constants_behind(graph: &Graph, value: ValueId) -> Option<Vec<&str>> {
    let (mut stack, mut seen, mut names) = (vec![(value, false)], HashSet::new(), Vec::new());
    while let Some((value, shape)) = stack.pop() {
        if !seen.insert((value, shape)) {
            continue;
        }
        match (constant_of(graph, value), &graph.value(value).def) {
            (Some(tensor), _) if could_be_weight(tensor) && !shape => names.push(graph.name(value)),
            (Some(_), _) => {}
            (None, Def::Node(id, _)) => {
                let node = graph.node(*id);
                let shape = shape || node.is("Shape") || node.is("Size");
                let scales = |slot: &usize| SCALES.contains(&(node.op.as_str(), *slot));
                let inputs = node.inputs.iter().enumerate().filter_map(|(slot, v)| Some((slot, (*v)?)));
                stack.extend(inputs.map(|(slot, v)| (v, shape || scales(&slot))));
            }
            (None, _) => return None,
        }
    }
    Some(names)
}

// --- compiling -------------------------------------------------------------------------------------------------------

/// Fraction of an output's largest magnitude by which two graphs that compute the same may differ.
const TOLERANCE: f64 = 1e-3;

/// Operators with a weight inside that are left as they are.
const FUSED: &[&str] = &["com.microsoft::Attention"];

/// What the oracle says about a compiled graph.
#[derive(Deserialize)]
struct Judged {
    name: String,
    layers: usize,
    error: Option<f64>,
    half_error: Option<f64>,
    moved: Option<f64>,
    runs: usize,
    skipped_runs: usize,
    problem: Option<String>,
}

#[test]
fn compiled_graphs_compute_what_their_fake_quantized_originals_do() -> Outcome {
    let Some(exports) = corpus()? else { return Ok(()) };
    let Some(python) = python() else { return Ok(()) };
    let folder = tempfile::tempdir()?;
    let mut jobs = Vec::new();
    let (mut left, mut fused, mut behind) = (Counts::new(), Counts::new(), Counts::new());
    let mut problems = Vec::new();
    for (index, export) in exports.iter().enumerate() {
        // Groups of 32 leave a padded block where there are 48 channels.
        let format = if index % 2 == 0 { "w3g16" } else { "w3g32" };
        let emitted = folder.path().join(format!("{index}.onnx"));
        let plan = folder.path().join(format!("{index}.json"));
        let every = ["--format", format, "--vision-format", format, "--head-format", format, "--method", "rtn"];
        let arguments = [every.as_slice(), &["--plan-out", plan.to_str().ok_or("path")?]].concat();
        match compile(&export.path, &emitted, &arguments) {
            Ok(()) => {
                let plan: Value = serde_json::from_slice(&fs::read(&plan)?)?;
                for skipped in plan["skipped"].as_array().into_iter().flatten() {
                    let reason = skipped["reason"].as_str().unwrap_or_default();
                    match skipped["op"].as_str() {
                        _ if skipped["kind"] != "unsupported" => {}
                        Some(_) if reason.starts_with(BEHIND) => *behind.entry(export.name.clone()).or_default() += 1,
                        Some(op) if FUSED.contains(&op) => *fused.entry(op.to_owned()).or_default() += 1,
                        _ => problems.push(format!("{}: {skipped}", export.name)),
                    }
                }
                jobs.push(json!({
                    "name": export.name, "original": export.path, "emitted": emitted, "io": export.samples,
                }));
            }
            Err(mbqc::Error::Nothing(why)) => {
                let why = why.replace(&export.path.display().to_string(), "").trim().to_owned();
                *left.entry(why).or_default() += 1;
            }
            Err(error) => problems.push(format!("{}: {error}", export.name)),
        }
    }
    let (requests, answers) = (folder.path().join("jobs.json"), folder.path().join("results.json"));
    fs::write(&requests, serde_json::to_vec(&jobs)?)?;
    oracle(&python, "corpus_fakequant.py", &[&requests, &answers])?;
    let judged: Vec<Judged> = serde_json::from_slice(&fs::read(&answers)?)?;
    let (mut layers, mut runs, mut refused, mut worst, mut worst_half) = (0, 0, 0, 0f64, 0f64);
    for one in &judged {
        let error = one.error.unwrap_or(f64::INFINITY);
        let half = one.half_error.unwrap_or(0.0);
        if let Some(problem) = &one.problem {
            problems.push(format!("{}: {problem}", one.name));
        } else if error > TOLERANCE || half > 10.0 * TOLERANCE {
            problems.push(format!("{}: differs by {error:.1e} (as float16 {half:.1e})", one.name));
        } else if one.moved.is_none_or(|moved| moved < 10.0 * error.max(1e-5)) {
            problems.push(format!("{}: quantization changes nothing, so that nothing was checked", one.name));
        }
        layers += one.layers;
        runs += one.runs;
        refused += one.skipped_runs;
        worst = worst.max(error);
        worst_half = worst_half.max(half);
    }
    let left_count: usize = left.values().sum();
    let list = |counts: &Counts| counts.iter().map(|(what, n)| format!("{n} {what}")).collect::<Vec<_>>().join("; ");
    tell(&format!(
        "corpus: {} graphs, {} compiled ({layers} layers) and equal to {worst:.1e} on {runs} inputs ({worst_half:.1e} in \
         float16; {refused} inputs that the original refuses; left in fused operators: {}; left because the weight is cut out \
         of another: {}), {left_count} without float linear layers ({})",
        exports.len(),
        judged.len(),
        list(&fused),
        list(&behind),
        list(&left)
    ));
    assert!(problems.is_empty(), "{}", problems.join("\n"));
    assert_eq!(judged.len() + left_count, exports.len());
    Ok(())
}

// --- our evaluator ---------------------------------------------------------------------------------------------------

/// Graphs that our evaluator cannot run, and a part of the reason it gives. It must agree with onnxruntime on
/// all others, and a graph that it comes to run has to leave this list.
#[rustfmt::skip]
const NOT_RUN: &[(&str, &str)] = &[
    ("clip_vision_ort_extended/model", "without com.microsoft::FusedMatMul"),
    ("clip_vision_ortopt/model", "without com.microsoft::SkipLayerNormalization"),
    ("genai_qwen2_5_vl_text_fp32/model", "without com.microsoft::MRotaryEmbedding"),
    ("genai_qwen2_embeds_fp32/model", "without com.microsoft::GroupQueryAttention"),
    ("genai_qwen2_fp16_cuda/model", "without com.microsoft::GroupQueryAttention"),
    ("genai_qwen2_fp32/model", "without com.microsoft::GroupQueryAttention"),
    ("genai_qwen2_int4/model", "without com.microsoft::GatherBlockQuantized"),
    ("llava15_decoder_ortopt/decoder_model_merged", "without com.microsoft::RotaryEmbedding"),
    ("llava15_single_ort_extended/model", "without com.microsoft::FusedMatMul"),
    ("llava_ov_3graph_dynamo_op23/decoder_model_merged", "without RotaryEmbedding"),
    ("llava_ov_3graph_dynamo_op23/vision_encoder", "without Attention"),
    ("llava_ov_3graph_quantized/decoder_model_merged_quantized", "without DynamicQuantizeLinear"),
    ("llava_ov_decoder_ort_extended/decoder_model_merged", "without com.microsoft::FusedMatMul"),
    ("llava_ov_single_dynamo_op23/model", "without Attention"),
    ("llava_ov_single_ortopt/model", "without com.microsoft::SkipLayerNormalization"),
    ("llava_ov_single_q4_qdq/model", "uint4"),
    ("mobius_llava_ov/decoder", "without RotaryEmbedding"),
    ("mobius_llava_ov/vision_encoder", "without Attention"),
    ("mobius_qwen2_5_vl/decoder", "without RotaryEmbedding"),
    ("mobius_qwen2_5_vl/vision_encoder", "without Scan"),
    ("mobius_vit/model", "without Attention"),
    ("mobius_vit_safetensors/model", "without Attention"),
    ("qwen2_vl_3graph_classic/vision_encoder", "without SequenceEmpty"),
    ("siglip_vision_dynamo_op23/model", "without Attention"),
    ("vit_cls_dynamo_op23/model", "without Attention"),
    ("vit_cls_ort_extended/model", "without com.microsoft::FusedMatMul"),
    ("vit_cls_ortopt/model", "without com.microsoft::Attention"),
    ("vit_cls_ortopt_fp16/model", "without com.microsoft::Attention"),
    ("vit_cls_ortopt_mha/model", "without com.microsoft::MultiHeadAttention"),
];

enum Verdict {
    Agrees(f64),
    /// As far as onnxruntime's own int8 or float16 arithmetic allows.
    AgreesRoughly(f64),
    Wrong(String),
    CannotRun(String),
}

#[test]
fn our_evaluator_agrees_with_onnxruntime() -> Outcome {
    let Some(exports) = corpus()? else { return Ok(()) };
    let runner = Walk::new(Pool::new(2), Compute::F32);
    let (mut agreeing, mut worst) = (0, 0f64);
    let (mut wrong, mut rough) = (Vec::new(), Vec::new());
    let mut cannot = Counts::new();
    for export in &exports {
        let known = NOT_RUN.iter().find(|(name, _)| *name == export.name).map(|(_, why)| *why);
        match (evaluate(export, &runner)?, known) {
            (Verdict::Agrees(_) | Verdict::AgreesRoughly(_), Some(why)) => {
                wrong.push(format!(
                    "{}: runs and agrees; take it off the list of those that cannot ({why})",
                    export.name
                ));
            }
            (Verdict::AgreesRoughly(error), None) => {
                agreeing += 1;
                rough.push(format!("{} {error:.1e}", export.name));
            }
            (Verdict::Agrees(error), None) => {
                agreeing += 1;
                worst = worst.max(error);
            }
            (Verdict::Wrong(what), _) => wrong.push(format!("{}: {what}", export.name)),
            (Verdict::CannotRun(why), known) if known.is_none_or(|known| !why.contains(known)) => {
                wrong.push(format!("{}: cannot be run: {why}", export.name));
            }
            (Verdict::CannotRun(why), _) => *cannot.entry(why).or_default() += 1,
        }
    }
    let reasons: Vec<String> = cannot.iter().map(|(why, graphs)| format!("{graphs} {why}")).collect();
    tell(&format!(
        "corpus: {} graphs, our evaluator agrees on {agreeing} (to {worst:.1e}; where onnxruntime computes in int8 or \
         float16: {}), is wrong on {}, cannot run {}: {}",
        exports.len(),
        rough.join(", "),
        wrong.len(),
        cannot.values().sum::<usize>(),
        reasons.join("; ")
    ));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

fn evaluate(export: &Export, runner: &Walk) -> Result<Verdict, Box<dyn std::error::Error>> {
    let file = read(&export.path, &ReadOptions::default())?;
    let graph = &file.model.graph;
    let half = graph.values().any(|(_, v)| matches!(&v.def, Def::Const(t) if t.dtype == DType::F16));
    let int8 = graph.nodes().any(|(_, n)| matches!(n.op.as_str(), "MatMulNBits" | "MatMulInteger"));
    // There onnxruntime computes in int8 and in float16, we in float32.
    let tolerance = match (int8, half) {
        (true, _) => 30.0 * TOLERANCE,
        (_, true) => 2.0 * TOLERANCE,
        _ => TOLERANCE,
    };
    let mut worst = 0f64;
    for sample in &export.samples {
        let arrays = npz::read_arrays(sample)?;
        if !arrays.keys().any(|key| key.starts_with("out/")) {
            continue;
        }
        let mut feeds = Feeds::new();
        for &value in graph.inputs() {
            if let Some(array) = arrays.get(&format!("in/{}", graph.name(value))) {
                feeds.insert(value, array.clone());
            }
        }
        let mut fed: Vec<_> = feeds.keys().copied().collect();
        fed.sort();
        let results = runner
            .prepare(&file.model, &fed, graph.outputs())
            .and_then(|segment| runner.run(&file.model, &segment, feeds, None));
        let results = match results {
            Ok(results) => results,
            Err(error) => return Ok(Verdict::CannotRun(reason(error))),
        };
        for (&value, got) in graph.outputs().iter().zip(&results) {
            let name = graph.name(value);
            let Some(want) = arrays.get(&format!("out/{name}")) else { continue };
            let error = difference(got, want, &arrays);
            if error > tolerance {
                let sample = sample.file_name().unwrap_or_default().display();
                return Ok(Verdict::Wrong(format!("{sample}: output `{name}` {:?} differs by {error:.1e}", got.shape)));
            }
            worst = worst.max(error);
        }
    }
    Ok(if int8 || half { Verdict::AgreesRoughly(worst) } else { Verdict::Agrees(worst) })
}

fn reason(error: RunError) -> String {
    match error {
        RunError::UnknownOp { op, .. } => format!("without {op}"),
        RunError::Op { op, source, .. } => format!("at {op} ({source})"),
        other => other.to_string(),
    }
}
