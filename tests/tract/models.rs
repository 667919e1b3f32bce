//! Whole models: of the corpus' graphs that tract runs as they were exported, how many it runs after compilation.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use mbqc::data::npz;
use mbqc::onnx::{ReadOptions, read};
use mbqc_passes::array::Array;

use super::support::{Export, Outcome, compile, corpus, difference, tell};
use super::{Arrays, Shapes, in_ours, in_tract};

/// Fraction of an output's largest magnitude by which two runtimes may differ.
const TOLERANCE: f64 = 1e-3;

/// Graphs of the corpus for which the following were counted.
const GRAPHS: usize = 120;

/// Graphs with layers to quantize that tract ran as exported, and ran after compilation equal to our evaluator. The number
/// may only grow.
const EQUAL: usize = 61;

#[test]
fn tract_runs_the_compiled_graphs_that_it_runs_as_exported() -> Outcome {
    let Some(exports) = corpus()? else { return Ok(()) };
    let folder = tempfile::tempdir()?;
    let emitted = folder.path().join("out.onnx");
    let (mut as_exported, mut equal, mut worst) = (0, 0, 0f64);
    let (mut left, mut alone, mut problems) = (0, Vec::new(), Vec::new());
    for (index, export) in exports.iter().enumerate() {
        let cases = cases(export)?;
        if cases.is_empty() || !cases.iter().all(|case| runs_as_float(&export.path, case)) {
            continue;
        }
        as_exported += 1;
        let spec = ["w3g16", "w3g32", "w4g32", "w2g16", "w8g32"][index % 5];
        let every = ["--method", "rtn", "--format", spec, "--vision-format", spec, "--head-format", spec];
        let every = [&every[..], &["--accuracy", "exact"]].concat();
        match compile(&export.path, &emitted, &every) {
            Ok(()) => {}
            Err(mbqc::Error::Nothing(_)) => {
                left += 1;
                continue;
            }
            Err(error) => return Err(error.into()),
        }
        match compare(&emitted, &cases)? {
            Verdict::Apart(error) if error <= TOLERANCE => {
                equal += 1;
                worst = worst.max(error);
            }
            Verdict::Apart(error) => problems.push(format!("{} ({spec}) differs by {error:.1e}", export.name)),
            Verdict::Refused(why) => problems.push(format!("{} ({spec}): {why}", export.name)),
            Verdict::Alone(why) => alone.push(format!("{} ({why})", export.name)),
        }
    }
    tell(&format!(
        "tract: of {} graphs {as_exported} run as exported; compiled, {equal} run and equal our evaluator to {worst:.1e}, \
         {left} have no layers to quantize, {} cannot be compared: {}",
        exports.len(),
        alone.len(),
        alone.join("; ")
    ));
    assert!(problems.is_empty(), "{}", problems.join("\n"));
    let floor = if exports.len() == GRAPHS { EQUAL } else { 0 };
    assert!(equal >= floor, "{equal} compiled graphs run in tract, there were {floor}");
    Ok(())
}

/// The sample model keeps its values in float16: tract rounds them there, our evaluator does not.
#[test]
fn the_sample_model_runs() -> Outcome {
    const ROUNDINGS: f64 = 1e-2;
    let folder = tempfile::tempdir()?;
    let emitted = folder.path().join("out.onnx");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/pocket-vlm/model.onnx");
    let every = ["--method", "rtn", "--format", "w3g128", "--vision-format", "w3g128", "--head-format", "w3g128"];
    compile(&source, &emitted, &every)?;
    // A picture of 128x128 pixels is 256 tokens with the id 3.
    let pixels = (0..3 * 128 * 128).map(|i| (i * 37 % 255) as f32 / 127.5 - 1.0).collect();
    let ids = (0..280).map(|i| if (8..264).contains(&i) { 3 } else { 10 + i }).collect();
    let inputs = Arrays::from([
        ("pixel_values".to_owned(), Array::f32([1, 3, 128, 128], pixels)),
        ("input_ids".to_owned(), Array::i64([1, 280], ids)),
        ("attention_mask".to_owned(), Array::i64([1, 280], vec![1; 280])),
    ]);
    match compare(&emitted, &[Case { arrays: Arrays::new(), inputs }])? {
        Verdict::Apart(error) => {
            tell(&format!("tract: the sample model differs by {error:.1e}"));
            assert!(error < ROUNDINGS, "{error:.1e}");
        }
        Verdict::Refused(why) | Verdict::Alone(why) => return Err(why.into()),
    }
    Ok(())
}

/// An input set with the outputs that onnxruntime computed.
struct Case {
    /// The file as it is, with both.
    arrays: Arrays,
    inputs: Arrays,
}

fn cases(export: &Export) -> Result<Vec<Case>, Box<dyn std::error::Error>> {
    let mut cases = Vec::new();
    for sample in &export.samples {
        let arrays = npz::read_arrays(sample)?;
        let input = |(name, array): (&String, &Array)| Some((name.strip_prefix("in/")?.to_owned(), array.clone()));
        let inputs = arrays.iter().filter_map(input).collect();
        if arrays.keys().any(|name| name.starts_with("out/")) {
            cases.push(Case { arrays, inputs });
        }
    }
    Ok(cases)
}

/// Whether tract computes what onnxruntime did. On some graphs it panics, which is as good as an error here.
fn runs_as_float(path: &Path, case: &Case) -> bool {
    let outputs = catch_unwind(AssertUnwindSafe(|| in_tract(path, &case.inputs, Shapes::Given)));
    let Ok(Ok(outputs)) = outputs else { return false };
    let Ok(file) = read(path, &ReadOptions::default()) else { return false };
    let graph = &file.model.graph;
    outputs.iter().zip(graph.outputs()).all(|(found, &value)| {
        let expected = case.arrays.get(&format!("out/{}", graph.name(value)));
        expected.is_none_or(|expected| difference(found, expected, &case.arrays) <= TOLERANCE)
    })
}

/// What tract and our evaluator make of a compiled graph.
enum Verdict {
    /// Both run it; the largest difference.
    Apart(f64),
    /// tract does not run it.
    Refused(String),
    /// tract runs it, our evaluator does not.
    Alone(String),
}

fn compare(path: &Path, cases: &[Case]) -> Result<Verdict, Box<dyn std::error::Error>> {
    let file = read(path, &ReadOptions::default())?;
    let mut worst = 0f64;
    for Case { arrays, inputs } in cases {
        let found = match catch_unwind(AssertUnwindSafe(|| in_tract(path, inputs, Shapes::Given))) {
            Ok(Ok(found)) => found,
            Ok(Err(error)) => return Ok(Verdict::Refused(format!("{error:#}"))),
            Err(_) => return Ok(Verdict::Refused("tract panics".to_owned())),
        };
        let ours = match in_ours(&file.model, inputs) {
            Ok(ours) => ours,
            Err(error) => return Ok(Verdict::Alone(error.to_string())),
        };
        let apart = found.iter().zip(&ours).map(|(found, ours)| difference(found, ours, arrays));
        worst = apart.fold(worst, f64::max);
    }
    Ok(Verdict::Apart(worst))
}
