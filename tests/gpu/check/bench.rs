//! Times of products: with weights that no cache holds (one after another of so many copies that the second-level cache is passed
//! through many times), and with one that it holds; in turns with cuBLASLt's of the same shape in half precision, where it is installed.

use crate::Options;
use crate::integers::not_supported;
use crate::receipt::Receipts;
use crate::support::{Random, codes_of};
use mbqc_kernels::cuda::{
    Dense, DenseProduct, Device, DeviceError, DeviceNorm, DeviceProduct, DeviceRows, DeviceTokens, DeviceWeight,
    Element, Graph, Memory, NormKind, Norms, Prefill, ROWS_AT_ONCE, Spread, Stream, Workspace,
};
use mbqc_kernels::{FORMATS, Scheme};
use serde_json::json;
use std::sync::Arc;

/// Bytes that all copies of a weight take together, at least.
const ROTATED: usize = 512 << 20;

/// How often each of several graphs has its turn, and launches of a turn; for many rows, a graph of which takes longer.
const FEW_TURNS: [usize; 2] = [5, 10];
const MANY_TURNS: [usize; 2] = [3, 5];

/// Bytes of a slab, and of sums, that the second-level cache holds until they were read.
const SLAB: usize = 24 << 20;

/// Weights of a group.
const GROUP: usize = 128;

/// Input by output channels of a 7B decoder's layers, and a square.
const SIZES: [(usize, usize); 5] = [(3584, 3584), (3584, 10752), (3584, 18944), (18944, 3584), (8192, 8192)];

const FEW: [&str; 5] = ["w3", "w4", "w2", "w4a8", "w8a8"];

/// A graph of so many products.
struct Timed {
    graph: Graph,
    products: usize,
}

/// Seconds for a product of each: the least, the median, the most. They take turns, so that what disturbs one disturbs all.
fn in_turns(stream: &Stream, all: &[Timed], turns: [usize; 2], small: bool) -> Result<Vec<[f64; 3]>, DeviceError> {
    let [turns, launches] = if small { [1, 2] } else { turns };
    let mut times = vec![Vec::new(); all.len()];
    for turn in 0..=turns {
        for (timed, times) in all.iter().zip(&mut times) {
            // The first turn is there to warm up.
            let seconds = stream.seconds(&timed.graph, if turn == 0 { 1 } else { launches })?;
            if turn > 0 {
                times.extend(seconds.into_iter().map(|time| time / timed.products as f64));
            }
        }
    }
    Ok(times
        .into_iter()
        .map(|mut times: Vec<f64>| {
            times.sort_by(f64::total_cmp);
            [times[0], times[times.len() / 2], times[times.len() - 1]]
        })
        .collect())
}

fn microseconds([least, median, most]: [f64; 3]) -> String {
    format!("{:.2} ({:.2} to {:.2})", 1e6 * median, 1e6 * least, 1e6 * most)
}

/// Token rows of inputs and outputs of copies.
const FEW_ROWS: usize = 16;

/// Copies of a layer, with inputs and outputs for few rows.
struct Layer {
    weights: Vec<DeviceWeight>,
    x: Vec<Memory>,
    /// Of rows that are rounded to bytes.
    scales: Memory,
    y: Vec<Memory>,
}

/// Random activations of that many rows, of either kind: bytes, which in pairs are numbers in half precision from -2 to 2.
fn activations(stream: &Stream, rows: usize, k: usize) -> Result<Memory, DeviceError> {
    let memory = stream.device().memory(2 * rows * k)?;
    let mut random = Random(7);
    let bytes: Vec<u8> = (0..rows * k).flat_map(|_| (random.next() as u16 & 0xbfff).to_le_bytes()).collect();
    stream.write(&memory, &bytes)?;
    Ok(memory)
}

