//! Chains of kernels of every kind, each of which reads what the one before wrote, so that none may begin too early; all products share
//! one workspace, and all with many rows one slab. In the stream and as a graph that is launched again and again, they have to
//! give the bits of a chain in which every kernel waits for the one before, and every weight has memory of its own.

use crate::Options;
use crate::few_rows::bits;
use crate::integers::are_rows;
use crate::receipt::Receipts;
use crate::support::codes_of;
use mbqc_kernels::FORMATS;
use mbqc_kernels::cuda::{
    Device, DeviceError, DeviceNorm, DeviceProduct, DeviceRows, DeviceTokens, DeviceWeight, Element, Memory, NormKind,
    Norms, Prefill, Stream, Workspace,
};
use std::sync::Arc;

/// What a weight is multiplied by: what is there, that with a norm, or that with a norm and rounded to bytes.
#[derive(Clone, Copy, PartialEq)]
enum Input {
    Plain,
    Normed,
    Rounded,
}

/// Output and input channels of the weights, in turn; each is as long as the input of the next.
const LENGTHS: [usize; 2] = [256, 144];

const ELEMENT: Element = Element::F16;

/// Which format comes when, and whether with cuBLASLt.
const STEPS: [(&str, Input, bool); 8] = [
    ("w3", Input::Normed, false),
    ("w4", Input::Plain, false),
    ("w8a8", Input::Rounded, false),
    ("w2", Input::Normed, true),
    ("w4a8", Input::Rounded, false),
    ("w3", Input::Normed, true),
    ("w8a8", Input::Rounded, true),
    ("w4", Input::Normed, false),
];

struct Chain {
    rows: usize,
    weights: Vec<DeviceWeight>,
    norms: Norms,
    gain: Memory,
    /// `[rows, stride]`: what steps read and write, in turn, and what norms make of it.
    buffers: [Memory; 3],
    codes: Memory,
    scales: Memory,
}

/// From one row to the next, of numbers and of bytes.
const STRIDE: usize = 256;

impl Chain {
    fn new(stream: &Stream, rows: usize) -> Result<Chain, DeviceError> {
        let device = stream.device();
        let weights = STEPS.iter().enumerate().map(|(i, (name, ..))| {
            let format = FORMATS.iter().copied().find(|format| format.name == *name).expect("a format of the list");
            let (k, n) = (LENGTHS[i % 2], LENGTHS[(i + 1) % 2]);
            let codes = codes_of(format, n, k, 128, i as u64);
            DeviceWeight::load(stream, format, &(format.pack)(&codes).stored(k, codes.group), false)
        });
        let gain = device.memory(2 * STRIDE)?;
        stream.write(&gain, &bits(ELEMENT, 1.0).to_le_bytes().repeat(STRIDE))?;
        let bytes = 2 * rows * STRIDE;
        Ok(Chain {
            rows,
            weights: weights.collect::<Result<_, _>>()?,
            norms: Norms::load(device)?,
            gain,
            buffers: [device.memory(bytes)?, device.memory(bytes)?, device.memory(bytes)?],
            codes: device.memory(rows * STRIDE)?,
            scales: device.memory(4 * rows)?,
        })
    }

    fn start(&self, stream: &Stream) -> Result<(), DeviceError> {
        let numbers = (0..self.rows * STRIDE).map(|i| bits(ELEMENT, ((i * 37 % 251) as f32 - 125.0) / 125.0));
        stream.write(&self.buffers[0], &numbers.flat_map(u16::to_le_bytes).collect::<Vec<u8>>())?;
        for memory in [&self.buffers[1], &self.buffers[2], &self.codes, &self.scales] {
            stream.fill(memory, 0xff)?;
        }
        Ok(())
    }

    /// With what serves all, or with one for each step.
    fn run(&self, stream: &Stream, of: &mut [Workspace], prefill: &mut [Prefill]) -> Result<(), DeviceError> {
        for (i, (weight, &(_, input, many))) in self.weights.iter().zip(&STEPS).enumerate() {
            let at = |memory| DeviceRows { memory, stride: STRIDE };
            let (from, to) = (&self.buffers[i % 2], &self.buffers[(i + 1) % 2]);
            let tokens = DeviceTokens { codes: at(&self.codes), scales: &self.scales };
            if input != Input::Plain {
                let norm = DeviceNorm {
                    element: ELEMENT,
                    rows: self.rows,
                    k: weight.k(),
                    x: at(from),
                    residual: None,
                    sum: None,
                    kind: NormKind::Rms { gain: &self.gain, epsilon: 1e-6 },
                    y: (input == Input::Normed).then_some(at(&self.buffers[2])),
                    tokens: (input == Input::Rounded).then_some(tokens),
                };
                self.norms.run(stream, &norm)?;
            }
            let product = DeviceProduct {
                x: match input {
                    Input::Plain => at(from).into(),
                    Input::Normed => at(&self.buffers[2]).into(),
                    Input::Rounded => tokens.into(),
                },
                rows: self.rows,
                element: ELEMENT,
                bias: None,
                residual: None,
                y: at(to),
                single: false,
                spread: None,
            };
            let own = |count: usize| if count == 1 { 0 } else { i };
            match prefill.len() {
                count @ 1.. if many => weight.product_of_many(stream, &product, &mut prefill[own(count)])?,
                _ => weight.product(stream, &product, &mut of[own(of.len())])?,
            }
        }
        Ok(())
    }

