//! Emitted graphs in tract: single layers of every format, whole models of the corpus, and what is refused.

mod layers;
mod models;
mod refused;
#[path = "../support/mod.rs"]
mod support;

use std::path::Path;

use indexmap::IndexMap;
use mbqc::engine::tract;
use mbqc_kernels::Pool;
use mbqc_passes::array::{Array, Compute};
use mbqc_passes::ir::Model;
use mbqc_passes::run::{Feeds, Runner, Walk};
use tract_onnx::prelude::*;

/// Arrays by name.
type Arrays = IndexMap<String, Array>;

/// Whether tract is told the shapes of the inputs before it looks at the graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shapes {
    /// It has those of the file, with symbols.
    Declared,
    /// It is told those of the arrays.
    Given,
}

/// The outputs of a model in tract, in the order of the graph.
fn in_tract(path: &Path, inputs: &Arrays, shapes: Shapes) -> TractResult<Vec<Array>> {
    let mut model = tract::onnx().model_for_path(path)?;
    let mut tensors = tvec![];
    for (slot, outlet) in model.input_outlets()?.to_vec().into_iter().enumerate() {
        let name = &model.node(outlet.node).name;
        let array = inputs.get(name).ok_or_else(|| std::io::Error::other(format!("no array for input {name}")))?;
        let tensor = tract::tensor(array)?;
        if shapes == Shapes::Given {
            model.set_input_fact(slot, tensor.datum_type().fact(tensor.shape()).into())?;
        }
        tensors.push(tensor.into());
    }
    let outputs = model.into_optimized()?.into_runnable()?.run(tensors)?;
    outputs.iter().map(|tensor| tract::array(tensor)).collect()
}

/// The outputs of a model in our evaluator.
fn in_ours(model: &Model, inputs: &Arrays) -> Result<Vec<Array>, Box<dyn std::error::Error>> {
    let walk = Walk::new(Pool::single(), Compute::F32);
    let graph = &model.graph;
    let given = graph.inputs().iter().filter_map(|&value| Some((value, inputs.get(graph.name(value))?.clone())));
    let feeds: Feeds = given.collect();
    let fed: Vec<_> = graph.inputs().iter().copied().filter(|value| feeds.contains_key(value)).collect();
    let segment = walk.prepare(model, &fed, graph.outputs())?;
    Ok(walk.run(model, &segment, feeds, None)?)
}
