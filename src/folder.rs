//! A folder of graphs as one unit: vision encoder, token embedding and decoder, with their configuration.

use std::path::{Path, PathBuf};

use mbqc_passes::array::Compute;
use mbqc_passes::run::Walk;

use crate::Error;
use crate::calibration::Frontend;
use crate::cli::Compile;
use crate::pipeline::{self, Unit, compile as compile_unit, report};

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

/// `mbqc FOLDER/ -o OUT/`: compiles the decoder, copies everything else.
pub fn compile(path: &Path, output: &Path, options: &Compile) -> Result<(), Error> {
    let folder = Folder::open(path)?;
    let inside = std::path::absolute(output).map_err(Error::file(output))?;
    let source = std::path::absolute(path).map_err(Error::file(path))?;
    if inside == source {
        return Err(Error::Usage("the output folder is the input folder; name another one".to_owned()));
    }
    if inside.exists() && !inside.is_dir() {
        let reason = "found a file, expected a folder: a folder is compiled into a folder".to_owned();
        return Err(Error::Content { file: output.to_owned(), reason });
    }
    let runner = Walk::new(pipeline::pool(&options.common), Compute::F32).with_casts(pipeline::half_casts(options));
    let file = pipeline::read(&folder.decoder, &options.common)?;
    let read_part =
        |path: &Option<PathBuf>| path.as_ref().map(|p| pipeline::read(p, &options.common).map(|f| f.model)).transpose();
    let frontend = if options.calib.is_some() {
        Frontend::of(&runner, read_part(&folder.vision)?, read_part(&folder.embed)?)?
    } else {
        Frontend::none()
    };
    let unit = Unit { file, path: folder.decoder.clone(), folder: path.to_owned(), frontend };
    if options.dry_run {
        let outcome = compile_unit(unit, output, options, &runner)?;
        return report(&outcome, &options.common);
    }
    // Everything is put together beside the output and moved into place at the end.
    let parent = inside.parent().unwrap_or(Path::new("/")).to_owned();
    std::fs::create_dir_all(&parent).map_err(Error::file(&parent))?;
    let staging = tempfile::Builder::new().prefix(".mbqc-").tempdir_in(&parent).map_err(Error::file(&parent))?;
    let compiled = folder.decoder.strip_prefix(path).unwrap_or(&folder.decoder).to_owned();
    let data = options.calib.as_deref().and_then(|p| std::path::absolute(p).ok());
    let data_files: Vec<PathBuf> = unit.file.source.data_files().map(|(p, _)| p.to_owned()).collect();
    copy_tree(path, staging.path(), &|file| {
        let same = std::path::absolute(file).ok();
        file == folder.decoder || (same.is_some() && same == data) || data_files.iter().any(|d| d == file)
    })?;
    let target = staging.path().join(&compiled);
    if let Some(place) = target.parent() {
        std::fs::create_dir_all(place).map_err(Error::file(place))?;
    }
    let mut outcome = compile_unit(unit, &target, options, &runner)?;
    update_config(staging.path(), &outcome.plan)?;
    if inside.exists() {
        move_into(staging.path(), &inside)?;
    } else {
        let kept = staging.keep();
        std::fs::rename(&kept, &inside).map_err(Error::file(&inside))?;
    }
    if let Some(written) = &mut outcome.written {
        written.model = output.join(&compiled);
        written.data = written.data.take().and_then(|d| Some(output.join(&compiled).with_file_name(d.file_name()?)));
    }
    report(&outcome, &options.common)
}

/// Copies a tree, leaving out what `skip` names.
fn copy_tree(from: &Path, to: &Path, skip: &dyn Fn(&Path) -> bool) -> Result<(), Error> {
    let entries = std::fs::read_dir(from).map_err(Error::file(from))?;
    let mut entries: Vec<PathBuf> = entries.filter_map(Result::ok).map(|e| e.path()).collect();
    entries.sort();
    for entry in entries {
        let Some(name) = entry.file_name() else { continue };
        let target = to.join(name);
        if entry.is_dir() {
            std::fs::create_dir_all(&target).map_err(Error::file(&target))?;
            copy_tree(&entry, &target, skip)?;
        } else if !skip(&entry) {
            std::fs::copy(&entry, &target).map_err(Error::file(&target))?;
        }
    }
    Ok(())
}

/// Moves the content of a folder into another one, file by file.
fn move_into(from: &Path, to: &Path) -> Result<(), Error> {
    for entry in std::fs::read_dir(from).map_err(Error::file(from))?.filter_map(Result::ok) {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            std::fs::create_dir_all(&target).map_err(Error::file(&target))?;
            move_into(&entry.path(), &target)?;
        } else {
            std::fs::rename(entry.path(), &target).map_err(Error::file(&target))?;
        }
    }
    Ok(())
}

/// Says in `config.json` how the decoder was quantized, as loaders expect to find it.
fn update_config(folder: &Path, plan: &mbqc_passes::plan::Plan) -> Result<(), Error> {
    let file = folder.join("config.json");
    let Ok(text) = std::fs::read_to_string(&file) else { return Ok(()) };
    let mut config: serde_json::Value = serde_json::from_str(&text)
        .map_err(|e| Error::Content { file: file.clone(), reason: format!("not valid JSON: {e}") })?;
    let mut formats: Vec<&str> = plan.recipes.iter().map(|r| r.format.as_str()).collect();
    formats.sort_unstable();
    formats.dedup();
    if let Some(object) = config.as_object_mut() {
        let note = serde_json::json!({ "quant_method": "mbqc", "method": plan.method, "formats": formats });
        object.insert("quantization_config".to_owned(), note);
    }
    crate::stamp::write_json(&file, &config)
}
