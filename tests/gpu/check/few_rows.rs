//! Cases for the CUDA kernels for few token rows, with their answers in f64: for the host, where kernels are emulated, and for
//! devices.

use crate::support::{Random, codes};
use half::{bf16, f16};
use mbqc_kernels::affine::Codes;
use mbqc_kernels::cuda::Element;
use mbqc_kernels::{FORMATS, Format, Packed, Stored};

/// Outputs have room behind each row that nobody may touch: for so many, unless it is said otherwise.
pub(crate) const GAP: usize = 3;

/// The 16 bits of a number.
pub(crate) fn bits(element: Element, value: f32) -> u16 {
    match element {
        Element::F16 => f16::from_f32(value).to_bits(),
        Element::Bf16 => bf16::from_f32(value).to_bits(),
    }
}

/// The number of 16 bits.
pub(crate) fn value(element: Element, bits: u16) -> f32 {
    match element {
        Element::F16 => f16::from_bits(bits).to_f32(),
        Element::Bf16 => bf16::from_bits(bits).to_f32(),
    }
}

/// As names of kernels have it.
pub(crate) fn name(element: Element) -> &'static str {
    match element {
        Element::F16 => "f16",
        Element::Bf16 => "bf16",
    }
}

/// What is multiplied, and how.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) bits: u32,
    pub(crate) element: Element,
    pub(crate) n: usize,
    pub(crate) k: usize,
    pub(crate) group: usize,
    pub(crate) rows: usize,
    pub(crate) together: usize,
    /// 0: with `together`, as is thought best.
    pub(crate) blocks: usize,
    pub(crate) gated: bool,
    pub(crate) bias: bool,
    pub(crate) residual: bool,
    pub(crate) single: bool,
    pub(crate) gap: usize,
}

impl Shape {
    /// One row of one format, nothing added to it, f32 out.
    pub(crate) const PLAIN: Shape = Shape {
        bits: 3,
        element: Element::F16,
        n: 32,
        k: 256,
        group: 128,
        rows: 1,
        together: 1,
        blocks: 1,
        gated: false,
        bias: false,
        residual: false,
        single: true,
        gap: GAP,
    };

    /// Outputs of a token row.
    pub(crate) fn outputs(&self) -> usize {
        if self.gated { self.n / 2 } else { self.n }
    }

    /// From one row of x to the next: at multiples of 16 bytes, with room between them.
    pub(crate) fn x_stride(&self) -> usize {
        self.k.next_multiple_of(8) + 8
    }

    /// From one row of y to the next.
    pub(crate) fn y_stride(&self) -> usize {
        self.outputs() + self.gap
    }

    pub(crate) fn format(&self) -> &'static Format {
        let name = format!("w{}", self.bits);
        FORMATS.iter().copied().find(|format| format.name == name).expect("a format of the list")
    }

    /// Bytes of y.
    pub(crate) fn bytes_of_y(&self) -> usize {
        self.rows * self.y_stride() * if self.single { 4 } else { 2 }
    }

    /// The most that outputs may be wrong, root mean squares: rounding to 16 bits costs half a unit in the last place at most,
    /// and 3/5 of that over many outputs of one size; a gate's differ much in size, and few may be unlucky.
    pub(crate) fn most_error(&self) -> f64 {
        let unit = match self.element {
            Element::F16 => 1.0 / 1024.0,
            Element::Bf16 => 1.0 / 128.0,
        };
        match self {
            Shape { single: true, .. } => 5e-6,
            Shape { gated: true, .. } => 0.5 * unit,
            _ if self.rows * self.outputs() < 200 => 0.5 * unit,
            _ => 0.3 * unit,
        }
    }
}

/// A weight with inputs.
pub(crate) struct Case {
    pub(crate) shape: Shape,
    pub(crate) codes: Codes,
    pub(crate) packed: Packed,
    /// `[rows, x_stride]`.
    pub(crate) x: Vec<u16>,
    /// `[n]`.
    pub(crate) bias: Vec<u16>,
    /// `[rows, y_stride]`.
    pub(crate) residual: Vec<u16>,
}

impl Case {
    pub(crate) fn new(shape: Shape, mut x: impl FnMut(usize, usize) -> f32) -> Case {
        let Shape { element, n, k, group, rows, .. } = shape;
        let codes = codes(n, k, group, shape.bits, (n * 31 + k) as u64);
        let packed = (shape.format().pack)(&codes);
        let stride = shape.x_stride();
        // What lies between rows is not a number, and must not matter.
        let mut all = vec![0x7fff; rows * stride];
        for row in 0..rows {
            for i in 0..k {
                all[row * stride + i] = bits(element, x(row, i));
            }
        }
        let mut random = Random(77);
        let mut numbers = |count: usize| (0..count).map(|_| bits(element, random.signed())).collect::<Vec<u16>>();
        let (bias, residual) = (numbers(n), numbers(rows * shape.y_stride()));
        Case { shape, codes, packed, x: all, bias, residual }
    }

    /// With activations of several sizes.
    pub(crate) fn random(shape: Shape, random: &mut Random) -> Case {
        Case::new(shape, |_, _| random.signed() * 10f32.powf(random.signed() * 1.5 - 1.0))
    }

