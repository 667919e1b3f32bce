//! The graphs of a folder that run before its decoder.

use std::sync::{Arc, OnceLock};

use indexmap::IndexMap;
use mbqc_passes::array::{Array, ArrayError, Buf};
use mbqc_passes::ir::Model;
use mbqc_passes::run::{RunError, Runner, Segment};

use super::image::{ImageToken, image_places};
use super::table::{Table, tables};
use super::{by_value, has_pictures};
use crate::Error;
use crate::data::{Extras, InputSpec, Processor, Sample, bind};

/// What comes before the graph that is compiled: nothing, or the other graphs of a folder.
pub struct Frontend {
    vision: Option<Part>,
    embed: Option<Part>,
    /// The folder, when there is one.
    folder: bool,
}

/// A graph, prepared when it is first needed: a data set may go around it.
struct Part {
    role: &'static str,
    model: Model,
    ready: OnceLock<(Segment, Vec<InputSpec>)>,
    output: String,
}

impl Part {
    fn new(role: &'static str, model: Model) -> Part {
        let output = model.graph.outputs().first().map_or_else(String::new, |v| model.graph.name(*v).to_owned());
        Part { role, model, ready: OnceLock::new(), output }
    }

    fn prepared(&self, runner: &dyn Runner) -> Result<&(Segment, Vec<InputSpec>), Error> {
        if let Some(ready) = self.ready.get() {
            return Ok(ready);
        }
        let graph = &self.model.graph;
        let outputs = graph.outputs();
        let inputs = InputSpec::of_graph(graph)?;
        let segment = runner.prepare(&self.model, graph.inputs(), &outputs[..1.min(outputs.len())]);
        let segment = segment.map_err(|error| self.cannot_run(&error))?;
        Ok(self.ready.get_or_init(|| (segment, inputs)))
    }

    fn run(&self, runner: &dyn Runner, sample: &Sample, extras: Extras<'_>) -> Result<Array, Error> {
        let (segment, inputs) = self.prepared(runner)?;
        let named = bind(sample, inputs, extras)?;
        let feeds = by_value(&self.model.graph, &named);
        let arrays = runner.run(&self.model, segment, feeds, None);
        let mut arrays = arrays.map_err(|error| sample.error(self.cannot_run(&error).to_string()))?;
        Ok(arrays.remove(0))
    }

    fn cannot_run(&self, error: &RunError) -> Error {
        let way_out = match error {
            RunError::UnknownOp { .. } => "; save `inputs_embeds` in the data to go around this graph",
            _ => "",
        };
        Error::Part { part: self.role, reason: format!("{error}{way_out}") }
    }
}

impl Frontend {
    /// Of a single graph: nothing.
    pub fn none() -> Frontend {
        Frontend { vision: None, embed: None, folder: false }
    }

    /// Of a folder: its vision encoder and its token embedding.
    pub fn of(vision: Option<Model>, embed: Option<Model>) -> Frontend {
        Frontend {
            vision: vision.map(|model| Part::new("the vision encoder", model)),
            embed: embed.map(|model| Part::new("the token embedding", model)),
            folder: true,
        }
    }

    /// Whether one of its graphs has an input of this name.
    pub(super) fn reads(&self, name: &str) -> bool {
        let graphs = self.vision.iter().chain(&self.embed).map(|part| &part.model.graph);
        graphs.flat_map(|graph| graph.inputs().iter().map(|input| graph.name(*input))).any(|input| input == name)
    }

    /// Tables that token ids are looked up in.
    pub(super) fn tables(&self) -> Vec<Table> {
        self.embed.as_ref().map_or_else(Vec::new, |part| tables(&part.model.graph))
    }

    /// `inputs_embeds` of a sample: token embeddings with the image features put in at the image tokens, in order. A
    /// sample that brings them itself is taken at its word. `wanted` tells whether the decoder reads them.
    pub(super) fn compute(
        &self,
        runner: &dyn Runner,
        sample: &Sample,
        processor: Option<&Processor>,
        image: Option<ImageToken>,
        wanted: bool,
    ) -> Result<IndexMap<String, Array>, Error> {
        let mut computed = IndexMap::new();
        if sample.arrays.contains_key("inputs_embeds") {
            return Ok(computed);
        }
        let Some(embed) = &self.embed else {
            if self.folder && wanted {
                let reason = "the decoder reads `inputs_embeds`, but the folder has no embed_tokens.onnx to compute them \
                              and the sample has no such array; add the graph, or save `inputs_embeds` in the data";
                return Err(sample.error(reason.to_owned()).into());
            }
            return Ok(computed);
        };
        let extras = Extras { processor, computed: None };
        let mut merged = embed.run(runner, sample, extras)?;
        if let Some(vision) = self.vision.as_ref().filter(|_| has_pictures(sample)) {
            let features = vision.run(runner, sample, extras)?;
            let places = image_places(sample, image, true)?;
            merged = merge(&merged, &features, &places, sample, &vision.output)?;
        }
        computed.insert(embed.output.clone(), merged.clone());
        computed.insert("inputs_embeds".to_owned(), merged);
        Ok(computed)
    }
}

/// Token embeddings `[1, T, C]` with the rows at `places` replaced by the rows of `features` (`[.., C]`).
fn merge(
    embeds: &Array,
    features: &Array,
    places: &[bool],
    sample: &Sample,
    output: &str,
) -> Result<Array, crate::data::Error> {
    let width = embeds.shape.last().copied().unwrap_or(0);
    let rows = places.iter().filter(|&&p| p).count();
    if features.shape.last() != Some(&width) || features.len() != rows * width {
        return Err(sample.error(format!(
            "the vision encoder's `{output}` has shape {:?}, but the sample has {rows} image tokens of width {width}; \
             check the image token id (--image-token-id) and the pictures",
            features.shape
        )));
    }
    let internal = |e: ArrayError| sample.error(e.to_string());
    let mut data = embeds.as_f32().map_err(internal)?.to_vec();
    let source = features.as_f32().map_err(internal)?;
    let targets = places.iter().enumerate().filter(|(_, p)| **p).map(|(t, _)| t);
    for (target, row) in targets.zip(source.chunks(width.max(1))) {
        data[target * width..][..width].copy_from_slice(row);
    }
    Ok(Array { dtype: embeds.dtype, shape: embeds.shape.clone(), buf: Buf::F32(Arc::new(data)) })
}
