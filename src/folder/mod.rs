//! A folder of graphs as one unit: vision encoder, token embedding and decoder, with their configuration.

mod list;

use std::fs;
use std::path::{Path, PathBuf};

use mbqc_passes::array::Compute;
use mbqc_passes::plan::Plan;
use mbqc_passes::run::Walk;

use self::list::{Listing, list};
use crate::calibration::Frontend;
use crate::cli::Compile;
use crate::onnx;
use crate::pipeline::{self, Decided, Outcome, Unit, report};
use crate::places::{folder_of, probe_folder, resolved};
use crate::report::progress::Progress;
use crate::stage::{Staging, write_staged};
use crate::{Error, stamp};

/// The graphs of a folder, by the names that exporters give them.
#[derive(Clone, Debug)]
pub struct Folder {
    /// The decoder: the graph that is compiled.
    pub decoder: PathBuf,
    /// The vision encoder.
    pub vision: Option<PathBuf>,
    /// The token embedding.
    pub embed: Option<PathBuf>,
}

const DECODERS: &[&str] = &["decoder_model_merged", "decoder_model", "text", "decoder"];
const VISION: &[&str] = &["vision_encoder", "vision"];
const EMBED: &[&str] = &["embed_tokens", "embedding"];
const SUFFIXES: &[&str] = &["", "_fp16", "_fp32"];

impl Folder {
    /// Looks into `path` and, as published folders have it, into `path/onnx`.
    pub fn open(path: &Path) -> Result<Folder, Error> {
        let places = [path.to_owned(), path.join("onnx")];
        let find = |names: &[&str]| {
            places.iter().find_map(|place| {
                let files = names.iter().flat_map(|n| SUFFIXES.iter().map(move |s| place.join(format!("{n}{s}.onnx"))));
                files.into_iter().find(|file| file.is_file())
            })
        };
        let decoder = find(DECODERS).ok_or_else(|| Error::Content {
            file: path.to_owned(),
            reason: format!(
                "no decoder graph found; expected one of {} (.onnx, also with {}) here or in onnx/. To compile a single \
                 graph, name its file",
                DECODERS.join(", "),
                SUFFIXES[1..].join(", ")
            ),
        })?;
        Ok(Folder { decoder, vision: find(VISION), embed: find(EMBED) })
    }
}

/// `mbqc FOLDER/ -o OUT/`: compiles the decoder, and the vision encoder where a format is given for it; copies what
/// belongs to them.
pub fn compile(path: &Path, options: &Compile) -> Result<(), Error> {
    let folder = Folder::open(path)?;
    let mut places = pipeline::inputs(path, options)?;
    let asked = options.output.as_deref();
    if let Some(output) = asked {
        places.folder_output("-o", output, path)?;
    }
    pipeline::claim_plan(&mut places, options)?;
    let output = asked.filter(|_| !options.dry_run);
    if let Some(output) = output {
        probe_folder("-o", output)?;
        may_fill(output, options.force)?;
    }
    let progress = Progress::new(options.common.quiet);
    let runner = Walk::new(pipeline::pool(&options.common), Compute::F32).with_casts(pipeline::half_casts(options));
    let decoder = pipeline::read_at(&folder.decoder, &mut places, &options.common)?;
    let mut read = |file: &Option<PathBuf>| {
        file.as_deref().map(|file| pipeline::read_at(file, &mut places, &options.common)).transpose()
    };
    let (vision, embed) = (read(&folder.vision)?, read(&folder.embed)?);
    let with_vision = options.vision_format != "none";
    // Without an output nothing is left out for its sake.
    let listing = list(
        path,
        asked.unwrap_or(Path::new("")),
        &[vision.as_ref().filter(|_| !with_vision), embed.as_ref()],
        |file| is_of(&decoder, file) || (with_vision && vision.as_ref().is_some_and(|vision| is_of(vision, file))),
    )?;
    let compiled = [Some(&folder.decoder), folder.vision.as_ref().filter(|_| with_vision)];
    let compiled = compiled.into_iter().flatten().filter_map(|file| file.strip_prefix(path).ok());
    for (file, output) in listing.copied.iter().map(PathBuf::as_path).chain(compiled).zip(asked.into_iter().cycle()) {
        places.output("a file of -o", &output.join(file))?;
    }

    let model = |file: &Option<onnx::File>| file.as_ref().map(|file| file.model.clone());
    let frontend = Frontend::of(model(&vision), model(&embed));
    let encoder = match vision.filter(|_| with_vision) {
        Some(file) => Some(compile_vision(file, &folder, path, options, &runner, &progress)?),
        None if with_vision => {
            progress.warn("without effect, because the folder has no vision encoder: --vision-format");
            None
        }
        None => None,
    };
    let unit = Unit { file: decoder, path: folder.decoder.clone(), folder: path.to_owned(), frontend };
    let mut text = options.clone();
    text.vision_format = "none".to_owned();
    let decided = pipeline::compile(unit, &text, &runner, &progress)?;
    pipeline::save_plan(&decided.plan, options, &progress)?;
    let mut outcome = Outcome { decided, written: None };
    let mut encoder = encoder.map(|decided| Outcome { decided, written: None });
    if let Some(output) = output {
        listing.left.iter().for_each(|(why, files)| progress.say(&left(why, files)));
        write(path, output, &listing, [Some(&mut outcome), encoder.as_mut()], &progress)?;
    }
    drop(progress);
    report(&outcome, encoder.as_ref(), &options.common)
}

