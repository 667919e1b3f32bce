//! `mbqc bench`: times the quantized layers of a model one by one.

mod cuda;

use std::path::PathBuf;
use std::str::FromStr;
use std::time::{Duration, Instant};

use mbqc_kernels::{Accuracy, Epilogue, Pool, Product, isa, read_all};
use mbqc_passes::ops::QuantizedLayer;
use serde_json::{Value as Json, json};

use crate::Error;
use crate::cli::Common;
use crate::engine::layers::{Layer, layers};
use crate::pipeline;
use crate::places::Places;
use crate::report::print;
use crate::report::progress::Progress;

/// Bytes that are read to find out how fast memory is: more than a last-level cache holds.
const READ: usize = 256 << 20;

/// Inputs and outputs of a layer, at most: 2 GiB.
const MOST_NUMBERS: usize = 1 << 29;

/// Passes over a model's layers, at least.
const LEAST_PASSES: usize = 3;

/// What to time.
#[derive(Debug)]
pub struct BenchRequest {
    /// The model, with quantized layers.
    pub model: PathBuf,
    /// Token rows of the inputs; each number is a series of its own.
    pub rows: Vec<usize>,
    /// How long a series is repeated, in seconds.
    pub seconds: f64,
    /// How far apart activations are that are much larger than the others; 0: there are none.
    pub outliers: usize,
    /// What multiplies.
    pub device: DeviceChoice,
}

/// What executes layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeviceChoice {
    /// This machine's processor.
    #[default]
    Cpu,
    /// A CUDA device, by its number.
    Cuda(usize),
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<DeviceChoice, String> {
        let cuda = text
            .strip_prefix("cuda")
            .map(|rest| rest.strip_prefix(':').unwrap_or(if rest.is_empty() { "0" } else { "" }));
        match (text, cuda.map(str::parse)) {
            ("cpu", _) => Ok(DeviceChoice::Cpu),
            (_, Some(Ok(ordinal))) => Ok(DeviceChoice::Cuda(ordinal)),
            _ => Err("a device is cpu, cuda, or cuda:N with its number".to_owned()),
        }
    }
}

/// Bytes that a product moves: the weight once, and activations and outputs in f32.
fn moved(layer: &Layer, rows: usize) -> usize {
    layer.weight_bytes() + 4 * rows * (layer.layer.k + layer.layer.n)
}

/// The times of a layer for one number of rows.
struct Timing<'a> {
    layer: &'a Layer,
    rows: usize,
    median: Duration,
    fastest: Duration,
}

/// Runs every quantized layer of the model, in the order of the graph and again from the start until the time is over, on
/// activations made up for it; prints a table or, with `--json`, a document.
pub fn bench(request: &BenchRequest, common: &Common) -> Result<(), Error> {
    if let Some(&rows) = request.rows.iter().find(|&&rows| rows == 0 || rows > 1 << 20) {
        return Err(Error::Usage(format!("--rows {rows}: a product has 1 to {} rows", 1 << 20)));
    }
    if !(request.seconds > 0.0 && request.seconds <= 3600.0) {
        return Err(Error::Usage(format!("--seconds {}: give a time of up to an hour", request.seconds)));
    }
    let mut places = Places::new();
    places.model("the model", &request.model)?;
    let file = pipeline::read_at(&request.model, &mut places, common)?;
    let (layers, left) = layers(&file.model);
    let progress = Progress::new(common.quiet);
    if layers.is_empty() && !left.is_empty() {
        return Err(Error::Content {
            file: request.model.clone(),
            reason: format!("no quantized layer can be timed: {}", left.join("; ")),
        });
    }
    if layers.is_empty() {
        let file = request.model.display();
        return Err(Error::Nothing(format!(
            "{file} has no quantized layers to time; compile it first: mbqc {file} -o OUT"
        )));
    }
    for why in &left {
        progress.warn(&format!("not timed: {why}"));
    }
    if let DeviceChoice::Cuda(ordinal) = request.device {
        return cuda::bench(&layers, left, ordinal, request, common);
    }
    let pool = pipeline::pool(common);
    let bandwidth = bandwidth(&pool);
    let mut timings = Vec::new();
    let widest = layers.iter().map(|layer| layer.layer.k + layer.layer.n).max().unwrap_or(0);
    if let Some(&rows) = request.rows.iter().find(|&&rows| rows * widest > MOST_NUMBERS) {
        return Err(Error::Usage(format!(
            "--rows {rows}: inputs and outputs of the widest layer are {} numbers, at most {MOST_NUMBERS}; ask for {} rows",
            rows * widest,
            MOST_NUMBERS / widest
        )));
    }
    for &rows in &request.rows {
        progress.say(&format!("{} layers, {rows} rows", layers.len()));
        timings.extend(series(&layers, rows, request, &pool)?);
    }
    let weights: usize = layers.iter().map(Layer::weight_bytes).sum();
    if common.json {
        return print(&format!("{:#}", document(&timings, &left, weights, bandwidth, request.outliers, &pool)));
    }
    print(&table(&timings, weights, bandwidth, &pool))
}

