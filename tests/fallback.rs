//! The function bodies of our operators, executed by stock onnxruntime: every opset at which they are written differently,
//! both float types, in the main graph and inside an `If`. `tests/oracle/bodies_matrix.sh` tries the same cases on older
//! versions of onnxruntime.

mod support;

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use mbqc::onnx::{ReadOptions, WriteOptions, read, write};
use mbqc_passes::ir::text;
use serde::Deserialize;

use support::{Outcome, compile, oracle, python, tell};

#[derive(Deserialize)]
struct Case {
    name: String,
    fallback: String,
    format: String,
}

#[derive(Deserialize)]
struct Judged {
    name: String,
    error: Option<f64>,
    problem: Option<String>,
}

#[test]
fn bodies_compute_the_closed_form_in_stock_onnxruntime() -> Outcome {
    let Some(python) = python() else { return Ok(()) };
    let folder = tempfile::tempdir()?;
    let place = folder.path();
    oracle(&python, "bodies.py", &[Path::new("make"), place])?;
    let cases: Vec<Case> = serde_json::from_slice(&fs::read(place.join("cases.json"))?)?;
    for case in &cases {
        let (model, output) = (place.join(format!("{}.onnx", case.name)), place.join(format!("{}.q.onnx", case.name)));
        let arguments =
            ["--format", &case.format, "--head-format", &case.format, "--method", "rtn", "--fallback", &case.fallback];
        compile(&model, &output, &arguments).map_err(|error| format!("{}: {error}", case.name))?;
    }
    oracle(&python, "bodies.py", &[Path::new("expect"), place])?;
    let results = place.join("results.json");
    oracle(&python, "bodies.py", &[Path::new("run"), place, &results])?;
    let judged: Vec<Judged> = serde_json::from_slice(&fs::read(&results)?)?;
    let mut problems = Vec::new();
    for one in &judged {
        let tolerance = if one.name.contains("f32") { 1e-5 } else { 3e-3 };
        match (&one.problem, one.error) {
            (None, Some(error)) if error < tolerance => {}
            (problem, error) => problems.push(format!("{}: {problem:?}, off by {error:?}", one.name)),
        }
    }
    tell(&format!("bodies: {} cases, {} as the closed form says", judged.len(), judged.len() - problems.len()));
    assert!(problems.is_empty(), "{}", problems.join("\n"));
    assert_eq!(judged.len(), cases.len());
    assert!(!cases.is_empty());
    Ok(())
}

/// A model with one layer, of an opset.
fn layer(folder: &Path, opset: i64) -> Result<std::path::PathBuf, Box<dyn std::error::Error>> {
    let model = text::parse(&format!(
        "<ir_version: 8, opset_import: [\"\": {opset}]>\n\
         main (float[batch, 32] x) => (float[batch, 16] y)\n\
         <float[32, 16] w = [\"seed\": \"7\"]>\n{{\n   y = MatMul (x, w)\n}}\n"
    ))?;
    let path = folder.join(format!("opset{opset}.onnx"));
    write(None, &model, &path, &WriteOptions::default())?;
    Ok(path)
}

fn mbqc(model: &Path, output: &Path, arguments: &[&str]) -> std::io::Result<Output> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mbqc"));
    command.arg(model).arg("-o").arg(output).args(["--method", "rtn"]).args(arguments).output()
}

#[test]
fn below_opset_14_codes_go_into_4_bit_containers_and_the_compiler_says_so() -> Outcome {
    let folder = tempfile::tempdir()?;
    for opset in [11, 13] {
        let output = folder.path().join("out.onnx");
        let done = mbqc(&layer(folder.path(), opset)?, &output, &["--format", "w3g16"])?;
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        assert!(done.status.success(), "{said}");
        assert!(said.contains(&format!("opset {opset}")) && said.contains("--target ort"), "{said}");
        let emitted = read(&output, &ReadOptions::default())?.model;
        assert!(emitted.functions.is_empty());
        let ops: Vec<String> = emitted.graph.nodes().map(|(_, node)| node.qualified_op()).collect();
        assert_eq!(ops, ["com.microsoft::MatMulNBits"], "opset {opset}");
    }
    Ok(())
}

#[test]
fn a_body_that_the_opset_cannot_express_is_refused_with_a_way_out() -> Outcome {
    let folder = tempfile::tempdir()?;
    let output = folder.path().join("out.onnx");
    let done = mbqc(&layer(folder.path(), 18)?, &output, &["--format", "w3g16", "--fallback", "standard"])?;
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert_eq!(done.status.code(), Some(1), "{said}");
    assert!(said.contains("needs opset 21") && said.contains("--target ort"), "{said}");
    assert!(!output.exists());
    for format in ["w8a8", "w4a8"] {
        let old = layer(folder.path(), 13)?;
        let done = mbqc(&old, &output, &["--format", format])?;
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        assert_eq!(done.status.code(), Some(1), "{said}");
        assert!(said.contains("needs opset 15") && said.contains("--fallback none"), "{said}");
        assert!(!output.exists());
        let done = mbqc(&old, &output, &["--format", format, "--fallback", "none"])?;
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        assert!(read(&output, &ReadOptions::default())?.model.functions.is_empty());
        std::fs::remove_file(&output)?;
    }
    Ok(())
}
