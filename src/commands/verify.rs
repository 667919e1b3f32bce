//! `mbqc verify`: two models side by side on data.

use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use mbqc_passes::array::{Array, Compute};
use mbqc_passes::facts::modality::{Class, trace_rows};
use mbqc_passes::facts::segments::{Cuts, cut};
use mbqc_passes::facts::sites::survey;
use mbqc_passes::ir::{Graph, Model, Type, ValueId, walk};
use mbqc_passes::method::{CalibrationSample, MaskShift, class_of};
use mbqc_passes::ops::Rows;
use mbqc_passes::run::{Runner, Segment, Walk};
use serde_json::json;

use crate::Error;
use crate::calibration::{Data, DataSamples, Frontend, class_name, image_token, logits_output};
use crate::cli::Common;
use crate::data;
use crate::folder::Folder;
use crate::pipeline;
use crate::report::blocks::BlockError;
use crate::report::metrics::{Estimate, Metrics, SampleMetrics, Summary};
use crate::report::print;
use crate::report::progress::Progress;

/// What is compared.
pub struct VerifyRequest {
    /// The original.
    pub fp: PathBuf,
    /// The quantized model.
    pub quantized: PathBuf,
    /// Evaluation data.
    pub data: PathBuf,
    /// At most this many samples.
    pub samples: Option<usize>,
    /// Token id of image placeholders.
    pub image_token_id: Option<i64>,
    /// Output to compare.
    pub logits: Option<String>,
}

struct Side {
    model: Model,
    folder: PathBuf,
    vision: Option<Model>,
    embed: Option<Model>,
    path: PathBuf,
    /// It is a folder of several graphs.
    folder_of_graphs: bool,
}

impl Side {
    fn frontend(&mut self) -> Frontend {
        match (self.vision.take(), self.embed.take()) {
            (None, None) if !self.folder_of_graphs => Frontend::none(),
            (vision, embed) => Frontend::of(vision, embed),
        }
    }
}

fn open(path: &Path, common: &Common) -> Result<Side, Error> {
    let load = |path: &Path| pipeline::read(path, common).map(|file| file.model);
    if !path.is_dir() {
        let folder = path.parent().map_or_else(PathBuf::new, Path::to_owned);
        return Ok(Side {
            model: load(path)?,
            folder,
            vision: None,
            embed: None,
            path: path.to_owned(),
            folder_of_graphs: false,
        });
    }
    let folder = Folder::open(path)?;
    let part = |file: &Option<PathBuf>| file.as_deref().map(load).transpose();
    Ok(Side {
        model: load(&folder.decoder)?,
        vision: part(&folder.vision)?,
        embed: part(&folder.embed)?,
        folder: path.to_owned(),
        path: folder.decoder,
        folder_of_graphs: true,
    })
}

/// A model prepared for answering logits and the values between its blocks.
struct Prepared<'a> {
    model: &'a Model,
    samples: DataSamples<'a>,
    segment: Segment,
}

