//! Runs an emitted model in tract, and says how far that is from our own engine.
//!
//! ```text
//! cargo run --release --features tract --example run_in_tract -- MODEL INPUTS.npz
//! ```
//!
//! The file holds an array per input of the graph, under its name. For every output a line is printed: its name, its shape,
//! and the largest difference of an element to what our evaluator computes.

#![expect(clippy::print_stdout, reason = "the lines are what the program is for")]

use std::path::PathBuf;

use clap::Parser;
use mbqc::data::npz;
use mbqc::engine::tract;
use mbqc::onnx::{ReadOptions, read};
use mbqc_kernels::Pool;
use mbqc_passes::array::Compute;
use mbqc_passes::run::{Feeds, Runner, Walk};
use tract_onnx::prelude::*;

/// Runs a model in tract and compares with our own engine.
#[derive(Parser)]
struct Arguments {
    /// An ONNX model, quantized or not.
    model: PathBuf,
    /// Its inputs, an array for each by name.
    inputs: PathBuf,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let Arguments { model: path, inputs } = Arguments::parse();
    let arrays = npz::read_arrays(&inputs)?;

    // In tract. Inputs get the shapes of their arrays: with symbols in their place many graphs are refused.
    let mut model = tract::onnx().model_for_path(&path)?;
    let mut tensors = tvec![];
    for (slot, outlet) in model.input_outlets()?.to_vec().into_iter().enumerate() {
        let name = &model.node(outlet.node).name;
        let tensor = tract::tensor(arrays.get(name).ok_or_else(|| format!("no array for input `{name}`"))?)?;
        model.set_input_fact(slot, tensor.datum_type().fact(tensor.shape()).into())?;
        tensors.push(tensor.into());
    }
    let outputs = model.into_optimized()?.into_runnable()?.run(tensors)?;

    // In our own engine.
    let file = read(&path, &ReadOptions::default())?;
    let graph = &file.model.graph;
    let walk = Walk::new(Pool::new(0), Compute::F32);
    let given = graph.inputs().iter().filter_map(|&value| Some((value, arrays.get(graph.name(value))?.clone())));
    let feeds: Feeds = given.collect();
    let fed: Vec<_> = graph.inputs().iter().copied().filter(|value| feeds.contains_key(value)).collect();
    let segment = walk.prepare(&file.model, &fed, graph.outputs())?;
    let expected = walk.run(&file.model, &segment, feeds, None)?;

    for ((&value, expected), output) in graph.outputs().iter().zip(&expected).zip(&outputs) {
        let found = tract::array(output)?;
        let apart = found.to_f64s().into_iter().zip(expected.to_f64s()).map(|(a, b)| (a - b).abs());
        println!("{} {:?}: differs by at most {:.1e}", graph.name(value), found.shape, apart.fold(0.0, f64::max));
    }
    Ok(())
}
