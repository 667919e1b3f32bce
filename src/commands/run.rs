//! `mbqc run`: executes a model on arrays from a file.

use std::path::Path;

use mbqc_passes::array::Compute;
use mbqc_passes::run::{Feeds, Runner, Walk};

use crate::Error;
use crate::cli::Common;
use crate::data::npy::Npy;
use crate::data::npz;
use crate::pipeline;

/// Executes `model` on the arrays of `inputs` and writes all outputs to `outputs`.
pub fn run(model: &Path, inputs: &Path, outputs: &Path, common: &Common) -> Result<(), Error> {
    let file = pipeline::read(model, common)?;
    let graph = &file.model.graph;
    let runner = Walk::new(pipeline::pool(common), Compute::F32);
    let arrays = npz::read_arrays(inputs)?;
    let content = |reason: String| Error::Content { file: inputs.to_owned(), reason };
    let mut feeds = Feeds::new();
    for &value in graph.inputs() {
        let name = graph.name(value);
        match arrays.get(name) {
            Some(array) => {
                check_type(graph, value, array).map_err(content)?;
                feeds.insert(value, array.clone());
            }
            None if graph.constant(value).is_some() => {}
            None => {
                let held: Vec<&str> = arrays.keys().map(String::as_str).collect();
                return Err(content(format!(
                    "no array for graph input `{name}`; the file holds {}",
                    if held.is_empty() { "nothing".to_owned() } else { held.join(", ") }
                )));
            }
        }
    }
    let mut fed: Vec<_> = feeds.keys().copied().collect();
    fed.sort();
    let segment = runner.prepare(&file.model, &fed, graph.outputs())?;
    let results = runner.run(&file.model, &segment, feeds, None)?;
    let mut named = Vec::with_capacity(results.len());
    for (&value, array) in graph.outputs().iter().zip(&results) {
        let npy = Npy::from_array(array).map_err(|e| Error::Content {
            file: outputs.to_owned(),
            reason: format!("output `{}`: {e}", graph.name(value)),
        })?;
        named.push((graph.name(value), npy));
    }
    npz::write(outputs, named, npz::Packing::Stored)?;
    Ok(())
}

fn check_type(
    graph: &mbqc_passes::ir::Graph,
    value: mbqc_passes::ir::ValueId,
    array: &mbqc_passes::array::Array,
) -> Result<(), String> {
    use mbqc_passes::ir::{Dim, Type};
    let Some(Type::Tensor(dtype, shape)) = &graph.value(value).ty else { return Ok(()) };
    let name = graph.name(value);
    let same = *dtype == array.dtype || (dtype.is_float() && array.dtype.is_float());
    if !same {
        return Err(format!("graph input `{name}` is of type {dtype}, the array is {}", array.dtype));
    }
    if let Some(dims) = shape {
        let fits = dims.len() == array.rank()
            && dims.iter().zip(&array.shape).all(|(d, s)| !matches!(d, Dim::Size(size) if size != s));
        if !fits {
            let declared = crate::data::InputSpec { name: name.to_owned(), dtype: *dtype, dims: Some(dims.clone()) };
            return Err(format!(
                "graph input `{name}` is {}, the array has shape {:?}",
                declared.describe(),
                array.shape
            ));
        }
    }
    Ok(())
}
