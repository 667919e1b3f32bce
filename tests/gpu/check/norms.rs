//! Norms and their rounding to bytes, bit for bit as they are computed here in the same order.

use crate::Options;
use crate::few_rows::{bits, name, value};
use crate::receipt::Receipts;
use crate::support::Random;
use mbqc_kernels::cuda::{
    Device, DeviceError, DeviceNorm, DeviceRows, DeviceTokens, Element, Memory, NormKind, Norms, Stream,
};
use std::sync::Arc;

const THREADS: usize = 256;

/// Which norm, and whether there is a residual, and a sum that overwrites it.
#[derive(Clone, Copy, Debug)]
struct Case {
    element: Element,
    kind: usize,
    rows: usize,
    k: usize,
    residual: bool,
    in_place: bool,
    shift: bool,
}

/// What a row comes to.
struct Row {
    sum: Vec<u16>,
    y: Vec<f32>,
    codes: Vec<i8>,
    scale: f32,
}

/// What threads have, 8 numbers in turn to each, put together as a block does it: lanes of a warp by halves, warps in order.
fn of_block(numbers: &[f32], start: f32, own: impl Fn(f32, f32) -> f32, both: impl Fn(f32, f32) -> f32) -> f32 {
    let mut threads = [start; THREADS];
    for (chunk, eight) in numbers.chunks(8).enumerate() {
        let thread = &mut threads[chunk % THREADS];
        eight.iter().for_each(|&number| *thread = own(*thread, number));
    }
    for distance in [16, 8, 4, 2, 1] {
        let before = threads;
        for (i, thread) in threads.iter_mut().enumerate() {
            *thread = both(before[i], before[i ^ distance]);
        }
    }
    let warps = threads.iter().step_by(32).copied();
    warps.reduce(both).unwrap_or(start)
}

fn expected(case: &Case, x: &[u16], residual: &[u16], gain: &[u16], shift: &[u16], epsilon: f32) -> Row {
    let number = |bits: u16| value(case.element, bits);
    let sum: Vec<u16> = match case.residual {
        true => x.iter().zip(residual).map(|(&x, &r)| bits(case.element, number(x) + number(r))).collect(),
        false => x.to_vec(),
    };
    let h: Vec<f32> = sum.iter().map(|&bits| number(bits)).collect();
    let k = h.len() as f32;
    let add = |a: f32, b: f32| a + b;
    let mean = if case.kind == 2 { of_block(&h, 0.0, add, add) / k } else { 0.0 };
    let squares = of_block(&h, 0.0, |sum, h| (h - mean).mul_add(h - mean, sum), add);
    let inverse = 1.0 / (squares / k + epsilon).sqrt();
    let y: Vec<f32> = h
        .iter()
        .enumerate()
        .map(|(i, &h)| match case.kind {
            0 => h,
            _ if case.shift => (h - mean) * inverse * number(gain[i]) + number(shift[i]),
            _ => (h - mean) * inverse * number(gain[i]),
        })
        .collect();
    let most = y.iter().fold(0f32, |most, y| if y.is_nan() || most.is_nan() { f32::NAN } else { most.max(y.abs()) });
    if !most.is_finite() {
        return Row { sum, codes: vec![0; y.len()], y, scale: f32::NAN };
    }
    let scale = most.max(1e-5) / 127.0;
    let codes = y.iter().map(|y| (y / scale).round_ties_even() as i8).collect();
    Row { sum, y, codes, scale }
}

/// Memory with these numbers.
fn placed(stream: &Stream, numbers: &[u16]) -> Result<Memory, DeviceError> {
    let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
    let memory = stream.device().memory(bytes.len())?;
    stream.write(&memory, &bytes)?;
    Ok(memory)
}

fn read(stream: &Stream, memory: &Memory) -> Result<Vec<u8>, DeviceError> {
    let mut bytes = vec![0; memory.bytes()];
    stream.read(memory, &mut bytes)?;
    Ok(bytes)
}

fn halves(bytes: &[u8]) -> Vec<u16> {
    bytes.as_chunks().0.iter().map(|&bytes| u16::from_le_bytes(bytes)).collect()
}

/// The number of faults.
pub(crate) fn all(device: &Arc<Device>, _: &Options, receipts: &mut Receipts) -> Result<usize, DeviceError> {
    let stream = device.stream()?;
    let norms = Norms::load(device)?;
    let (mut faults, mut count) = (Vec::new(), 0);
    for element in Element::ALL {
        for kind in 0..3 {
            for (i, &(rows, k)) in [(1, 8), (3, 75), (2, 1152), (5, 3584), (2, 4304)].iter().enumerate() {
                let (residual, in_place, shift) = (i % 2 == 1, i % 4 == 3, kind == 2 && i != 0);
                let case = Case { element, kind, rows, k, residual, in_place, shift };
                count += 1;
                receipts.checked("norm", &format!("norm_{}", name(element)), true, 0.0, 1);
                if let Err(fault) = judged(&stream, &norms, &case)? {
                    faults.push(format!("{case:?}: {fault}"));
                }
            }
        }
    }
    println!("norm: {count} cases, bit for bit");
    for fault in &faults {
        println!("WRONG: {fault}");
        receipts.fault(Some("norm"), fault);
    }
    Ok(faults.len())
}

