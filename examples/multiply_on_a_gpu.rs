//! One layer of an emitted model on a CUDA device, beside the CPU:
//!
//! ```text
//! mbqc model.onnx -o model.w3.onnx
//! cargo run --release --example multiply_on_a_gpu -- model.w3.onnx [NODE]
//! ```

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "the text is what the program is for")]

use half::f16;
use half::slice::HalfFloatSliceExt;
use mbqc::engine::layers::{Layer, layers};
use mbqc::onnx::{ReadOptions, read};
use mbqc_kernels::cuda::{Device, DeviceProduct, DeviceRows, DeviceWeight, Element, Workspace};
use mbqc_kernels::{Accuracy, Epilogue, Pool, Product, Scheme};
use std::process::ExitCode;

fn main() -> ExitCode {
    match work() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn work() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let file = arguments.next().ok_or("give a model with quantized layers, and perhaps the name of a node")?;
    let wanted = arguments.next();
    let model = read(file.as_ref(), &ReadOptions::default())?.model;
    let (layers, _) = layers(&model);
    // This example's activations are half precision.
    let fits = |layer: &&Layer| layer.layer.format.scheme == Scheme::WeightOnly && layer.layer.format.tiles.is_some();
    let found = match &wanted {
        Some(name) => layers.iter().find(|layer| *name == layer.name),
        None => layers.iter().find(fits),
    };
    let layer = found.ok_or("there is no such quantized layer of w2, w3 or w4; mbqc inspect lists them")?;
    let (k, n) = (layer.layer.k, layer.layer.n);

    // Two token rows of half precision, each at a multiple of 16 bytes.
    let (rows, stride) = (2, k.next_multiple_of(8));
    let x: Vec<f16> = (0..rows * stride).map(|i| f16::from_f32((i as f32 * 0.37).sin())).collect();

    let device = Device::open(0)?;
    let stream = device.stream()?;
    let weight = DeviceWeight::load(&stream, layer.layer.format, &layer.stored(), false)?;
    let mut workspace = Workspace::new(&stream, &[&weight], None)?;
    let (on_device, y) = (device.memory(2 * x.len())?, device.memory(4 * rows * n)?);
    let bytes: Vec<u8> = x.iter().flat_map(|x| x.to_le_bytes()).collect();
    stream.write(&on_device, &bytes)?;
    let product = DeviceProduct {
        x: DeviceRows { memory: &on_device, stride }.into(),
        rows,
        element: Element::F16,
        bias: None,
        residual: None,
        y: DeviceRows { memory: &y, stride: n },
        single: true,
        spread: None,
    };
    weight.product(&stream, &product, &mut workspace)?;
    let mut bytes = vec![0; 4 * rows * n];
    stream.read(&y, &mut bytes)?;
    let found: Vec<f32> = bytes.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();

    let x: Vec<f32> = x.chunks(stride).flat_map(|row| row[..k].to_f32_vec()).collect();
    let product = Product { x: x[..].into(), rows, w: layer.stored(), epilogue: Epilogue::default() };
    let expected = layer.layer.format.product(&product, Accuracy::Single, &Pool::single())?;
    let largest = |numbers: &mut dyn Iterator<Item = f32>| numbers.fold(0f32, |most, x| most.max(x.abs()));
    println!(
        "{}: {} of {k} x {n} on {}; largest difference to the CPU {:.1e}, of {:.1e}",
        layer.name,
        layer.layer.spec(),
        device.about().name,
        largest(&mut found.iter().zip(&expected).map(|(found, expected)| found - expected)),
        largest(&mut expected.iter().copied())
    );
    Ok(())
}
