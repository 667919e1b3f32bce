//! The main job on one screen: read, survey, choose, decide, apply, write, report.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use globset::{Glob, GlobSet, GlobSetBuilder};
use mbqc_kernels::{Pool, Spec};
use mbqc_passes::array::Compute;
use mbqc_passes::facts::sites::{Survey, Tower, survey};
use mbqc_passes::ir::{Model, verify};
use mbqc_passes::method::driver::{self, Chosen, Request};
use mbqc_passes::method::{self, Floor, MaskShift, Method, Prepared, Round, Samples, Scheme, decide};
use mbqc_passes::plan::{Plan, ScaleRule, SkipKind, Skipped};
use mbqc_passes::rewrite::apply::{self, Accuracy, Target, can_apply};
use mbqc_passes::rewrite::fallback::Fallback;
use mbqc_passes::run::{HalfCasts, RunError, Runner, Walk};
use serde_json::json;

use crate::Error;
use crate::calibration::{DataSamples, Frontend, image_token, logits_output};
use crate::cli::{
    AccuracyArg, AnswerRowsArg, Common, Compile, Emit, FallbackArg, FloorArg, HalfCastsArg, RangeArg, RhoArg,
    ScalesArg, TargetArg,
};
use crate::folder;
use crate::onnx::{self, ReadOptions, WriteOptions, Written};
use crate::report::coverage::Coverage;
use crate::report::progress::Progress;
use crate::stamp;

/// Bytes of activations that calibration holds at a time, besides one frontier per sample.
const HELD_BYTES: usize = 2 << 30;

/// A model to compile and where it lies.
pub struct Unit {
    /// The model file.
    pub file: onnx::File,
    /// Its path.
    pub path: PathBuf,
    /// The folder with its configuration.
    pub folder: PathBuf,
    /// What runs before it.
    pub frontend: Frontend,
}

/// What a compilation did.
pub struct Outcome {
    /// The plan.
    pub plan: Plan,
    /// What it covers.
    pub coverage: Coverage,
    /// The files, unless it was a dry run.
    pub written: Option<Written>,
    /// Everything measured.
    pub prepared: Prepared,
}

/// `mbqc MODEL -o OUT`.
pub fn main_job(options: &Compile) -> Result<(), Error> {
    let (Some(model), Some(output)) = (&options.model, &options.output) else {
        return Err(Error::Usage("a model and an output are needed: mbqc MODEL -o OUT".to_owned()));
    };
    for (option, count) in [("--samples", options.samples), ("--search-samples", options.search_samples)] {
        if count == Some(0) {
            return Err(Error::Usage(format!("{option} 0: calibration needs at least one sample")));
        }
    }
    if model.is_dir() { folder::compile(model, output, options) } else { single(model, output, options) }
}

fn single(model: &Path, output: &Path, options: &Compile) -> Result<(), Error> {
    let runner = Walk::new(pool(&options.common), Compute::F32).with_casts(half_casts(options));
    let file = read(model, &options.common)?;
    let folder = model.parent().map_or_else(PathBuf::new, Path::to_owned);
    let unit = Unit { file, path: model.to_owned(), folder, frontend: Frontend::none() };
    let outcome = compile(unit, output, options, &runner)?;
    report(&outcome, &options.common)
}

