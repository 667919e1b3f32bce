//! The CUDA kernels compile for every architecture, within their ceilings of registers, spills and instructions. Whether they
//! compute the right thing is tested on the host (`kernels/tests/emulated.rs`); nothing here runs on a GPU.

mod support;

use std::path::Path;
use std::process::Command;

use support::{Outcome, python, tell};

#[test]
fn kernels_compile_within_their_ceilings() -> Outcome {
    let Some(python) = python() else { return Ok(()) };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/gpu/compile.py");
    let output = Command::new(&python).arg(&script).output()?;
    let (table, faults) = (String::from_utf8(output.stdout)?, String::from_utf8(output.stderr)?);
    assert!(output.status.success(), "{table}\n{faults}");
    let last = table.lines().next_back().ok_or("the script says nothing")?;
    tell(&format!("CUDA: {last}; receipts: STALE, no kernel has run on a GPU yet"));
    Ok(())
}
