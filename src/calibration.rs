//! Samples for the passes: from data on disk to the inputs of a graph, for a single graph and for a folder.

use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use mbqc_passes::array::{Array, Buf};
use mbqc_passes::facts::modality::{Class, find_merge};
use mbqc_passes::ir::{Graph, Model, ValueId};
use mbqc_passes::method::{CalibrationSample, MaskShift, Samples};
use mbqc_passes::run::{Feeds, Runner, Segment};

use crate::Error;
use crate::data::{Extras, InputSpec, Processor, Sample, Set, bind};

/// How image placeholders are recognised in a sample that brings no vision mask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageToken {
    /// The token id.
    pub id: i64,
    /// Where it was read, for messages.
    pub from: &'static str,
}

/// What comes before the graph that is compiled: nothing, or the other graphs of a folder.
pub struct Frontend {
    vision: Option<Part>,
    embed: Option<Part>,
}

struct Part {
    model: Model,
    segment: Segment,
    inputs: Vec<InputSpec>,
    output: String,
}

impl Part {
    fn new(runner: &dyn Runner, model: Model) -> Result<Part, Error> {
        let graph = &model.graph;
        let outputs = graph.outputs().to_vec();
        let output = outputs.first().map_or_else(String::new, |v| graph.name(*v).to_owned());
        let segment = runner.prepare(&model, graph.inputs(), &outputs[..1.min(outputs.len())])?;
        let inputs = InputSpec::of_graph(graph)?;
        Ok(Part { model, segment, inputs, output })
    }

    fn run(&self, runner: &dyn Runner, sample: &Sample, extras: Extras<'_>) -> Result<Array, Error> {
        let named = bind(sample, &self.inputs, extras)?;
        let feeds = by_value(&self.model.graph, &named);
        let mut arrays = runner.run(&self.model, &self.segment, feeds, None)?;
        Ok(arrays.remove(0))
    }
}

impl Frontend {
    /// Of a single graph: nothing.
    pub fn none() -> Frontend {
        Frontend { vision: None, embed: None }
    }

    /// Of a folder: its vision encoder and its token embedding.
    pub fn of(runner: &dyn Runner, vision: Option<Model>, embed: Option<Model>) -> Result<Frontend, Error> {
        let part = |model: Option<Model>| model.map(|m| Part::new(runner, m)).transpose();
        Ok(Frontend { vision: part(vision)?, embed: part(embed)? })
    }

    /// `inputs_embeds` of a sample: token embeddings with the image features put in at the image tokens, in order.
    fn compute(
        &self,
        runner: &dyn Runner,
        sample: &Sample,
        processor: Option<&Processor>,
        image: Option<ImageToken>,
    ) -> Result<IndexMap<String, Array>, Error> {
        let mut computed = IndexMap::new();
        let Some(embed) = &self.embed else { return Ok(computed) };
        let extras = Extras { processor, computed: None };
        let mut merged = embed.run(runner, sample, extras)?;
        let has_images = sample.arrays.contains_key("images") || sample.arrays.contains_key("pixel_values");
        if let (Some(vision), true) = (&self.vision, has_images) {
            let features = vision.run(runner, sample, extras)?;
            let places = image_places(sample, image)?;
            merged = merge(&merged, &features, &places, sample, &vision.output)?;
        }
        computed.insert(embed.output.clone(), merged.clone());
        computed.insert("inputs_embeds".to_owned(), merged);
        Ok(computed)
    }
}

/// Token embeddings `[1, T, C]` with the rows at `places` replaced by the rows of `features` (`[.., C]`).
fn merge(embeds: &Array, features: &Array, places: &[bool], sample: &Sample, output: &str) -> Result<Array, Error> {
    let width = embeds.shape.last().copied().unwrap_or(0);
    let rows = places.iter().filter(|&&p| p).count();
    if features.shape.last() != Some(&width) || features.len() != rows * width {
        return Err(Error::Decide(mbqc_passes::method::driver::Error::Data(format!(
            "sample {}: the vision encoder's `{output}` has shape {:?}, but the sample has {rows} image tokens of width \
             {width}; check the image token id (--image-token-id) and the pictures",
            sample.name, features.shape
        ))));
    }
    let internal =
        |e: mbqc_passes::array::ArrayError| Error::Decide(mbqc_passes::method::driver::Error::Internal(e.to_string()));
    let mut data = embeds.as_f32().map_err(internal)?.to_vec();
    let source = features.as_f32().map_err(internal)?;
    let targets = places.iter().enumerate().filter(|(_, p)| **p).map(|(t, _)| t);
    for (target, row) in targets.zip(source.chunks(width)) {
        data[target * width..][..width].copy_from_slice(row);
    }
    Ok(Array { dtype: embeds.dtype, shape: embeds.shape.clone(), buf: Buf::F32(std::sync::Arc::new(data)) })
}