    pub(crate) fn stored(&self) -> Stored<'_> {
        self.packed.stored(self.shape.k, self.shape.group)
    }

    /// `[rows, outputs]`.
    ///
    /// # Errors
    ///
    /// If anything was written behind a row: `y` was `0xff` all over.
    pub(crate) fn outputs(&self, y: &[u8]) -> Result<Vec<f32>, String> {
        let Shape { element, single, .. } = self.shape;
        let size = if single { 4 } else { 2 };
        let number = |bytes: &[u8]| match *bytes {
            [a, b] => value(element, u16::from_le_bytes([a, b])),
            [a, b, c, d] => f32::from_le_bytes([a, b, c, d]),
            _ => unreachable!("two bytes or four"),
        };
        let row_bytes = self.shape.y_stride() * size;
        let mut all = Vec::new();
        for (row, bytes) in y.chunks(row_bytes).enumerate() {
            let (own, gap) = bytes.split_at(row_bytes - self.shape.gap * size);
            if gap.iter().any(|&byte| byte != 0xff) {
                return Err(format!("something is written behind row {row}"));
            }
            all.extend(own.chunks(size).map(number));
        }
        Ok(all)
    }

    /// From the codes, in f64.
    pub(crate) fn exact(&self, row: usize, j: usize) -> f64 {
        let Shape { element, n, k, group, bias, gated, residual, .. } = self.shape;
        let x = &self.x[row * self.shape.x_stride()..][..k];
        let channel = |channel: usize| {
            let sum: f64 = (0..k)
                .map(|i| {
                    let place = channel * self.codes.groups() + i / group;
                    let centred =
                        f64::from(self.codes.codes[channel * k + i]) - f64::from(self.codes.zero_points[place]);
                    f64::from(self.codes.scales[place]) * centred * f64::from(value(element, x[i]))
                })
                .sum();
            sum + if bias { f64::from(value(element, self.bias[channel])) } else { 0.0 }
        };
        let v = channel(j);
        let v = if gated { v / (1.0 + (-v).exp()) * channel(n / 2 + j) } else { v };
        let place = row * self.shape.y_stride() + j;
        v + if residual { f64::from(value(element, self.residual[place])) } else { 0.0 }
    }

    /// Root mean square of the error over that of what was wanted, at every `every`-th output.
    pub(crate) fn relative_error(&self, y: &[f32], every: usize) -> f64 {
        let outputs = self.shape.outputs();
        let (mut error, mut size) = (0.0, 0.0);
        for (i, &y) in y.iter().enumerate().step_by(every) {
            let wanted = self.exact(i / outputs, i % outputs);
            error += (f64::from(y) - wanted).powi(2);
            size += wanted.powi(2);
        }
        (error / size).sqrt()
    }
}

/// Every kernel; tails of k and n; rows of tiles and parts of k; epilogues.
pub(crate) fn shapes() -> Vec<Shape> {
    let mut shapes = Vec::new();
    for element in Element::ALL {
        let plain = Shape { element, ..Shape::PLAIN };
        // Every kernel, every output type, with and without a tail of channels.
        for bits in [2, 3, 4] {
            for group in [32, 64, 128, 256] {
                let rows: &[_] = if bits == 3 { &[(1, 32), (8, 48), (9, 33), (16, 64)] } else { &[(8, 33), (16, 48)] };
                for &(rows, n) in rows {
                    shapes.push(Shape { bits, group, rows, n, ..plain });
                    shapes.push(Shape { bits, group, rows, n, k: 1300, blocks: 3, single: false, bias: true, ..plain });
                }
            }
        }
        // Lengths of k that end within a group, a chunk of eight, a register.
        for k in [1, 7, 8, 75, 128, 129, 588, 1152, 4304] {
            shapes.push(Shape { k, n: 40, rows: 3, ..plain });
        }
        // One tile for many warps, many tiles for each, a block for each tile.
        for (k, blocks) in [(128, 1), (3584, 1), (3584, 28), (8192, 2), (384, 3)] {
            shapes.push(Shape { k, blocks, rows: 2, residual: true, ..plain });
        }
        // The kernel for up to 64 rows, where there are more than 16 and no spread is given: every group; tails of everything; several
        // bands for a block, several blocks for a band; what is left for other kernels.
        for bits in [2, 3, 4] {
            let (n, k) = if element == Element::F16 { (800, 520) } else { (80, 300) };
            for (group, rows, n, k) in [(32, 36, 80, 300), (64, 40, n, k), (128, 64, 33, 2600), (256, 17, 80, 300)] {
                let shape = Shape { bits, group, rows, blocks: 0, n, k, ..plain };
                shapes.extend([shape, Shape { n: 300, k: 129, single: false, residual: true, bias: true, ..shape }]);
            }
        }
        for (n, k, rows) in [(32, 1, 64), (33, 1300, 41), (600, 128, 97), (70, 77, 144)] {
            let shape = Shape { blocks: 0, n, k, rows, bias: true, residual: true, ..plain };
            shapes.extend([shape, Shape { n: n / 2 * 2, gated: true, single: false, ..shape }]);
        }
        // More rows than a kernel takes at once.
        for (rows, together, blocks) in [(17, 1, 2), (40, 2, 1), (33, 1, 5)] {
            shapes.push(Shape {
                rows,
                together,
                blocks,
                k: 300,
                n: 48,
                residual: true,
                bias: true,
                single: false,
                ..plain
            });
        }
        // Bands of several rows of tiles: all there, some missing, none but one; a band for several blocks, several for one.
        for (together, n) in [(2, 64), (2, 40), (4, 300), (8, 256), (8, 33)] {
            for (rows, blocks) in [(1, 1), (7, 3), (16, 5)] {
                shapes.push(Shape { together, n, rows, blocks, k: 900, bias: true, single: false, ..plain });
            }
        }
        for (n, rows) in [(64, 1), (62, 5), (34, 16), (2, 3)] {
            for (together, blocks) in [(1, 1), (1, 3), (2, 1), (4, 2)] {
                let gated =
                    Shape { n, rows, together, blocks, k: 640, gated: true, bias: true, residual: true, ..plain };
                shapes.extend([gated, Shape { single: false, ..gated }]);
            }
        }
    }
    shapes
}
