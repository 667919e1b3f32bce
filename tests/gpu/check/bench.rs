//! Times of products with few token rows: with weights that no cache holds (one after another of so many copies that the second-level
//! cache is passed through many times), and with one that it holds.

use crate::Options;
use crate::receipt::Receipts;
use crate::support::codes_of;
use mbqc_kernels::cuda::{
    Device, DeviceError, DeviceProduct, DeviceRows, DeviceTokens, DeviceWeight, Graph, Memory, Prefill, Spread, Stream,
    Workspace,
};
use mbqc_kernels::{FORMATS, Scheme};
use serde_json::json;
use std::sync::Arc;

/// Bytes that all copies of a weight take together, at least.
const ROTATED: usize = 512 << 20;

/// Products in a graph of products with many rows.
const REPEATED: usize = 10;

/// Weights of a group.
const GROUP: usize = 128;

/// Input by output channels of a 7B decoder's layers, and a square.
const SIZES: [(usize, usize); 5] = [(3584, 3584), (3584, 10752), (3584, 18944), (18944, 3584), (8192, 8192)];

/// Copies of a layer, with inputs and outputs for up to 16 rows.
struct Layer {
    weights: Vec<DeviceWeight>,
    x: Vec<Memory>,
    /// Of rows that are rounded to bytes.
    scales: Memory,
    y: Vec<Memory>,
}

impl Layer {
    fn new(stream: &Stream, format: &str, (k, n): (usize, usize), bytes: usize) -> Result<Layer, DeviceError> {
        let format = FORMATS.iter().copied().find(|one| one.name == format).expect("a format of the list");
        let group = if format.scheme == Scheme::WeightOnly { GROUP } else { k };
        let packed = (format.pack)(&codes_of(format, n, k, group, 1));
        let first = DeviceWeight::load(stream, format, &packed.stored(k, group), false)?;
        let copies = (bytes / first.bytes()).max(2);
        let mut weights = vec![first];
        while weights.len() < copies {
            weights.push(weights[0].copy(stream)?);
        }
        let ones: Vec<u8> = (0..32 * k).map(|i| if i % 2 == 0 { (i * 7 % 256) as u8 } else { 0x2c }).collect();
        let (mut x, mut y) = (Vec::new(), Vec::new());
        for _ in 0..copies {
            let memory = stream.device().memory(ones.len())?;
            stream.write(&memory, &ones)?;
            x.push(memory);
            y.push(stream.device().memory(32 * n)?);
        }
        let scales = stream.device().memory(64)?;
        stream.write(&scales, &1f32.to_le_bytes().repeat(16))?;
        Ok(Layer { weights, x, scales, y })
    }

    /// A product with each of the first `copies` weights in turn, `count` in all.
    fn graph(
        &self,
        stream: &mut Stream,
        rows: usize,
        copies: usize,
        spread: Option<Spread>,
        count: usize,
    ) -> Result<Graph, DeviceError> {
        let mut workspace = Workspace::new(stream, &[&self.weights[0]], spread)?;
        stream.record(|stream| {
            for i in 0..count {
                let (weight, at) = (&self.weights[i % copies], i % self.weights.len());
                let x = DeviceRows { memory: &self.x[at], stride: weight.k() };
                let rounded = weight.format().scheme == Scheme::WeightActivation;
                let product = DeviceProduct {
                    x: if rounded { DeviceTokens { codes: x, scales: &self.scales }.into() } else { x.into() },
                    rows,
                    element: mbqc_kernels::cuda::Element::F16,
                    bias: None,
                    residual: None,
                    y: DeviceRows { memory: &self.y[at], stride: weight.outputs() },
                    single: false,
                    spread,
                };
                weight.product(stream, &product, &mut workspace)?;
            }
            Ok(())
        })
    }
}