    /// What serves all weights, or one each.
    fn besides(
        &self,
        stream: &Stream,
        shared: bool,
        blas: bool,
    ) -> Result<(Vec<Workspace>, Vec<Prefill>), DeviceError> {
        let all: Vec<&DeviceWeight> = self.weights.iter().collect();
        let groups: Vec<&[&DeviceWeight]> = if shared { vec![&all] } else { all.chunks(1).collect() };
        let workspaces = groups.iter().map(|group| Workspace::new(stream, group, None)).collect::<Result<_, _>>()?;
        // cuBLASLt need not be there, nor have a kernel for few rows of bytes.
        if !blas || self.rows < 32 {
            return Ok((workspaces, Vec::new()));
        }
        let prefill: Result<_, _> = groups.iter().map(|group| Prefill::new(stream, group, self.rows)).collect();
        match prefill {
            Err(DeviceError::NoBlas) => Ok((workspaces, Vec::new())),
            prefill => Ok((workspaces, prefill?)),
        }
    }

    fn bytes(&self, stream: &Stream) -> Result<Vec<u8>, DeviceError> {
        let mut bytes = vec![0; self.buffers[0].bytes()];
        stream.read(&self.buffers[STEPS.len() % 2], &mut bytes)?;
        Ok(bytes)
    }
}

/// The number of faults.
pub(crate) fn all(device: &Arc<Device>, options: &Options, receipts: &mut Receipts) -> Result<usize, DeviceError> {
    let mut faults = Vec::new();
    let repeated = if options.small { 2 } else { 20 };
    // By the kernels for 8, 16 and 64 rows, and by cuBLASLt.
    let all = [3, 16, 40];
    for rows in all {
        let mut stream = device.stream()?;
        let chain = Chain::new(&stream, rows)?;
        let wanted = {
            let mut alone = device.stream()?;
            alone.set_overlap(false);
            let (mut workspaces, mut prefill) = chain.besides(&alone, false, !options.without_blas)?;
            chain.start(&alone)?;
            for _ in 0..repeated {
                chain.run(&alone, &mut workspaces, &mut prefill)?;
                alone.synchronize()?;
            }
            chain.bytes(&alone)?
        };
        let (mut workspaces, mut prefill) = chain.besides(&stream, true, !options.without_blas)?;
        chain.start(&stream)?;
        for _ in 0..repeated {
            chain.run(&stream, &mut workspaces, &mut prefill)?;
        }
        let streamed = chain.bytes(&stream)?;
        let graph = stream.record(|stream| chain.run(stream, &mut workspaces, &mut prefill))?;
        chain.start(&stream)?;
        for _ in 0..repeated {
            graph.launch()?;
        }
        let replayed = chain.bytes(&stream)?;
        // A norm; a slab of a weight whose rows are not what cuBLASLt takes, and what follows sums of integers; or one that takes all rows.
        let kernels = |(&(_, input, many), weight): (&(&str, Input, bool), &DeviceWeight)| {
            let product = match input {
                Input::Rounded if many && !prefill.is_empty() => 1 + usize::from(!are_rows(weight.format())),
                _ => 1,
            };
            product + usize::from(input != Input::Plain)
        };
        let expected: usize = STEPS.iter().zip(&chain.weights).map(kernels).sum();
        if graph.kernels() != expected {
            faults.push(format!("{rows} rows: a chain has {} kernels, not {expected}", graph.kernels()));
        }
        let length = LENGTHS[STEPS.len() % 2];
        let numbers: Vec<f32> = wanted
            .chunks(2 * STRIDE)
            .flat_map(|row| row[..2 * length].as_chunks().0)
            .map(|&bytes| crate::few_rows::value(ELEMENT, u16::from_le_bytes(bytes)))
            .collect();
        if numbers.iter().any(|number| !number.is_finite())
            || numbers.iter().filter(|&&number| number != 0.0).count() < numbers.len() / 2
        {
            faults.push(format!("{rows} rows: a chain makes zeros of everything, or what is not finite"));
        }
        for (name, found) in [("in a graph", replayed), ("one after the other", streamed)] {
            if found != wanted {
                faults.push(format!(
                    "{rows} rows: a chain {name} differs from one where each kernel waits for the one before"
                ));
            }
        }
    }
    println!("chains: of {} products, with {all:?} rows, {repeated} times each", STEPS.len());
    for fault in &faults {
        println!("WRONG: {fault}");
        receipts.fault(None, fault);
    }
    Ok(faults.len())
}