/// Compiles one graph and writes it.
pub fn compile(unit: Unit, output: &Path, options: &Compile, runner: &Walk) -> Result<Outcome, Error> {
    let progress = Progress::new(options.common.quiet);
    let Unit { file, path, folder, frontend } = unit;
    let model = &file.model;
    let survey = survey(model).map_err(|source| Error::Law { pass: "survey", source })?;
    let (chosen, skipped) = choose(model, &survey, options)?;
    let method = &pick_method(options, &progress)?;
    if chosen.is_empty() {
        print_skips(&skipped, &progress);
        return Err(Error::Nothing(why_nothing(&skipped, &path)));
    }
    let unsupported = skipped.iter().filter(|s| s.kind == SkipKind::Unsupported).count();
    if options.strict && unsupported > 0 {
        print_skips(&skipped, &progress);
        return Err(Error::Strict(unsupported));
    }
    if !options.dry_run {
        onnx::check_output(Some(&file.source), output)?;
    }
    let logits = logits_output(options.logits.as_deref(), &model.graph, &path)?;
    let image = image_token(options.image_token_id, &model.graph, &folder)?;
    let samples = match &options.calib {
        Some(data) if method.needs_data() => {
            let opened =
                DataSamples::open(data, &folder, runner, model, frontend, image, method.shift, options.samples)?;
            check_census(&opened, method, &progress)?;
            Some(opened)
        }
        _ => None,
    };
    let step = |stage: &str, done: usize, total: usize| progress.step(stage, done, total);
    let mut prepared = decide(&Request {
        model,
        survey: &survey,
        chosen,
        skipped,
        method,
        logits,
        runner,
        samples: samples.as_ref().map(|s| s as &dyn Samples),
        gradient_samples: usize::MAX,
        search_samples: options.search_samples.unwrap_or(usize::MAX),
        held_bytes: HELD_BYTES,
        progress: &step,
    })
    .map_err(with_way_out)?;
    let plan = &mut prepared.plan;
    plan.source = stamp::file_hash(&path)?;
    plan.calibration =
        options.calib.as_ref().filter(|_| method.needs_data()).map(|p| stamp::data_hash(p)).transpose()?;
    plan.settings["image_token"] = json!(image.map(|t| t.id));
    if let Some(out) = &options.plan_out {
        stamp::write_json(out, &*plan)?;
    }
    let coverage = Coverage::of(plan, |name| weight_bytes(&survey, name));
    if options.dry_run {
        return Ok(Outcome { plan: plan.clone(), coverage, written: None, prepared });
    }
    let written = emit(&file, &survey, plan, &options.emit, runner.pool(), output, &progress)?;
    Ok(Outcome { plan: plan.clone(), coverage, written: Some(written), prepared })
}

/// Applies a plan to a model that was read, and writes the result.
pub fn emit(
    file: &onnx::File,
    survey: &Survey,
    plan: &Plan,
    how: &Emit,
    pool: &Pool,
    output: &Path,
    progress: &Progress,
) -> Result<Written, Error> {
    let mut options = apply::Options {
        target: match how.target {
            TargetArg::Mbqc => Target::Mbqc,
            TargetArg::Ort => Target::Ort,
        },
        fallback: match how.fallback {
            FallbackArg::Ort => Fallback::Ort,
            FallbackArg::Standard => Fallback::Standard,
            FallbackArg::None => Fallback::None,
        },
        accuracy: match how.accuracy {
            AccuracyArg::Auto => Accuracy::Auto,
            AccuracyArg::Exact => Accuracy::Exact,
            AccuracyArg::Fast => Accuracy::Fast,
        },
    };
    let opset = file.model.opset();
    if options.target == Target::Mbqc && options.fallback == Fallback::Ort && opset < 14 {
        progress.say(&format!(
            "the model is of opset {opset}; a body for 3-bit layers needs 14, so the codes go into 4-bit containers \
             (--target ort)"
        ));
        options.target = Target::Ort;
    }
    let mut result = apply::apply(&file.model, survey, plan, &options, &Arc::new(Pool::new(pool.threads())))?;
    verify::verify(&result).map_err(|source| Error::Law { pass: "apply", source })?;
    stamp::mark(&mut result, plan)?;
    match onnx::write(Some(&file.source), &result, output, &WriteOptions::default()) {
        Err(onnx::Error::Payload { reason, .. }) => Err(Error::Weight { reason }),
        other => Ok(other?),
    }
}

/// Reads a model and tells its warnings.
pub fn read(path: &Path, common: &Common) -> Result<onnx::File, Error> {
    let file = onnx::read(path, &ReadOptions { allow_lossy: common.allow_lossy })?;
    if !common.quiet {
        for warning in &file.warnings {
            eprintln!("warning: {warning}");
        }
    }
    Ok(file)
}

/// What casts to half types do while calibrating.
pub fn half_casts(options: &Compile) -> HalfCasts {
    match options.switches.half_casts {
        Some(HalfCastsArg::Keep) => HalfCasts::Keep,
        Some(HalfCastsArg::Round) | None => HalfCasts::Round,
    }
}

/// The worker threads that were asked for, else one per processor.
pub fn pool(common: &Common) -> Pool {
    let available = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    Pool::new(common.threads.unwrap_or(available).max(1))
}

