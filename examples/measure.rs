//! What compiling a large model takes: a table of time and memory.
//!
//! ```text
//! cargo build --release --bin mbqc && cargo run --release --example measure
//! ```
//!
//! The model is made up, with the widths of a 7B decoder and as many layers as fit into the size that is asked for
//! (`--megabytes`, 2000 by default). It needs one and a third times its size of free disk in the folder for temporary files.

#![expect(clippy::print_stdout, reason = "the table is what the program is for")]

use std::path::PathBuf;
use std::process::Command;

use clap::Parser;
use mbqc::onnx::{self, WriteOptions};
use mbqc_passes::facts::sites::survey;
use mbqc_passes::ir::DType;

#[path = "../tests/support/child.rs"]
mod child;
#[path = "../tests/support/decoder.rs"]
mod decoder;

use decoder::{Decoder, TINY};

/// Prints what compiling a large model takes.
#[derive(Parser)]
struct Arguments {
    /// Size of the model, about.
    #[arg(long, default_value_t = 2000)]
    megabytes: usize,
    /// Methods to measure.
    #[arg(long, default_values = ["rtn", "range"])]
    method: Vec<String>,
    /// Worker threads.
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// The program; default the one beside this.
    #[arg(long)]
    mbqc: Option<PathBuf>,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let Arguments { megabytes, method: methods, threads, mbqc } = Arguments::parse();
    let here = std::env::current_exe()?;
    let beside = here.parent().and_then(|examples| examples.parent()).map(|target| target.join("mbqc"));
    let mbqc = mbqc.or(beside).ok_or("no program beside this one; pass --mbqc")?;
    let wide = Decoder {
        layers: 1,
        hidden: 3584,
        heads: 28,
        kv_heads: 4,
        intermediate: 18_944,
        vocab: 32_000,
        dtype: DType::F16,
        ..TINY
    };
    // A layer of these widths has 466 MB, the final projection 229 MB.
    let model = Decoder { layers: megabytes.saturating_sub(229).div_ceil(466).max(1), ..wide }.model()?;
    let survey = survey(&model)?;
    let layers = survey.sites.iter().filter(|site| !site.head);
    let weights: usize = layers.map(|site| site.weight.tensor.stored_bytes()).sum();

    let folder = tempfile::tempdir()?;
    let path = folder.path().join("model.onnx");
    let written = onnx::write(None, &model, &path, &WriteOptions::default())?;
    let size = (written.model_bytes + written.data_bytes) as f64 / 1e6;
    println!(
        "| method | model MB | quantized MB | threads | seconds | processor s | MB/s per core | peak anonymous MB |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for method in methods {
        let mut command = Command::new(&mbqc);
        command.arg(&path).arg("-o").arg(folder.path().join("out.onnx"));
        command.args(["--quiet", "--method", &method, "--threads", &threads.to_string()]);
        let usage = child::watch(&mut command)?;
        println!(
            "| {method} | {size:.0} | {:.0} | {threads} | {:.1} | {:.1} | {:.0} | {:.1} |",
            weights as f64 / 1e6,
            usage.elapsed,
            usage.processor,
            weights as f64 / 1e6 / usage.processor,
            usage.anonymous as f64 / 1e6,
        );
    }
    Ok(())
}