fn left(why: &str, files: &[PathBuf]) -> String {
    let names: Vec<String> = files.iter().take(6).map(|file| file.display().to_string()).collect();
    let more = files.len() - names.len();
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("not copied: {}{more} ({why})", names.join(", "))
}

/// The vision encoder on its own: its layers read no tokens, so its ranges are searched data-free.
fn compile_vision(
    file: onnx::File,
    folder: &Folder,
    path: &Path,
    options: &Compile,
    runner: &Walk,
    progress: &Progress,
) -> Result<Decided, Error> {
    let mut own = options.clone();
    own.format.clone_from(&options.vision_format);
    own.vision_format.clone_from(&options.vision_format);
    // Its last layer projects into the decoder, not onto a vocabulary.
    own.head_format.clone_from(&options.vision_format);
    own.method = Some(options.method.clone().filter(|name| name == "rtn").unwrap_or_else(|| "range".to_owned()));
    (own.calib, own.samples, own.search_samples, own.image_token_id, own.logits) = (None, None, None, None, None);
    own.switches =
        crate::cli::Switches { range: own.switches.range, scales: own.switches.scales, ..Default::default() };
    own.include = Vec::new();
    let unit = Unit {
        file,
        path: folder.vision.clone().unwrap_or_default(),
        folder: path.to_owned(),
        frontend: Frontend::none(),
    };
    pipeline::compile(unit, &own, runner, progress)
}

/// Whether `path` is a file that a model was read from.
fn is_of(file: &onnx::File, path: &Path) -> bool {
    let place = resolved(path);
    let mut parts = std::iter::once(file.source.path()).chain(file.source.data_files().map(|(data, _)| data));
    parts.any(|part| resolved(part) == place)
}

/// A folder that holds something else is left alone unless `force` says otherwise.
fn may_fill(output: &Path, force: bool) -> Result<(), Error> {
    let entries = fs::read_dir(output).into_iter().flatten().flatten();
    let mut names =
        entries.map(|entry| entry.file_name()).filter(|name| !name.as_encoded_bytes().starts_with(b".mbqc-"));
    let Some(first) = names.next().filter(|_| !force) else { return Ok(()) };
    let ours = Folder::open(output).ok().and_then(|folder| {
        let file = onnx::read(&folder.decoder, &onnx::ReadOptions { allow_lossy: true }).ok()?;
        stamp::is_marked(&file.model).then_some(())
    });
    if ours.is_some() {
        return Ok(());
    }
    let reason = format!(
        "found a folder with other content (`{}`), expected none, an empty one or one that mbqc has written; name another \
         one, or pass --force to write into it",
        first.to_string_lossy()
    );
    Err(Error::Content { file: output.to_owned(), reason })
}

/// Puts everything together beside the output and moves it into place: the decoder last, whose notes make the folder ours.
fn write(
    path: &Path,
    output: &Path,
    listing: &Listing,
    outcomes: [Option<&mut Outcome>; 2],
    progress: &Progress,
) -> Result<(), Error> {
    fs::create_dir_all(folder_of(output)).map_err(Error::file(output))?;
    let staging = Staging::beside(output)?;
    let mut files = Vec::new();
    for file in &listing.copied {
        let (staged, to) = (staging.path().join(file), output.join(file));
        let copied = fs::create_dir_all(folder_of(&staged)).and_then(|()| fs::copy(path.join(file), &staged));
        copied.map_err(Error::file(&to))?;
        files.push((staged, to));
    }
    let mut formats: Vec<String> =
        outcomes.iter().flatten().flat_map(|o| o.decided.plan.recipes.iter().map(|r| r.format.clone())).collect();
    formats.sort_unstable();
    formats.dedup();
    for (at, outcome) in outcomes.into_iter().enumerate().rev() {
        let Some(outcome) = outcome else { continue };
        let decided = &outcome.decided;
        let source = &decided.file.source;
        let file = source.path().strip_prefix(path).unwrap_or(source.path()).to_owned();
        let (staged, to) = (staging.path().join(&file), output.join(&file));
        let written = write_staged(Some(source), &decided.result, &staged, &to, progress)?;
        if let Some(data) = &written.data {
            files.push((staged.with_file_name(data.file_name().unwrap_or_default()), data.clone()));
        }
        files.push((staged, to));
        outcome.written = Some(written);
        if at == 0 {
            update_config(staging.path(), output, &decided.plan, &formats)?;
        }
    }
    if output.exists() { staging.publish(&files) } else { staging.publish_folder(output) }
}

/// Says in `config.json` how the folder was quantized, as loaders expect to find it: the decoder's method, all formats.
fn update_config(folder: &Path, output: &Path, plan: &Plan, formats: &[String]) -> Result<(), Error> {
    let (file, to) = (folder.join("config.json"), output.join("config.json"));
    let Ok(text) = fs::read_to_string(&file) else { return Ok(()) };
    let mut config: serde_json::Value = serde_json::from_str(&text)
        .map_err(|e| Error::Content { file: to.clone(), reason: format!("not valid JSON: {e}") })?;
    if let Some(object) = config.as_object_mut() {
        let note = serde_json::json!({ "quant_method": "mbqc", "method": plan.method, "formats": formats });
        object.insert("quantization_config".to_owned(), note);
    }
    let text = serde_json::to_string_pretty(&config).map_err(|e| Error::Usage(e.to_string()))?;
    // A copy keeps the rights of a file that may be read only.
    fs::remove_file(&file).and_then(|()| fs::write(&file, text)).map_err(Error::file(&to))
}
