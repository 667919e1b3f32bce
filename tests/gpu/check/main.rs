//! The CUDA kernels on a device, against float64: what `tests/gpu/run.sh` starts on a machine with a GPU, and what CI starts on a
//! driver that emulates one (`tests/emulated.rs`), where nothing it says is about a GPU.
//!
//! ```text
//! gpu_check [--device N] [--only check|wide|bench|tune|alone] [--runs N] [--small] [--without-blas] [--out FOLDER]
//! ```
//!
//! `wide` is what of `check` has to do with the kernels for 256 token rows at once. Prints a line per group of cases and tables of times, writes receipts (`<unit>.<device>.json`) to the folder after every part, and
//! ends with status 1 if anything was wrong. `--small` leaves out what takes long: for compute-sanitizer, and for the emulation. `--without-blas` leaves
//! cuBLASLt out, whose kernels are not ours to judge.

#![allow(clippy::print_stdout, reason = "a program that prints")]

mod bench;
mod chains;
mod check;
mod few_rows;
mod integers;
mod misuse;
mod norms;
mod prefill;
mod receipt;
#[path = "../../../kernels/tests/support/mod.rs"]
mod support;
mod wide;

use mbqc_kernels::cuda::{Device, DeviceError};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

/// How often each case is run unless it is told otherwise, and at least for a receipt that counts.
const ENOUGH_RUNS: usize = 100;

/// What to do.
#[derive(Clone, Debug)]
struct Options {
    device: usize,
    only: Option<String>,
    /// How often each case is run; all runs have to give the same bits.
    runs: usize,
    small: bool,
    without_blas: bool,
    out: Option<PathBuf>,
}

fn options() -> Result<Options, String> {
    let mut options =
        Options { device: 0, only: None, runs: ENOUGH_RUNS, small: false, without_blas: false, out: None };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut next = || words.next().ok_or(format!("{word}: what?"));
        let number = |text: String| text.parse::<usize>().map_err(|_| format!("{text} is no number"));
        match word.as_str() {
            "--device" => options.device = number(next()?)?,
            "--runs" => options.runs = number(next()?)?.max(2),
            "--out" => options.out = Some(next()?.into()),
            "--small" => options.small = true,
            "--without-blas" => options.without_blas = true,
            "--only" => {
                let part = next()?;
                if !["check", "wide", "bench", "tune", "alone"].contains(&part.as_str()) {
                    return Err(format!("--only {part}: there are check, wide, bench, tune and alone"));
                }
                options.only = Some(part);
            }
            _ => return Err(format!("{word} is no option; see the head of tests/gpu/check/main.rs")),
        }
    }
    Ok(options)
}

impl Options {
    fn does(&self, part: &str) -> bool {
        match &self.only {
            Some(only) => only == part,
            // The others answer other questions.
            None => part == "check" || part == "bench",
        }
    }
}

fn main() -> ExitCode {
    match options().and_then(|options| work(&options)) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(faults) => {
            println!("{faults} faults");
            ExitCode::FAILURE
        }
        Err(error) => {
            println!("error: {error}");
            ExitCode::from(2)
        }
    }
}

/// The number of formats whose small cases were not dealt out in every way.
fn unmet(receipts: &mut receipt::Receipts) -> usize {
    let units = receipts.unmet();
    for unit in &units {
        let fault = format!("{unit}: with 64 rows, blocks never shared a band, or never had several");
        println!("WRONG: {fault}");
        receipts.fault(Some(unit), &fault);
    }
    units.len()
}

/// The number of faults.
fn work(options: &Options) -> Result<usize, String> {
    let text = |error: DeviceError| error.to_string();
    let begin = Instant::now();
    // As many multiprocessors as the emulated device has, so that blocks have several tiles, and of several bands, with little to do.
    let multiprocessors = if options.small { 3 } else { usize::MAX };
    let device = Device::open_for(options.device, multiprocessors).map_err(text)?;
    println!("{:?}", device.about());
    let mut receipts = receipt::Receipts::new(&device, options.out.clone());
    let mut faults = 0;
    let only_wide = options.only.as_deref() == Some("wide");
    if options.does("check") || only_wide {
        type Part = fn(&Arc<Device>, &Options, &mut receipt::Receipts) -> Result<usize, DeviceError>;
        let parts: [(&str, Part); 7] = [
            ("few rows", check::all),
            ("integers", integers::all),
            ("norms", norms::all),
            ("many rows", prefill::all),
            ("256 rows at once", wide::all),
            ("chains", chains::all),
            ("misuse", misuse::all),
        ];
        // What takes long comes last: should there be no time for it, the rest was seen.
        let [weights, of_integers, many, of_256] = receipt::LARGE;
        let large: [(&str, Part); 4] =
            [(weights, check::large), (of_integers, integers::large), (many, prefill::large), (of_256, wide::large)];
        let large = if options.small { &[][..] } else { &large[..] };
        let all = parts.iter().map(|part| (part, false)).chain(large.iter().map(|part| (part, true)));
        let mut dealt = only_wide;
        for ((name, part), is_large) in all.filter(|((name, _), _)| !only_wide || name.starts_with("256")) {
            if is_large && !dealt {
                faults += unmet(&mut receipts);
                dealt = true;
            }
            let start = Instant::now();
            // What one part cannot do says nothing of the others.
            faults += part(&device, options, &mut receipts).unwrap_or_else(|error| {
                println!("WRONG: {name}: {error}");
                receipts.fault(None, &format!("{name}: {error}"));
                1
            });
            println!("{name}: {:.1} s", start.elapsed().as_secs_f64());
            // Should there be no time for what comes later, these units have had theirs.
            if is_large && !only_wide && options.runs >= ENOUGH_RUNS {
                receipts.complete(name);
            }
            receipts.write()?;
        }
        if !dealt {
            faults += unmet(&mut receipts);
        }
    }
    receipts.write()?;
    if options.does("bench") {
        bench::all(&device, options, &mut receipts).map_err(text)?;
        receipts.write()?;
        match bench::many(&device, options, &mut receipts) {
            Err(error @ DeviceError::NoBlas) => println!("\nmany rows: {error}"),
            other => other.map_err(text)?,
        }
        receipts.write()?;
    }
    if options.does("tune") {
        bench::tune(&device, options).map_err(text)?;
    }
    if options.does("alone") {
        bench::alone(&device, options).map_err(text)?;
    }
    for loaded in device.loaded() {
        println!("{}: {}", loaded.unit, loaded.from);
    }
    println!("{:.0} s", begin.elapsed().as_secs_f64());
    Ok(faults)
}