fn pick_method(options: &Compile, progress: &Progress) -> Result<Method, Error> {
    let name = match (&options.method, &options.calib) {
        (Some(name), _) => name.as_str(),
        (None, Some(_)) => "mbq",
        (None, None) => {
            progress.say(
                "no calibration data: ranges are searched data-free. Pass --calib DATA.npz for modality-balanced \
                 quantization (see README, calibration data)",
            );
            "range"
        }
    };
    let names = || method::METHODS.iter().map(|m| m.name).collect::<Vec<_>>().join(", ");
    let method =
        method::find(name).ok_or_else(|| Error::Usage(format!("no method `{name}`; there are {}", names())))?;
    if method.needs_data() && options.calib.is_none() {
        return Err(Error::Usage(format!("method {name} needs calibration data; pass --calib, or --method range")));
    }
    let mut method = method.clone();
    let switches = &options.switches;
    if let Some(rows) = switches.answer_rows {
        method.shift = match rows {
            AnswerRowsArg::Shifted => MaskShift::Shifted,
            AnswerRowsArg::Unshifted => MaskShift::Unshifted,
        };
    }
    if let Some(scheme) = switches.rho {
        method.scheme = match scheme {
            RhoArg::Reference => Scheme::Reference,
            RhoArg::Paper => Scheme::Paper,
        };
    }
    if let Some(floor) = switches.floor {
        method.floor = match floor {
            FloorArg::None => Floor::None,
            FloorArg::Median => Floor::Median,
            FloorArg::MedianLive => Floor::MedianLive,
        };
    }
    if let Some(range) = switches.range {
        method.round = match range {
            RangeArg::MinMax => Round::MinMax,
            RangeArg::IncludeZero => Round::Nearest,
            RangeArg::Search => Round::RangeSearch,
        };
    }
    if let Some(scales) = switches.scales {
        method.scales = match scales {
            ScalesArg::Stored => ScaleRule::Stored,
            ScalesArg::F32 => ScaleRule::F32,
        };
    }
    Ok(method)
}

fn parse_spec(text: &str) -> Result<Option<Spec>, Error> {
    if text == "none" {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|e: mbqc_kernels::Error| Error::Usage(e.to_string()))
}

fn globs(patterns: &[String]) -> Result<GlobSet, Error> {
    let mut set = GlobSetBuilder::new();
    for pattern in patterns {
        set.add(Glob::new(pattern).map_err(|e| Error::Usage(format!("glob `{pattern}`: {e}")))?);
    }
    set.build().map_err(|e| Error::Usage(e.to_string()))
}

/// Which layers are quantized, in which format, and why the rest is not.
fn choose(model: &Model, survey: &Survey, options: &Compile) -> Result<(Vec<Chosen>, Vec<Skipped>), Error> {
    let format = parse_spec(&options.format)?;
    let vision = parse_spec(&options.vision_format)?;
    let head = parse_spec(&options.head_format)?;
    let (include, exclude) = (globs(&options.include)?, globs(&options.exclude)?);
    let mut chosen = Vec::new();
    let mut skipped: Vec<Skipped> = survey.others.iter().map(Skipped::of_other).collect();
    let mut matched = false;
    for (index, site) in survey.sites.iter().enumerate() {
        let named = |set: &GlobSet| [&site.name, &site.label, &site.weight.name].iter().any(|n| set.is_match(n));
        let (spec, missing) = match (site.head, site.tower) {
            (true, _) => (head, "a final projection, kept as it is (--head-format)"),
            (false, Tower::Vision) => (vision, "vision tower, kept as it is (--vision-format)"),
            (false, Tower::Text | Tower::Only) => (format, "--format none"),
        };
        matched |= named(&include);
        let verdict = if !options.include.is_empty() && !named(&include) {
            Err((SkipKind::Asked, "not matched by --include".to_owned()))
        } else if named(&exclude) {
            Err((SkipKind::Asked, "--exclude".to_owned()))
        } else {
            match spec {
                None => Err((SkipKind::Asked, missing.to_owned())),
                Some(spec) if site.k < spec.group => Err((
                    SkipKind::Unsupported,
                    format!("{} input channels, fewer than the group of {}; take a smaller group", site.k, spec.group),
                )),
                Some(spec) => can_apply(model, site).map(|()| spec).map_err(|reason| (SkipKind::Unsupported, reason)),
            }
        };
        match verdict {
            Ok(spec) => chosen.push(Chosen { site: index, spec }),
            Err((kind, reason)) => {
                let op = model.graph_at(&site.path).map_or_else(String::new, |g| g.node(site.node).qualified_op());
                skipped.push(Skipped::of_site(site, &op, kind, reason));
            }
        }
    }
    if !options.include.is_empty() && !matched {
        return Err(Error::Usage(format!(
            "--include {} matches no layer; `mbqc inspect` lists their names",
            options.include.join(", ")
        )));
    }
    Ok((chosen, skipped))
}

