//! What must be refused, with an error that says why.

use crate::Options;
use crate::few_rows::{Case, Shape};
use crate::receipt::Receipts;
use crate::support::Random;
use crate::support::codes_of;
use mbqc_kernels::FORMATS;
use mbqc_kernels::cuda::{
    Dense, DenseProduct, Device, DeviceError, DeviceProduct, DeviceRows, DeviceWeight, Element, Spread, Workspace,
};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// The number of faults.
pub(crate) fn all(device: &Arc<Device>, options: &Options, receipts: &mut Receipts) -> Result<usize, DeviceError> {
    let mut stream = device.stream()?;
    let shape = Shape { k: 300, n: 64, rows: 2, ..Shape::PLAIN };
    let case = Case::random(shape, &mut Random(3));
    let weight = DeviceWeight::load(&stream, shape.format(), &case.stored(), false)?;
    let spread = Spread { together: 1, blocks: 4 };
    let mut workspace = Workspace::new(&stream, &[&weight], Some(spread))?;
    let mut none = Workspace::new(&stream, &[], None)?;
    let memory = device.memory(4096)?;
    stream.fill(&memory, 0)?;
    let [x, y, bias] = [memory.part(0..1216)?, memory.part(1280..1536)?, memory.part(2048..2176)?];
    let good = DeviceProduct {
        x: DeviceRows { memory: &x, stride: 304 }.into(),
        rows: 2,
        element: Element::F16,
        bias: Some(&bias),
        residual: None,
        y: DeviceRows { memory: &y, stride: 64 },
        single: false,
        spread: Some(spread),
    };
    let mut faults = Vec::new();
    let mut expect = |what: &str, result: Result<(), DeviceError>, words: &str| match result {
        Err(error) if error.to_string().contains(words) => {}
        Err(error) => faults.push(format!("{what} is refused with `{error}`, which does not say `{words}`")),
        Ok(()) => faults.push(format!("{what} is taken")),
    };
    let part = |range| memory.part(range);
    for (together, blocks, words) in [
        (0, 1, "a band is 0, expected 1, 2, 4 or 8"),
        (3, 1, "a band is 3"),
        (1, 0, "the number of blocks is 0, expected 1 to 6"),
        (1, 7, "blocks is 7"),
    ] {
        let made = Workspace::new(&stream, &[&weight], Some(Spread { together, blocks })).map(|_| ());
        expect("a workspace for a spread that is none", made, words);
    }
    weight.product(&stream, &good, &mut workspace)?;
    let mut refused = |what: &str, product: &DeviceProduct<'_>, words: &str| {
        expect(what, weight.product(&stream, product, &mut workspace), words);
    };
    // Opened a second time, it is another device.
    let other = Device::open_for(device.about().ordinal, 3)?;
    let elsewhere = other.memory(1216)?;
    let of_other = DeviceProduct { x: DeviceRows { memory: &elsewhere, stride: 304 }.into(), ..good };
    refused("an x of another device", &of_other, "x belongs to another device");
    let short = part(0..1200)?;
    let rows = |memory, stride| DeviceRows { memory, stride };
    refused("a short x", &DeviceProduct { x: rows(&short, 304).into(), ..good }, "x is 1200, expected 1216 bytes");
    let odd = part(8..1224)?;
    refused("an x at 8 bytes", &DeviceProduct { x: rows(&odd, 304).into(), ..good }, "no multiple of 16");
    refused("rows of x that overlap", &DeviceProduct { x: rows(&x, 296).into(), ..good }, "the stride of x is 296");
    refused("an odd stride of x", &DeviceProduct { x: rows(&x, 305).into(), ..good }, "the stride of x is 305");
    refused("a y without room", &DeviceProduct { single: true, ..good }, "y is 256, expected 512");
    refused("rows of y that overlap", &DeviceProduct { y: rows(&y, 63), ..good }, "the stride of y is 63");
    refused("a y within x", &DeviceProduct { y: rows(&x, 64), ..good }, "the first byte of y");
    let shifted = part(1282..1538)?;
    refused("a residual across y", &DeviceProduct { residual: Some(&shifted), ..good }, "the first byte of y");
    refused("a short bias", &DeviceProduct { bias: Some(&part(0..126)?), ..good }, "the bias is 126");
    let bad = Spread { together: 3, blocks: 1 };
    refused("three rows of tiles", &DeviceProduct { spread: Some(bad), ..good }, "rows of tiles");
    let bad = Spread { together: 1, blocks: 7 };
    refused("more blocks than tiles", &DeviceProduct { spread: Some(bad), ..good }, "blocks is 7, expected 1 to 6");
    expect("a workspace of nothing", weight.product(&stream, &good, &mut none), "partial sums is 0");
    let other = device.stream()?;
    expect("another stream's workspace", weight.product(&other, &good, &mut none), "belongs to another stream");
    expect("a part beyond the end", memory.part(4000..5000).map(drop), "up to 4096");
    expect("a copy of another length", stream.write(&memory, &[0; 5]), "5 bytes, as many as are copied");
    let group = Shape { group: 16, ..shape };
    let case = Case::random(group, &mut Random(3));
    let loaded = DeviceWeight::load(&stream, group.format(), &case.stored(), false);
    expect("groups of 16", loaded.map(drop), "group size 16");
    let graph = stream.record(|stream| weight.product(stream, &good, &mut workspace))?;
    let inside = stream.record(|_| graph.launch());
    expect("a graph in a recording", inside.map(drop), "cannot be recorded");
    // A graph may be given up in a recording.
    let again = stream.record(|stream| {
        drop(graph);
        weight.product(stream, &good, &mut workspace)
    })?;
    again.launch()?;
    let caught = catch_unwind(AssertUnwindSafe(|| stream.record(|_| panic!("within a recording")).map(drop)));
    assert!(caught.is_err(), "the panic goes on");
    stream.synchronize()?;
    let inside = stream.record(|stream| stream.write(&memory, &[0; 4096]));
    expect("a copy in a recording", inside.map(drop), "cannot be recorded");
    expect("a graph of another stream", other.seconds(&again, 1).map(drop), "the graph belongs to another stream");
    let integers = FORMATS.iter().copied().find(|format| format.name == "w8a8").expect("a format of the list");
    let packed = (integers.pack)(&codes_of(integers, shape.n, shape.k, shape.k, 1));
    let integers = DeviceWeight::load(&stream, integers, &packed.stored(shape.k, shape.k), false)?;
    let result = integers.dequantize(&stream, 0..1, Element::F16, rows(&memory, 304));
    expect("numbers of integers", result, "w8a8 is multiplied in integers");
    expect("numbers for integers", integers.product(&stream, &good, &mut workspace), "expected 8, rounded to bytes");
    if !options.without_blas
        && let Ok(mut dense) = Dense::new(&stream)
    {
        let good = DenseProduct {
            element: Element::F16,
            rows: 2,
            n: 3,
            k: 300,
            x: rows(&x, 304),
            w: rows(&memory, 304),
            y: rows(&y, 4),
        };
        let mut refused = |what: &str, product: &DenseProduct<'_>, words: &str| {
            expect(what, dense.product(&stream, product), words);
        };
        refused("a y within the weight", &good, "memory that no input lies in");
        refused(
            "a short weight",
            &DenseProduct { w: rows(&bias, 304), ..good },
            "the weight is 128, expected 1816 bytes",
        );
        refused("no input channels", &DenseProduct { k: 0, ..good }, "the number of input channels is 0");
        refused("an odd stride", &DenseProduct { w: rows(&memory, 301), ..good }, "the stride of the weight is 301");
        expect("another stream's cuBLASLt", dense.product(&other, &good), "belongs to another stream");
    }
    let full = device.memory(usize::MAX >> 8);
    expect("more memory than there is", full.map(drop), "has no room for");
    let none = Device::open(99).map(drop);
    expect("device 99", none, "there is no CUDA device 99");
    // All of that left the stream as it was.
    weight.product(&stream, &good, &mut workspace)?;
    stream.synchronize()?;
    for fault in &faults {
        println!("WRONG: {fault}");
        receipts.fault(None, fault);
    }
    Ok(faults.len())
}
