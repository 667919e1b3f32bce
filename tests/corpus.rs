//! The compiler over a corpus of real exports: every weight-bearing node is accounted for, every graph that holds float
//! linear layers compiles into one that computes what it should, and our evaluator agrees with onnxruntime.
//!
//! The corpus is found as `tests/support` says; without it these tests have nothing to do.

#![allow(clippy::print_stdout, reason = "each test says in a line how much of the corpus it covered")]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use mbqc::data::npz;
use mbqc::onnx::{ReadOptions, read};
use mbqc_kernels::Pool;
use mbqc_passes::array::Compute;
use mbqc_passes::facts::sites::{Form, Other, Site, survey};
use mbqc_passes::ir::{Def, Graph, Model, Node};
use mbqc_passes::run::{Feeds, RunError, Runner, Walk};
use serde::Deserialize;
use serde_json::{Value, json};

use support::{Export, Outcome, compile, corpus, difference, oracle, python, skip};

type Counts = BTreeMap<String, usize>;

// --- accounting ------------------------------------------------------------------------------------------------------

/// An independent count of the weight-bearing nodes of every graph lies beside the corpus, by the way they are written.
#[test]
fn every_weight_bearing_node_is_accounted_for() -> Outcome {
    let exports = corpus()?;
    if exports.is_empty() {
        skip("no corpus (set MBQC_CORPUS)");
        return Ok(());
    }
    let (mut sites, mut others, mut tables) = (0, 0, 0);
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
                None => tables += 1,
            }
        }
        let expected = expected_styles(&export.path)?;
        if counted != expected {
            problems.push(format!("{}: found {counted:?}, counted independently {expected:?}", export.name));
        }
        sites += found.sites.len();
        others += found.others.len();
    }
    println!(
        "corpus: {} graphs, {sites} linear layers and {} other weight-bearing nodes, {tables} of them tables",
        exports.len(),
        others
    );
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

fn producer_is(graph: &Graph, value: mbqc_passes::ir::ValueId, op: &str) -> bool {
    graph.producer(value).is_some_and(|(id, _)| graph.node(id).is(op))
}

/// Tables that are read by index are no part of the independent count.
fn style_of_other(model: &Model, other: &Other) -> Option<String> {
    let graph = model.graph_at(&other.path)?;
    let (_, node) = graph.nodes().find(|(id, _)| graph.label(*id) == other.label)?;
    Some(match node.op.as_str() {
        "Gather" | "GatherBlockQuantized" => return None,
        "Conv" => {
            let rank = node.input(1).and_then(|v| graph.constant(v)).map_or(0, |t| t.dims.len());
            format!("Conv{}d{}", rank.saturating_sub(2), if node.int("group", 1) > 1 { " grouped" } else { "" })
        }
        "MatMul" => matmul_style(graph, node, 1),
        "MatMulInteger" => "MatMulInteger".to_owned(),
        "Attention" => "com.microsoft::Attention(packed qkv weight input)".to_owned(),
        _ => node.qualified_op(),
    })
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
    let exports = corpus()?;
    if exports.is_empty() {
        skip("no corpus (set MBQC_CORPUS)");
        return Ok(());
    }
    let Some(python) = python() else { return Ok(()) };
    let folder = tempfile::tempdir()?;
    let mut jobs = Vec::new();
    let (mut left, mut fused) = (Counts::new(), Counts::new());
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
                    match skipped["op"].as_str() {
                        _ if skipped["kind"] != "unsupported" => {}
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
    println!(
        "corpus: {} graphs, {} compiled ({layers} layers) and equal to {worst:.1e} on {runs} inputs ({worst_half:.1e} in \
         float16; {refused} inputs that the original refuses; left in fused operators: {}), {left_count} without float linear \
         layers ({})",
        exports.len(),
        judged.len(),
        list(&fused),
        list(&left)
    );
    assert!(problems.is_empty(), "{}", problems.join("\n"));
    assert_eq!(judged.len() + left_count, exports.len());
    Ok(())
}

// --- our evaluator ---------------------------------------------------------------------------------------------------

/// Graphs of the corpus for which [`AGREEING`] was counted.
const GRAPHS: usize = 120;

/// Graphs on which our evaluator agreed with onnxruntime when this was last changed; the number may only grow.
const AGREEING: usize = 91;

enum Verdict {
    Agrees(f64),
    /// As far as onnxruntime's own int8 or float16 arithmetic allows.
    AgreesRoughly(f64),
    Wrong(String),
    CannotRun(String),
}

#[test]
fn our_evaluator_agrees_with_onnxruntime() -> Outcome {
    let exports = corpus()?;
    if exports.is_empty() {
        skip("no corpus (set MBQC_CORPUS)");
        return Ok(());
    }
    let runner = Walk::new(Pool::new(2), Compute::F32);
    let (mut agreeing, mut worst) = (0, 0f64);
    let (mut wrong, mut rough) = (Vec::new(), Vec::new());
    let mut cannot: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for export in &exports {
        match evaluate(export, &runner)? {
            Verdict::AgreesRoughly(error) => {
                agreeing += 1;
                rough.push(format!("{} {error:.1e}", export.name));
            }
            Verdict::Agrees(error) => {
                agreeing += 1;
                worst = worst.max(error);
            }
            Verdict::Wrong(what) => wrong.push(format!("{}: {what}", export.name)),
            Verdict::CannotRun(why) => cannot.entry(why).or_default().push(&export.name),
        }
    }
    let reasons: Vec<String> = cannot.iter().map(|(why, graphs)| format!("{} {why}", graphs.len())).collect();
    println!(
        "corpus: {} graphs, our evaluator agrees on {agreeing} (to {worst:.1e}; where onnxruntime computes in int8 or \
         float16: {}), is wrong on {}, cannot run {}: {}",
        exports.len(),
        rough.join(", "),
        wrong.len(),
        cannot.values().map(Vec::len).sum::<usize>(),
        reasons.join("; ")
    );
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let floor = if exports.len() == GRAPHS { AGREEING } else { 0 };
    assert!(agreeing >= floor, "{agreeing} graphs agree, there were {floor}");
    Ok(())
}

fn evaluate(export: &Export, runner: &Walk) -> Result<Verdict, Box<dyn std::error::Error>> {
    let file = read(&export.path, &ReadOptions::default())?;
    let graph = &file.model.graph;
    let half = graph.values().any(|(_, v)| matches!(&v.def, Def::Const(t) if t.dtype == mbqc_passes::ir::DType::F16));
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