/// Bytes per second that all threads together read from memory: the best of a few times.
fn bandwidth(pool: &Pool) -> f64 {
    let bytes = vec![1; READ];
    let time = |_| {
        let start = Instant::now();
        std::hint::black_box(read_all(&bytes, pool));
        start.elapsed()
    };
    let best = (0..5).map(time).min().unwrap_or_default();
    READ as f64 / best.as_secs_f64()
}

/// Times every layer with that many rows, all of them in turn, so that one weight has left the caches before it is read
/// again (if together they are larger).
fn series<'a>(layers: &'a [Layer], rows: usize, request: &BenchRequest, pool: &Pool) -> Result<Vec<Timing<'a>>, Error> {
    let most = |size: fn(&QuantizedLayer) -> usize| layers.iter().map(|layer| size(&layer.layer)).max().unwrap_or(0);
    // Numbers of every sign and several sizes, the same at every run.
    let number = |i: usize| ((i.wrapping_mul(2_654_435_761) >> 8) % 2001) as f32 / 1000.0 - 1.0;
    let mut x: Vec<f32> = (0..rows * most(|layer| layer.k)).map(number).collect();
    if request.outliers != 0 {
        x.iter_mut().step_by(request.outliers).for_each(|x| *x = 50.0 * x.signum());
    }
    let mut y = vec![0.0; rows * most(|layer| layer.n)];
    let mut times = vec![Vec::new(); layers.len()];
    let begin = Instant::now();
    while times[0].len() <= LEAST_PASSES || begin.elapsed().as_secs_f64() < request.seconds {
        for (layer, times) in layers.iter().zip(&mut times) {
            let QuantizedLayer { n, k, .. } = layer.layer;
            let product = Product { x: x[..rows * k].into(), rows, w: layer.stored(), epilogue: Epilogue::default() };
            let start = Instant::now();
            let done = (layer.kernel.run)(&product, &mut y[..rows * n], pool);
            times.push(start.elapsed());
            done.map_err(|error| Error::Content {
                file: request.model.clone(),
                reason: format!("node `{}`: {error}", layer.name),
            })?;
        }
    }
    let timing = |(layer, mut times): (&'a Layer, Vec<Duration>)| {
        // The first pass reads pages of the file.
        let times = &mut times[1..];
        times.sort_unstable();
        Timing { layer, rows, median: times[times.len() / 2], fastest: times[0] }
    };
    Ok(layers.iter().zip(times).map(timing).collect())
}

