//! Products with many token rows by our own kernels, which sm_90a has: as those by cuBLASLt are judged, and the same bits every time.

use crate::Options;
use crate::check::Placed;
use crate::few_rows::{Case, GAP, Shape, name};
use crate::integers::{self, formats};
use crate::prefill;
use crate::receipt::Receipts;
use crate::support::Random;
use mbqc_kernels::Format;
use mbqc_kernels::cuda::{Device, DeviceError, DeviceProduct, Element, Prefill, ROWS_AT_ONCE, Stream, Way, Workspace};
use std::sync::Arc;

/// One step along k and many; tiles whose second half k does not reach; rows of tiles that are too few for a block, or for a cluster; token
/// rows that are, and several blocks of them.
fn shapes() -> Vec<Shape> {
    let mut shapes = Vec::new();
    for element in Element::ALL {
        let plain = Shape { element, rows: 21, n: 80, k: 300, blocks: 0, ..Shape::PLAIN };
        for bits in [2, 3, 4] {
            for group in [32, 64, 128, 256] {
                shapes.push(Shape { bits, group, bias: true, ..plain });
            }
        }
        for (rows, n, k) in [(1, 1, 1), (256, 128, 65), (129, 129, 128), (257, 300, 8)] {
            shapes.push(Shape { rows, n, k, ..plain });
        }
        // Steps: three, four, seven, eight.
        for k in [160, 256, 430, 512] {
            shapes.push(Shape { k, rows: 9, ..plain });
        }
        // Outputs one at a time; and two at a time, which lie in a word: with a gate, others, both, neither.
        for gap in [GAP, 4] {
            let halves = Shape { single: false, gap, ..plain };
            shapes.push(Shape { rows: 300, n: 60, k: 1090, residual: true, ..halves });
            shapes.push(Shape { gated: true, bias: true, residual: true, n: 268, ..halves });
            shapes.push(Shape { bias: true, n: 130, rows: 140, ..halves });
        }
        shapes.push(Shape { gated: true, n: 70, rows: 9, single: false, gap: 1, ..plain });
        shapes.push(Shape { gated: true, bias: true, residual: true, n: 270, ..plain });
    }
    shapes
}

fn large_shapes() -> Vec<Shape> {
    let shapes = Element::ALL.into_iter().flat_map(|element| {
        let plain = Shape { element, k: 3584, blocks: 0, gap: 4, ..Shape::PLAIN };
        [
            Shape { bits: 3, n: 20000, rows: 1000, single: false, ..plain },
            Shape { bits: 4, n: 18941, rows: 600, single: false, residual: true, bias: true, ..plain },
            Shape { bits: 2, n: 37888, rows: 129, gated: true, ..plain },
        ]
    });
    shapes.collect()
}

fn integer_shapes(format: &'static Format) -> Vec<integers::Shape> {
    let mut shapes = Vec::new();
    for element in Element::ALL {
        let plain = integers::Shape { spread: None, wide: true, ..integers::plain(format, element) };
        for (rows, n, k) in [(1, 1, 1), (256, 128, 128), (257, 129, 129), (40, 300, 900)] {
            shapes.push(integers::Shape { rows, n, k, ..plain });
        }
        let gated = integers::Shape { rows: 30, n: 270, gated: true, ..plain };
        shapes.push(gated);
        for gap in [GAP, 4] {
            let halves = integers::Shape { single: false, gap, ..plain };
            shapes.push(integers::Shape { rows: 30, n: 268, gated: true, residual: true, ..halves });
            shapes.push(integers::Shape { rows: 140, n: 130, k: 260, ..halves });
        }
    }
    shapes
}

fn large_integer_shapes(format: &'static Format) -> Vec<integers::Shape> {
    let shapes = Element::ALL.into_iter().flat_map(|element| {
        let plain = integers::Shape { spread: None, wide: true, ..integers::plain(format, element) };
        let large = integers::Shape { n: 20000, k: 3584, rows: 600, single: false, gap: 4, ..plain };
        [
            large,
            integers::Shape { n: 3584, k: 18944, residual: true, ..large },
            integers::Shape { gated: true, ..large },
        ]
    });
    shapes.collect()
}

/// The number of faults.
pub(crate) fn all(device: &Arc<Device>, options: &Options, receipts: &mut Receipts) -> Result<usize, DeviceError> {
    judged_all(device, options, receipts, &shapes(), integer_shapes)
}

/// The same of what takes long.
pub(crate) fn large(device: &Arc<Device>, options: &Options, receipts: &mut Receipts) -> Result<usize, DeviceError> {
    judged_all(device, options, receipts, &large_shapes(), large_integer_shapes)
}

