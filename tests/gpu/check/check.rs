//! Products with few token rows, against float64 from the codes.

use crate::Options;
use crate::few_rows::{Case, Shape, bits, name, shapes};
use crate::receipt::Receipts;
use crate::support::Random;
use half::{bf16, f16};
use mbqc_kernels::cuda::{
    Device, DeviceError, DeviceProduct, DeviceRows, DeviceWeight, Element, Memory, Spread, Stream, TILE_CHANNELS,
    Tiles, Workspace,
};
use mbqc_kernels::dense::convert::FloatType;
use mbqc_kernels::{Scales, Stored};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A case on a device.
pub(crate) struct Placed {
    pub(crate) weight: DeviceWeight,
    pub(crate) x: Memory,
    pub(crate) bias: Memory,
    pub(crate) residual: Memory,
    pub(crate) y: Memory,
    /// One for all runs: each has to leave it as it found it.
    workspace: RefCell<Workspace>,
}

/// The little-endian bytes of 16-bit numbers.
fn bytes(numbers: &[u16]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

/// Memory with these bytes.
fn placed(stream: &Stream, bytes: &[u8]) -> Result<Memory, DeviceError> {
    let memory = stream.device().memory(bytes.len())?;
    stream.write(&memory, bytes)?;
    Ok(memory)
}

impl Placed {
    pub(crate) fn new(stream: &Stream, case: &Case) -> Result<Placed, DeviceError> {
        let shape = case.shape;
        let weight = DeviceWeight::load(stream, shape.format(), &case.stored(), shape.gated)?;
        Ok(Placed {
            x: placed(stream, &bytes(&case.x))?,
            bias: placed(stream, &bytes(&case.bias))?,
            residual: placed(stream, &bytes(&case.residual))?,
            y: stream.device().memory(shape.bytes_of_y())?,
            workspace: RefCell::new(Workspace::new(stream, &[&weight], spread(&shape))?),
            weight,
        })
    }

    /// Of a case's shape.
    pub(crate) fn product(&self, shape: &Shape) -> DeviceProduct<'_> {
        DeviceProduct {
            x: DeviceRows { memory: &self.x, stride: shape.x_stride() }.into(),
            rows: shape.rows,
            element: shape.element,
            bias: shape.bias.then_some(&self.bias),
            residual: shape.residual.then_some(&self.residual),
            y: DeviceRows { memory: &self.y, stride: shape.y_stride() },
            single: shape.single,
            spread: spread(shape),
        }
    }

    /// The bytes of y.
    pub(crate) fn run(&self, stream: &Stream, shape: &Shape) -> Result<Vec<u8>, DeviceError> {
        stream.fill(&self.y, 0xff)?;
        self.weight.product(stream, &self.product(shape), &mut self.workspace.borrow_mut())?;
        let mut y = vec![0; shape.bytes_of_y()];
        stream.read(&self.y, &mut y)?;
        Ok(y)
    }
}

fn spread(shape: &Shape) -> Option<Spread> {
    (shape.blocks > 0).then_some(Spread { together: shape.together, blocks: shape.blocks })
}

/// The name of the kernel that runs a shape.
fn kernel(shape: &Shape) -> String {
    let element = name(shape.element);
    match shape.rows {
        ..=8 => format!("w{}a16_{element}_8_g{}", shape.bits, shape.group.min(128)),
        17.. if shape.blocks == 0 => format!("w{}a16_{element}_64", shape.bits),
        _ => format!("w{}a16_{element}_16_g{}", shape.bits, shape.group.min(128)),
    }
}

/// The outputs of a case; what is wrong with them goes to `faults`.
fn judged(
    stream: &Stream,
    case: &Case,
    runs: usize,
    receipts: &mut Receipts,
    faults: &mut Vec<String>,
) -> Result<Vec<f32>, DeviceError> {
    let shape = case.shape;
    let placed = Placed::new(stream, case)?;
    if shape.rows > 16 && shape.blocks == 0 {
        receipts.dealt(&placed.weight, shape.n);
    }
    let first = placed.run(stream, &shape)?;
    for run in 1..runs {
        if placed.run(stream, &shape)? != first {
            faults.push(format!("{shape:?}: run {run} gives other bits than the first"));
            break;
        }
    }
    let y = match case.outputs(&first) {
        Ok(y) => y,
        Err(error) => {
            faults.push(format!("{shape:?}: {error}"));
            return Ok(Vec::new());
        }
    };
    // Long sums in f64 take their time; an odd step meets every place of a fragment.
    let every = ((shape.k * y.len()) >> 25 | 1).min(y.len());
    let (error, most) = (case.relative_error(&y, every), shape.most_error());
    // Not a number is no small error.
    if !matches!(error.partial_cmp(&most), Some(std::cmp::Ordering::Less | std::cmp::Ordering::Equal)) {
        faults.push(format!("{shape:?}: relative error {error:e}, at most {most:e}"));
    }
    receipts.checked(&format!("w{}", shape.bits), &kernel(&shape), shape.single, error, runs);
    Ok(y)
}