fn judged(stream: &Stream, norms: &Norms, case: &Case) -> Result<Result<(), String>, DeviceError> {
    let &Case { element, kind, rows, k, residual, in_place, shift } = case;
    let (stride, y_stride, codes_stride) = (k.next_multiple_of(8) + 8, k + 3, k.next_multiple_of(16) + 16);
    let mut random = Random((k * 3 + kind) as u64);
    let mut numbers = |count: usize, size: f32| -> Vec<u16> {
        (0..count).map(|_| bits(element, size * random.signed() * 10f32.powf(random.signed()))).collect()
    };
    let (mut x, r) = (numbers(rows * stride, 1.0), numbers(rows * stride, 0.3));
    let (gain, offset) = (numbers(k, 1.0), numbers(k, 0.5));
    let tie_row = if kind == 0 && !residual { Some(0) } else { None };
    if tie_row.is_some() {
        // Halves of a step exactly: 127 makes the step 1.
        (0..k).for_each(|i| x[i] = bits(element, (i % 9) as f32 - 4.5));
        x[0] = bits(element, 127.0);
    }
    if rows > 2 {
        // A row that is not finite, and one of zeros.
        x[stride + k / 2] = bits(element, f32::INFINITY);
        (0..k).for_each(|i| x[2 * stride + i] = 0);
    }
    let epsilon = 1e-6;
    let on_device = |numbers: &[u16]| placed(stream, numbers);
    let (x_memory, r_memory, gain_memory, shift_memory) =
        (on_device(&x)?, on_device(&r)?, on_device(&gain)?, on_device(&offset)?);
    let device = stream.device();
    let own_sum = device.memory(2 * rows * stride)?;
    let (y, codes, scales) =
        (device.memory(2 * rows * y_stride)?, device.memory(rows * codes_stride)?, device.memory(4 * rows)?);
    for memory in [&own_sum, &y, &codes] {
        stream.fill(memory, 0xff)?;
    }
    let sum = if in_place { &r_memory } else { &own_sum };
    let shift_memory = shift.then_some(&shift_memory);
    norms.run(
        stream,
        &DeviceNorm {
            element,
            rows,
            k,
            x: DeviceRows { memory: &x_memory, stride },
            residual: residual.then_some(&r_memory),
            sum: Some(sum),
            kind: match kind {
                0 => NormKind::None,
                1 => NormKind::Rms { gain: &gain_memory, epsilon },
                _ => NormKind::Layer { gain: &gain_memory, shift: shift_memory, epsilon },
            },
            y: Some(DeviceRows { memory: &y, stride: y_stride }),
            tokens: Some(DeviceTokens { codes: DeviceRows { memory: &codes, stride: codes_stride }, scales: &scales }),
        },
    )?;
    let (sums, ys, codes, scales) =
        (halves(&read(stream, sum)?), halves(&read(stream, &y)?), read(stream, &codes)?, read(stream, &scales)?);
    for row in 0..rows {
        let part = |numbers: &[u16]| numbers[row * stride..row * stride + k].to_vec();
        let wanted = expected(case, &part(&x), &part(&r), &gain, &offset, epsilon);
        let scale = f32::from_le_bytes(scales.as_chunks().0[row]);
        // Half of the numbers that are not numbers have another sign.
        if scale.to_bits() != wanted.scale.to_bits() && !(scale.is_nan() && wanted.scale.is_nan()) {
            return Ok(Err(format!("the scale of row {row} is {scale}, not {}", wanted.scale)));
        }
        let found: Vec<i8> = codes[row * codes_stride..][..k].iter().map(|&code| code as i8).collect();
        if found != wanted.codes {
            return Ok(Err(format!("codes of row {row}")));
        }
        let y: Vec<u16> = wanted.y.iter().map(|&y| bits(element, y)).collect();
        let same = |a: u16, b: u16| a == b || value(element, a).is_nan() && value(element, b).is_nan();
        if !ys[row * y_stride..][..k].iter().zip(&y).all(|(&a, &b)| same(a, b)) {
            return Ok(Err(format!("y of row {row}")));
        }
        if sums[row * stride..][..k] != wanted.sum {
            return Ok(Err(format!("the sum of row {row}")));
        }
        let gaps = ys[row * y_stride + k..][..3].iter().all(|&bits| bits == 0xffff)
            && codes[row * codes_stride + k..(row + 1) * codes_stride].iter().all(|&byte| byte == 0xff);
        if !gaps {
            return Ok(Err(format!("something is written behind row {row}")));
        }
    }
    Ok(Ok(()))
}
