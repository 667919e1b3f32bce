//! Products with many token rows, against float64 from the codes: weights are rounded to 16 bits on the way.

use crate::Options;
use crate::check::Placed;
use crate::few_rows::{Case, GAP, Shape, bits, name, value};
use crate::receipt::Receipts;
use crate::support::Random;
use mbqc_kernels::cuda::{
    Dense, DenseProduct, Device, DeviceError, DeviceProduct, DeviceRows, Element, Prefill, Stream,
};
use std::sync::Arc;

fn shapes() -> Vec<Shape> {
    let mut shapes = Vec::new();
    for element in Element::ALL {
        let plain = Shape { element, rows: 21, n: 80, k: 300, ..Shape::PLAIN };
        for bits in [2, 3, 4] {
            for group in [32, 64, 128, 256] {
                shapes.push(Shape { bits, group, bias: true, ..plain });
            }
        }
        shapes.push(Shape { residual: true, single: false, rows: 1, k: 77, ..plain });
        shapes.push(Shape { gated: true, bias: true, residual: true, n: 70, ..plain });
        // Rows of y at multiples of 16 bytes: cuBLASLt does all there is to do.
        for (bias, residual, n) in [(false, false, 77), (true, false, 93), (false, true, 61), (true, true, 133)] {
            shapes.push(Shape { n, bias, residual, single: false, ..plain });
        }
    }
    shapes
}

/// Several slabs, the last of which is lower; and all in one.
fn large_shapes() -> Vec<Shape> {
    let shapes = Element::ALL.into_iter().flat_map(|element| {
        let plain = Shape { element, k: 3584, ..Shape::PLAIN };
        [
            Shape { n: 20000, rows: 1000, single: false, ..plain },
            Shape { n: 18941, rows: 600, single: false, residual: true, bias: true, ..plain },
            Shape { n: 37888, rows: 129, gated: true, ..plain },
        ]
    });
    shapes.collect()
}

/// The number of faults.
pub(crate) fn all(device: &Arc<Device>, options: &Options, receipts: &mut Receipts) -> Result<usize, DeviceError> {
    let stream = device.stream()?;
    if !there_is_blas(&stream, options)? {
        return Ok(0);
    }
    let mut count = judged_all(&stream, &shapes(), receipts);
    let mut faults = Vec::new();
    in_16_bits(&stream, options, &mut Random(23), &mut faults)?;
    for fault in &faults {
        println!("WRONG: {fault}");
        receipts.fault(Some("finish"), fault);
    }
    count += faults.len();
    Ok(count)
}

/// The same of what takes long.
pub(crate) fn large(device: &Arc<Device>, options: &Options, receipts: &mut Receipts) -> Result<usize, DeviceError> {
    let stream = device.stream()?;
    match there_is_blas(&stream, options)? {
        true => Ok(judged_all(&stream, &large_shapes(), receipts)),
        false => Ok(0),
    }
}

fn there_is_blas(stream: &Stream, options: &Options) -> Result<bool, DeviceError> {
    let found = if options.without_blas { Err(DeviceError::NoBlas) } else { Dense::new(stream).map(drop) };
    match found {
        Err(DeviceError::NoBlas) => {
            println!("finish: not checked, without cuBLASLt");
            Ok(false)
        }
        other => other.map(|()| true),
    }
}

/// The number of faults.
fn judged_all(stream: &Stream, shapes: &[Shape], receipts: &mut Receipts) -> usize {
    let mut random = Random(21);
    let mut count = 0;
    for (i, shape) in shapes.iter().enumerate() {
        // Slabs of one row of tiles, of a few, of all.
        let slab = [1, 2 * 3 * 32 * shape.k.next_multiple_of(8), 160 << 20][i % 3];
        let slab = if shape.n > 1000 { slab.max(24 << 20) } else { slab };
        match judged(stream, &Case::random(*shape, &mut random), Some(slab), 1) {
            Ok(Ok(error)) => {
                // Otherwise cuBLASLt has done it.
                if shape.single || shape.gated || !shape.y_stride().is_multiple_of(8) {
                    receipts.checked("finish", &format!("finish_{}", name(shape.element)), shape.single, error, 1);
                }
                continue;
            }
            Ok(Err(fault)) => println!("WRONG: {shape:?}, many rows: {fault}"),
            // One that cuBLASLt does not take says nothing of the others.
            Err(error) => println!("WRONG: {shape:?}, many rows: {error}"),
        }
        receipts.fault(Some("finish"), &format!("{shape:?}, many rows"));
        count += 1;
    }
    println!("finish: {} shapes of many rows", shapes.len());
    count
}