/// The number of faults.
pub(crate) fn all(device: &Arc<Device>, options: &Options, receipts: &mut Receipts) -> Result<usize, DeviceError> {
    let stream = device.stream()?;
    let mut shapes = shapes();
    shapes.extend([2, 3, 4].map(|bits| Shape {
        bits,
        n: several_bands(device),
        k: 128,
        rows: 40,
        blocks: 0,
        ..Shape::PLAIN
    }));
    let mut faults = judged_all(&stream, &shapes, options, receipts);
    let mut others = Vec::new();
    tiles_are_those_of_the_host(&stream, receipts, &mut others)?;
    numbers_of_codes(&stream, receipts, &mut others)?;
    rows_do_not_meet(&stream, receipts, &mut others)?;
    every_weight(&stream, &mut others)?;
    for fault in &others {
        println!("WRONG: {fault}");
        receipts.fault(None, fault);
    }
    faults += others.len();
    Ok(faults)
}

/// Output channels with which a block of the kernel for 64 rows has several bands, even of eight rows of tiles: it runs on a multiprocessor
/// alone, and there are more bands than those.
pub(crate) fn several_bands(device: &Device) -> usize {
    8 * TILE_CHANNELS * (device.about().multiprocessors + 1)
}

/// The same of layers of models.
pub(crate) fn large(device: &Arc<Device>, options: &Options, receipts: &mut Receipts) -> Result<usize, DeviceError> {
    Ok(judged_all(&device.stream()?, &large_shapes(), options, receipts))
}

/// The number of faults.
fn judged_all(stream: &Stream, shapes: &[Shape], options: &Options, receipts: &mut Receipts) -> usize {
    let mut count = 0;
    let mut random = Random(5);
    let mut cases: BTreeMap<u32, usize> = BTreeMap::new();
    for &shape in shapes {
        *cases.entry(shape.bits).or_default() += 1;
        let mut faults = Vec::new();
        let done = judged(stream, &Case::random(shape, &mut random), options.runs, receipts, &mut faults);
        if let Err(error) = done {
            faults.push(format!("{shape:?}: {error}"));
        }
        for fault in &faults {
            println!("WRONG: {fault}");
            receipts.fault(Some(shape.format().name), fault);
        }
        count += faults.len();
    }
    for (bits, count) in cases {
        println!("w{bits}: {count} shapes, {} runs each", options.runs);
    }
    count
}

/// Layers of models, for devices that do not take minutes for one.
fn large_shapes() -> Vec<Shape> {
    let sizes =
        [(3584, 3584), (3584, 10752), (3584, 18944), (18944, 3584), (8192, 8192), (4304, 1152), (3584, 152_064)];
    let shape = |(k, n), rows| Shape { k, n, rows, blocks: 0, single: false, ..Shape::PLAIN };
    let mut shapes: Vec<Shape> = sizes.into_iter().flat_map(|size| [1, 8, 16].map(|rows| shape(size, rows))).collect();
    // Several units for each block, of one band and of several.
    for rows in [33, 64] {
        shapes.extend([(3584, 18944), (8192, 8192), (128, 76_800)].map(|size| shape(size, rows)));
        shapes.push(Shape { gated: true, bias: true, ..shape((3584, 37888), rows) });
        for (bits, element) in
            [(2, Element::F16), (2, Element::Bf16), (3, Element::Bf16), (4, Element::F16), (4, Element::Bf16)]
        {
            shapes.push(Shape { bits, element, residual: true, ..shape((3584, 18944), rows) });
        }
    }
    for (together, blocks) in [(2, 264), (4, 100), (8, 263)] {
        shapes.push(Shape { together, blocks, ..shape((8192, 8192), 16) });
        shapes.push(Shape { together, blocks, gated: true, bias: true, ..shape((3584, 37888), 1) });
    }
    for rows in 1..=16 {
        shapes.push(Shape { blocks: 97, ..shape((4304, 1152), rows) });
        shapes.push(Shape { bits: 4, element: Element::Bf16, ..shape((3584, 3584), rows) });
    }
    shapes
}

