//! Cross-entropies of compiled models, sample by sample: ours against the independent implementation of the method, and against
//! onnxruntime on the same files.
//!
//! In f32, because float16 arithmetic alone moves single samples by up to 4e-3 in onnxruntime (tests/oracle/README.md), and with the
//! graphs' casts to float16 kept: what the goldens `onnx-casts` are of.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::{golden, injected_folder, layer, mbqc, root, support, testbed, text};

/// A model in f32, with what its compilation needs beside it.
struct Single {
    variant: &'static str,
    /// Holds the files.
    place: tempfile::TempDir,
    /// What is compiled whole: a file, or a folder.
    model: PathBuf,
    /// The graph whose layers are quantized.
    decoder: PathBuf,
}

fn run(python: &Path, args: &[&str]) {
    let output = Command::new(python).args(args).output().expect("Python starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn copy(from: &Path, to: &Path, names: &[&str]) {
    for name in names {
        std::fs::copy(from.join(name), to.join(name)).expect("a copy");
    }
}

const CONFIGS: [&str; 2] = ["config.json", "preprocessor_config.json"];
const PARTS: [&str; 3] = ["vision_encoder.onnx", "embed_tokens.onnx", "decoder_model_merged.onnx"];

impl Single {
    fn convert(python: &Path, from: &Path, to: &Path) {
        let script = root().join("tests/oracle/to_f32.py");
        run(python, &[text(&script), text(from), text(to), "--keep-rounding"]);
    }

    /// The sample model as one graph.
    fn plain(python: &Path) -> Single {
        let place = tempfile::tempdir().expect("a temporary folder");
        let source = root().join("models/pocket-vlm");
        let model = place.path().join("model.onnx");
        Single::convert(python, &source.join("model.onnx"), &model);
        copy(&source, place.path(), &CONFIGS);
        Single { variant: "pocket-vlm", decoder: model.clone(), model, place }
    }

    /// The variant with outliers, as a folder of three graphs.
    fn injected(python: &Path, bed: &Path) -> Single {
        let place = tempfile::tempdir().expect("a temporary folder");
        let (half, model) = (injected_folder(bed), place.path().join("single"));
        std::fs::create_dir(&model).expect("a folder");
        for part in PARTS {
            Single::convert(python, &half.path().join(part), &model.join(part));
        }
        copy(half.path(), &model, &CONFIGS);
        Single { variant: "pocket-vlm-injected", decoder: model.join(PARTS[2]), model, place }
    }

    /// Where a compiled model goes: a file or a folder, as the source.
    fn output(&self, method: &str) -> PathBuf {
        let name = if self.model.is_dir() { method.to_owned() } else { format!("{method}.onnx") };
        self.place.path().join(name)
    }

    /// Checks a compiled model on the evaluation set.
    fn check(&self, python: &Path, compiled: &Path, method: &str) {
        let data = root().join("models/pocket-vlm/eval.npz");
        let args = ["verify", text(&self.model), text(compiled), "--data", text(&data), "--json", "--quiet"];
        let report: Value = serde_json::from_str(&mbqc(&args)).expect("one JSON document");
        let ort = self.place.path().join("ce.json");
        run(python, &[text(&root().join("tests/oracle/ort_ce.py")), text(compiled), text(&data), text(&ort)]);
        let ort: Vec<f64> = serde_json::from_str(&std::fs::read_to_string(&ort).expect("written")).expect("a list");

        let expected = &golden("pocket_quant.json")["variants"][self.variant]["ce"]["onnx-casts"];
        let samples = report["samples"].as_array().expect("samples");
        assert_eq!(samples.len(), 96);
        let mut worst = [0.0f64; 3];
        for (i, sample) in samples.iter().enumerate() {
            let tokens = sample["tokens"].as_f64().expect("a count");
            let fp = sample["ce_fp"].as_f64().expect("a sum") / tokens;
            let q = sample["ce_q"].as_f64().expect("a sum") / tokens;
            let wanted = |method: &str| expected[method]["eval"][i].as_f64().expect("a golden");
            for (slot, difference) in [fp - wanted("fp"), q - wanted(method), q - ort[i]].into_iter().enumerate() {
                worst[slot] = worst[slot].max(difference.abs());
            }
        }
        println!(
            "{} {method}: largest difference of a sample: fp {:.1e}, quantized {:.1e}, onnxruntime {:.1e}",
            self.variant, worst[0], worst[1], worst[2]
        );
        assert!(worst.iter().all(|&w| w < 1e-3), "{} {method}: {worst:?}", self.variant);
    }

    /// Compiles with plain rounding and checks.
    fn rtn(&self, python: &Path) {
        let compiled = self.output("rtn");
        let mut args = vec![text(&self.model), "-o", text(&compiled), "--method", "rtn", "--range", "min-max"];
        args.extend(["--scales", "f32", "--accuracy", "exact", "--quiet"]);
        mbqc(&args);
        self.check(python, &compiled, "rtn");
    }

    /// Folding and rounding under given exponents: a plan whose scales are those of the goldens (their mean |x| and exponents).
    fn given(&self, python: &Path, method: &str) {
        let plan = self.place.path().join("plan.json");
        let calib = root().join("models/pocket-vlm/calib.npz");
        let goldens = &golden("pocket_quant.json")["variants"][self.variant];
        let compiled = self.output(method);
        let mut args = vec![text(&self.model), "-o", text(&compiled), "--calib", text(&calib), "--samples", "1"];
        args.extend(["--method", "mbq-ref", "--plan-out", text(&plan), "--dry-run", "--quiet"]);
        mbqc(&args);
        let mut edited = read_json(&plan);
        let mut given = 0;
        for group in edited["groups"].as_array_mut().expect("groups") {
            let Some(key) = key_of(group) else { continue };
            let exponent = goldens["exponents"][method][&key].as_f64().expect("an exponent") as f32;
            let mean_abs = goldens["mean_abs"]["onnx-casts"][&key].as_array().expect("means");
            let s: Vec<f32> =
                mean_abs.iter().map(|m| (m.as_f64().expect("a mean") as f32).powf(exponent).max(1e-4)).collect();
            let largest = s.iter().copied().fold(f32::MIN, f32::max);
            let smallest = s.iter().copied().fold(f32::MAX, f32::min);
            let scale: Vec<f32> = s.iter().map(|v| v / (largest * smallest).sqrt()).collect();
            group["scale"] = serde_json::json!(scale);
            given += 1;
        }
        assert_eq!(given, 12);
        std::fs::write(&plan, edited.to_string()).expect("written");
        let decoder = if self.model.is_dir() {
            std::fs::create_dir(&compiled).expect("a folder");
            copy(&self.model, &compiled, &PARTS[..2]);
            copy(&self.model, &compiled, &CONFIGS);
            compiled.join(PARTS[2])
        } else {
            compiled.clone()
        };
        let mut args = vec!["apply", text(&self.decoder), "--plan", text(&plan), "-o", text(&decoder)];
        args.extend(["--accuracy", "exact", "--quiet"]);
        mbqc(&args);
        self.check(python, &compiled, method);
    }

    /// The whole method by ourselves, gradients, search and rounding, at the settings of the independent implementation.
    fn searched(&self, python: &Path, method: &str, switches: &[&str]) {
        let plan = self.place.path().join("searched.json");
        let calib = root().join("models/pocket-vlm/calib.npz");
        let compiled = self.output(&format!("{method}-searched"));
        let mut args = vec![text(&self.model), "-o", text(&compiled), "--calib", text(&calib), "--quiet"];
        args.extend(["--search-samples", "48", "--half-casts", "keep", "--accuracy", "exact", "--plan-out", text(&plan)]);
        args.extend(switches);
        mbqc(&args);
        let expected = &golden("pocket_quant.json")["variants"][self.variant]["exponents"][method];
        let found: HashMap<String, f64> = read_json(&plan)["groups"]
            .as_array()
            .expect("groups")
            .iter()
            .filter_map(|group| Some((key_of(group)?, group["exponent"].as_f64()?)))
            .collect();
        // Where an exponent differs in a tie, the cross-entropies are of another model.
        for (key, exponent) in expected.as_object().expect("groups") {
            assert_eq!(found.get(key).copied(), exponent.as_f64(), "{} {method} {key}", self.variant);
        }
        self.check(python, &compiled, method);
    }
}

fn read_json(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).expect("a plan")).expect("valid JSON")
}