/// The error, or what is wrong: of products by cuBLASLt, with slabs of so many bytes, or else by our own kernels.
pub(crate) fn judged(
    stream: &Stream,
    case: &Case,
    slab: Option<usize>,
    runs: usize,
) -> Result<Result<f64, String>, DeviceError> {
    let shape = case.shape;
    let placed = Placed::new(stream, case)?;
    let prefill = slab.map(|slab| Prefill::with_slab(stream, &[&placed.weight], shape.rows, slab));
    let mut prefill = prefill.transpose()?;
    let mut put = |product: &DeviceProduct<'_>| match &mut prefill {
        Some(prefill) => placed.weight.product_of_many(stream, product, prefill),
        None => placed.weight.product_wide(stream, product),
    };
    let product = placed.product(&shape);
    let mut run = || -> Result<Vec<u8>, DeviceError> {
        stream.fill(&placed.y, 0xff)?;
        put(&product)?;
        let mut y = vec![0; shape.bytes_of_y()];
        stream.read(&placed.y, &mut y).map(|()| y)
    };
    let y = run()?;
    for _ in 1..runs {
        if run()? != y {
            return Ok(Err("runs differ".to_owned()));
        }
    }
    if shape.residual && !shape.single {
        // The residual may be where the outputs go. What lies between rows is not written.
        stream.copy(&placed.residual, &placed.y)?;
        let in_place = DeviceProduct { residual: Some(&placed.y), ..product };
        put(&in_place)?;
        let mut again = vec![0; shape.bytes_of_y()];
        stream.read(&placed.y, &mut again)?;
        let row = 2 * shape.y_stride();
        let same = |(a, b): (&[u8], &[u8])| a[..2 * shape.outputs()] == b[..2 * shape.outputs()];
        if !y.chunks(row).zip(again.chunks(row)).all(same) {
            return Ok(Err("outputs differ where they take the place of the residual".to_owned()));
        }
    }
    let y = match case.outputs(&y) {
        Ok(y) => y,
        Err(error) => return Ok(Err(error)),
    };
    let every = ((shape.k * y.len()) >> 25 | 1).min(y.len());
    // Each weight is off by up to half a unit of its own.
    let unit = if shape.element == Element::F16 { 1.0 / 1024.0 } else { 1.0 / 128.0 };
    let (error, most) = (case.relative_error(&y, every), 0.6 * unit);
    // Not a number is no small error.
    let right = matches!(error.partial_cmp(&most), Some(std::cmp::Ordering::Less | std::cmp::Ordering::Equal));
    Ok(if right { Ok(error) } else { Err(format!("relative error {error:e}, at most {most:e}")) })
}

/// Products with weights that were not quantized, and nothing written between rows.
fn in_16_bits(
    stream: &Stream,
    options: &Options,
    random: &mut Random,
    faults: &mut Vec<String>,
) -> Result<(), DeviceError> {
    let mut dense = Dense::new(stream)?;
    let device = stream.device();
    let mut shapes: Vec<(usize, usize, usize)> = vec![(1, 48, 64), (3, 40, 72), (21, 33, 300), (64, 96, 129)];
    if !options.small {
        shapes.extend([(1, 3584, 3584), (512, 3584, 1152)]);
    }
    let count = shapes.len();
    for element in Element::ALL {
        for &(rows, n, k) in &shapes {
            let stride = k.next_multiple_of(8) + 8;
            let numbers = |rows: usize, random: &mut Random| -> Vec<u16> {
                (0..rows * stride)
                    .map(|i| if i % stride < k { bits(element, random.signed()) } else { 0x7fff })
                    .collect()
            };
            let (x, w) = (numbers(rows, random), numbers(n, random));
            let placed = |numbers: &[u16]| {
                let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
                let memory = device.memory(bytes.len())?;
                stream.write(&memory, &bytes).map(|()| memory)
            };
            let (x_memory, w_memory) = (placed(&x)?, placed(&w)?);
            let y_stride = n + GAP;
            let y = device.memory(2 * rows * y_stride)?;
            stream.fill(&y, 0xff)?;
            let at = |memory, stride| DeviceRows { memory, stride };
            let (x_rows, w_rows, y_rows) = (at(&x_memory, stride), at(&w_memory, stride), at(&y, y_stride));
            let product = DenseProduct { element, rows, n, k, x: x_rows, w: w_rows, y: y_rows };
            if let Err(error) = dense.product(stream, &product) {
                faults.push(format!("{rows} x {k} x {n} in {element:?}: {error}"));
                continue;
            }
            let mut bytes = vec![0; y.bytes()];
            stream.read(&y, &mut bytes)?;
            let number = |bits: u16| f64::from(value(element, bits));
            let unit = if element == Element::F16 { 1.0 / 1024.0 } else { 1.0 / 128.0 };
            // An odd step meets every place of a tile.
            let every = (k * rows * n) >> 25 | 1;
            for (i, bytes) in
                bytes.as_chunks().0.iter().enumerate().filter(|(i, _)| i % every == 0 || i % y_stride >= n)
            {
                let (row, j, found) = (i / y_stride, i % y_stride, u16::from_le_bytes(*bytes));
                let right = if j >= n {
                    found == 0xffff
                } else {
                    let terms = || (0..k).map(|i| number(x[row * stride + i]) * number(w[j * stride + i]));
                    let wanted: f64 = terms().sum();
                    // Of rounding once to 16 bits, and of sums in f32.
                    let most = 0.51 * unit * wanted.abs() + 1e-6 * terms().map(f64::abs).sum::<f64>();
                    (number(found) - wanted).abs() <= most
                };
                if !right {
                    faults.push(format!("{rows} x {k} x {n} in {element:?}: output {j} of row {row} is {found:#x}"));
                    break;
                }
            }
        }
    }
    println!("cuBLASLt in 16 bits: {} shapes", 2 * count);
    Ok(())
}
