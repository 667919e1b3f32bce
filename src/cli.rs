//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::commands::DeviceChoice;

/// A compiler for exported vision-language models: modality-balanced low-bit weights, ONNX in and out.
///
/// `mbqc MODEL -o OUT` quantizes the linear layers of a model to 3 bits in groups of 128. With calibration data (--calib)
/// it searches equalisation scales that balance vision and answer tokens (MBQ); without, it searches ranges data-free.
#[derive(Parser, Debug)]
#[command(
    name = "mbqc",
    version,
    args_conflicts_with_subcommands = true,
    arg_required_else_help = true,
    subcommand_negates_reqs = true
)]
pub struct Cli {
    /// What to do instead of compiling.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// The main job.
    #[command(flatten)]
    pub compile: Compile,
}

/// Options of the main job.
#[derive(Args, Debug, Clone)]
pub struct Compile {
    /// Model file, or folder with vision encoder, embed_tokens and decoder_model_merged.
    #[arg(required = true)]
    pub model: Option<PathBuf>,
    /// Where the result goes: a file, or a folder when a folder is compiled.
    #[arg(short, long, required_unless_present = "dry_run")]
    pub output: Option<PathBuf>,
    /// Weight format: w2, w3, w4 or w8 with group size 16 to 256, or w8a8 or w4a8.
    #[arg(long, default_value = "w3g128")]
    pub format: String,
    /// Format of the vision tower's layers, or of a folder's vision encoder; `none` leaves them as they are.
    #[arg(long, default_value = "none")]
    pub vision_format: String,
    /// Format of the final projection (lm_head); `none` leaves it as it is.
    #[arg(long, default_value = "none")]
    pub head_format: String,
    /// Method; default mbq with calibration data, range without. See `mbqc list methods`.
    #[arg(long)]
    pub method: Option<String>,
    /// Calibration data: .npz file or folder of them.
    #[arg(long)]
    pub calib: Option<PathBuf>,
    /// Token id of image placeholders, where neither graph nor config.json tells it.
    #[arg(long)]
    pub image_token_id: Option<i64>,
    /// Output whose cross-entropy counts; default `logits`, else the first float output.
    #[arg(long)]
    pub logits: Option<String>,
    /// At most this many calibration samples.
    #[arg(long)]
    pub samples: Option<usize>,
    /// At most this many of them in the scale search (gradients use all).
    #[arg(long)]
    pub search_samples: Option<usize>,
    /// Switches that set a method and its variants apart.
    #[command(flatten)]
    pub switches: Switches,
    /// Quantize only layers whose name, node or weight matches this glob; may be repeated.
    #[arg(long)]
    pub include: Vec<String>,
    /// Leave alone layers whose name, node or weight matches this glob; may be repeated.
    #[arg(long)]
    pub exclude: Vec<String>,
    /// How the result is written.
    #[command(flatten)]
    pub emit: Emit,
    /// Save the plan here, as soon as it is made.
    #[arg(long)]
    pub plan_out: Option<PathBuf>,
    /// Decide and report, write no model; needs no --output.
    #[arg(long)]
    pub dry_run: bool,
    /// Write into an output folder although it holds something else.
    #[arg(long)]
    pub force: bool,
    /// Fail (exit code 3) when a linear layer that was asked for cannot be quantized.
    #[arg(long)]
    pub strict: bool,
    /// Common options.
    #[command(flatten)]
    pub common: Common,
}

