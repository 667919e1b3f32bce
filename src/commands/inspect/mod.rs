//! `mbqc inspect`: what is in a model, without changing it.

mod facts;
mod layers;
mod table;
mod text;

use std::path::{Path, PathBuf};

use mbqc_passes::array::Compute;
use mbqc_passes::facts::modality::trace_rows;
use mbqc_passes::ir::ValueId;
use mbqc_passes::method::MaskShift;
use mbqc_passes::run::Walk;
use serde_json::json;

use crate::Error;
use crate::calibration::{Data, DataSamples, Frontend, ImageToken, class_name, image_token};
use crate::cli::Common;
use crate::data::Class;
use crate::folder::Folder;
use crate::onnx::File;
use crate::pipeline;
use crate::report::print;

use facts::Facts;
use text::{Traced, graph_text};

/// What is asked of `mbqc inspect`.
pub struct InspectRequest {
    /// Model file or folder.
    pub model: PathBuf,
    /// Print the graph as text.
    pub text: bool,
    /// Print the difference of two graphs' texts.
    pub diff: Option<PathBuf>,
    /// Data whose first sample shows which rows are vision.
    pub calib: Option<PathBuf>,
    /// Token id of image placeholders.
    pub image_token_id: Option<i64>,
}

/// A graph of the model and its part in it.
struct Part {
    role: &'static str,
    file: File,
}

/// A model file, or the graphs of a folder, and the place of their configuration files.
struct Opened {
    parts: Vec<Part>,
    folder: PathBuf,
}

/// The role of a graph that is compiled as it is, without a folder around it.
const MODEL: &str = "model";
/// The role of the graph of a folder that is compiled.
const DECODER: &str = "decoder";
const VISION: &str = "vision encoder";
const EMBED: &str = "token embedding";

impl Opened {
    fn open(path: &Path, common: &Common) -> Result<Opened, Error> {
        let part = |role, path: &Path| Ok::<_, Error>(Part { role, file: pipeline::read(path, common)? });
        if !path.is_dir() {
            let folder = path.parent().map_or_else(PathBuf::new, Path::to_owned);
            return Ok(Opened { parts: vec![part(MODEL, path)?], folder });
        }
        let folder = Folder::open(path)?;
        let mut parts = Vec::new();
        for (role, file) in [(VISION, &folder.vision), (EMBED, &folder.embed), (DECODER, &Some(folder.decoder))] {
            if let Some(file) = file {
                parts.push(part(role, file)?);
            }
        }
        Ok(Opened { parts, folder: path.to_owned() })
    }

    /// The graph that is compiled.
    fn main(&self) -> &Part {
        self.parts.iter().find(|p| matches!(p.role, MODEL | DECODER)).unwrap_or(&self.parts[0])
    }

    fn model(&self, role: &str) -> Option<mbqc_passes::ir::Model> {
        self.parts.iter().find(|p| p.role == role).map(|p| p.file.model.clone())
    }
}

/// Prints what is in a model.
pub fn inspect(request: &InspectRequest, common: &Common) -> Result<(), Error> {
    let opened = Opened::open(&request.model, common)?;
    if let Some(other) = &request.diff {
        return diff(&opened, other, request, common);
    }
    let image = image_token(request.image_token_id, &opened.main().file.model.graph, &opened.folder)?;
    let traced = match &request.calib {
        Some(data) => trace(&opened, data, image, common)?,
        None => opened.parts.iter().map(|_| None).collect(),
    };
    if request.text && !common.json {
        let texts: Vec<String> = texts(&opened, &traced)?;
        return print(texts.join("\n").trim_end());
    }
    let facts = opened.parts.iter().map(|p| Facts::of(p.role, &p.file)).collect::<Result<Vec<_>, _>>()?;
    let first = traced.iter().zip(&opened.parts).find(|(_, p)| matches!(p.role, MODEL | DECODER));
    let first = first.and_then(|(t, _)| t.as_ref());
    if common.json {
        let mut document = json!({
            "graphs": facts,
            "image_token": image.map(|t| json!({ "id": t.id, "from": t.from })),
            "first_sample": first.map(|t| &t.census),
        });
        if request.text {
            document["text"] = json!(texts(&opened, &traced)?);
        }
        return print(&format!("{document:#}"));
    }
    let mut report: Vec<String> = facts.iter().map(table::render).collect();
    report.push(match image {
        Some(token) => format!("image token {} (from {})", token.id, token.from),
        None => "image token not found in graph or config.json; where there is one, pass --image-token-id".to_owned(),
    });
    report.push(match first {
        Some(traced) => traced.census.sentence(),
        None => "rows by modality: pass --calib DATA to see them for its first sample".to_owned(),
    });
    print(&report.join("\n"))
}

fn texts(opened: &Opened, traced: &[Option<Traced>]) -> Result<Vec<String>, Error> {
    opened.parts.iter().zip(traced).map(|(part, traced)| graph_text(part.role, &part.file, traced.as_ref())).collect()
}

/// The difference of the texts of two models, graph by graph.
fn diff(opened: &Opened, other: &Path, request: &InspectRequest, common: &Common) -> Result<(), Error> {
    if request.model.is_dir() != other.is_dir() {
        return Err(Error::Usage(format!(
            "--diff compares a file with a file or a folder with a folder; {} is a {}, {} is a {}",
            request.model.display(),
            if request.model.is_dir() { "folder" } else { "file" },
            other.display(),
            if other.is_dir() { "folder" } else { "file" }
        )));
    }
    let theirs = Opened::open(other, common)?;
    let mut differences = Vec::new();
    for role in [MODEL, VISION, EMBED, DECODER] {
        let find = |side: &Opened| side.parts.iter().position(|p| p.role == role);
        let (a, b) = (find(opened).map(|i| &opened.parts[i]), find(&theirs).map(|i| &theirs.parts[i]));
        if a.is_some() || b.is_some() {
            differences.push(text::unified_diff(a.map(|p| &p.file), b.map(|p| &p.file)));
        }
    }
    if common.json {
        print(&format!("{:#}", json!({ "diff": differences.concat() })))
    } else if differences.iter().all(String::is_empty) {
        print("no difference")
    } else {
        print(differences.concat().trim_end())
    }
}

/// Runs the first sample through every graph and follows its rows.
fn trace(
    opened: &Opened,
    data: &Path,
    image: Option<ImageToken>,
    common: &Common,
) -> Result<Vec<Option<Traced>>, Error> {
    let runner = Walk::new(pipeline::pool(common), Compute::F32);
    let mut all = Vec::with_capacity(opened.parts.len());
    for part in &opened.parts {
        let model = &part.file.model;
        let frontend = match part.role {
            DECODER => Frontend::of(opened.model(VISION), opened.model(EMBED)),
            _ => Frontend::none(),
        };
        let data = Data {
            path: data,
            folder: &opened.folder,
            image,
            shift: MaskShift::Shifted,
            limit: Some(1),
            classes: true,
            logits: None,
        };
        let samples = DataSamples::open(&data, &runner, model, frontend)?;
        let (sample, _) = samples.load(0)?;
        let tokens = sample.classes.len();
        let census = text::Census {
            rows: tokens,
            by_class: Class::ALL
                .iter()
                .map(|&class| (class_name(class), sample.classes.iter().filter(|&&c| c == class).count()))
                .collect(),
            data: data.path.display().to_string(),
        };
        let wanted: Vec<ValueId> = model.graph.outputs().to_vec();
        let rows = trace_rows(&runner, model, sample.feeds, &wanted, tokens)?.rows;
        all.push(Some(Traced { rows, census }));
    }
    Ok(all)
}