fn document(
    timings: &[Timing<'_>],
    left: &[String],
    weights: usize,
    bandwidth: f64,
    outliers: usize,
    pool: &Pool,
) -> Json {
    let each = timings.iter().map(|timing| {
        let Layer { name, layer, kernel, .. } = timing.layer;
        let (bytes, seconds) = (moved(timing.layer, timing.rows), timing.median.as_secs_f64());
        json!({
            "node": name,
            "format": layer.spec().to_string(),
            "kernel": kernel.name,
            "k": layer.k,
            "n": layer.n,
            "rows": timing.rows,
            "bytes": bytes,
            "seconds": seconds,
            "fastest": timing.fastest.as_secs_f64(),
            "bytes_per_second": bytes as f64 / seconds,
            "of_read_bandwidth": bytes as f64 / seconds / bandwidth,
            "multiply_adds_per_second": (timing.rows * layer.k * layer.n) as f64 / seconds,
        })
    });
    json!({
        "isa": isa().name(),
        "threads": pool.threads(),
        "read_bandwidth": bandwidth,
        "outliers": outliers,
        "weight_bytes": weights,
        "layers": each.collect::<Vec<_>>(),
        "not_timed": left,
    })
}

fn table(timings: &[Timing<'_>], weights: usize, bandwidth: f64, pool: &Pool) -> String {
    let mut lines = vec![format!(
        "{} threads, {}, memory read at {:.1} GB/s, {:.1} MB of weights{}",
        pool.threads(),
        isa(),
        bandwidth / 1e9,
        weights as f64 / 1e6,
        if weights < READ / 2 { ": caches may hold them between two passes" } else { "" }
    )];
    let width = timings.iter().map(|timing| timing.layer.name.chars().count()).max().unwrap_or(0).max(5);
    lines.push(format!(
        "{:<width$} {:<9} {:<6} {:>6} {:>6} {:>5} {:>10} {:>7} {:>7} {:>8}",
        "layer", "format", "kernel", "k", "n", "rows", "us", "GB/s", "of read", "Gmac/s"
    ));
    let row = |name: &str,
               format: &str,
               kernel: &str,
               size: [String; 2],
               rows: usize,
               bytes: usize,
               macs: f64,
               seconds: f64| {
        format!(
            "{name:<width$} {format:<9} {kernel:<6} {:>6} {:>6} {rows:>5} {:>10.1} {:>7.1} {:>6.0}% {:>8.1}",
            size[0],
            size[1],
            seconds * 1e6,
            bytes as f64 / seconds / 1e9,
            bytes as f64 / seconds / bandwidth * 100.0,
            macs / seconds / 1e9
        )
    };
    let mut rest = timings;
    while let Some(first) = rest.first() {
        let (series, others) = rest.split_at(rest.iter().take_while(|timing| timing.rows == first.rows).count());
        rest = others;
        let (mut bytes, mut macs, mut seconds) = (0, 0.0, 0.0);
        for timing in series {
            let Layer { name, layer, kernel, .. } = timing.layer;
            let own = (
                moved(timing.layer, timing.rows),
                (timing.rows * layer.k * layer.n) as f64,
                timing.median.as_secs_f64(),
            );
            let format = layer.spec().to_string();
            let size = [layer.k.to_string(), layer.n.to_string()];
            lines.push(row(name, &format, kernel.name, size, timing.rows, own.0, own.1, own.2));
            bytes += own.0;
            macs += own.1;
            seconds += own.2;
        }
        let size = [String::new(), String::new()];
        lines.push(row("all layers", "", "", size, first.rows, bytes, macs, seconds));
    }
    let kinds = [
        (Accuracy::Single, "in f32"),
        (Accuracy::Int16, "with activations of 16 bits"),
        (Accuracy::Int8, "with activations of 8 bits (their accuracy_level is 4; see --accuracy)"),
    ];
    let kinds = kinds.map(|(accuracy, how)| {
        let alike = |t: &&Timing<'_>| t.rows == timings[0].rows && t.layer.kernel.accuracy == accuracy;
        (timings.iter().filter(alike).count(), how)
    });
    let kinds: Vec<String> =
        kinds.iter().filter(|(count, _)| *count > 0).map(|(count, how)| format!("{count} layers {how}")).collect();
    lines.push(format!("medians; {}", kinds.join(", ")));
    lines.join("\n")
}
