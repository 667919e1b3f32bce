//! The Python of the oracles, or a counted skip.

use std::path::PathBuf;
use std::process::Command;

/// The Python with the packages of `tests/requirements.txt`: `MBQC_PYTHON`, or the environment `tests/run.sh` makes.
/// Answers `None`, and says so, when there is none; with `MBQC_FORBID_SKIPS=1` that is a failure.
pub(crate) fn python() -> Option<PathBuf> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let named = std::env::var_os("MBQC_PYTHON").map(PathBuf::from);
    let candidate = named.unwrap_or_else(|| root.join(".venv/bin/python"));
    let works = Command::new(&candidate).args(["-c", "import numpy, onnx, onnxruntime"]).output();
    if works.is_ok_and(|output| output.status.success()) {
        return Some(candidate);
    }
    let forbidden = std::env::var_os("MBQC_FORBID_SKIPS").is_some_and(|v| v == "1");
    assert!(!forbidden, "no Python with the oracles' packages, and MBQC_FORBID_SKIPS=1; run tests/run.sh");
    println!("skipped: no Python with the oracles' packages (run tests/run.sh)");
    None
}