/// Weights that the device arranges lie as those that the host does: every group, gates, tails, types of scales, no zero points.
fn tiles_are_those_of_the_host(
    stream: &Stream,
    receipts: &mut Receipts,
    faults: &mut Vec<String>,
) -> Result<(), DeviceError> {
    for bits in [2, 3, 4] {
        for (i, group) in [32, 64, 128, 256].into_iter().enumerate() {
            for (n, k, gated) in [(33, 300, false), (62, 129, true), (96, 1024, true)] {
                let shape = Shape { bits, n, k, group, ..Shape::PLAIN };
                let case = Case::new(shape, |_, _| 0.0);
                let stored = case.stored();
                let scales = stored.scales.to_f32();
                let halves: Vec<u8> = scales.iter().flat_map(|&s| f16::from_f32(s).to_le_bytes()).collect();
                let brains: Vec<u8> = scales.iter().flat_map(|&s| bf16::from_f32(s).to_le_bytes()).collect();
                // Not exact in half precision, so that rounding to 20 bits is seen.
                let odd: Vec<f32> = scales.iter().map(|s| s * 1.0001).collect();
                let scales = match i {
                    0 => Scales::F32(&odd),
                    1 => Scales::Bytes(FloatType::F16, &halves),
                    2 => Scales::Bytes(FloatType::BF16, &brains),
                    _ => stored.scales,
                };
                let zero_points = stored.zero_points.filter(|_| i != 1);
                let stored = Stored { scales, zero_points, ..stored };
                let weight = DeviceWeight::load(stream, shape.format(), &stored, gated)?;
                receipts.checked(shape.format().name, &format!("w{bits}_repack"), true, 0.0, 1);
                let mut bytes = vec![0; weight.bytes()];
                stream.read(weight.tiles(), &mut bytes)?;
                if bytes != Tiles::new(shape.format(), &stored, gated)?.bytes {
                    faults.push(format!("{shape:?}, gated {gated}: the device arranges tiles otherwise than the host"));
                }
            }
        }
    }
    Ok(())
}

/// What codes stand for, in 16 bits: exact but for one rounding.
fn numbers_of_codes(stream: &Stream, receipts: &mut Receipts, faults: &mut Vec<String>) -> Result<(), DeviceError> {
    for bits_of_code in [2, 3, 4] {
        for (element, group, n, k, gated) in [
            (Element::F16, 128, 96, 300, false),
            (Element::Bf16, 32, 33, 129, false),
            (Element::F16, 64, 70, 512, true),
            (Element::Bf16, 256, 64, 77, true),
        ] {
            let shape = Shape { bits: bits_of_code, element, n, k, group, ..Shape::PLAIN };
            let case = Case::new(shape, |_, _| 0.0);
            let weight = DeviceWeight::load(stream, shape.format(), &case.stored(), gated)?;
            let outputs = weight.outputs();
            let (stride, row_tiles) = (k.next_multiple_of(8) + 8, n.div_ceil(32));
            let kernel = format!("w{bits_of_code}_dequantize_{}", name(element));
            receipts.checked(shape.format().name, &kernel, false, 0.0, row_tiles);
            for first in 0..row_tiles {
                let memory = stream.device().memory(2 * 32 * (row_tiles - first) * stride)?;
                stream.fill(&memory, 0xff)?;
                let rows = DeviceRows { memory: &memory, stride };
                weight.dequantize(stream, first..row_tiles, element, rows)?;
                let mut found = vec![0; memory.bytes()];
                stream.read(&memory, &mut found)?;
                for (place, bytes) in found.as_chunks().0.iter().enumerate() {
                    let (row, column) = (place / stride, place % stride);
                    let (tile, within) = (first + row / 32, row % 32);
                    let own = if gated { 16 * tile + within % 16 } else { 32 * tile + within };
                    let channel = own + if gated && within >= 16 { outputs } else { 0 };
                    let wanted = if own >= outputs || column >= k.next_multiple_of(8) {
                        0xffff
                    } else if column >= k {
                        0
                    } else {
                        let group = channel * case.codes.groups() + column / group;
                        let code = f32::from(case.codes.codes[channel * k + column]);
                        bits(element, case.codes.scales[group] * (code - f32::from(case.codes.zero_points[group])))
                    };
                    if u16::from_le_bytes(*bytes) != wanted {
                        faults.push(format!("{shape:?}, gated {gated}: number {column} of channel {channel} is wrong"));
                        return Ok(());
                    }
                }
            }
        }
    }
    Ok(())
}

