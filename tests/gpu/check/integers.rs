//! Products of weights and activations of few bits: sums are exact, so every bit is known.

use crate::Options;
use crate::few_rows::{GAP, bits, value};
use crate::receipt::Receipts;
use crate::support::{Random, codes_of};
use mbqc_kernels::affine::Codes;
use mbqc_kernels::cuda::{
    Device, DeviceError, DeviceProduct, DeviceRows, DeviceTokens, DeviceWeight, Element, Prefill, Spread, Stream,
    TileCodes, Tiles, Workspace,
};
use mbqc_kernels::{FORMATS, Format, Scheme};
use std::sync::Arc;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) format: &'static Format,
    pub(crate) element: Element,
    pub(crate) n: usize,
    pub(crate) k: usize,
    pub(crate) rows: usize,
    /// `None`: as is thought best.
    pub(crate) spread: Option<Spread>,
    pub(crate) gated: bool,
    pub(crate) residual: bool,
    pub(crate) single: bool,
    /// By the kernels for 256 rows at once.
    pub(crate) wide: bool,
    pub(crate) gap: usize,
}

pub(crate) fn plain(format: &'static Format, element: Element) -> Shape {
    Shape {
        format,
        element,
        n: 40,
        k: 300,
        rows: 1,
        spread: Some(Spread { together: 1, blocks: 1 }),
        gated: false,
        residual: false,
        single: true,
        wide: false,
        gap: GAP,
    }
}

fn shapes(format: &'static Format) -> Vec<Shape> {
    let mut shapes = Vec::new();
    for element in Element::ALL {
        let plain = plain(format, element);
        for (rows, n, k) in
            [(1, 32, 128usize), (8, 33, 1300), (9, 300, 129), (16, 64, 4304), (17, 48, 1), (40, 32, 640)]
        {
            for (together, blocks) in [(1, 1), (2, 7), (8, 3), (8, 1)] {
                let units = usize::div_ceil(n, 32 * together) * k.div_ceil(128);
                let blocks = usize::min(blocks, units);
                let shape = Shape { rows, n, k, spread: Some(Spread { together, blocks }), ..plain };
                shapes.extend([shape, Shape { single: false, residual: true, ..shape }]);
            }
        }
        for (n, rows) in [(64, 1), (62, 5), (34, 16), (2, 3), (70, 40)] {
            let gated = Shape { n, rows, gated: true, spread: Some(Spread { together: 1, blocks: 3 }), ..plain };
            shapes.extend([gated, Shape { single: false, residual: true, ..gated }]);
        }
        // The kernel for up to 64 rows: tails of everything, more rows than it takes at once, what is left for other kernels; tiles along
        // k that are fewer than its stages, and more; bands of four rows of tiles, and of eight.
        for (rows, n, k) in [(17, 32, 1), (32, 300, 129), (33, 80, 300), (64, 33, 2600), (77, 33, 1300), (144, 70, 77)]
        {
            let shape = Shape { rows, n, k, spread: None, ..plain };
            let gated = Shape { n: n / 2 * 2, gated: true, ..shape };
            shapes.extend([shape, Shape { single: false, residual: true, ..shape }, gated]);
        }
        shapes.push(Shape { rows: 50, n: 1060, k: 400, spread: None, single: false, ..plain });
    }
    shapes
}

/// Several slabs, the last of which is lower.
fn large_shapes(format: &'static Format) -> Vec<Shape> {
    let spread = Some(Spread { together: 8, blocks: 264 });
    let shapes = Element::ALL.into_iter().flat_map(|element| {
        let large = Shape { n: 20000, k: 3584, rows: 33, spread, ..plain(format, element) };
        let middle = Shape { spread: None, rows: 64, single: false, residual: true, ..large };
        [large, Shape { gated: true, single: false, ..large }, middle, Shape { gated: true, rows: 90, ..middle }]
    });
    shapes.collect()
}

/// The number of faults.
pub(crate) fn all(device: &Arc<Device>, options: &Options, receipts: &mut Receipts) -> Result<usize, DeviceError> {
    let count = tiles_are_those_of_the_host(device, receipts)?;
    let n = crate::check::several_bands(device);
    let several = |format| Shape { n, k: 128, rows: 40, spread: None, ..plain(format, Element::F16) };
    Ok(count + judged_all(device, options, receipts, |format| [shapes(format), vec![several(format)]].concat())?)
}

/// Formats whose products are of integers.
pub(crate) fn formats() -> impl Iterator<Item = &'static Format> {
    FORMATS.iter().copied().filter(|format| format.scheme == Scheme::WeightActivation && format.tiles.is_some())
}