impl Layer {
    fn new(stream: &Stream, format: &str, (k, n): (usize, usize), bytes: usize) -> Result<Layer, DeviceError> {
        let format = FORMATS.iter().copied().find(|one| one.name == format).expect("a format of the list");
        let group = if format.scheme == Scheme::WeightOnly { GROUP } else { k };
        let packed = (format.pack)(&codes_of(format, n, k, group, 1));
        let first = DeviceWeight::load(stream, format, &packed.stored(k, group), false)?;
        let copies = bytes.div_ceil(first.bytes()).max(2);
        let mut weights = vec![first];
        while weights.len() < copies {
            weights.push(weights[0].copy(stream)?);
        }
        let x = (0..copies).map(|_| activations(stream, FEW_ROWS, k)).collect::<Result<_, _>>()?;
        let y = (0..copies).map(|_| stream.device().memory(2 * FEW_ROWS * n)).collect::<Result<_, _>>()?;
        let scales = stream.device().memory(4 * FEW_ROWS)?;
        stream.write(&scales, &1f32.to_le_bytes().repeat(FEW_ROWS))?;
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
    ) -> Result<Timed, DeviceError> {
        let mut workspace = Workspace::new(stream, &[&self.weights[0]], spread)?;
        let graph = stream.record(|stream| {
            for i in 0..count {
                let (weight, at) = (&self.weights[i % copies], i % self.weights.len());
                let product = product(weight, rows, &self.x[at], &self.scales, &self.y[at]);
                weight.product(stream, &DeviceProduct { spread, ..product }, &mut workspace)?;
            }
            Ok(())
        })?;
        Ok(Timed { graph, products: count })
    }
}

/// In half precision, with nothing besides.
fn product<'a>(
    weight: &DeviceWeight,
    rows: usize,
    x: &'a Memory,
    scales: &'a Memory,
    y: &'a Memory,
) -> DeviceProduct<'a> {
    let x = DeviceRows { memory: x, stride: weight.k() };
    let rounded = weight.format().scheme == Scheme::WeightActivation;
    DeviceProduct {
        x: if rounded { DeviceTokens { codes: x, scales }.into() } else { x.into() },
        rows,
        element: Element::F16,
        bias: None,
        residual: None,
        y: DeviceRows { memory: y, stride: weight.outputs() },
        single: false,
        spread: None,
    }
}

/// Copies of a layer in half precision, which cuBLASLt multiplies by.
struct DenseLayer {
    size: (usize, usize),
    dense: Dense,
    weights: Vec<Memory>,
}

impl DenseLayer {
    /// `None` where there is no cuBLASLt.
    fn new(stream: &Stream, (k, n): (usize, usize), bytes: usize) -> Result<Option<DenseLayer>, DeviceError> {
        let dense = match Dense::new(stream) {
            Err(DeviceError::NoBlas) => return Ok(None),
            other => other?,
        };
        let mut random = Random(1);
        let numbers: Vec<u8> =
            (0..n * k).flat_map(|_| half::f16::from_f32(0.01 * random.signed()).to_le_bytes()).collect();
        let first = stream.device().memory(numbers.len())?;
        stream.write(&first, &numbers)?;
        let copies = bytes.div_ceil(numbers.len()).max(2);
        let mut weights = vec![first];
        while weights.len() < copies {
            let memory = stream.device().memory(numbers.len())?;
            stream.copy(&weights[0], &memory)?;
            weights.push(memory);
        }
        Ok(Some(DenseLayer { size: (k, n), dense, weights }))
    }

    fn graph(&mut self, stream: &mut Stream, rows: usize, count: usize) -> Result<Timed, DeviceError> {
        let (k, n) = self.size;
        let (x, y) = (activations(stream, rows, k)?, stream.device().memory(2 * rows * n)?);
        let mut product = |stream: &Stream, i: usize| {
            let w = DeviceRows { memory: &self.weights[i % self.weights.len()], stride: k };
            let (x, y) = (DeviceRows { memory: &x, stride: k }, DeviceRows { memory: &y, stride: n });
            self.dense.product(stream, &DenseProduct { element: Element::F16, rows, n, k, x, w, y })
        };
        // Once before it is recorded: the library loads what it needs.
        product(stream, 0)?;
        stream.synchronize()?;
        let graph = stream.record(|stream| (0..count).try_for_each(|i| product(stream, i)))?;
        Ok(Timed { graph, products: count })
    }
}

/// Products in a graph: all copies, so often that the launch of a graph is little beside it.
fn products(copies: usize, options: &Options) -> usize {
    if options.small { copies } else { copies.max(200).next_multiple_of(copies) }
}

fn sizes(options: &Options) -> Vec<(usize, usize)> {
    if options.small { vec![(256, 96)] } else { SIZES.to_vec() }
}

fn rotated(options: &Options) -> usize {
    if options.small { 0 } else { ROTATED }
}

