//! Norms of token rows on a device, and their rounding to 8 bits.

use std::sync::Arc;

use super::driver::{Device, Grid, Kernel, Memory, Stream};
use super::error::DeviceError;
use super::images::Unit;
use super::weight::{DeviceRows, Element, memory, stride};

/// Where its kernels are.
pub(super) static UNIT: Unit = Unit { name: "norm", source: include_str!("norm.cu"), only: None };

/// The kernels of norms, loaded on a device.
#[derive(Clone, Debug)]
pub struct Norms {
    device: Arc<Device>,
    kernels: [Kernel; 2],
}

/// What is made of `h = x + residual`.
#[derive(Clone, Copy, Debug)]
pub enum NormKind<'a> {
    /// `y = h`.
    None,
    /// `y = h / sqrt(mean(h^2) + epsilon) * gain`.
    Rms {
        /// `[k]`.
        gain: &'a Memory,
        /// Above 0.
        epsilon: f32,
    },
    /// `y = (h - mean(h)) / sqrt(mean((h - mean(h))^2) + epsilon) * gain + shift`.
    Layer {
        /// `[k]`.
        gain: &'a Memory,
        /// `[k]`.
        shift: Option<&'a Memory>,
        /// Above 0.
        epsilon: f32,
    },
}

/// Token rows as signed bytes, with a scale each: what products with 8-bit activations read.
#[derive(Clone, Copy, Debug)]
pub struct DeviceTokens<'a> {
    /// `[rows, k]`, bytes; the stride is a multiple of 16.
    pub codes: DeviceRows<'a>,
    /// `[rows]`, f32. That of a row which is not finite is not a number, and its codes are 0.
    pub scales: &'a Memory,
}

/// What [`Norms::run`] computes: `h = x + residual`, rounded to `element`; `y` of it by `kind`, in f32; `y` rounded to `element`, and
/// to bytes by `t = max(max|y|, 1e-5) / 127`, `round(y / t)`, half to even.
#[derive(Clone, Copy, Debug)]
pub struct DeviceNorm<'a> {
    /// Of all numbers of 16 bits here.
    pub element: Element,
    /// Token rows, one at least.
    pub rows: usize,
    /// Numbers of a row.
    pub k: usize,
    /// `[rows, k]`, at multiples of 16 bytes, whole groups of 8 numbers to a row (what lies behind k is not looked at).
    pub x: DeviceRows<'a>,
    /// `[rows, k]`, spaced as `x`.
    pub residual: Option<&'a Memory>,
    /// Where h goes, spaced as `x`; may be `x` or the residual itself.
    pub sum: Option<&'a Memory>,
    /// The norm.
    pub kind: NormKind<'a>,
    /// Where y goes: `[rows, k]`, overlapping no input.
    pub y: Option<DeviceRows<'a>>,
    /// Where y as bytes goes.
    pub tokens: Option<DeviceTokens<'a>>,
}

/// The one parameter of a kernel: `Norm` in `norm.cu`.
#[repr(C)]
struct Arguments {
    x: u64,
    residual: u64,
    sum: u64,
    gain: u64,
    shift: u64,
    y: u64,
    codes: u64,
    scales: u64,
    k: i32,
    x_stride: i32,
    y_stride: i32,
    codes_stride: i32,
    kind: i32,
    epsilon: f32,
}

impl Norms {
    /// Loads the kernels.
    ///
    /// # Errors
    ///
    /// If the driver takes no form of them.
    pub fn load(device: &Arc<Device>) -> Result<Norms, DeviceError> {
        let kernels = [device.kernel(&UNIT, "norm_f16")?, device.kernel(&UNIT, "norm_bf16")?];
        Ok(Norms { device: device.clone(), kernels })
    }

