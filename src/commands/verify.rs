//! `mbqc verify`: two models side by side on data.

use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use mbqc_passes::array::{Array, Compute};
use mbqc_passes::facts::modality::{Class, trace_rows};
use mbqc_passes::facts::segments::cut;
use mbqc_passes::ir::{Model, ValueId};
use mbqc_passes::method::{CalibrationSample, MaskShift, class_of};
use mbqc_passes::ops::Rows;
use mbqc_passes::run::{Runner, Segment, Walk};
use serde_json::json;

use crate::Error;
use crate::calibration::{DataSamples, Frontend, class_name, image_token, logits_output};
use crate::cli::Common;
use crate::data;
use crate::folder::Folder;
use crate::pipeline;
use crate::report::blocks::BlockError;
use crate::report::metrics::{Estimate, Metrics, Summary};
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
}

fn open(path: &Path, common: &Common) -> Result<Side, Error> {
    let load = |path: &Path| pipeline::read(path, common).map(|file| file.model);
    if !path.is_dir() {
        let folder = path.parent().map_or_else(PathBuf::new, Path::to_owned);
        return Ok(Side { model: load(path)?, folder, vision: None, embed: None, path: path.to_owned() });
    }
    let folder = Folder::open(path)?;
    let part = |file: &Option<PathBuf>| file.as_deref().map(load).transpose();
    Ok(Side {
        model: load(&folder.decoder)?,
        vision: part(&folder.vision)?,
        embed: part(&folder.embed)?,
        folder: path.to_owned(),
        path: folder.decoder,
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
    let runner = Walk::new(pipeline::pool(common), Compute::F32);
    let progress = Progress::new(common.quiet);
    let mut fp = open(&request.fp, common)?;
    let mut quantized = open(&request.quantized, common)?;
    let law = |source| Error::Law { pass: "reading", source };
    let fp_frontend = Frontend::of(&runner, fp.vision.take(), fp.embed.take())?;
    let q_frontend = Frontend::of(&runner, quantized.vision.take(), quantized.embed.take())?;
    let logits = logits_output(request.logits.as_deref(), &fp.model.graph, &fp.path)?;
    let q_logits = logits_output(request.logits.as_deref(), &quantized.model.graph, &quantized.path)?;
    // Blocks are compared where both graphs have a value of the same name between them.
    let cuts = cut(&fp.model.graph, &[logits]).map_err(law)?;
    let shared: Vec<(String, ValueId, ValueId)> = cuts
        .necks
        .iter()
        .filter(|v| **v != logits)
        .filter_map(|&v| {
            let name = fp.model.graph.name(v);
            Some((name.to_owned(), v, quantized.model.graph.find(name)?))
        })
        .collect();
    let image = image_token(request.image_token_id, &fp.model.graph, &fp.folder)?;
    let prepare = |model, folder: &Path, frontend, logits, values: Vec<ValueId>| -> Result<Prepared<'_>, Error> {
        let shift = MaskShift::Shifted;
        let samples =
            DataSamples::open(&request.data, folder, &runner, model, frontend, image, shift, request.samples)?;
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
    let (first, _) = a.samples.load(0)?;
    let tokens = first.classes.len();
    let traced = trace_rows(&runner, &fp.model, first.feeds, &[logits], tokens)?.rows;
    let rows: Vec<Option<Rows>> = shared.iter().map(|(_, v, _)| traced.get(v).map(|(rows, _)| *rows)).collect();

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
            let added = metrics.add(floats(&p[0])?, floats(&q[0])?, &labels, kind.as_deref());
            added.map_err(|error| data::Error::Sample { sample: name, reason: error.to_string() })?;
            for (i, (name, ..)) in shared.iter().enumerate() {
                let width = rows[i].map_or(1, |r| r.inner).max(1);
                let values = floats(&p[i + 1])?;
                let per_row: Vec<Class> =
                    (0..values.len() / width).map(|row| class_of(rows[i], row, &classes)).collect();
                blocks.entry(name).or_default().add(values, floats(&q[i + 1])?, &per_row)?;
            }
        }
        progress.step("samples", (start + batch).min(count), count);
    }
    report(request, &metrics, &blocks, common)
}

fn floats(array: &Array) -> Result<&[f32], Error> {
    array.as_f32().map_err(|e| Error::Usage(format!("a compared value is not a float: {e}")))
}

fn report(
    request: &VerifyRequest,
    metrics: &Metrics,
    blocks: &IndexMap<&str, BlockError>,
    common: &Common,
) -> Result<(), Error> {
    let summary = metrics.summary().ok_or_else(|| Error::Content {
        file: request.data.clone(),
        reason: "no sample has a supervised token (labels other than -100); pass `labels` or `answer_mask`".to_owned(),
    })?;
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
            "samples": metrics.samples,
            "unsupervised": metrics.unsupervised,
        });
        return print(&format!("{document:#}"));
    }
    let mut lines = vec![format!("{} samples, {} supervised tokens", summary.samples, summary.tokens)];
    let row = |name: &str, e: &Estimate| format!("{name:<34} {:>10.5} +- {:.5}", e.mean, e.se);
    lines.push(row("answer cross-entropy, original", &summary.ce_fp));
    lines.push(row("answer cross-entropy, quantized", &summary.ce_q));
    lines.push(row("difference (paired)", &summary.d_ce));
    lines.push(row("KL(original || quantized)", &summary.kl));
    lines.push(row("top-1 flips", &summary.flips));
    lines.push(row("exact match, original", &summary.exact_fp));
    lines.push(row("exact match, quantized", &summary.exact_q));
    lines.push(row("difference (paired)", &summary.d_exact));
    for (kind, part) in by_kind.iter().filter_map(|(k, s)| Some((k, s.as_ref()?))) {
        lines.push(row(&format!("difference of cross-entropy, {kind}"), &part.d_ce));
    }
    if metrics.unsupervised > 0 {
        lines.push(format!("{} samples without supervised tokens left out", metrics.unsupervised));
    }
    lines
        .push(format!("\n{:<28} {:>9} {:>9} {:>9}   sum |error| / sum |value|", "block", "vision", "answer", "prompt"));
    for (name, error) in blocks {
        let cell = |class| error.relative(class).map_or("-".to_owned(), |v| format!("{v:.5}"));
        lines.push(format!(
            "{name:<28} {:>9} {:>9} {:>9}",
            cell(Class::Vision),
            cell(Class::Answer),
            cell(Class::Prompt)
        ));
    }
    print(&lines.join("\n"))
}