/// What the device can do at best: bytes per second of a copy, and seconds for a kernel of a graph that has next to nothing to do.
fn ceilings(stream: &mut Stream, options: &Options) -> Result<(), DeviceError> {
    let device = stream.device().clone();
    let bytes = if options.small { 1 << 12 } else { 1 << 30 };
    let (from, to) = (device.memory(bytes)?, device.memory(bytes)?);
    stream.fill(&from, 0x2c)?;
    let mut best = f64::INFINITY;
    for _ in 0..5 {
        let start = stream.mark()?;
        stream.copy(&from, &to)?;
        let end = stream.mark()?;
        best = best.min(start.seconds_to(&end)?);
    }
    let (norms, memory) = (Norms::load(&device)?, device.memory(64)?);
    stream.fill(&memory, 0)?;
    let [x, sum] = [memory.part(0..16)?, memory.part(32..48)?];
    let norm = DeviceNorm {
        element: Element::F16,
        rows: 1,
        k: 8,
        x: DeviceRows { memory: &x, stride: 8 },
        residual: None,
        sum: Some(&sum),
        kind: NormKind::None,
        y: None,
        tokens: None,
    };
    let count = if options.small { 3 } else { 500 };
    let graph = stream.record(|stream| (0..count).try_for_each(|_| norms.run(stream, &norm)))?;
    let small = in_turns(stream, &[Timed { graph, products: count }], FEW_TURNS, options.small)?[0];
    println!("\na copy: {:.2} TB/s, read and written", 2.0 * bytes as f64 / best / 1e12);
    println!("a kernel of a graph with next to nothing to do: {} microseconds", microseconds(small));
    Ok(())
}

/// Tables of times, which go to the receipts as well.
pub(crate) fn all(device: &Arc<Device>, options: &Options, receipts: &mut Receipts) -> Result<(), DeviceError> {
    let mut stream = device.stream()?;
    ceilings(&mut stream, options)?;
    println!(
        "\nmicroseconds for a product: median (least to most) of {} graphs in turns; f16, groups of {GROUP}; cold: {} MB of copies",
        FEW_TURNS[0] * FEW_TURNS[1],
        ROTATED >> 20
    );
    println!("| k x n | rows | format | bytes | spread | cold | GB/s | cuBLASLt f16 over it | warm |");
    println!("|---|---|---|---|---|---|---|---|---|");
    for (k, n) in sizes(options) {
        let layers = FEW.into_iter().map(|format| Layer::new(&stream, format, (k, n), rotated(options)));
        let layers = layers.collect::<Result<Vec<Layer>, _>>()?;
        let mut dense = DenseLayer::new(&stream, (k, n), rotated(options))?;
        for rows in [1, 8, 16] {
            let mut graphs = Vec::new();
            for layer in &layers {
                let copies = layer.weights.len();
                let count = products(copies, options);
                for copies in [copies, 1] {
                    graphs.push(layer.graph(&mut stream, rows, copies, None, count)?);
                }
            }
            if let Some(dense) = &mut dense {
                let count = products(dense.weights.len(), options);
                graphs.push(dense.graph(&mut stream, rows, count)?);
            }
            let times = in_turns(&stream, &graphs, FEW_TURNS, options.small)?;
            let (own, peer) = times.split_at(2 * layers.len());
            for (layer, times) in layers.iter().zip(own.chunks(2)) {
                let (weight, cold, warm) = (&layer.weights[0], times[0], times[1]);
                let format = weight.format();
                let number = if format.scheme == Scheme::WeightActivation { 1 } else { 2 };
                let bytes = weight.bytes() + rows * (number * k + 2 * n);
                let Spread { together, blocks } = weight.spread(rows);
                // Half of the cache: it is in two parts.
                let fits = bytes <= device.about().cache / 2;
                println!(
                    "| {k} x {n} | {rows} | {} | {:.2} MB | {together} x {blocks} | {} | {:.0} | {} | {} |",
                    format.name,
                    bytes as f64 / 1e6,
                    microseconds(cold),
                    bytes as f64 / cold[1] / 1e9,
                    peer.first().map_or("-".to_owned(), |peer| format!("{:.2}", peer[1] / cold[1])),
                    if fits { microseconds(warm) } else { "-".to_owned() }
                );
                receipts.time(
                    format.name,
                    json!({"k": k, "n": n, "rows": rows, "bytes": bytes, "together": together, "blocks": blocks,
                        "cold": cold, "warm": fits.then_some(warm), "dense": peer.first()}),
                );
            }
            if let Some(&peer) = peer.first() {
                let bytes = 2 * (n * k + rows * (k + n));
                println!(
                    "| {k} x {n} | {rows} | cuBLASLt f16 | {:.2} MB | | {} | {:.0} | | |",
                    bytes as f64 / 1e6,
                    microseconds(peer),
                    bytes as f64 / peer[1] / 1e9
                );
            }
        }
        // What was measured is kept, should there be no time for the rest.
        receipts.keep();
    }
    Ok(())
}

