//! The layers of a model on a CUDA device.

use std::sync::Arc;
use std::time::Instant;

use mbqc_kernels::Scheme;
use mbqc_kernels::cuda::{
    Device, DeviceError, DeviceProduct, DeviceRows, DeviceTokens, DeviceWeight, Element, Graph, Memory, Prefill,
    Stream, Way, Workspace,
};
use serde_json::{Value as Json, json};

use super::{BenchRequest, LEAST_PASSES};
use crate::Error;
use crate::cli::Common;
use crate::engine::layers::Layer;
use crate::report::print;
use crate::report::progress::Progress;

/// How many times the second-level cache all copies of a weight take together.
const CACHES: usize = 4;

/// Products in a graph, at least and at most.
const PRODUCTS: (usize, usize) = (200, 1000);

/// Seconds for a layer that are short.
const SHORT: f64 = 0.05;

/// Products in a graph where time is short.
const FEW: usize = 20;

/// Graphs that are launched without waiting: each while the one ahead of it runs.
const AHEAD: usize = 10;

/// The most token rows of a product.
const MOST_ROWS: usize = 8192;

/// Bytes of a copy that tells how fast the device's memory is.
const COPIED: usize = 256 << 20;

/// The times of a layer for one number of rows, in seconds.
struct Timing<'a> {
    layer: &'a Layer,
    rows: usize,
    bytes: usize,
    median: f64,
    fastest: f64,
    cached: bool,
    /// By whose kernels: many rows may be cuBLASLt's, where it is installed.
    way: Way,
}