/// Which tokens of a sample are image placeholders.
fn image_places(sample: &Sample, image: Option<ImageToken>) -> Result<Vec<bool>, Error> {
    if let Some(vision) = &sample.vision {
        return Ok(vision.clone());
    }
    let ids = sample.arrays.get("input_ids").map(Array::to_i64s);
    match (ids, image) {
        (Some(Ok(ids)), Some(token)) => Ok(ids.iter().map(|&id| id == token.id).collect()),
        (Some(_), None) if sample.arrays.contains_key("images") || sample.arrays.contains_key("pixel_values") => {
            Err(Error::Decide(mbqc_passes::method::driver::Error::Data(format!(
                "sample {}: it has pictures, but neither a `vision_mask` nor a known image token id; pass \
                 --image-token-id",
                sample.name
            ))))
        }
        _ => Ok(vec![false; sample.tokens()]),
    }
}

/// Samples of a data set, as the graph that is compiled takes them.
pub struct DataSamples<'a> {
    set: Set,
    runner: &'a dyn Runner,
    graph: &'a Graph,
    inputs: Vec<InputSpec>,
    processor: Option<Processor>,
    image: Option<ImageToken>,
    frontend: Frontend,
    shift: MaskShift,
    limit: usize,
}

impl<'a> DataSamples<'a> {
    /// Samples for `model`'s graph, whose configuration files lie in `folder`.
    #[expect(clippy::too_many_arguments, reason = "where samples come from and what they are made for")]
    pub fn open(
        path: &Path,
        folder: &Path,
        runner: &'a dyn Runner,
        model: &'a Model,
        frontend: Frontend,
        image: Option<ImageToken>,
        shift: MaskShift,
        limit: Option<usize>,
    ) -> Result<DataSamples<'a>, Error> {
        let set = Set::open(path)?;
        let limit = limit.unwrap_or(usize::MAX).min(set.len());
        Ok(DataSamples {
            runner,
            graph: &model.graph,
            inputs: InputSpec::of_graph(&model.graph)?,
            processor: Processor::of_folder(folder)?,
            image,
            frontend,
            shift,
            limit,
            set,
        })
    }

    /// The data set.
    pub fn path(&self) -> PathBuf {
        self.set.path().to_owned()
    }

    /// Inputs, classes and labels of a sample, and what kind it is.
    pub fn load(&self, index: usize) -> Result<(CalibrationSample, Option<String>), Error> {
        let sample = self.set.sample(index)?;
        let computed = self.frontend.compute(self.runner, &sample, self.processor.as_ref(), self.image)?;
        let extras = Extras { processor: self.processor.as_ref(), computed: Some(&computed) };
        let named = bind(&sample, &self.inputs, extras)?;
        let places = image_places(&sample, self.image)?;
        let classes = sample.classes(&places, self.shift)?;
        let labels = sample.labels.clone().unwrap_or_else(|| vec![-100; sample.tokens()]);
        let feeds = by_value(self.graph, &named);
        Ok((CalibrationSample { name: sample.name, feeds, classes, labels }, sample.kind))
    }

    /// Counts over all samples that decide whether the data can be used: samples without vision rows, without answers.
    pub fn census(&self) -> Result<Census, Error> {
        let mut census = Census { samples: self.limit, ..Census::default() };
        for index in 0..self.limit {
            let sample = self.set.sample(index)?;
            let places = image_places(&sample, self.image)?;
            census.without_vision += usize::from(!places.contains(&true));
            census.without_answer += usize::from(sample.supervised() == 0);
            let classes = sample.classes(&places, self.shift)?;
            for class in classes {
                census.rows[class as usize] += 1;
            }
        }
        Ok(census)
    }
}