/// Seconds for a kernel of a graph, the median and the extremes of several launches.
fn time(stream: &Stream, graph: &Graph, launches: usize) -> Result<[f64; 3], DeviceError> {
    stream.seconds(graph, 1)?;
    let mut times = stream.seconds(graph, launches)?;
    times.sort_by(f64::total_cmp);
    Ok([times[0], times[times.len() / 2], times[times.len() - 1]].map(|time| time / graph.kernels() as f64))
}

/// Products in a graph: all copies, so often that the launch of a graph is little beside it.
fn products(copies: usize, options: &Options) -> usize {
    if options.small { copies } else { copies.max(200).next_multiple_of(copies) }
}

fn sizes(options: &Options) -> Vec<(usize, usize)> {
    if options.small { vec![(256, 96)] } else { SIZES.to_vec() }
}

/// Tables of times, which go to the receipts as well.
pub(crate) fn all(device: &Arc<Device>, options: &Options, receipts: &mut Receipts) -> Result<(), DeviceError> {
    let mut stream = device.stream()?;
    println!(
        "\nmicroseconds for a product: median (least to most); f16, groups of 128; cold: {} MB of copies",
        ROTATED >> 20
    );
    println!("| format | k x n | rows | bytes | spread | cold | GB/s | warm |");
    println!("|---|---|---|---|---|---|---|---|");
    for format in ["w3", "w4", "w2", "w4a8", "w8a8"] {
        for (k, n) in sizes(options) {
            let layer = Layer::new(&stream, format, (k, n), if options.small { 0 } else { ROTATED })?;
            let copies = layer.weights.len();
            for rows in [1, 8, 16] {
                let launches = if options.small { 2 } else { 50 };
                let count = products(copies, options);
                let graph = layer.graph(&mut stream, rows, copies, None, count)?;
                let cold = time(&stream, &graph, launches)?;
                let graph = layer.graph(&mut stream, rows, 1, None, count)?;
                let warm = time(&stream, &graph, launches)?;
                let number = if format.ends_with("a8") { 1 } else { 2 };
                let bytes = layer.weights[0].bytes() + rows * (number * k + 2 * n);
                let Spread { together, blocks } = layer.weights[0].spread(rows);
                // Half of the cache: it is in two parts.
                let fits = bytes <= device.about().cache / 2;
                let us = |[least, median, most]: [f64; 3]| {
                    format!("{:.2} ({:.2} to {:.2})", 1e6 * median, 1e6 * least, 1e6 * most)
                };
                println!(
                    "| {format} | {k} x {n} | {rows} | {:.2} MB | {together} x {blocks} | {} | {:.0} | {} |",
                    bytes as f64 / 1e6,
                    us(cold),
                    bytes as f64 / cold[1] / 1e9,
                    if fits { us(warm) } else { "-".to_owned() }
                );
                receipts.time(
                    format,
                    json!({"k": k, "n": n, "rows": rows, "bytes": bytes, "together": together, "blocks": blocks,
                        "cold": cold, "warm": fits.then_some(warm)}),
                );
            }
            // What was measured is kept, should there be no time for the rest.
            receipts.keep();
        }
    }
    Ok(())
}