/// Times each layer in a graph of products with copies of its weight, so many that they leave the cache before they are read again
/// (a tiny layer's do not, which is told).
pub(super) fn bench(
    layers: &[Layer],
    mut left: Vec<String>,
    ordinal: usize,
    request: &BenchRequest,
    common: &Common,
) -> Result<(), Error> {
    if request.outliers != 0 {
        return Err(Error::Usage(
            "--outliers: on a device products take the same time whatever the activations".into(),
        ));
    }
    if let Some(rows) = request.rows.iter().find(|&&rows| rows > MOST_ROWS) {
        return Err(Error::Usage(format!(
            "--rows {rows}: products with up to {MOST_ROWS} token rows are timed on a device; ask for fewer, or for --device cpu"
        )));
    }
    let device = Device::open(ordinal)?;
    let progress = Progress::new(common.quiet);
    let mut stream = device.stream()?;
    let bandwidth = copy_bandwidth(&stream)?;
    let share = request.seconds / layers.len() as f64;
    let most = request.rows.iter().copied().max().unwrap_or(1);
    let mut timings = Vec::new();
    for layer in layers {
        progress.say(&layer.name);
        let copies = match Copies::new(&stream, layer, most) {
            Ok(copies) => copies,
            Err(DeviceError::Weight(why)) => {
                left.push(format!("node `{}`: {why}", layer.name));
                progress.warn(&format!("not timed: {}", left[left.len() - 1]));
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        for &rows in &request.rows {
            let least = if share < SHORT { FEW } else { PRODUCTS.0 };
            let first = &copies.weights[0];
            let mut prefill = match first.way(rows, true) == Way::Blas {
                true => match Prefill::new(&stream, &[first], rows) {
                    Err(error @ DeviceError::NoBlas) => {
                        progress.warn(&format!("{rows} rows are multiplied by our kernels alone: {error}"));
                        None
                    }
                    other => Some(other?),
                },
                false => None,
            };
            let way = first.way(rows, prefill.is_some());
            let (graph, products) = copies.graph(&mut stream, rows, prefill.as_mut(), least)?;
            let (median, fastest) = time(&stream, &graph, products, share)?;
            let (bytes, cached) = (copies.moved(rows, way), copies.cached);
            timings.push(Timing { layer, rows, bytes, median, fastest, cached, way });
        }
    }
    if timings.is_empty() {
        return Err(Error::Content {
            file: request.model.clone(),
            reason: format!("no quantized layer can be timed on a CUDA device: {}", left.join("; ")),
        });
    }
    if common.json {
        return print(&format!("{:#}", document(&device, &timings, &left, bandwidth)));
    }
    print(&table(&device, &timings, bandwidth))
}

/// Copies of a weight, with inputs and outputs.
struct Copies {
    weights: Vec<DeviceWeight>,
    x: Memory,
    /// Of rows that are rounded to bytes.
    scales: Memory,
    y: Memory,
    stride: usize,
    /// Whether so many copies are still so small that the second-level cache may hold some.
    cached: bool,
}

impl Copies {
    /// For up to so many token rows.
    fn new(stream: &Stream, layer: &Layer, rows: usize) -> Result<Copies, DeviceError> {
        let device = stream.device();
        let first = DeviceWeight::load(stream, layer.layer.format, &layer.stored(), false)?;
        let count = (CACHES * device.about().cache).div_ceil(first.bytes()).clamp(2, PRODUCTS.1);
        let mut weights = vec![first];
        while weights.len() < count {
            weights.push(weights[0].copy(stream)?);
        }
        let cached = count * weights[0].bytes() < CACHES * device.about().cache;
        let stride = layer.layer.k.next_multiple_of(16);
        // Half-precision numbers of either sign between 1/16 and 1/8.
        let pattern = (0..2 * rows * stride).map(|i| match i % 4 {
            1 => 0x2c,
            3 => 0xac,
            _ => (i * 7 % 256) as u8,
        });
        let x = device.memory(2 * rows * stride)?;
        stream.write(&x, &pattern.collect::<Vec<u8>>())?;
        let scales = device.memory(4 * rows)?;
        stream.write(&scales, &1f32.to_le_bytes().repeat(rows))?;
        let y = device.memory(2 * rows * layer.layer.n)?;
        Ok(Copies { weights, x, scales, y, stride, cached })
    }

    /// Whether activations are rounded to bytes.
    fn rounded(&self) -> bool {
        self.weights[0].format().scheme == Scheme::WeightActivation
    }

    /// Bytes that a product reads and writes, but for what it makes on the way; a weight counts as often as it is read.
    fn moved(&self, rows: usize, way: Way) -> usize {
        let weight = &self.weights[0];
        weight.passes(rows, way) * weight.bytes()
            + rows * (weight.k() * if self.rounded() { 1 } else { 2 } + 2 * weight.outputs())
    }

    /// A graph of so many products or more, in the way that is thought to be fastest with what is given, and how many they are.
    fn graph(
        &self,
        stream: &mut Stream,
        rows: usize,
        mut prefill: Option<&mut Prefill>,
        least: usize,
    ) -> Result<(Graph, usize), DeviceError> {
        let mut workspace = Workspace::new(stream, &[&self.weights[0]], None)?;
        let count = self.weights.len().max(least).next_multiple_of(self.weights.len());
        let x = DeviceRows { memory: &self.x, stride: self.stride };
        let x = match self.rounded() {
            true => DeviceTokens { codes: x, scales: &self.scales }.into(),
            false => x.into(),
        };
        let mut put = |stream: &Stream, weight: &DeviceWeight| {
            let product = DeviceProduct {
                x,
                rows,
                element: Element::F16,
                bias: None,
                residual: None,
                y: DeviceRows { memory: &self.y, stride: weight.outputs() },
                single: false,
                spread: None,
            };
            weight.product_of_any(stream, &product, &mut workspace, prefill.as_deref_mut())
        };
        // Once before it is recorded: what is loaded at its first use is loaded now.
        put(stream, &self.weights[0])?;
        stream.synchronize()?;
        let graph = stream
            .record(|stream| self.weights.iter().cycle().take(count).try_for_each(|weight| put(stream, weight)))?;
        Ok((graph, count))
    }
}

/// Seconds for one of the products of a graph that is launched for `share` seconds: the median and the least.
fn time(stream: &Stream, graph: &Graph, products: usize, share: f64) -> Result<(f64, f64), DeviceError> {
    stream.seconds(graph, 1)?;
    let (begin, mut times) = (Instant::now(), Vec::new());
    while times.len() < LEAST_PASSES || begin.elapsed().as_secs_f64() < share {
        times.extend(stream.seconds(graph, if share < SHORT { 1 } else { AHEAD })?);
    }
    times.sort_by(f64::total_cmp);
    let products = products as f64;
    Ok((times[times.len() / 2] / products, times[0] / products))
}

/// Bytes per second that are read and written while memory is copied: the best of a few times.
fn copy_bandwidth(stream: &Stream) -> Result<f64, DeviceError> {
    let bytes = COPIED.min(stream.device().about().memory / 8);
    let (from, to) = (stream.device().memory(bytes)?, stream.device().memory(bytes)?);
    stream.fill(&from, 1)?;
    let mut best = f64::INFINITY;
    for _ in 0..5 {
        let start = stream.mark()?;
        stream.copy(&from, &to)?;
        best = best.min(start.seconds_to(&stream.mark()?)?);
    }
    Ok(2.0 * bytes as f64 / best)
}

/// What multiplies.
fn by(way: Way) -> &'static str {
    if way == Way::Blas { "cuBLASLt" } else { "mbqc" }
}

/// Where a product reads weights from.
fn from(cached: bool) -> &'static str {
    if cached { "cache" } else { "memory" }
}

