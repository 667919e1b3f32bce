//! Quantizes a vision transformer without data, through the library, and says what that changes.
//!
//! ```text
//! cargo run --release --example quantize_a_vit -- [VIT.onnx] [-o OUT.onnx] [--format w4g64]
//! ```
//!
//! Without a model it takes the vision encoder of the sample model. The picture that both models are shown is made up: what is
//! printed tells that the files compute nearly the same, not how good the format is for real pictures (`mbqc verify` does).

#![expect(clippy::print_stdout, reason = "the lines are what the program is for")]

use std::path::PathBuf;
use std::sync::Arc;

use clap::Parser;
use mbqc::onnx::{ReadOptions, WriteOptions, read, write};
use mbqc_kernels::{Pool, Spec};
use mbqc_passes::array::{Array, Compute};
use mbqc_passes::facts::sites::survey;
use mbqc_passes::ir::{Dim, Model, Type};
use mbqc_passes::method::{self, driver};
use mbqc_passes::plan::Skipped;
use mbqc_passes::rewrite::apply::{Accuracy, Options, Target, apply, can_apply};
use mbqc_passes::rewrite::fallback::Fallback;
use mbqc_passes::run::{Feeds, Runner, Walk};

/// Quantizes a vision transformer without data.
#[derive(Parser)]
struct Arguments {
    /// The model; all its inputs are float.
    #[arg(default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/models/pocket-vlm/vision_encoder.onnx"))]
    model: PathBuf,
    /// Where the result goes.
    #[arg(short, long, default_value = "vit.w4.onnx")]
    output: PathBuf,
    /// Weight format.
    #[arg(long, default_value = "w4g64")]
    format: Spec,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let Arguments { model: path, output, format } = Arguments::parse();
    let walk = Walk::new(Pool::new(0), Compute::F32);

    // What is in it: linear layers, and everything else that carries weights.
    let file = read(&path, &ReadOptions::default())?;
    let found = survey(&file.model)?;
    let fits = |site: &&_| can_apply(&file.model, site).is_ok();
    let sites = found.sites.iter().enumerate().filter(|(_, site)| site.k >= format.group(site.k) && fits(site));
    let chosen: Vec<_> = sites.map(|(site, _)| driver::Chosen { site, spec: format }).collect();
    println!(
        "{} of {} linear layers, {} other nodes with weights",
        chosen.len(),
        found.sites.len(),
        found.others.len()
    );

    // A plan: `range` searches the range of every group of weights.
    let request = driver::Request {
        chosen,
        skipped: found.others.iter().map(Skipped::of_other).collect(),
        ..driver::Request::without_data(&file.model, &found, method::find("range").ok_or("no such method")?, &walk)?
    };
    let plan = driver::decide(&request)?.plan;

    // The plan as a rewrite. Weights are packed while the file is written.
    let options = Options { target: Target::Mbqc, fallback: Fallback::Ort, accuracy: Accuracy::Auto };
    let result = apply(&file.model, &found, &plan, &options, &Arc::new(Pool::new(0)))?;
    let written = write(Some(&file.source), &result, &output, &WriteOptions::default())?;
    println!("{}: {} bytes", output.display(), written.model_bytes + written.data_bytes);

    // Both models on one made-up picture.
    let before = run(&walk, &file.model)?;
    let after = run(&walk, &read(&output, &ReadOptions::default())?.model)?;
    for ((name, before), (_, after)) in before.iter().zip(&after) {
        let (a, b) = (before.to_f64s(), after.to_f64s());
        let apart: f64 = a.iter().zip(&b).map(|(a, b)| (a - b).powi(2)).sum();
        let size: f64 = a.iter().map(|a| a * a).sum();
        println!("{name} {:?}: relative error {:.4}", before.shape, (apart / size).sqrt());
    }
    Ok(())
}

/// The outputs of a model for waves on all its inputs, with 1 for every size that is not fixed.
fn run(walk: &Walk, model: &Model) -> Result<Vec<(String, Array)>, Box<dyn std::error::Error>> {
    let graph = &model.graph;
    let mut feeds = Feeds::new();
    for &input in graph.inputs() {
        let Some(Type::Tensor(dtype, Some(dims))) = &graph.value(input).ty else {
            return Err(format!("input `{}` has no declared shape", graph.name(input)).into());
        };
        let dims: Vec<usize> = dims.iter().map(|dim| if let Dim::Size(size) = dim { *size } else { 1 }).collect();
        let wave = (0..dims.iter().product::<usize>()).map(|i| (i as f32 * 0.1).sin());
        feeds.insert(input, Array::f32(dims.clone(), wave.collect()).with_dtype(*dtype));
    }
    let segment = walk.prepare(model, graph.inputs(), graph.outputs())?;
    let arrays = walk.run(model, &segment, feeds, None)?;
    Ok(graph.outputs().iter().map(|&value| graph.name(value).to_owned()).zip(arrays).collect())
}