/// Runs both models on every sample and reports.
pub fn verify(request: &VerifyRequest, common: &Common) -> Result<(), Error> {
    if request.samples == Some(0) {
        return Err(Error::Usage("--samples 0: at least one sample is needed".to_owned()));
    }
    let runner = Walk::new(pipeline::pool(common), Compute::F32);
    let progress = Progress::new(common.quiet);
    let mut fp = open(&request.fp, common)?;
    let mut quantized = open(&request.quantized, common)?;
    let law = |source| Error::Law { pass: "reading", source };
    let fp_frontend = fp.frontend();
    let q_frontend = quantized.frontend();
    let logits = logits_output(request.logits.as_deref(), &fp.model.graph, &fp.path)?;
    let q_logits = logits_output(request.logits.as_deref(), &quantized.model.graph, &quantized.path)?;
    let cuts = cut(&fp.model.graph, &[logits]).map_err(law)?;
    let alike = input_names(&fp.model.graph) == input_names(&quantized.model.graph);
    if !alike {
        progress
            .say("the graphs have different inputs, so their logits are compared, not the values between their blocks");
    }
    let necks = if alike { &cuts.necks[..] } else { &[] };
    let shared = blocks_of(&fp.model.graph, necks, logits, &quantized.model.graph);
    let layers = layers_before(&fp.model, &cuts, &shared.iter().map(|s| s.1).collect::<Vec<_>>())?;
    let image = image_token(request.image_token_id, &fp.model.graph, &fp.folder)?;
    let prepare = |model, folder: &Path, frontend, logits, values: Vec<ValueId>| -> Result<Prepared<'_>, Error> {
        let data = Data {
            path: &request.data,
            folder,
            image,
            shift: MaskShift::Shifted,
            limit: request.samples,
            classes: true,
            logits: Some(logits),
        };
        let samples = DataSamples::open(&data, &runner, model, frontend)?;
        let graph = &model.graph;
        let given: Vec<ValueId> = graph.inputs().iter().copied().filter(|&v| graph.constant(v).is_none()).collect();
        let mut wanted = vec![logits];
        wanted.extend(values);
        let segment = runner.prepare(model, &given, &wanted)?;
        Ok(Prepared { model, samples, segment })
    };
    let a = prepare(&fp.model, &fp.folder, fp_frontend, logits, shared.iter().map(|s| s.1).collect())?;
    let b = prepare(&quantized.model, &fp.folder, q_frontend, q_logits, shared.iter().map(|s| s.2).collect())?;

    use mbqc_passes::method::Samples;
    let count = a.samples.len().min(b.samples.len());
    if count == 0 {
        return Err(Error::Content { file: request.data.clone(), reason: "no samples".to_owned() });
    }
    // What calibration refuses is refused here, too.
    let census = a.samples.census()?;
    census.warnings.iter().for_each(|warning| progress.warn(warning));
    if census.without_answer == census.samples {
        return Err(unsupervised(request));
    }
    let (first, _) = a.samples.load(0)?;
    let tokens = first.classes.len();
    let traced = trace_rows(&runner, &fp.model, first.feeds, &[logits], tokens)?.rows;
    let rows: Vec<Option<Rows>> = shared.iter().map(|(_, v, _)| traced.get(v).map(|(rows, _)| *rows)).collect();

    let logits_name = fp.model.graph.name(logits);
    let mut metrics = Metrics::default();
    let mut blocks: IndexMap<&str, BlockError> = IndexMap::new();
    let batch = runner.pool().threads() * 2;
    for start in (0..count).step_by(batch) {
        let results = runner.pool().map(batch.min(count - start), |i| {
            let (x, kind) = a.samples.load(start + i)?;
            let (y, _) = b.samples.load(start + i)?;
            let p = runner.run(a.model, &a.segment, x.feeds.clone(), None)?;
            let q = runner.run(b.model, &b.segment, y.feeds, None)?;
            Ok::<_, Error>((x, kind, p, q))
        });
        for result in results {
            let (CalibrationSample { name, classes, labels, .. }, kind, p, q) = result?;
            let judged = |error: data::Error| error.in_sample(&name);
            let logits = (floats(&p[0], logits_name)?, floats(&q[0], logits_name)?);
            metrics.add(logits.0, logits.1, &labels, kind.as_deref()).map_err(judged)?;
            for (i, value) in layers.iter().enumerate() {
                let width = rows[i].map_or(1, |r| r.inner).max(1);
                // The graph need not declare types.
                let (Ok(values), Ok(other)) = (floats(&p[i + 1], value), floats(&q[i + 1], value)) else { continue };
                let per_row: Vec<Class> =
                    (0..values.len() / width).map(|row| class_of(rows[i], row, &classes)).collect();
                blocks.entry(value).or_default().add(values, other, &per_row).map_err(judged)?;
            }
        }
        progress.step("samples", (start + batch).min(count), count);
    }
    drop(progress);
    report(request, &metrics, &blocks, int8_layers(&quantized.model), common)
}

fn input_names(graph: &Graph) -> Vec<&str> {
    graph.inputs().iter().map(|input| graph.name(*input)).collect()
}

/// What a user knows the values between blocks by: the layer before each, with the value's own name behind it.
fn layers_before(model: &Model, cuts: &Cuts, values: &[ValueId]) -> Result<Vec<String>, Error> {
    let graph = &model.graph;
    let survey = survey(model).map_err(|source| Error::Law { pass: "survey", source })?;
    let at = |value: ValueId| cuts.position[value.0 as usize];
    let main = survey.sites.iter().filter(|site| site.path.is_empty());
    let layers: Vec<(usize, &str)> = main.filter_map(|site| Some((at(site.out)?, site.name.as_str()))).collect();
    let names = values.iter().map(|&value| {
        let before = layers.iter().filter(|(place, _)| Some(*place) <= at(value)).max_by_key(|(place, _)| *place);
        before.map_or_else(|| graph.name(value).to_owned(), |(_, layer)| format!("{layer} ({})", graph.name(value)))
    });
    Ok(names.collect())
}

