//! Products with many token rows, against float64 from the codes: weights are rounded to 16 bits on the way.

use crate::Options;
use crate::check::Placed;
use crate::few_rows::{Case, Shape};
use crate::receipt::Receipts;
use crate::support::Random;
use mbqc_kernels::cuda::{Device, DeviceError, Element, Prefill};
use std::sync::Arc;

/// The number of faults.
pub(crate) fn all(device: &Arc<Device>, options: &Options, receipts: &mut Receipts) -> Result<usize, DeviceError> {
    let stream = device.stream()?;
    let mut faults = Vec::new();
    let mut random = Random(21);
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
        if !options.small {
            // Several slabs, the last of which is lower.
            shapes.push(Shape { n: 20000, k: 3584, rows: 1000, single: false, ..plain });
            shapes.push(Shape { n: 37888, k: 3584, rows: 129, gated: true, ..plain });
        }
    }
    for shape in &shapes {
        let case = Case::random(*shape, &mut random);
        let placed = Placed::new(&stream, &case)?;
        let mut prefill = match Prefill::new(&stream, &[&placed.weight], shape.rows) {
            Err(error @ DeviceError::NoBlas) => {
                println!("finish: not checked: {error}");
                return Ok(0);
            }
            other => other?,
        };
        stream.fill(&placed.y, 0xff)?;
        placed.weight.product_of_many(&stream, &placed.product(shape), &mut prefill)?;
        let mut y = vec![0; shape.bytes_of_y()];
        stream.read(&placed.y, &mut y)?;
        let y = match case.outputs(&y) {
            Ok(y) => y,
            Err(error) => {
                faults.push(format!("{shape:?}, many rows: {error}"));
                continue;
            }
        };
        let every = ((shape.k * y.len()) >> 25 | 1).min(y.len());
        // Each weight is off by up to half a unit of its own.
        let unit = if shape.element == Element::F16 { 1.0 / 1024.0 } else { 1.0 / 128.0 };
        let (error, most) = (case.relative_error(&y, every), 0.6 * unit);
        if !matches!(error.partial_cmp(&most), Some(std::cmp::Ordering::Less | std::cmp::Ordering::Equal)) {
            faults.push(format!("{shape:?}, many rows: relative error {error:e}, at most {most:e}"));
        }
        let kernel = if shape.element == Element::F16 { "finish_f16" } else { "finish_bf16" };
        receipts.checked("finish", kernel, shape.single, error, 1);
    }
    println!("finish: {} shapes of many rows", shapes.len());
    for fault in &faults {
        println!("WRONG: {fault}");
        receipts.fault(fault);
    }
    Ok(faults.len())
}
