//! `mbqc run`: executes a model on arrays from a file.

use std::path::Path;
use std::time::Instant;

use mbqc_passes::array::{Array, Compute};
use mbqc_passes::ir::DType;
use mbqc_passes::run::{Feeds, Runner, Walk};
use serde_json::json;

use crate::Error;
use crate::cli::Common;
use crate::data::bind::fit;
use crate::data::npy::Npy;
use crate::data::{InputSpec, npz};
use crate::pipeline;
use crate::places::{Places, probe_file};
use crate::report::print;
use crate::report::progress::Progress;
use crate::stage::Staging;

/// Executes `model` on the arrays of `inputs` and writes all outputs to `outputs`. Arrays that are no inputs of the graph
/// are not read; whole numbers of other widths and floats of other precisions become what the graph declares. Computes
/// `repeat` times more and tells the median time.
pub fn run(model: &Path, inputs: &Path, outputs: &Path, repeat: usize, common: &Common) -> Result<(), Error> {
    let mut places = Places::new();
    places.model("the model", model)?;
    places.input("--inputs", inputs)?;
    places.output("--outputs", outputs)?;
    probe_file("--outputs", outputs)?;
    let file = pipeline::read_at(model, &mut places, common)?;
    let graph = &file.model.graph;
    let progress = Progress::new(common.quiet);
    let runner = Walk::new(pipeline::pool(common), Compute::F32);
    let mut stored = npz::read(inputs)?;
    let content = |reason: String| Error::Content { file: inputs.to_owned(), reason };
    let held: Vec<String> = stored.keys().cloned().collect();
    let mut feeds = Feeds::new();
    for &value in graph.inputs() {
        let (name, spec) = (graph.name(value), InputSpec::of(graph, value));
        let declared = spec.as_ref().map_or_else(|| "of any type".to_owned(), InputSpec::describe);
        match stored.shift_remove(name) {
            Some(npy) => {
                let array = npy.to_array().map_err(|e| content(format!("array `{name}`: {e}")))?;
                let fitted = spec.map_or(Ok(array.clone()), |spec| fit(&array, &spec));
                let fitted = fitted.map_err(|e| content(format!("graph input `{name}` is {declared}: {e}")))?;
                feeds.insert(value, fitted);
            }
            None if graph.constant(value).is_some() => {}
            None => {
                return Err(content(format!(
                    "no array for graph input `{name}` ({declared}); the file holds {}",
                    if held.is_empty() { "nothing".to_owned() } else { held.join(", ") }
                )));
            }
        }
    }
    if !stored.is_empty() {
        let names: Vec<&str> = stored.keys().map(String::as_str).collect();
        progress.warn(&format!("no inputs of the graph, not read: {}", names.join(", ")));
    }
    let mut fed: Vec<_> = feeds.keys().copied().collect();
    fed.sort();
    let segment = runner.prepare(&file.model, &fed, graph.outputs())?;
    let results = runner.run(&file.model, &segment, feeds.clone(), None)?;
    let mut times = Vec::new();
    for _ in 0..repeat {
        let (feeds, start) = (feeds.clone(), Instant::now());
        runner.run(&file.model, &segment, feeds, None)?;
        times.push(start.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    let median = times.get(times.len() / 2);
    let mut named = Vec::with_capacity(results.len());
    for (&value, array) in graph.outputs().iter().zip(&results) {
        let npy = Npy::from_array(array).map_err(|e| Error::Content {
            file: outputs.to_owned(),
            reason: format!("output `{}`: {e}", graph.name(value)),
        })?;
        named.push((graph.name(value), npy));
    }
    let staging = Staging::beside(outputs)?;
    let staged = staging.path().join("outputs.npz");
    npz::write(&staged, named, npz::Packing::Stored).map_err(|error| error.elsewhere(outputs))?;
    staging.publish(&[(staged, outputs.to_owned())])?;
    let each = graph.outputs().iter().zip(&results);
    if common.json {
        let each: Vec<_> = each
            .map(|(v, a)| json!({ "name": graph.name(*v), "type": a.dtype.to_string(), "shape": a.shape }))
            .collect();
        let mut document = json!({ "outputs": each, "written": outputs });
        if let Some(median) = median {
            document["seconds"] = json!(median);
        }
        return print(&format!("{document:#}"));
    }
    // npz knows no bfloat16.
    let note = |array: &Array| if array.dtype == DType::BF16 { " as float32" } else { "" };
    let each: Vec<String> =
        each.map(|(v, a)| format!("{} {}{:?}{}", graph.name(*v), a.dtype, a.shape, note(a))).collect();
    progress.say(&format!("wrote {}: {}", outputs.display(), each.join(", ")));
    if let Some(median) = median {
        progress.say(&format!("{repeat} times more: {:.3} ms (median)", median * 1e3));
    }
    Ok(())
}
