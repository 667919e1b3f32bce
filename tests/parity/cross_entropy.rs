//! Cross-entropies of compiled models, sample by sample: ours against the independent implementation of the method, and against
//! onnxruntime on the same files.
//!
//! In f32, because float16 arithmetic alone moves single samples by up to 4e-3 in onnxruntime (tests/oracle/README.md), and with the
//! graphs' casts to float16 kept: what the goldens `onnx-casts` are of.

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
        // A folder's embeddings are cast once more on their way into the decoder; the goldens are of a function without that.
        run(python, &[text(&script), text(from), text(to), "--keep-rounding", "--exact", "inputs_embeds"]);
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

    /// Cross-entropies by onnxruntime.
    fn onnxruntime(&self, python: &Path, compiled: &Path) -> Vec<f64> {
        let data = root().join("models/pocket-vlm/eval.npz");
        let ort = self.place.path().join("ce.json");
        run(python, &[text(&root().join("tests/oracle/ort_ce.py")), text(compiled), text(&data), text(&ort)]);
        serde_json::from_str(&std::fs::read_to_string(&ort).expect("written")).expect("a list")
    }

    /// Checks a compiled model on the evaluation set: against onnxruntime, and with the original against the goldens.
    fn check(&self, python: &Path, compiled: &Path, method: &str) {
        let expected = &golden("pocket_quant.json")["variants"][self.variant]["ce"]["onnx-casts"];
        let wanted = |method: &str, i: usize| expected[method]["eval"][i].as_f64().expect("a golden");
        let mut worst = [0.0f64; 2];
        for (i, [fp, q]) in self.check_against_onnxruntime(python, compiled, method).into_iter().enumerate() {
            worst[0] = worst[0].max((fp - wanted("fp", i)).abs());
            worst[1] = worst[1].max((q - wanted(method, i)).abs());
        }
        let [fp, q] = worst;
        support::tell(&format!(
            "{} {method}: largest difference of a sample: fp {fp:.1e}, quantized {q:.1e}",
            self.variant
        ));
        assert!(worst.iter().all(|&w| w < 1e-3), "{} {method}: {worst:?}", self.variant);
    }

    /// Cross-entropies of the original and of a compiled model, the second the same as onnxruntime's.
    fn check_against_onnxruntime(&self, python: &Path, compiled: &Path, method: &str) -> Vec<[f64; 2]> {
        let data = root().join("models/pocket-vlm/eval.npz");
        let args = ["verify", text(&self.model), text(compiled), "--data", text(&data), "--json", "--quiet"];
        let report: Value = serde_json::from_str(&mbqc(&args)).expect("one JSON document");
        let ort = self.onnxruntime(python, compiled);
        let samples = report["samples"].as_array().expect("samples");
        assert_eq!((samples.len(), ort.len()), (96, 96));
        let of = |sample: &Value, key: &str| sample[key].as_f64().expect("a mean");
        let both: Vec<[f64; 2]> = samples.iter().map(|s| [of(s, "ce_fp"), of(s, "ce_q")]).collect();
        let worst = both.iter().zip(&ort).map(|([_, q], ort)| (q - ort).abs()).fold(0.0, f64::max);
        support::tell(&format!("{} {method}: largest difference of a sample to onnxruntime {worst:.1e}", self.variant));
        assert!(worst < 1e-3, "{} {method}: {worst}", self.variant);
        both
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
        args.extend([
            "--search-samples",
            "48",
            "--half-casts",
            "keep",
            "--accuracy",
            "exact",
            "--plan-out",
            text(&plan),
        ]);
        args.extend(switches);
        mbqc(&args);
        let goldens = &golden("pocket_quant.json")["variants"][self.variant];
        let mut same = 0;
        for group in read_json(&plan)["groups"].as_array().expect("groups") {
            let Some(key) = key_of(group) else { continue };
            let exponent = group["exponent"].as_f64().expect("an exponent");
            if Some(exponent) != goldens["exponents"][method][&key].as_f64().map(|e| f64::from(e as f32))
                || exponent == 0.0
            {
                continue;
            }
            let scale: Vec<f64> =
                group["scale"].as_array().expect("a scale").iter().filter_map(Value::as_f64).collect();
            let expected = &goldens["scales"]["onnx-casts"][method][&key];
            assert_eq!(expected["n"].as_u64(), Some(scale.len() as u64));
            let sums = [("sum", scale.iter().sum::<f64>()), ("sumsq", scale.iter().map(|s| s * s).sum())];
            for (name, found) in sums {
                let wanted = expected[name].as_f64().expect("a golden");
                assert!(
                    (found / wanted - 1.0).abs() < 1e-4,
                    "{} {method} {key}: {name} {found}, {wanted}",
                    self.variant
                );
            }
            same += 1;
        }
        support::tell(&format!(
            "{} {method}: {same} of 12 scales as expected, not counting those of all ones",
            self.variant
        ));
        assert!(same >= 9, "{} {method}: {same} scales are the expected ones", self.variant);
        self.check_against_onnxruntime(python, &compiled, method);
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