/// Products with more rows than kernels for few take at once: by these, in slices of 64 and, where they are few, of 16, by those for 256, by
/// cuBLASLt from slabs of the weight, and cuBLASLt's in half precision, in turns and with weights that no cache holds.
pub(crate) fn many(device: &Arc<Device>, options: &Options, receipts: &mut Receipts) -> Result<(), DeviceError> {
    let mut stream = device.stream()?;
    println!("\nmicroseconds for a product with many rows; over cuBLASLt's in f16: of the best");
    println!(
        "| k x n | rows | format | 64 at a time | 16 at a time | 256 at a time | by cuBLASLt | in slabs of {} MB | TFLOP/s | cuBLASLt f16 | time over it |",
        SLAB >> 20
    );
    println!("{}", "|---".repeat(11) + "|");
    let (sizes, many): (_, &[usize]) = match options.small {
        true => (vec![(256, 96)], &[20]),
        false => (vec![(3584, 3584), (3584, 18944)], &[17, 24, 32, 33, 48, 64, 128, 256, 512, 1024, 2048, 4096]),
    };
    for (k, n) in sizes {
        let layers = ["w3", "w4", "w4a8", "w8a8"].map(|format| Layer::new(&stream, format, (k, n), rotated(options)));
        let layers = layers.into_iter().collect::<Result<Vec<Layer>, _>>()?;
        let Some(mut dense) = DenseLayer::new(&stream, (k, n), rotated(options))? else {
            return Err(DeviceError::NoBlas);
        };
        for &rows in many {
            let (x, y) = (activations(&stream, rows, k)?, device.memory(2 * rows * n)?);
            let scales = device.memory(4 * rows)?;
            stream.fill(&scales, 0x2c)?;
            // As many of each, or what a launch takes would be shared by fewer.
            let count = |copies: usize| if options.small { copies } else { copies.max(40).next_multiple_of(copies) };
            let of_dense = count(dense.weights.len());
            let mut graphs = vec![dense.graph(&mut stream, rows, of_dense)?];
            // Slices of either kind, cuBLASLt, that in slabs, our kernels for many: none of which need be there.
            let mut places = Vec::new();
            for layer in &layers {
                let (first, count) = (&layer.weights[0], count(layer.weights.len()));
                let mut place = [None; 5];
                let weights = || layer.weights.iter().cycle().take(count);
                for (at, most, spread) in [(0, 512, None), (1, 64, Some(first.spread(ROWS_AT_ONCE)))] {
                    if rows > most {
                        continue;
                    }
                    let mut workspace = Workspace::new(&stream, &[first], spread)?;
                    let graph = stream.record(|stream| {
                        weights().try_for_each(|weight| {
                            let product = product(weight, rows, &x, &scales, &y);
                            weight.product(stream, &DeviceProduct { spread, ..product }, &mut workspace)
                        })
                    })?;
                    place[at] = Some(graphs.len());
                    graphs.push(Timed { graph, products: count });
                }
                for (slab, place) in [usize::MAX, SLAB].into_iter().zip(&mut place[2..4]) {
                    let mut prefill = Prefill::with_slab(&stream, &[first], rows, slab)?;
                    let mut product = |stream: &Stream, weight: &DeviceWeight| {
                        weight.product_of_many(stream, &product(weight, rows, &x, &scales, &y), &mut prefill)
                    };
                    // Once before it is recorded: the library loads what it needs.
                    match product(&stream, first) {
                        // It need not have a kernel for so few bytes.
                        Err(error) if rows < 32 && not_supported(&error) => continue,
                        other => other?,
                    }
                    stream.synchronize()?;
                    let graph = stream.record(|stream| weights().try_for_each(|weight| product(stream, weight)))?;
                    *place = Some(graphs.len());
                    graphs.push(Timed { graph, products: count });
                }
                if first.has_wide() {
                    let graph = stream.record(|stream| {
                        weights()
                            .try_for_each(|weight| weight.product_wide(stream, &product(weight, rows, &x, &scales, &y)))
                    })?;
                    place[4] = Some(graphs.len());
                    graphs.push(Timed { graph, products: count });
                }
                places.push(place);
            }
            let times = in_turns(&stream, &graphs, MANY_TURNS, options.small)?;
            let peer = times[0][1];
            for (layer, place) in layers.iter().zip(places) {
                let [sliced, sixteen, blas, slabs, wide] = place.map(|place| place.map(|place| times[place][1]));
                let Some(best) = [sliced, sixteen, blas, slabs, wide].into_iter().flatten().reduce(f64::min) else {
                    continue;
                };
                let cell = |time: Option<f64>| time.map_or("-".to_owned(), |time| format!("{:.1}", 1e6 * time));
                let name = layer.weights[0].format().name;
                println!(
                    "| {k} x {n} | {rows} | {name} | {} | {} | {} | {} | {} | {:.0} | {:.1} | {:.2} |",
                    cell(sliced),
                    cell(sixteen),
                    cell(wide),
                    cell(blas),
                    cell(slabs),
                    2.0 * (rows * k * n) as f64 / best / 1e12,
                    1e6 * peer,
                    best / peer
                );
                receipts.time(
                    "finish",
                    json!({"format": name, "k": k, "n": n, "rows": rows, "sliced": sliced, "sixteen": sixteen, "blas": blas, "slabs": slabs, "wide": wide, "dense": peer}),
                );
            }
            receipts.keep();
        }
    }
    Ok(())
}