/// Only methods with data run the model, so an operator that cannot be run is no obstacle to the others.
fn with_way_out(error: driver::Error) -> Error {
    match error {
        driver::Error::Run(reason @ RunError::UnknownOp { .. }) => Error::Calibration { reason },
        driver::Error::Weight(error) => Error::Weight { reason: error.to_string() },
        other => Error::Decide(other),
    }
}

fn check_census(samples: &DataSamples<'_>, method: &Method, progress: &Progress) -> Result<(), Error> {
    let census = samples.census()?;
    let all = |count: usize| count == census.samples;
    if all(census.without_answer) && method.needs_gradients() {
        let reason = format!(
            "none of the {} calibration samples has a supervised token (labels other than -100), so there is no answer \
             cross-entropy; pass `labels` or `answer_mask`, or use --method awq",
            census.samples
        );
        return Err(Error::Content { file: samples.path(), reason });
    }
    if all(census.without_vision) {
        progress.say(
            "no calibration sample has vision rows, so there is nothing to balance; for a vision-language model give \
             `vision_mask` in the data, or --image-token-id",
        );
    } else if census.without_vision > 0 {
        progress.say(&format!(
            "{} of {} calibration samples have no vision rows; they count for the text classes only",
            census.without_vision, census.samples
        ));
    }
    if census.without_answer > 0 && method.needs_gradients() {
        progress.say(&format!(
            "{} of {} calibration samples have no supervised tokens; they are left out of the gradients",
            census.without_answer, census.samples
        ));
    }
    Ok(())
}

fn weight_bytes(survey: &Survey, name: &str) -> usize {
    survey.sites.iter().find(|s| s.weight.name == name).map_or(0, |s| s.weight.tensor.stored_bytes())
}

fn print_skips(skipped: &[Skipped], progress: &Progress) {
    for skip in skipped {
        progress.say(&format!("left: {} `{}`, weight `{}`: {}", skip.op, skip.node, skip.weight, skip.reason));
    }
}

fn why_nothing(skipped: &[Skipped], path: &Path) -> String {
    let all = |kind: SkipKind| !skipped.is_empty() && skipped.iter().all(|s| s.kind == kind);
    if skipped.is_empty() {
        format!("{} has no layers with constant weights", path.display())
    } else if skipped.iter().any(|s| s.kind == SkipKind::Quantized)
        && skipped.iter().all(|s| matches!(s.kind, SkipKind::Quantized | SkipKind::NotLinear | SkipKind::Asked))
    {
        format!("{} is already quantized; start from the original model", path.display())
    } else if all(SkipKind::NotLinear) {
        format!("{} has weights, but no linear layers", path.display())
    } else {
        format!("every linear layer of {} is left alone, for the reasons listed above", path.display())
    }
}

/// Prints what was done: a table for people, a document for programs.
pub fn report(outcome: &Outcome, common: &Common) -> Result<(), Error> {
    if common.json {
        let written = outcome.written.as_ref().map(
            |w| json!({ "model": w.model, "model_bytes": w.model_bytes, "data": w.data, "data_bytes": w.data_bytes }),
        );
        let document = json!({
            "plan": outcome.plan,
            "coverage": outcome.coverage,
            "sensitivities": outcome.prepared.sensitivities,
            "gradients": outcome.prepared.gradients,
            "written": written,
        });
        return crate::report::print(&format!("{document:#}"));
    }
    if common.quiet {
        return Ok(());
    }
    eprint!("{}", outcome.coverage.table());
    let declined = outcome.plan.groups.iter().filter(|g| g.declined.is_some()).count();
    if declined > 0 {
        eprintln!(
            "{declined} of {} groups keep a scale of one (`--json` or the plan tells why)",
            outcome.plan.groups.len()
        );
    }
    // What nothing can absorb is usual. A group that something could absorb a scale for, and that was not searched, is not.
    for group in outcome.plan.groups.iter().filter(|group| group.producer.is_some()) {
        if let Some(reason) = &group.declined {
            eprintln!("not searched: {}: {reason}", group.sites.join(", "));
        }
    }
    match &outcome.written {
        Some(w) => {
            let data = w.data.as_ref().map(|d| format!(" and {} ({:.2} MB)", d.display(), w.data_bytes as f64 / 1e6));
            eprintln!("wrote {} ({:.2} MB){}", w.model.display(), w.model_bytes as f64 / 1e6, data.unwrap_or_default());
        }
        None => eprintln!("dry run: no model was written"),
    }
    Ok(())
}
