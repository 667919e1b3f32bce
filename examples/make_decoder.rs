//! Writes a decoder of any size with made-up weights: something to measure time and memory on.
//!
//! ```text
//! cargo run --release --example make_decoder -- --layers 28 --hidden 3584 --heads 28 --kv-heads 4 \
//!     --intermediate 18944 --vocab 152064 -o decoder.onnx
//! ```

use std::path::PathBuf;

use clap::{Parser, ValueEnum};
use mbqc::onnx::{self, WriteOptions};
use mbqc_passes::ir::DType;

#[path = "../tests/support/decoder.rs"]
mod decoder;

use decoder::{Decoder, TINY};

/// Writes a decoder with made-up weights.
#[derive(Parser)]
struct Arguments {
    /// Transformer blocks.
    #[arg(long, default_value_t = TINY.layers)]
    layers: usize,
    /// Width of the residual stream.
    #[arg(long, default_value_t = TINY.hidden)]
    hidden: usize,
    /// Query heads.
    #[arg(long, default_value_t = TINY.heads)]
    heads: usize,
    /// Key and value heads.
    #[arg(long, default_value_t = TINY.kv_heads)]
    kv_heads: usize,
    /// Width of the MLP.
    #[arg(long, default_value_t = TINY.intermediate)]
    intermediate: usize,
    /// Tokens in the vocabulary.
    #[arg(long, default_value_t = TINY.vocab)]
    vocab: usize,
    /// What the weights are drawn from.
    #[arg(long, default_value_t = TINY.seed)]
    seed: u64,
    /// Type of weights and activations.
    #[arg(long, value_enum, default_value = "f16")]
    dtype: Float,
    /// Where the model goes.
    #[arg(short, long)]
    output: PathBuf,
}

#[derive(Clone, Copy, ValueEnum)]
enum Float {
    F16,
    F32,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let Arguments { layers, hidden, heads, kv_heads, intermediate, vocab, seed, dtype, output } = Arguments::parse();
    let dtype = match dtype {
        Float::F16 => DType::F16,
        Float::F32 => DType::F32,
    };
    let decoder = Decoder { layers, hidden, heads, kv_heads, intermediate, vocab, seed, dtype };
    let written = onnx::write(None, &decoder.model()?, &output, &WriteOptions::default())?;
    eprintln!("{}: {:.1} MB", output.display(), (written.model_bytes + written.data_bytes) as f64 / 1e6);
    Ok(())
}