/// One product at a time, with a second-level cache that other memory was written through: for profilers, which tell what each reads.
pub(crate) fn alone(device: &Arc<Device>, options: &Options) -> Result<(), DeviceError> {
    let stream = device.stream()?;
    let flushed = device.memory(if options.small { 1 << 12 } else { 256 << 20 })?;
    println!("\n| format | k x n | rows | bytes that a product has to read |");
    println!("|---|---|---|---|");
    for (format, (k, n)) in
        ["w3", "w4"].into_iter().flat_map(|format| sizes(options).into_iter().map(move |size| (format, size)))
    {
        let layer = Layer::new(&stream, format, (k, n), 0)?;
        let weight = &layer.weights[0];
        let mut workspace = Workspace::new(&stream, &[weight], None)?;
        for rows in [1, 8, 16] {
            stream.fill(&flushed, 0x2c)?;
            stream.synchronize()?;
            weight.product(&stream, &product(weight, rows, &layer.x[0], &layer.scales, &layer.y[0]), &mut workspace)?;
            stream.synchronize()?;
            println!("| {format} | {k} x {n} | {rows} | {} |", weight.bytes() + 2 * rows * k);
        }
    }
    Ok(())
}

/// Every way to deal a product to the device, the fastest first, beside the one that is chosen.
pub(crate) fn tune(device: &Arc<Device>, options: &Options) -> Result<(), DeviceError> {
    let mut stream = device.stream()?;
    println!("\n| format | k x n | rows | chosen | microseconds | fastest | microseconds | next | microseconds |");
    println!("|---|---|---|---|---|---|---|---|---|");
    for (format, (k, n)) in
        ["w3", "w4", "w8a8"].into_iter().flat_map(|format| sizes(options).into_iter().map(move |size| (format, size)))
    {
        let layer = Layer::new(&stream, format, (k, n), rotated(options))?;
        let copies = layer.weights.len();
        let count = products(copies, options);
        for rows in [1, 8, 16] {
            let chosen = layer.weights[0].spread(rows);
            let mut time = |spread: Option<Spread>| -> Result<f64, DeviceError> {
                let timed = layer.graph(&mut stream, rows, copies, spread, count)?;
                stream.seconds(&timed.graph, 1)?;
                let mut times = stream.seconds(&timed.graph, if options.small { 1 } else { 5 })?;
                times.sort_by(f64::total_cmp);
                Ok(times[times.len() / 2] / count as f64)
            };
            let mut times = Vec::new();
            for spread in layer.weights[0].spreads(device) {
                times.push((time(Some(spread))?, spread));
            }
            let own = time(None)?;
            times.sort_by(|a, b| a.0.total_cmp(&b.0));
            let cell = |(time, Spread { together, blocks }): (f64, Spread)| {
                format!("{together} x {blocks} | {:.2}", 1e6 * time)
            };
            let [best, next] = [0, 1].map(|i| times.get(i).copied().map_or("- | -".to_owned(), cell));
            println!("| {format} | {k} x {n} | {rows} | {} | {best} | {next} |", cell((own, chosen)));
        }
    }
    Ok(())
}