/// Where both graphs have a value of the same name between their blocks, each block once: views of a value that is there
/// already say nothing new.
fn blocks_of(fp: &Graph, necks: &[ValueId], logits: ValueId, quantized: &Graph) -> Vec<(String, ValueId, ValueId)> {
    let mut seen = vec![walk::behind_views(fp, logits)];
    let mut blocks = Vec::new();
    for &neck in necks {
        let float = match &fp.value(neck).ty {
            Some(Type::Tensor(dtype, _)) => dtype.is_float(),
            _ => true,
        };
        let value = walk::behind_views(fp, neck);
        let name = fp.name(neck);
        if let (true, false, Some(other)) = (float, seen.contains(&value), quantized.find(name)) {
            seen.push(value);
            blocks.push((name.to_owned(), neck, other));
        }
    }
    blocks
}

/// How many layers of a model allow int8 activations.
fn int8_layers(model: &Model) -> usize {
    let graphs = model.graph_paths();
    let graphs = graphs.iter().filter_map(|path| model.graph_at(path));
    graphs.map(|graph| graph.nodes().filter(|(_, node)| node.int("accuracy_level", 0) == 4).count()).sum()
}

fn floats<'a>(array: &'a Array, name: &str) -> Result<&'a [f32], crate::data::Error> {
    let refuse = |_| crate::data::Error::Logits(format!("`{name}` holds {}, expected floats", array.dtype));
    array.as_f32().map_err(refuse)
}

fn unsupervised(request: &VerifyRequest) -> Error {
    Error::Content {
        file: request.data.clone(),
        reason: "no sample has a supervised token (labels other than -100); pass `labels` or `answer_mask`".to_owned(),
    }
}

fn report(
    request: &VerifyRequest,
    metrics: &Metrics,
    blocks: &IndexMap<&str, BlockError>,
    int8: usize,
    common: &Common,
) -> Result<(), Error> {
    let summary = metrics.summary().ok_or_else(|| unsupervised(request))?;
    let by_kind: IndexMap<&str, Option<Summary>> =
        metrics.kinds().into_iter().map(|k| (k, metrics.summary_where(|s| s.kind.as_deref() == Some(k)))).collect();
    if common.json {
        let blocks: serde_json::Map<String, serde_json::Value> = blocks
            .iter()
            .map(|(name, e)| {
                let each = Class::ALL.iter().filter_map(|&c| Some((class_name(c).to_owned(), json!(e.relative(c)?))));
                ((*name).to_owned(), serde_json::Value::Object(each.collect()))
            })
            .collect();
        let document = json!({
            "summary": summary,
            "kinds": by_kind,
            "blocks": blocks,
            "samples": metrics.samples.iter().map(SampleMetrics::per_token).collect::<Vec<_>>(),
            "unsupervised": metrics.unsupervised,
            "int8_layers": int8,
        });
        return print(&format!("{document:#}"));
    }
    let mut lines = vec![format!("{} samples, {} supervised tokens", summary.samples, summary.tokens)];
    let row = |name: &str, e: &Estimate| {
        let se = e.se.map_or("n/a".to_owned(), |se| format!("{se:.5}"));
        format!("{name:<34} {:>10.5} +- {se}", e.mean)
    };
    for (name, estimate) in [
        ("answer cross-entropy, original", &summary.ce_fp),
        ("answer cross-entropy, quantized", &summary.ce_q),
        ("difference (paired)", &summary.d_ce),
        ("KL(original || quantized)", &summary.kl),
        ("top-1 flips", &summary.flips),
        ("exact match, original", &summary.exact_fp),
        ("exact match, quantized", &summary.exact_q),
        ("difference (paired)", &summary.d_exact),
    ] {
        lines.push(row(name, estimate));
    }
    for (kind, part) in by_kind.iter().filter_map(|(k, s)| Some((k, s.as_ref()?))) {
        let name = format!("difference of cross-entropy, {kind}");
        lines.push(format!("{}  n = {}", row(&name, &part.d_ce), part.samples));
    }
    if int8 > 0 {
        lines.push(format!(
            "note: {int8} layers allow int8 activations (accuracy_level 4), which are coarser, and were computed with them; \
             compile with --accuracy exact where that matters"
        ));
    }
    if metrics.unsupervised > 0 {
        lines.push(format!("{} samples without supervised tokens left out", metrics.unsupervised));
    }
    let width = blocks.keys().map(|name| name.chars().count()).max().unwrap_or(0).max(28);
    let head = format!("{:<width$} {:>9} {:>9} {:>9}", "after", "vision", "answer", "prompt");
    lines.push(format!("\n{head}   sum |error| / sum |value|"));
    for (name, error) in blocks {
        let cell = |class| error.relative(class).map_or("-".to_owned(), |v| format!("{v:.5}"));
        lines.push(format!(
            "{name:<width$} {:>9} {:>9} {:>9}",
            cell(Class::Vision),
            cell(Class::Answer),
            cell(Class::Prompt)
        ));
    }
    print(&lines.join("\n"))
}