/// What a data set holds.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub struct Census {
    /// Samples.
    pub samples: usize,
    /// Samples without image tokens.
    pub without_vision: usize,
    /// Samples without supervised tokens.
    pub without_answer: usize,
    /// Rows by class: vision, answer, prompt, padding.
    pub rows: [usize; 4],
}

impl Samples for DataSamples<'_> {
    fn len(&self) -> usize {
        self.limit
    }

    fn sample(&self, index: usize) -> Result<CalibrationSample, String> {
        self.load(index).map(|(sample, _)| sample).map_err(|e| e.to_string())
    }
}

fn by_value(graph: &Graph, named: &IndexMap<String, Array>) -> Feeds {
    let find = |(name, array): (&String, &Array)| Some((graph.find(name)?, array.clone()));
    named.iter().filter_map(find).collect()
}

/// The image token id: as asked, else from the graph's merge, else from the folder's `config.json`, else by the family's
/// placeholder text from its `tokenizer.json`.
pub fn image_token(asked: Option<i64>, graph: &Graph, folder: &Path) -> Result<Option<ImageToken>, Error> {
    if let Some(id) = asked {
        return Ok(Some(ImageToken { id, from: "--image-token-id" }));
    }
    if let Some(merge) = find_merge(graph).map_err(|source| Error::Law { pass: "reading", source })? {
        return Ok(Some(ImageToken { id: merge.image_token, from: "the graph's merge node" }));
    }
    let Some(config) = optional_json(folder.join("config.json"))? else { return Ok(None) };
    let family = mbqc_models::find(&config);
    if let Some(id) = (family.image_token)(&config) {
        return Ok(Some(ImageToken { id, from: "config.json" }));
    }
    let Some(text) = family.image_text else { return Ok(None) };
    let tokenizer = optional_json(folder.join("tokenizer.json"))?;
    let id = tokenizer.and_then(|tokenizer| mbqc_models::config::added_token(&tokenizer, text));
    Ok(id.map(|id| ImageToken { id, from: "tokenizer.json" }))
}

/// A JSON file that may be absent.
fn optional_json(file: PathBuf) -> Result<Option<serde_json::Value>, Error> {
    let Ok(text) = std::fs::read_to_string(&file) else { return Ok(None) };
    let parsed = serde_json::from_str(&text);
    parsed.map(Some).map_err(|e| Error::Content { file, reason: format!("not valid JSON: {e}") })
}

/// The output whose cross-entropy counts: as asked, else `logits`, else the first float output.
pub fn logits_output(asked: Option<&str>, graph: &Graph, file: &Path) -> Result<ValueId, Error> {
    use mbqc_passes::ir::Type;
    let names = || graph.outputs().iter().map(|v| graph.name(*v)).collect::<Vec<_>>().join(", ");
    let missing = |reason: String| Error::Content { file: file.to_owned(), reason };
    let output = |name: &str| graph.outputs().iter().copied().find(|v| graph.name(*v) == name);
    let float = |v: &ValueId| match &graph.value(*v).ty {
        Some(Type::Tensor(dtype, _)) => dtype.is_float(),
        _ => true,
    };
    if let Some(name) = asked {
        let found = output(name).ok_or_else(|| missing(format!("no output `{name}`; the outputs are {}", names())))?;
        let refuse = || {
            missing(format!("output `{name}` holds no floats, so it has no cross-entropy; the outputs are {}", names()))
        };
        return Some(found).filter(float).ok_or_else(refuse);
    }
    output("logits")
        .filter(float)
        .or_else(|| graph.outputs().iter().copied().find(float))
        .ok_or_else(|| missing(format!("no float output among {}; logits are needed to judge by", names())))
}

/// Class of a row for reports.
pub fn class_name(class: Class) -> &'static str {
    match class {
        Class::Vision => "vision",
        Class::Answer => "answer",
        Class::Prompt => "prompt",
        Class::Padding => "padding",
    }
}
