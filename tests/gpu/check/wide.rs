//! Products with many token rows by our own kernels, which sm_90a has: as those by cuBLASLt are judged, and the same bits every time.

use crate::Options;
use crate::check::Placed;
use crate::few_rows::{Case, GAP, Shape, name};
use crate::integers::{self, formats};
use crate::prefill;
use crate::receipt::Receipts;
use crate::support::Random;
use mbqc_kernels::Format;
use mbqc_kernels::cuda::{Device, DeviceError, Element};
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
    let few = Case::random(Shape { blocks: 0, ..Shape::PLAIN }, &mut random);
    let placed = Placed::new(&stream, &few)?;
    let product = placed.product(&few.shape);
    match placed.weight.product_wide(&stream, &product) {
        Err(DeviceError::NoWide { .. }) if !placed.weight.has_wide() => {
            println!("256 rows at once: not checked, a device of sm_90 has kernels for that");
            return Ok(0);
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