fn judged_all(
    device: &Arc<Device>,
    options: &Options,
    receipts: &mut Receipts,
    shapes: &[Shape],
    of_integers: fn(&'static Format) -> Vec<integers::Shape>,
) -> Result<usize, DeviceError> {
    let stream = device.stream()?;
    let mut random = Random(31);
    let mut count = 0;
    for fault in ways(&stream, options, &mut random)? {
        println!("WRONG: {fault}");
        receipts.fault(None, &fault);
        count += 1;
    }
    let few = Case::random(Shape { blocks: 0, ..Shape::PLAIN }, &mut random);
    let placed = Placed::new(&stream, &few)?;
    let product = placed.product(&few.shape);
    match placed.weight.product_wide(&stream, &product) {
        Err(DeviceError::NoWide { .. }) if !placed.weight.has_wide() => {
            println!("256 rows at once: not checked, a device of sm_90 has kernels for that");
            return Ok(count);
        }
        Ok(()) if placed.weight.has_wide() => {}
        other => {
            let fault = format!("256 rows at once: {other:?}");
            println!("WRONG: {fault}");
            receipts.fault(None, &fault);
            count += 1;
        }
    }
    for shape in shapes {
        let unit = format!("w{}_wide", shape.bits);
        let fault = match prefill::judged(&stream, &Case::random(*shape, &mut random), None, options.runs) {
            Ok(Ok(error)) => {
                let kernel = format!("w{}a16_{}_256", shape.bits, name(shape.element));
                receipts.checked(&unit, &kernel, shape.single, error, options.runs);
                continue;
            }
            Ok(Err(fault)) => fault,
            Err(error) => error.to_string(),
        };
        println!("WRONG: {shape:?}, 256 rows at once: {fault}");
        receipts.fault(Some(&unit), &format!("{shape:?}: {fault}"));
        count += 1;
    }
    println!("256 rows at once: {} shapes, {} runs each", shapes.len(), options.runs);
    for format in formats() {
        count += integers::judged_these(&stream, options, receipts, format, &of_integers(format));
    }
    Ok(count)
}

/// What is wrong with the choice of a way: products are made in the one that is said to be fastest, with cuBLASLt and without, or as a spread
/// says; ways that round weights have other bits. By kernels for 256 rows, a token row is the same bits among more of them.
fn ways(stream: &Stream, options: &Options, random: &mut Random) -> Result<Vec<String>, DeviceError> {
    let (mut faults, mut met) = (Vec::new(), Vec::new());
    for rows in [1, 128, 129, 300] {
        let shape = Shape { rows, n: 48, k: 130, blocks: 0, ..Shape::PLAIN };
        let placed = Placed::new(stream, &Case::random(shape, random))?;
        let (weight, product) = (&placed.weight, placed.product(&shape));
        let mut workspace = Workspace::new(stream, &[weight], None)?;
        let mut made = |put: &mut dyn FnMut(&mut Workspace) -> Result<(), DeviceError>| {
            stream.fill(&placed.y, 0xff)?;
            put(&mut workspace)?;
            let mut y = vec![0; placed.y.bytes()];
            stream.read(&placed.y, &mut y).map(|()| y)
        };
        let prefill =
            if options.without_blas { Err(DeviceError::NoBlas) } else { Prefill::new(stream, &[weight], rows) };
        let mut prefill = match prefill {
            Err(DeviceError::NoBlas) => None,
            other => Some(other?),
        };
        let sliced = made(&mut |workspace| weight.product(stream, &product, workspace))?;
        for with_blas in [true, false] {
            if with_blas && prefill.is_none() {
                continue;
            }
            let way = weight.way(rows, with_blas);
            let wanted = match way {
                Way::Sliced => sliced.clone(),
                Way::Wide => made(&mut |_| weight.product_wide(stream, &product))?,
                Way::Blas => made(&mut |_| {
                    let prefill = prefill.as_mut().expect("there is one");
                    weight.product_of_many(stream, &product, prefill)
                })?,
            };
            let any = made(&mut |workspace| {
                let prefill = prefill.as_mut().filter(|_| with_blas);
                weight.product_of_any(stream, &product, workspace, prefill)
            })?;
            if any != wanted || (way == Way::Sliced) != (any == sliced) {
                faults
                    .push(format!("{rows} rows are not multiplied in the way that is thought to be fastest, {way:?}"));
            }
            met.push(way);
        }
        let spread = Some(weight.spread(rows.min(ROWS_AT_ONCE)));
        let dealt = DeviceProduct { spread, ..product };
        let mut own = Workspace::new(stream, &[weight], spread)?;
        let wanted = made(&mut |_| weight.product(stream, &dealt, &mut own))?;
        if made(&mut |_| weight.product_of_any(stream, &dealt, &mut own, prefill.as_mut()))? != wanted {
            faults.push(format!("{rows} rows are not dealt out as the spread says"));
        }
        if weight.has_wide() && rows == 300 {
            let all = made(&mut |_| weight.product_wide(stream, &product))?;
            let some = made(&mut |_| weight.product_wide(stream, &DeviceProduct { rows: 200, ..product }))?;
            let bytes = 200 * 4 * shape.y_stride();
            if all[..bytes] != some[..bytes] {
                faults.push("a token row has other bits among 300 than among 200".to_owned());
            }
        }
    }
    let first = Placed::new(stream, &Case::random(Shape { blocks: 0, ..Shape::PLAIN }, random))?;
    if !met.contains(&Way::Sliced) || first.weight.has_wide() != met.contains(&Way::Wide) {
        faults.push(format!("of the ways, {met:?} were met"));
    }
    Ok(faults)
}