/// `3.gate_up`: the name that the goldens have for a group.
fn key_of(group: &Value) -> Option<String> {
    let name = layer(group["sites"][0].as_str()?)?;
    let (index, module) = name.split_once('.')?;
    let key = match module {
        "self_attn.q_proj" => "qkv",
        "mlp.gate_proj" => "gate_up",
        "mlp.down_proj" => "down",
        _ => return None,
    };
    Some(format!("{index}.{key}"))
}

#[test]
fn rtn() {
    let Some(python) = support::python() else { return };
    Single::plain(&python).rtn(&python);
}

#[test]
fn awq_and_mbq_with_given_exponents() {
    let Some(python) = support::python() else { return };
    let single = Single::plain(&python);
    single.given(&python, "awq");
    single.given(&python, "mbq");
}

#[test]
fn awq_from_end_to_end() {
    let Some(python) = support::python() else { return };
    let switches = ["--method", "awq", "--range", "min-max", "--scales", "f32"];
    Single::plain(&python).searched(&python, "awq", &switches);
}

#[test]
fn injected_rtn() {
    let (Some(python), Some(bed)) = (support::python(), testbed()) else { return };
    Single::injected(&python, &bed).rtn(&python);
}

#[test]
fn injected_awq_and_mbq_with_given_exponents() {
    let (Some(python), Some(bed)) = (support::python(), testbed()) else { return };
    let single = Single::injected(&python, &bed);
    single.given(&python, "awq");
    single.given(&python, "mbq");
}