/// Weights that the device arranges lie as those that the host does: gates, tails.
fn tiles_are_those_of_the_host(device: &Arc<Device>, receipts: &mut Receipts) -> Result<usize, DeviceError> {
    let (stream, mut count) = (device.stream()?, 0);
    for format in formats() {
        for (n, k, gated) in [(33, 300, false), (62, 129, true), (96, 1024, true), (40, 1, false)] {
            let packed = (format.pack)(&codes_of(format, n, k, k, 3));
            let stored = packed.stored(k, k);
            let weight = DeviceWeight::load(&stream, format, &stored, gated)?;
            let mut bytes = vec![0; weight.bytes()];
            stream.read(weight.tiles(), &mut bytes)?;
            if bytes != Tiles::new(format, &stored, gated)?.bytes {
                let fault = format!("{n} x {k}, gated {gated}: the device arranges tiles otherwise than the host");
                println!("WRONG: {}: {fault}", format.name);
                receipts.fault(Some(format.name), &fault);
                count += 1;
            }
            receipts.checked(format.name, &format!("{}_repack", format.name), true, 0.0, 1);
        }
    }
    Ok(count)
}

/// The same of what takes long.
pub(crate) fn large(device: &Arc<Device>, options: &Options, receipts: &mut Receipts) -> Result<usize, DeviceError> {
    judged_all(device, options, receipts, large_shapes)
}

