//! Samples for the passes: from data on disk to the inputs of a graph, for a single graph and for a folder.

mod census;
mod frontend;
mod image;
mod table;

use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use mbqc_passes::array::Array;
use mbqc_passes::facts::modality::Class;
use mbqc_passes::ir::{Graph, Model, ValueId};
use mbqc_passes::method::{CalibrationSample, MaskShift, Samples};
use mbqc_passes::run::{Feeds, Runner};

use self::image::image_places;
use crate::Error;
use crate::data::{Extras, InputSpec, Processor, Sample, Set, bind};

pub use self::census::Census;
pub use self::frontend::Frontend;
pub use self::image::{ImageToken, image_token};

/// Where samples come from and what they are made for.
#[derive(Clone, Copy)]
pub struct Data<'a> {
    /// The data set.
    pub path: &'a Path,
    /// The folder with the configuration of the model.
    pub folder: &'a Path,
    /// The image token, where it is known.
    pub image: Option<ImageToken>,
    /// Which rows are answer rows.
    pub shift: MaskShift,
    /// At most this many samples.
    pub limit: Option<usize>,
    /// Whether vision rows must be told from text rows.
    pub classes: bool,
    /// The output whose cross-entropy counts.
    pub logits: Option<ValueId>,
}

/// Samples of a data set, as the graph that is compiled takes them.
pub struct DataSamples<'a> {
    set: Set,
    runner: &'a dyn Runner,
    model: &'a Model,
    inputs: Vec<InputSpec>,
    processor: Option<Processor>,
    image: Option<ImageToken>,
    frontend: Frontend,
    shift: MaskShift,
    limit: usize,
    classes: bool,
    logits: Option<ValueId>,
}

impl<'a> DataSamples<'a> {
    /// Samples for the graph of `model`.
    pub fn open(
        data: &Data<'_>,
        runner: &'a dyn Runner,
        model: &'a Model,
        frontend: Frontend,
    ) -> Result<DataSamples<'a>, Error> {
        let set = Set::open(data.path)?;
        let limit = data.limit.unwrap_or(usize::MAX).min(set.len());
        Ok(DataSamples {
            runner,
            model,
            inputs: InputSpec::of_graph(&model.graph)?,
            processor: Processor::of_folder(data.folder)?,
            image: data.image,
            frontend,
            shift: data.shift,
            limit,
            classes: data.classes,
            logits: data.logits,
            set,
        })
    }

    /// The data set.
    pub fn path(&self) -> PathBuf {
        self.set.path().to_owned()
    }

    /// What messages call a sample.
    pub fn name(&self, index: usize) -> String {
        self.set.name(index)
    }

    /// The node that puts image features in front of the text, where one does: rows are then not those of the tokens.
    pub fn front_concat(&self) -> Result<Option<String>, Error> {
        table::front_concat(&self.model.graph).map_err(|source| Error::Law { pass: "reading", source })
    }

    /// Inputs, classes and labels of a sample, and what kind it is.
    pub fn load(&self, index: usize) -> Result<(CalibrationSample, Option<String>), Error> {
        let sample = self.set.sample(index)?;
        let named = self.bound(&sample)?;
        let places = image_places(&sample, self.image, self.classes)?;
        let classes = sample.classes(&places, self.shift)?;
        let labels = sample.labels.clone().unwrap_or_else(|| vec![-100; sample.tokens()]);
        let feeds = by_value(&self.model.graph, &named);
        Ok((CalibrationSample { name: sample.name, feeds, classes, labels }, sample.kind))
    }

    /// The graph's inputs of a sample.
    fn bound(&self, sample: &Sample) -> Result<IndexMap<String, Array>, Error> {
        let processor = self.processor.as_ref();
        let wanted = self.inputs.iter().any(|input| input.name == "inputs_embeds");
        let computed = self.frontend.compute(self.runner, sample, processor, self.image, wanted)?;
        Ok(bind(sample, &self.inputs, Extras { processor, computed: Some(&computed) })?)
    }
}

fn has_pictures(sample: &Sample) -> bool {
    sample.arrays.contains_key("images") || sample.arrays.contains_key("pixel_values")
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