/// Switches of methods; each overrides what the method itself says.
#[derive(Args, Debug, Clone, Default)]
#[command(next_help_heading = "Switches of methods")]
pub struct Switches {
    /// Which rows are answer rows: those whose logits are supervised, or those that carry an answer token.
    #[arg(long, value_enum)]
    pub answer_rows: Option<AnswerRowsArg>,
    /// rho from gradients where a group's error is judged, with a lower bound (reference code), or at the outputs of the
    /// group's own layers, without one (paper).
    #[arg(long, value_enum)]
    pub rho: Option<RhoArg>,
    /// Lower bound of rho: none, the median over all layers of a kind, or over those that vision rows can reach.
    #[arg(long, value_enum)]
    pub floor: Option<FloorArg>,
    /// Ranges as they are (reference code), extended to contain zero, or searched for.
    #[arg(long, value_enum)]
    pub range: Option<RangeArg>,
    /// Casts to half types round while calibrating (as the graph does where it runs), or keep the value.
    #[arg(long, value_enum)]
    pub half_casts: Option<HalfCastsArg>,
    /// Where no constant can absorb a scale: put a Mul before the layers, or leave them unscaled (reference code).
    #[arg(long, value_enum)]
    pub unfolded: Option<UnfoldedArg>,
    /// Scales rounded to their stored type before codes are made, or kept in f32 (reference code).
    #[arg(long, value_enum)]
    pub scales: Option<ScalesArg>,
}

/// Values of --answer-rows.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum AnswerRowsArg {
    /// Rows whose logits are supervised.
    Shifted,
    /// Rows that carry an answer token.
    Unshifted,
}

/// Values of --rho.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum RhoArg {
    /// At the judging point, bounded below.
    Reference,
    /// At the group's own layers.
    Paper,
}

/// Values of --floor.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum FloorArg {
    /// No lower bound.
    None,
    /// Median over all layers of a kind.
    Median,
    /// Median over the layers of a kind that vision rows can reach.
    MedianLive,
}

/// Values of --range.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum RangeArg {
    /// Smallest and largest weight.
    MinMax,
    /// Extended to contain zero.
    IncludeZero,
    /// Searched per group of weights.
    Search,
}

/// Values of --half-casts.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum HalfCastsArg {
    /// Round.
    Round,
    /// Keep the value.
    Keep,
}

/// Values of --unfolded.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnfoldedArg {
    /// A Mul before the layers, where the search finds that a scale helps.
    Mul,
    /// A scale of one.
    Leave,
}

/// Values of --scales.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScalesArg {
    /// Rounded to the stored type first.
    Stored,
    /// In f32.
    F32,
}

/// How results are written.
#[derive(Args, Debug, Clone)]
pub struct Emit {
    /// Operators the result may use.
    #[arg(long, value_enum, default_value = "mbqc")]
    pub target: TargetArg,
    /// Body of layers of our own operators for runtimes without our kernels; default ort.
    #[arg(long, value_enum)]
    pub fallback: Option<FallbackArg>,
    /// Arithmetic of weight-only layers: auto is the closest for 3 and 4 bits and int8 activations for 2 and 8 bits.
    #[arg(long, value_enum, default_value = "auto")]
    pub accuracy: AccuracyArg,
}

/// Options that all commands share.
#[derive(Args, Debug, Clone)]
pub struct Common {
    /// Worker threads; results do not depend on their number.
    #[arg(long, value_parser = threads)]
    pub threads: Option<usize>,
    /// One JSON document on standard output; logs go to standard error.
    #[arg(long)]
    pub json: bool,
    /// No progress and no tables.
    #[arg(long)]
    pub quiet: bool,
    /// Read models with fields this version does not know; they are lost when the model is written.
    #[arg(long)]
    pub allow_lossy: bool,
}

/// Values of --target.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum TargetArg {
    /// Our operator for 3 bits, with a body for other runtimes.
    Mbqc,
    /// Stock onnxruntime operators only: 3-bit codes in 4-bit containers.
    Ort,
}

/// Values of --fallback.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum FallbackArg {
    /// A body that ends in onnxruntime's 4-bit operator.
    Ort,
    /// A body of standard operators (opset 21).
    Standard,
    /// No body.
    None,
}

/// Values of --accuracy.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccuracyArg {
    /// The closest for 3 and 4 bits, int8 activations for 2 and 8.
    Auto,
    /// The closest everywhere: f32 in onnxruntime, activations of 16 bits in our kernels.
    Exact,
    /// int8 activations everywhere.
    Fast,
}