    /// Puts the norm into the stream.
    ///
    /// # Errors
    ///
    /// If memory is too small, not aligned, another device's or overlaps what it must not; if the driver refuses the launch.
    pub fn run(&self, stream: &Stream, norm: &DeviceNorm<'_>) -> Result<(), DeviceError> {
        let &DeviceNorm { element, rows, k, x, residual, sum, kind, y, tokens } = norm;
        if !Arc::ptr_eq(&self.device, stream.device()) {
            return Err(DeviceError::Foreign { what: "the norm", whose: "device" });
        }
        norm.check(stream)?;
        let address = |memory: Option<&Memory>| memory.map_or(0, Memory::at);
        let (kind, gain, shift, epsilon) = match kind {
            NormKind::None => (0, None, None, 0.0),
            NormKind::Rms { gain, epsilon } => (1, Some(gain), None, epsilon),
            NormKind::Layer { gain, shift, epsilon } => (2, Some(gain), shift, epsilon),
        };
        let number = |number: usize| i32::try_from(number).expect("checked");
        let arguments = Arguments {
            x: x.memory.at(),
            residual: address(residual),
            sum: address(sum),
            gain: address(gain),
            shift: address(shift),
            y: address(y.map(|y| y.memory)),
            codes: address(tokens.map(|tokens| tokens.codes.memory)),
            scales: address(tokens.map(|tokens| tokens.scales)),
            k: number(k),
            x_stride: number(x.stride),
            y_stride: number(y.map_or(0, |y| y.stride)),
            codes_stride: number(tokens.map_or(0, |tokens| tokens.codes.stride)),
            kind,
            epsilon,
        };
        let grid = Grid { blocks: [rows as u32, 1], threads: 256, shared: 64 };
        let tokens = tokens.map(|tokens| [tokens.codes.memory, tokens.scales]);
        let uses = [Some(x.memory), residual, sum, gain, shift, y.map(|y| y.memory)];
        let uses: Vec<&Memory> = uses.into_iter().flatten().chain(tokens.into_iter().flatten()).collect();
        // SAFETY: `Arguments` is the parameter of these kernels, field by field; `check` has seen that all memory is as large as
        // they expect, and all of it is in `uses`.
        #[expect(unsafe_code, reason = "kernels trust their arguments")]
        unsafe {
            stream.launch(&self.kernels[usize::from(element == Element::Bf16)], grid, &arguments, &uses)
        }
    }
}

impl DeviceNorm<'_> {
    fn check(&self, stream: &Stream) -> Result<(), DeviceError> {
        let &DeviceNorm { rows, k, x, residual, sum, kind, y, tokens, .. } = self;
        for (what, size) in [("the number of token rows", rows), ("the length of a token row", k)] {
            if size == 0 || size > 1 << 24 {
                return Err(DeviceError::Shape { what, found: size, expected: format!("1 to {}", 1 << 24) });
            }
        }
        let whole = k.next_multiple_of(8);
        stride("the stride of x", x.stride, whole, 8, 1)?;
        let of_x = 2 * ((rows - 1) * x.stride + whole);
        memory(stream, "x", x.memory, of_x, 16)?;
        let mut inputs = vec![x.memory];
        if let Some(residual) = residual {
            memory(stream, "the residual", residual, of_x, 16)?;
            inputs.push(residual);
        }
        let (gain, shift) = match kind {
            NormKind::None => (None, None),
            NormKind::Rms { gain, .. } => (Some(gain), None),
            NormKind::Layer { gain, shift, .. } => (Some(gain), shift),
        };
        for (what, numbers) in [("the gain", gain), ("the shift", shift)] {
            if let Some(numbers) = numbers {
                memory(stream, what, numbers, 2 * k, 2)?;
                inputs.push(numbers);
            }
        }
        let mut outputs = Vec::new();
        if let Some(sum) = sum {
            memory(stream, "the sum", sum, of_x, 16)?;
            // Row by row, a thread reads what it overwrites: x and the residual, from their first byte on.
            let added = 1 + usize::from(residual.is_some());
            let same = |input: &Memory| input.overlaps(sum) && input.start() == sum.start();
            let (rows, others) = inputs.split_at(added);
            inputs = rows.iter().filter(|input| !same(input)).chain(others).copied().collect();
            outputs.push(("the first byte of the sum", sum));
        }
        if let Some(y) = y {
            stride("the stride of y", y.stride, k, 1, 1)?;
            memory(stream, "y", y.memory, 2 * ((rows - 1) * y.stride + k), 2)?;
            outputs.push(("the first byte of y", y.memory));
        }
        if let Some(DeviceTokens { codes, scales }) = tokens {
            stride("the stride of the codes", codes.stride, k, 16, 1)?;
            memory(stream, "the codes", codes.memory, (rows - 1) * codes.stride + k, 16)?;
            memory(stream, "the scales of the codes", scales, 4 * rows, 4)?;
            outputs.extend([("the first byte of the codes", codes.memory), ("the first byte of their scales", scales)]);
        }
        for (i, (what, output)) in outputs.iter().enumerate() {
            let others = inputs.iter().copied().chain(outputs[..i].iter().map(|(_, other)| *other));
            if others.into_iter().any(|other| other.overlaps(output)) {
                let expected = "memory of its own".to_owned();
                return Err(DeviceError::Shape { what, found: output.start(), expected });
            }
        }
        Ok(())
    }
}