/// A token row is the same bits alone and among others, whatever the others are.
fn rows_do_not_meet(stream: &Stream, receipts: &mut Receipts, faults: &mut Vec<String>) -> Result<(), DeviceError> {
    let n = 48;
    let plain = Shape { n, k: 900, blocks: 3, ..Shape::PLAIN };
    let number = |row: usize, i: usize| ((row * 7 + i * 13) % 101) as f32 / 101.0 - 0.5;
    for rows in [8, 16] {
        let together = judged(stream, &Case::new(Shape { rows, ..plain }, number), 2, receipts, faults)?;
        for row in 0..rows {
            let alone = Case::new(plain, |_, i| number(row, i));
            let alone = judged(stream, &alone, 2, receipts, faults)?;
            if together.get(row * n..(row + 1) * n) != Some(&alone[..]) {
                faults.push(format!("row {row} of {rows} is not what it is alone"));
            }
        }
    }
    // Nor in the kernel for up to 64: the same rows, with others around them.
    let some = Shape { rows: 50, blocks: 0, ..plain };
    let own = judged(stream, &Case::new(some, number), 2, receipts, faults)?;
    let others = Case::new(some, |row, i| number(row, i) * if row % 7 == 3 { 1.0 } else { -2.0 });
    let others = judged(stream, &others, 2, receipts, faults)?;
    for row in (3..50).step_by(7) {
        if own.get(row * n..(row + 1) * n) != others.get(row * n..(row + 1) * n) {
            faults.push(format!("row {row} of 50 is not what it is among others"));
        }
    }
    let shape = Shape { rows: 9, ..plain };
    let bad = |row: usize, i: usize| match (row, i) {
        (2, 17) => f32::INFINITY,
        (5, 899) => f32::NAN,
        (7, 3) => 65504.0,
        _ => number(row, i),
    };
    let run = |x: &dyn Fn(usize, usize) -> f32| -> Result<Vec<f32>, DeviceError> {
        let case = Case::new(shape, x);
        let y = Placed::new(stream, &case)?.run(stream, &shape)?;
        Ok(case.outputs(&y).unwrap_or_default())
    };
    let (good, bad) = (run(&number)?, run(&bad)?);
    for (row, (good, bad)) in good.chunks(n).zip(bad.chunks(n)).enumerate() {
        let right = match row {
            2 | 5 => bad.iter().all(|y| !y.is_finite()),
            7 => bad.iter().all(|y| y.is_finite()),
            _ => good == bad,
        };
        if !right {
            faults.push(format!("rows with numbers that are not finite: row {row} is wrong"));
        }
    }
    Ok(())
}

/// Every weight by itself: sixteen token rows at a time, each of which sees one input channel.
fn every_weight(stream: &Stream, faults: &mut Vec<String>) -> Result<(), DeviceError> {
    let shape = Shape { n: 32, k: 256, rows: 16, ..Shape::PLAIN };
    for (bits, group) in [(2, 128), (3, 32), (3, 128), (4, 128)] {
        let shape = Shape { bits, group, ..shape };
        for first in (0..256).step_by(16) {
            let case = Case::new(shape, |row, i| if i == first + row { 1.0 } else { 0.0 });
            let y = Placed::new(stream, &case)?.run(stream, &shape)?;
            let y = case.outputs(&y).unwrap_or_default();
            for (i, &y) in y.iter().enumerate() {
                let (row, channel) = (i / 32, i % 32);
                let wanted = case.exact(row, channel);
                if (f64::from(y) - wanted).abs() > 1e-6 * wanted.abs() {
                    faults.push(format!("{shape:?}: weight {} of {channel} is {y}, not {wanted}", first + row));
                }
            }
        }
    }
    Ok(())
}