/// Commands besides the main job.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Rewrite a model by a saved plan.
    Apply {
        /// The model the plan was made for.
        model: PathBuf,
        /// The plan.
        #[arg(long)]
        plan: PathBuf,
        /// Where the result goes.
        #[arg(short, long)]
        output: PathBuf,
        /// How the result is written.
        #[command(flatten)]
        emit: Emit,
        /// Common options.
        #[command(flatten)]
        common: Common,
    },
    /// What is in a model: layers, groups, modality, sizes, operators, coverage.
    Inspect {
        /// Model file or folder.
        model: PathBuf,
        /// The graph as text.
        #[arg(long)]
        text: bool,
        /// The difference of the two graphs' texts.
        #[arg(long)]
        diff: Option<PathBuf>,
        /// Calibration data, to show which rows of every value are vision and which are text.
        #[arg(long)]
        calib: Option<PathBuf>,
        /// Token id of image placeholders.
        #[arg(long)]
        image_token_id: Option<i64>,
        /// Common options.
        #[command(flatten)]
        common: Common,
    },
    /// Two models side by side on data: KL, top-1 flips, answer cross-entropy, exact match, error per block.
    Verify {
        /// The original.
        fp: PathBuf,
        /// The quantized model.
        quantized: PathBuf,
        /// Evaluation data: .npz file or folder.
        #[arg(long)]
        data: PathBuf,
        /// At most this many samples.
        #[arg(long)]
        samples: Option<usize>,
        /// Token id of image placeholders.
        #[arg(long)]
        image_token_id: Option<i64>,
        /// Output to compare; default `logits`, else the first float output.
        #[arg(long)]
        logits: Option<String>,
        /// Common options.
        #[command(flatten)]
        common: Common,
    },
    /// Execute a model with our kernels.
    Run {
        /// The model.
        model: PathBuf,
        /// Arrays by input name.
        #[arg(long)]
        inputs: PathBuf,
        /// Where the outputs go.
        #[arg(long)]
        outputs: PathBuf,
        /// Compute as many times more, and tell the median time.
        #[arg(long, value_name = "TIMES", default_value_t = 0)]
        repeat: usize,
        /// Common options.
        #[command(flatten)]
        common: Common,
    },
    /// Time the quantized layers of a model one by one: microseconds, bytes moved, part of what memory can deliver.
    Bench {
        /// The model.
        model: PathBuf,
        /// Token rows of the inputs: 1 is decoding, many are a prompt.
        #[arg(long, value_delimiter = ',', default_value = "1")]
        rows: Vec<usize>,
        /// How long each number of rows is repeated.
        #[arg(long, default_value_t = 2.0)]
        seconds: f64,
        /// Make every so-many-th activation 50 times as large; 0: none. Products of 16 bits then work longer.
        #[arg(long, value_name = "DISTANCE", default_value_t = 0)]
        outliers: usize,
        /// What multiplies: cpu, cuda, or cuda:N for a device of that number (see `mbqc devices`).
        #[arg(long, default_value = "cpu")]
        device: DeviceChoice,
        /// Common options.
        #[command(flatten)]
        common: Common,
    },
    /// 3-bit layers to 4-bit containers of the same codes: stock operators only, no load cost.
    Bake {
        /// The model.
        model: PathBuf,
        /// Where the result goes.
        #[arg(short, long)]
        output: PathBuf,
        /// Common options.
        #[command(flatten)]
        common: Common,
    },
    /// CUDA devices: what there is, and in which form kernels are loaded on them.
    Devices {
        /// Common options.
        #[command(flatten)]
        common: Common,
    },
    /// What this version knows.
    List {
        /// Which list; without, what there is.
        #[arg(value_enum)]
        what: Option<ListArg>,
    },
    /// What an operator, format, method or family is.
    Explain {
        /// Its name.
        name: String,
    },
}

/// The lists.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListArg {
    /// Operators of the evaluator.
    Ops,
    /// Weight formats.
    Formats,
    /// Methods.
    Methods,
    /// Model families.
    Families,
}

/// Worker threads, at most.
const MOST_THREADS: usize = 512;

/// A number of worker threads.
fn threads(text: &str) -> Result<usize, String> {
    let count = text.parse().ok().filter(|count| (1..=MOST_THREADS).contains(count));
    count.ok_or_else(|| format!("give a number from 1 to {MOST_THREADS}"))
}