fn document(device: &Arc<Device>, timings: &[Timing<'_>], left: &[String], bandwidth: f64) -> Json {
    let layers = timings.iter().map(|timing| {
        let Timing { layer, rows, bytes, median, fastest, cached, way } = timing;
        json!({
            "node": layer.name,
            "format": layer.layer.spec().to_string(),
            "k": layer.layer.k,
            "n": layer.layer.n,
            "rows": rows,
            "by": by(*way),
            "bytes": bytes,
            "seconds": median,
            "fastest": fastest,
            "weights_from": from(*cached),
            "bytes_per_second": *bytes as f64 / median,
            "of_copy_bandwidth": *bytes as f64 / median / bandwidth,
        })
    });
    let about = device.about();
    let kernels: serde_json::Map<_, _> =
        device.loaded().into_iter().map(|loaded| (loaded.unit.to_owned(), loaded.from.into())).collect();
    json!({
        "device": about.name,
        "capability": format!("{}.{}", about.capability.0, about.capability.1),
        "kernels": kernels,
        "activations": "f16, or 8 bits where the format says so",
        "copy_bandwidth": bandwidth,
        "layers": layers.collect::<Vec<_>>(),
        "not_timed": left,
    })
}

fn table(device: &Arc<Device>, timings: &[Timing<'_>], bandwidth: f64) -> String {
    let mut lines = vec![format!(
        "{}, memory copied at {:.0} GB/s (read and written); activations in half precision (8 bits where the format says so)",
        device.about().name,
        bandwidth / 1e9
    )];
    let width = timings.iter().map(|timing| timing.layer.name.chars().count()).max().unwrap_or(0).max(5);
    lines.push(format!(
        "{:<width$} {:<9} {:>6} {:>6} {:>5} {:>10} {:>9} {:>7} {:>7}  {:<12}  {}",
        "layer", "format", "k", "n", "rows", "us", "fastest", "GB/s", "of copy", "weights from", "by"
    ));
    for Timing { layer, rows, bytes, median, fastest, cached, way } in timings {
        let rate = *bytes as f64 / median;
        lines.push(format!(
            "{:<width$} {:<9} {:>6} {:>6} {rows:>5} {:>10.2} {:>9.2} {:>7.0} {:>6.0}%  {:<12}  {}",
            layer.name,
            layer.layer.spec().to_string(),
            layer.layer.k,
            layer.layer.n,
            median * 1e6,
            fastest * 1e6,
            rate / 1e9,
            rate / bandwidth * 100.0,
            from(*cached),
            by(*way)
        ));
    }
    lines.join("\n")
}
