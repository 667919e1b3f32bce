//! The main job on one screen: read, survey, choose, decide, apply, write, report.

mod choose;
mod report;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use mbqc_kernels::Pool;
use mbqc_passes::array::Compute;
use mbqc_passes::facts::sites::{Survey, survey};
use mbqc_passes::ir::{Model, verify};
use mbqc_passes::method::driver::{self, Request};
use mbqc_passes::method::{Method, Prepared, Samples, decide};
use mbqc_passes::plan::{Plan, SkipKind};
use mbqc_passes::rewrite::apply::{self, Accuracy, Target};
use mbqc_passes::rewrite::fallback::Fallback;
use mbqc_passes::run::{HalfCasts, RunError, Runner, Walk};
use serde_json::json;

use self::choose::{choose, pick_method, tell_idle_options, tell_skips, why_nothing};
use crate::calibration::{Data, DataSamples, Frontend, image_token, logits_output};
use crate::cli::{AccuracyArg, Common, Compile, Emit, FallbackArg, HalfCastsArg, TargetArg};
use crate::onnx::{self, ReadOptions, Written};
use crate::places::{Places, probe_file};
use crate::report::coverage::Coverage;
use crate::report::progress::Progress;
use crate::report::tell;
use crate::{Error, folder, stage, stamp};

pub use report::{Sizes, report, written_json};

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

/// What was decided about a model, applied to it, not yet written.
pub struct Decided {
    /// The file it was read from.
    pub file: onnx::File,
    /// The plan.
    pub plan: Plan,
    /// Everything measured.
    pub prepared: Prepared,
    /// The model after the rewrite.
    pub result: Model,
    /// What the plan covers.
    pub coverage: Coverage,
}

/// What a compilation did.
pub struct Outcome {
    /// What was decided.
    pub decided: Decided,
    /// The files, unless it was a dry run.
    pub written: Option<Written>,
}

/// `mbqc MODEL -o OUT`.
pub fn main_job(options: &Compile) -> Result<(), Error> {
    let Some(model) = &options.model else {
        return Err(Error::Usage("a model is needed: mbqc MODEL -o OUT".to_owned()));
    };
    if options.output.is_none() && !options.dry_run {
        return Err(Error::Usage("an output is needed: mbqc MODEL -o OUT; or --dry-run, which writes none".to_owned()));
    }
    let output = options.output.as_deref().filter(|_| !options.dry_run);
    for (option, count) in [("--samples", options.samples), ("--search-samples", options.search_samples)] {
        if count == Some(0) {
            return Err(Error::Usage(format!("{option} 0: calibration needs at least one sample")));
        }
    }
    if model.is_dir() { folder::compile(model, options) } else { single(model, output, options) }
}

fn single(model: &Path, output: Option<&Path>, options: &Compile) -> Result<(), Error> {
    let mut places = inputs(model, options)?;
    if let Some(output) = &options.output {
        places.model_output("-o", output)?;
    }
    if let Some(output) = output {
        probe_file("-o", output)?;
    }
    claim_plan(&mut places, options)?;
    let runner = Walk::new(pool(&options.common), Compute::F32).with_casts(half_casts(options));
    let file = read_at(model, &mut places, &options.common)?;
    let folder = model.parent().map_or_else(PathBuf::new, Path::to_owned);
    let unit = Unit { file, path: model.to_owned(), folder, frontend: Frontend::none() };
    let progress = Progress::new(options.common.quiet);
    let decided = compile(unit, options, &runner, &progress)?;
    save_plan(&decided.plan, options, &progress)?;
    let mut written = None;
    if let Some(output) = output {
        let published = stage::write_model(Some(&decided.file.source), &decided.result, output, &progress)?;
        published.note.iter().for_each(|note| progress.say(note));
        written = Some(published.written);
    }
    if options.force {
        progress.warn("without effect, because a single file is written: --force");
    }
    drop(progress);
    let outcome = Outcome { decided, written };
    report(&outcome, None, &options.common)
}

/// The inputs of the main job, before anything is read.
pub fn inputs(model: &Path, options: &Compile) -> Result<Places, Error> {
    let mut places = Places::new();
    places.model("the model", model)?;
    if let Some(data) = &options.calib {
        places.input("--calib", data)?;
    }
    Ok(places)
}

/// Finds out whether the plan could be saved where it is asked for.
pub fn claim_plan(places: &mut Places, options: &Compile) -> Result<(), Error> {
    let Some(out) = &options.plan_out else { return Ok(()) };
    places.output("--plan-out", out)?;
    probe_file("--plan-out", out)
}

/// Saves the plan: before the model is written, because the search is what costs time.
pub fn save_plan(plan: &Plan, options: &Compile, progress: &Progress) -> Result<(), Error> {
    let Some(out) = &options.plan_out else { return Ok(()) };
    stamp::write_json(out, plan)?;
    progress.say(&format!("saved the plan as {}", out.display()));
    Ok(())
}