fn judged_all(
    device: &Arc<Device>,
    options: &Options,
    receipts: &mut Receipts,
    shapes: impl Fn(&'static Format) -> Vec<Shape>,
) -> Result<usize, DeviceError> {
    let stream = device.stream()?;
    Ok(formats().map(|format| judged_these(&stream, options, receipts, format, &shapes(format))).sum())
}

/// The number of faults.
pub(crate) fn judged_these(
    stream: &Stream,
    options: &Options,
    receipts: &mut Receipts,
    format: &Format,
    shapes: &[Shape],
) -> usize {
    let (runs, mut count) = (options.runs, 0);
    for shape in shapes {
        let fault = match judged(stream, shape, options, receipts) {
            Ok(Ok(by_blas)) => {
                if by_blas {
                    if !are_rows(format) {
                        receipts.checked(format.name, &format!("{}_codes", format.name), true, 0.0, 1);
                    }
                    receipts.checked("finish", "finish_integers", shape.single, 0.0, 1);
                }
                None
            }
            Ok(Err(fault)) => Some(format!("{shape:?}: {fault}")),
            Err(error) => Some(format!("{shape:?}: {error}")),
        };
        let unit = if shape.wide { format!("{}_wide", format.name) } else { format.name.to_owned() };
        if let Some(fault) = fault {
            println!("WRONG: {fault}");
            receipts.fault(Some(&unit), &fault);
            if !shape.wide {
                // The kernels for many rows are of another unit.
                receipts.fault(Some("finish"), &fault);
            }
            count += 1;
        }
        let once = match shape.rows {
            _ if shape.wide => 256,
            17.. if shape.spread.is_none() => 64,
            9.. => 16,
            _ => 8,
        };
        let kernel = format!("{}_{once}", format.name);
        receipts.checked(&unit, &kernel, shape.single, 0.0, runs);
    }
    println!("{}: {} shapes, {runs} runs each", format.name, shapes.len());
    count
}

/// What is wrong, or whether cuBLASLt was there to multiply too.
fn judged(
    stream: &Stream,
    shape: &Shape,
    options: &Options,
    receipts: &mut Receipts,
) -> Result<Result<bool, String>, DeviceError> {
    let &Shape { format, element, n, k, rows, spread, gated, residual, single, wide, gap } = shape;
    let weight_codes = codes_of(format, n, k, k, (n + k) as u64);
    let packed = (format.pack)(&weight_codes);
    let weight = DeviceWeight::load(stream, format, &packed.stored(k, k), gated)?;
    if rows > 16 && spread.is_none() && !wide {
        receipts.dealt(&weight, n);
    }
    let outputs = weight.outputs();
    let (stride, y_stride) = (k.next_multiple_of(16) + 16, outputs + gap);

    let mut random = Random(k as u64);
    // The extremes, too. What lies between rows must not matter.
    let mut x = vec![0x55u8; rows * stride];
    for row in 0..rows {
        for code in &mut x[row * stride..][..k] {
            *code = (random.signed() * 127.99) as i8 as u8;
        }
    }
    x[0] = -127i8 as u8;
    let scales: Vec<f32> = (0..rows).map(|_| 10f32.powf(random.signed() - 3.0)).collect();
    let mut numbers = |count: usize| (0..count).map(|_| bits(element, random.signed())).collect::<Vec<u16>>();
    let (bias, others) = (numbers(n), numbers(rows * y_stride));

    let device = stream.device();
    let placed = |bytes: &[u8]| {
        let memory = device.memory(bytes.len())?;
        stream.write(&memory, bytes).map(|()| memory)
    };
    let halves = |numbers: &[u16]| numbers.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<u8>>();
    let (x_memory, bias_memory, others_memory) = (placed(&x)?, placed(&halves(&bias))?, placed(&halves(&others))?);
    let scales_memory = placed(&scales.iter().flat_map(|scale| scale.to_le_bytes()).collect::<Vec<u8>>())?;
    let size = if single { 4 } else { 2 };
    let y = device.memory(rows * y_stride * size)?;
    let mut workspace = Workspace::new(stream, &[&weight], spread)?;
    let product = DeviceProduct {
        x: DeviceTokens { codes: DeviceRows { memory: &x_memory, stride }, scales: &scales_memory }.into(),
        rows,
        element,
        bias: Some(&bias_memory),
        residual: residual.then_some(&others_memory),
        y: DeviceRows { memory: &y, stride: y_stride },
        single,
        spread,
    };
    let mut run = || -> Result<Vec<u8>, DeviceError> {
        stream.fill(&y, 0xff)?;
        match wide {
            true => weight.product_wide(stream, &product)?,
            false => weight.product(stream, &product, &mut workspace)?,
        }
        let mut bytes = vec![0; y.bytes()];
        stream.read(&y, &mut bytes)?;
        Ok(bytes)
    };
    let first = run()?;
    for _ in 1..options.runs {
        if run()? != first {
            return Ok(Err("runs differ".to_owned()));
        }
    }
    let own = |row: usize, channel: usize| {
        let sum = sum(&weight_codes, channel, &x[row * stride..][..k]);
        sum as f32 * (weight_codes.scales[channel] * scales[row]) + value(element, bias[channel])
    };
    // Long sums take their time; an odd step meets every place of a fragment.
    let every = (k * rows * outputs) >> 25 | 1;
    let compare = |y: &[u8]| -> Result<(), String> {
        for (i, bytes) in y.chunks(size).enumerate().filter(|(i, _)| i % every == 0 || i % y_stride >= outputs) {
            let (row, j) = (i / y_stride, i % y_stride);
            let found = match *bytes {
                [a, b] => value(element, u16::from_le_bytes([a, b])),
                [a, b, c, d] => f32::from_le_bytes([a, b, c, d]),
                _ => unreachable!("two bytes or four"),
            };
            if j >= outputs {
                if bytes.iter().any(|&byte| byte != 0xff) {
                    return Err(format!("something is written behind row {row}"));
                }
                continue;
            }
            let gate = own(row, j);
            let mut wanted = gate;
            if gated {
                wanted = gate / (1.0 + (-gate).exp()) * own(row, n / 2 + j);
            }
            if residual {
                wanted += value(element, others[row * y_stride + j]);
            }
            if !single {
                wanted = value(element, bits(element, wanted));
            }
            // A device's exponential is not the host's, and what is near the middle of two numbers of 16 bits becomes the other.
            let unit = match (single, element) {
                (true, _) => 0.0,
                (_, Element::F16) => 1.0 / 1024.0,
                (_, Element::Bf16) => 1.0 / 128.0,
            };
            let most = if gated { (unit + 1e-5) * wanted.abs() + 1e-6 * gate.abs() + 6e-8 } else { 0.0 };
            if (found - wanted).abs() > most || found.is_nan() {
                return Err(format!("output {j} of row {row} is {found}, not {wanted}"));
            }
        }
        Ok(())
    };
    if let Err(fault) = compare(&first) {
        return Ok(Err(fault));
    }
    // The same sums, whoever adds them up.
    if options.without_blas || wide {
        return Ok(Ok(false));
    }
    // Slabs of a row of tiles where there are few.
    let slab = if n > 1000 { 24 << 20 } else { 1 };
    let mut prefill = match Prefill::with_slab(stream, &[&weight], rows, slab) {
        Err(DeviceError::NoBlas) => return Ok(Ok(false)),
        other => other?,
    };
    stream.fill(&y, 0xff)?;
    match weight.product_of_many(stream, &product, &mut prefill) {
        // cuBLASLt need not have a kernel for so few.
        Err(error) if rows < 32 && not_supported(&error) => {
            println!("{}: {rows} rows, not checked: {error}", format.name);
            return Ok(Ok(false));
        }
        other => other?,
    }
    let mut bytes = vec![0; y.bytes()];
    stream.read(&y, &mut bytes)?;
    Ok(compare(&bytes).map(|()| true).map_err(|fault| format!("many rows: {fault}")))
}

/// The products of a channel's weights with a row's codes.
fn sum(codes: &Codes, channel: usize, x: &[u8]) -> i64 {
    let weights = &codes.codes[channel * codes.k..][..codes.k];
    let zero = i64::from(codes.zero_points[channel]);
    weights.iter().zip(x).map(|(&code, &x)| (i64::from(code) - zero) * i64::from(x as i8)).sum()
}

/// Whether cuBLASLt multiplies by a format's codes as they are.
pub(crate) fn are_rows(format: &Format) -> bool {
    format.tiles.is_some_and(TileCodes::are_rows)
}

/// Whether cuBLASLt says that it has nothing for a shape.
pub(crate) fn not_supported(error: &DeviceError) -> bool {
    matches!(error, DeviceError::Driver { name, .. } if name.contains("NOT_SUPPORTED"))
}