/// Products with many token rows, by our kernels in slices of what they take at once, and by cuBLASLt: where the one becomes better than the
/// other.
pub(crate) fn many(device: &Arc<Device>, options: &Options, receipts: &mut Receipts) -> Result<(), DeviceError> {
    let mut stream = device.stream()?;
    println!("\nmicroseconds for a product with many rows, one weight; TFLOP/s of the better");
    println!("| format | k x n | rows | by our kernels | by cuBLASLt | TFLOP/s |");
    println!("|---|---|---|---|---|---|");
    let (sizes, many): (_, &[usize]) = match options.small {
        true => (vec![(256, 96)], &[20]),
        false => (vec![(3584, 3584), (3584, 18944)], &[32, 64, 128, 256, 512, 1024, 2048, 4096]),
    };
    for (format, (k, n)) in
        ["w3", "w4", "w4a8", "w8a8"].into_iter().flat_map(|format| sizes.iter().map(move |&size| (format, size)))
    {
        let layer = Layer::new(&stream, format, (k, n), 0)?;
        let weight = &layer.weights[0];
        let mut workspace = Workspace::new(&stream, &[weight], None)?;
        for &rows in many {
            let (x, y) = (device.memory(2 * rows * k)?, device.memory(2 * rows * n)?);
            let scales = device.memory(4 * rows)?;
            stream.fill(&x, 0x2c)?;
            stream.fill(&scales, 0x2c)?;
            let rows_of_x = DeviceRows { memory: &x, stride: k };
            let rounded = weight.format().scheme == Scheme::WeightActivation;
            let product = DeviceProduct {
                x: if rounded { DeviceTokens { codes: rows_of_x, scales: &scales }.into() } else { rows_of_x.into() },
                rows,
                element: mbqc_kernels::cuda::Element::F16,
                bias: None,
                residual: None,
                y: DeviceRows { memory: &y, stride: n },
                single: false,
                spread: None,
            };
            let launches = if options.small { 2 } else { 10 };
            // A graph tells the time of a kernel, of which a product has several.
            let whole = |graph: &Graph, stream: &Stream| -> Result<f64, DeviceError> {
                Ok(time(stream, graph, launches)?[1] * graph.kernels() as f64 / REPEATED as f64)
            };
            let sliced = match rows <= 512 {
                true => {
                    let graph = stream.record(|stream| {
                        (0..REPEATED).try_for_each(|_| weight.product(stream, &product, &mut workspace))
                    })?;
                    Some(whole(&graph, &stream)?)
                }
                false => None,
            };
            let mut prefill = Prefill::new(&stream, &[weight], rows)?;
            let graph = stream.record(|stream| {
                (0..REPEATED).try_for_each(|_| weight.product_of_many(stream, &product, &mut prefill))
            })?;
            let blas = whole(&graph, &stream)?;
            let best = sliced.map_or(blas, |sliced| sliced.min(blas));
            println!(
                "| {format} | {k} x {n} | {rows} | {} | {:.1} | {:.0} |",
                sliced.map_or("-".to_owned(), |sliced| format!("{:.1}", 1e6 * sliced)),
                1e6 * blas,
                2.0 * (rows * k * n) as f64 / best / 1e12
            );
            receipts.time(
                "finish",
                json!({"format": format, "k": k, "n": n, "rows": rows, "sliced": sliced, "blas": blas}),
            );
        }
        receipts.keep();
    }
    Ok(())
}

/// Every way to deal a product to the device, the fastest first, beside the one that is chosen.
pub(crate) fn tune(device: &Arc<Device>, options: &Options) -> Result<(), DeviceError> {
    let mut stream = device.stream()?;
    println!("\n| k x n | rows | chosen | microseconds | fastest | microseconds | next | microseconds |");
    println!("|---|---|---|---|---|---|---|---|");
    for (k, n) in sizes(options) {
        let layer = Layer::new(&stream, "w3", (k, n), if options.small { 0 } else { ROTATED })?;
        let copies = layer.weights.len();
        for rows in [1, 8, 16] {
            let chosen = layer.weights[0].spread(rows);
            let mut times = Vec::new();
            for spread in layer.weights[0].spreads(device) {
                let graph = layer.graph(&mut stream, rows, copies, Some(spread), products(copies, options))?;
                times.push((time(&stream, &graph, 5)?[1], spread));
            }
            let graph = layer.graph(&mut stream, rows, copies, None, products(copies, options))?;
            let own = time(&stream, &graph, 5)?[1];
            times.sort_by(|a, b| a.0.total_cmp(&b.0));
            let cell = |(time, Spread { together, blocks }): (f64, Spread)| {
                format!("{together} x {blocks} | {:.2}", 1e6 * time)
            };
            println!("| {k} x {n} | {rows} | {} | {} | {} |", cell((own, chosen)), cell(times[0]), cell(times[1]));
        }
    }
    Ok(())
}