/// Decides how to compile one graph and applies that. Nothing is written.
pub fn compile(unit: Unit, options: &Compile, runner: &Walk, progress: &Progress) -> Result<Decided, Error> {
    let Unit { file, path, folder, frontend } = unit;
    let model = &file.model;
    let survey = survey(model).map_err(|source| Error::Law { pass: "survey", source })?;
    let (chosen, skipped) = choose(model, &survey, options)?;
    let method = &pick_method(options, progress)?;
    tell_idle_options(options, method, progress);
    if chosen.is_empty() {
        tell_skips(&skipped, &options.common, progress)?;
        return Err(Error::Nothing(why_nothing(&skipped, &path, &options.common)));
    }
    let unsupported = skipped.iter().filter(|s| s.kind == SkipKind::Unsupported).count();
    if options.strict && unsupported > 0 {
        tell_skips(&skipped, &options.common, progress)?;
        return Err(Error::Strict(unsupported));
    }
    let logits = logits_output(options.logits.as_deref(), &model.graph, &path)?;
    let image = image_token(options.image_token_id, &model.graph, &folder)?;
    let samples = match &options.calib {
        Some(data) if method.needs_data() => {
            let data = Data {
                path: data,
                folder: &folder,
                image,
                shift: method.shift,
                limit: options.samples,
                classes: method.needs_gradients(),
                logits: Some(logits),
            };
            let opened = DataSamples::open(&data, runner, model, frontend)?;
            check_data(&opened, method, &path, progress)?;
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
    drop(samples);
    let plan = &mut prepared.plan;
    plan.source = stamp::model_hash(&file.source)?;
    plan.calibration =
        options.calib.as_ref().filter(|_| method.needs_data()).map(|p| stamp::data_hash(p)).transpose()?;
    plan.settings["image_token"] = json!(image.map(|t| t.id));
    let plan = plan.clone();
    let result = apply_plan(model, &survey, &plan, &options.emit, runner.pool(), progress)?;
    let coverage = Coverage::of(&plan, &survey, &result);
    Ok(Decided { file, plan, prepared, result, coverage })
}

/// Applies a plan to a model and notes it there.
pub fn apply_plan(
    model: &Model,
    survey: &Survey,
    plan: &Plan,
    how: &Emit,
    pool: &Pool,
    progress: &Progress,
) -> Result<Model, Error> {
    let mut options = apply::Options {
        target: match how.target {
            TargetArg::Mbqc => Target::Mbqc,
            TargetArg::Ort => Target::Ort,
        },
        fallback: match how.fallback {
            Some(FallbackArg::Ort) | None => Fallback::Ort,
            Some(FallbackArg::Standard) => Fallback::Standard,
            Some(FallbackArg::None) => Fallback::None,
        },
        accuracy: match how.accuracy {
            AccuracyArg::Auto => Accuracy::Auto,
            AccuracyArg::Exact => Accuracy::Exact,
            AccuracyArg::Fast => Accuracy::Fast,
        },
    };
    let opset = model.opset();
    let w3 = |format: &str| format.parse().is_ok_and(|spec: mbqc_kernels::Spec| spec.format.name == "w3");
    let needs_body = options.target == Target::Mbqc && plan.recipes.iter().any(|recipe| w3(&recipe.format));
    if needs_body && options.fallback == Fallback::Ort && opset < 14 {
        progress.say(&format!(
            "the model is of opset {opset}; a body for 3-bit layers needs 14, so the codes go into 4-bit containers \
             (--target ort)"
        ));
        options.target = Target::Ort;
    }
    let mut result = apply::apply(model, survey, plan, &options, &Arc::new(Pool::new(pool.threads())))?;
    apply::check(model, survey, plan)?;
    verify::verify(&result).map_err(|source| Error::Law { pass: "apply", source })?;
    stamp::mark(&mut result, plan)?;
    Ok(result)
}

/// Reads a model and tells its warnings.
pub fn read(path: &Path, common: &Common) -> Result<onnx::File, Error> {
    let file = onnx::read(path, &ReadOptions { allow_lossy: common.allow_lossy })?;
    file.warnings.iter().for_each(|warning| tell(&format!("warning: {warning}")));
    Ok(file)
}

/// Reads a model whose data files are inputs, too.
pub fn read_at(path: &Path, places: &mut Places, common: &Common) -> Result<onnx::File, Error> {
    if path.is_dir() {
        let inside = folder::Folder::open(path).map(|folder| format!(", such as {}", folder.decoder.display()));
        let reason = format!("found a folder, expected a model file{}", inside.unwrap_or_default());
        return Err(Error::Content { file: path.to_owned(), reason });
    }
    let file = read(path, common)?;
    for (data, _) in file.source.data_files() {
        places.input("the model's data file", data)?;
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

/// Only methods with data run the model, so an operator that cannot be run is no obstacle to the others.
fn with_way_out(error: driver::Error) -> Error {
    match error {
        driver::Error::Run(reason @ RunError::UnknownOp { .. }) => Error::Calibration { reason },
        driver::Error::Weight(error) => Error::Weight { reason: error.to_string() },
        other => Error::Decide(other),
    }
}

/// Whether the data can be used, and what a user should know of it.
fn check_data(samples: &DataSamples<'_>, method: &Method, model: &Path, progress: &Progress) -> Result<(), Error> {
    if method.needs_gradients()
        && let Some(node) = samples.front_concat()?
    {
        let reason = format!(
            "image features are concatenated in front of the text (node `{node}`), which method {} does not support \
             yet: its rows are not those of the tokens; use --method awq, or range",
            method.name
        );
        return Err(Error::Content { file: model.to_owned(), reason });
    }
    let census = samples.census()?;
    census.warnings.iter().for_each(|warning| progress.warn(warning));
    if !method.needs_gradients() {
        return Ok(());
    }
    let all = |count: usize| count == census.samples;
    if all(census.without_answer) {
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
    if census.without_answer > 0 {
        progress.say(&format!(
            "{} of {} calibration samples have no supervised tokens; they are left out of the gradients",
            census.without_answer, census.samples
        ));
    }
    Ok(())
}
