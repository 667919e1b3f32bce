//! CUDA kernels on the host: the source that is shipped, compiled by a C++ compiler with `tests/emulate/arch.cuh` in the place of
//! the device, under the address and undefined-behaviour sanitizers, against float64. EMULATED: nothing here ran on a GPU.

mod support;

use half::{bf16, f16};
use mbqc_kernels::affine::Codes;
use mbqc_kernels::cuda::Tiles;
use mbqc_kernels::{Error, FORMATS, Format, Scales, Stored};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use support::{Random, codes};

/// Orders of threads and blocks in which each case runs; its result must be the same bits in all.
const LAUNCHES: usize = 2;

fn compiler() -> String {
    std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned())
}

/// Compiles a program of `tests/emulate`.
fn compiled(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let include = |path: &str| format!("-I{}", folder.join(path).display());
    let out = Command::new(compiler())
        .args(["-std=c++17", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-Wno-clobbered"])
        .args([
            "-Wno-unused-function",
            "-ffp-contract=off",
            "-fsanitize=address,undefined",
            "-fno-sanitize-recover=all",
        ])
        .args([include("tests/emulate"), include("cuda")])
        .arg(folder.join("tests/emulate").join(name).with_extension("cc"))
        .arg("-o")
        .arg(&program)
        .output()
        .unwrap_or_else(|error| panic!("`{}` (a C++ compiler; CXX names another): {error}", compiler()));
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    program
}

/// Activations and outputs of 16 bits.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Type {
    F16,
    Bf16,
}

impl Type {
    fn bits(self, value: f32) -> u16 {
        match self {
            Type::F16 => f16::from_f32(value).to_bits(),
            Type::Bf16 => bf16::from_f32(value).to_bits(),
        }
    }

    fn value(self, bits: u16) -> f32 {
        match self {
            Type::F16 => f16::from_bits(bits).to_f32(),
            Type::Bf16 => bf16::from_bits(bits).to_f32(),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Type::F16 => "f16",
            Type::Bf16 => "bf16",
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Shape {
    bits: u32,
    element: Type,
    n: usize,
    k: usize,
    group: usize,
    rows: usize,
    together: usize,
    splits: usize,
    gated: bool,
    bias: bool,
    residual: bool,
    single: bool,
}

struct Case {
    shape: Shape,
    codes: Codes,
    tiles: Tiles,
    /// `[rows, x_stride]`.
    x: Vec<u16>,
    bias: Vec<u16>,
    residual: Vec<u16>,
}

/// Rows of x lie apart, at multiples of 16 bytes.
fn x_stride(k: usize) -> usize {
    k.next_multiple_of(8) + 8
}

/// Outputs have room behind each row that nobody may touch.
const GAP: usize = 3;

impl Case {
    fn new(shape: Shape, mut x: impl FnMut(usize, usize) -> f32) -> Case {
        let Shape { bits, element, n, k, group, rows, gated, .. } = shape;
        let codes = codes(n, k, group, bits, (n * 31 + k) as u64);
        let format = format_of(bits);
        let packed = (format.pack)(&codes);
        let scales: Vec<f32> = codes.scales.clone();
        let stored =
            Stored { n, k, group, b: &packed.b, scales: Scales::F32(&scales), zero_points: Some(&packed.zero_points) };
        let tiles = Tiles::new(format, &stored, gated).expect("a group size that tiles have");
        let stride = x_stride(k);
        // What lies between rows is not a number, and must not matter.
        let mut bits = vec![0x7fff; rows * stride];
        for row in 0..rows {
            for i in 0..k {
                bits[row * stride + i] = element.bits(x(row, i));
            }
        }
        let mut random = Random(77);
        let mut numbers = |count: usize| (0..count).map(|_| element.bits(random.signed())).collect::<Vec<u16>>();
        let (bias, residual) = (numbers(n), numbers(rows * (shape.outputs() + GAP)));
        Case { shape, codes, tiles, x: bits, bias, residual }
    }

    /// The line and the arrays that the program reads.
    fn request(&self) -> Vec<u8> {
        let Shape { bits, element, n, k, rows, together, splits, gated, bias, residual, single, .. } = self.shape;
        let columns = if rows <= 8 { 8 } else { 16 };
        let (x_stride, y_stride) = (x_stride(k), self.shape.outputs() + GAP);
        let numbers = [rows, k, n, x_stride, y_stride, self.tiles.k_tiles(), together, splits];
        let flags = [gated, single, bias, residual].map(usize::from);
        let group = 128 / self.tiles.groups;
        let mut out = format!("w{bits}a16_{}_{columns}_g{group}", element.name()).into_bytes();
        for number in numbers.into_iter().chain(flags).chain([LAUNCHES, self.tiles.bytes.len(), k + n]) {
            write!(out, " {number}").expect("memory");
        }
        out.push(b'\n');
        out.extend(&self.tiles.bytes);
        let empty = Vec::new();
        for array in [&self.x, if bias { &self.bias } else { &empty }, if residual { &self.residual } else { &empty }] {
            out.extend(array.iter().flat_map(|bits| bits.to_le_bytes()));
        }
        out
    }

    fn bytes_of_y(&self) -> usize {
        self.shape.rows * (self.shape.outputs() + GAP) * if self.shape.single { 4 } else { 2 }
    }

    /// `[rows, outputs]`, after checking that nothing else was written.
    fn outputs(&self, y: &[u8]) -> Vec<f32> {
        let Shape { element, single, .. } = self.shape;
        let size = if single { 4 } else { 2 };
        let value = |bytes: &[u8]| match *bytes {
            [a, b] => element.value(u16::from_le_bytes([a, b])),
            [a, b, c, d] => f32::from_le_bytes([a, b, c, d]),
            _ => unreachable!("two bytes or four"),
        };
        let row_bytes = (self.shape.outputs() + GAP) * size;
        y.chunks(row_bytes)
            .flat_map(|row| {
                let (own, gap) = row.split_at(row_bytes - GAP * size);
                assert!(gap.iter().all(|&byte| byte == 0xff), "{:?}: written behind a row", self.shape);
                own.chunks(size).map(value)
            })
            .collect()
    }

    /// From the codes, in f64.
    fn exact(&self, row: usize, j: usize) -> f64 {
        let Shape { element, n, k, group, bias, gated, residual, .. } = self.shape;
        let x = &self.x[row * x_stride(k)..][..k];
        let channel = |channel: usize| {
            let sum: f64 = (0..k)
                .map(|i| {
                    let place = channel * self.codes.groups() + i / group;
                    let centred =
                        f64::from(self.codes.codes[channel * k + i]) - f64::from(self.codes.zero_points[place]);
                    f64::from(self.codes.scales[place]) * centred * f64::from(element.value(x[i]))
                })
                .sum();
            sum + if bias { f64::from(element.value(self.bias[channel])) } else { 0.0 }
        };
        let v = channel(j);
        let v = if gated { v / (1.0 + (-v).exp()) * channel(n / 2 + j) } else { v };
        let place = row * (self.shape.outputs() + GAP) + j;
        v + if residual { f64::from(element.value(self.residual[place])) } else { 0.0 }
    }
}

impl Shape {
    fn outputs(&self) -> usize {
        if self.gated { self.n / 2 } else { self.n }
    }
}

/// A line for the file that `tests/run.sh` shows at the end.
fn tell(line: &str) {
    if let Some(report) = std::env::var_os("MBQC_REPORT") {
        let file = std::fs::OpenOptions::new().append(true).open(report);
        file.and_then(|mut file| writeln!(file, "{line}")).expect("the report can be written");
    }
}

fn format_of(bits: u32) -> &'static Format {
    let name = format!("w{bits}");
    FORMATS.iter().copied().find(|format| format.name == name).expect("a format of the list")
}

/// Runs all cases in one process of the emulator.
fn run(program: &Path, cases: &[Case]) -> Vec<Vec<f32>> {
    let mut child =
        Command::new(program).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it was just compiled");
    let mut input = child.stdin.take().expect("piped");
    let requests: Vec<u8> = cases.iter().flat_map(Case::request).collect();
    let feed = std::thread::spawn(move || input.write_all(&requests));
    let out = child.wait_with_output().expect("it ends");
    assert!(out.status.success(), "the emulator ends with {}; what it said is above", out.status);
    feed.join().expect("no panic").expect("all was read");
    let mut rest = &out.stdout[..];
    let outputs = cases
        .iter()
        .map(|case| {
            let (y, others) = rest.split_at(case.bytes_of_y());
            rest = others;
            case.outputs(y)
        })
        .collect();
    assert!(rest.is_empty());
    outputs
}

/// Root mean square of the error over that of what was wanted.
fn relative_error(case: &Case, y: &[f32]) -> f64 {
    let outputs = case.shape.outputs();
    let (mut error, mut size) = (0.0, 0.0);
    for (i, &y) in y.iter().enumerate() {
        let wanted = case.exact(i / outputs, i % outputs);
        error += (f64::from(y) - wanted).powi(2);
        size += wanted.powi(2);
    }
    (error / size).sqrt()
}

fn shapes() -> Vec<Shape> {
    let plain = Shape {
        bits: 3,
        element: Type::F16,
        n: 32,
        k: 256,
        group: 128,
        rows: 1,
        together: 1,
        splits: 1,
        gated: false,
        bias: false,
        residual: false,
        single: true,
    };
    let mut shapes = Vec::new();
    for element in [Type::F16, Type::Bf16] {
        let plain = Shape { element, ..plain };
        // Every kernel, every output type, with and without a tail of channels.
        for bits in [2, 3, 4] {
            for group in [32, 64, 128, 256] {
                let rows: &[_] = if bits == 3 { &[(1, 32), (8, 48), (9, 33), (16, 64)] } else { &[(8, 33), (16, 48)] };
                for &(rows, n) in rows {
                    shapes.push(Shape { bits, group, rows, n, ..plain });
                    shapes.push(Shape { bits, group, rows, n, k: 1300, splits: 3, single: false, bias: true, ..plain });
                }
            }
        }
        // Lengths of k that end within a group, a chunk of eight, a register.
        for k in [1, 7, 8, 75, 128, 129, 588, 1152, 4304] {
            shapes.push(Shape { k, n: 40, rows: 3, ..plain });
        }
        // One tile for many warps, many tiles for each, more blocks than tiles.
        for (k, splits) in [(128, 1), (3584, 1), (3584, 4), (8192, 2), (384, 5)] {
            shapes.push(Shape { k, splits, rows: 2, residual: true, ..plain });
        }
        // Rows of tiles that share a block: all there, some missing, none but one.
        for (together, n) in [(2, 64), (2, 40), (4, 300), (8, 256), (8, 33)] {
            for (rows, splits) in [(1, 1), (7, 3), (16, 2)] {
                shapes.push(Shape { together, n, rows, splits, k: 900, bias: true, single: false, ..plain });
            }
        }
        for (n, rows) in [(64, 1), (62, 5), (34, 16), (2, 3)] {
            for (together, splits) in [(1, 1), (1, 2), (2, 1), (4, 2)] {
                let gated = Shape { n, rows, together, splits, k: 640, gated: true, bias: true, residual: true, ..plain };
                shapes.extend([gated, Shape { single: false, ..gated }]);
            }
        }
    }
    shapes
}

/// Weights are small where products are long, so that half precision holds the outputs.
fn activation(random: &mut Random) -> f32 {
    random.signed() * 10f32.powf(random.signed() * 1.5 - 1.0)
}

#[test]
fn kernels_for_few_rows_agree_with_f64() {
    let program = compiled("small");
    let mut random = Random(5);
    let cases: Vec<Case> = shapes().into_iter().map(|shape| Case::new(shape, |_, _| activation(&mut random))).collect();
    for (case, y) in cases.iter().zip(run(&program, &cases)) {
        let error = relative_error(case, &y);
        // Rounding to 16 bits costs half a unit in the last place at most, and 3/5 of that over many outputs of one size; a
        // gate's differ much in size.
        let unit = match case.shape.element {
            Type::F16 => 1.0 / 1024.0,
            Type::Bf16 => 1.0 / 128.0,
        };
        let most = match case.shape {
            Shape { single: true, .. } => 5e-6,
            Shape { gated: true, .. } => 0.5 * unit,
            _ => 0.3 * unit,
        };
        assert!(error <= most, "{:?}: relative error {error:e}, at most {most:e}", case.shape);
    }
    tell(&format!("CUDA kernels emulated on the host: {} cases, {LAUNCHES} orders of threads each", cases.len()));

    // A token row is the same bits alone and among others.
    for rows in [8, 16] {
        let shape = Shape { rows, n: 48, k: 900, splits: 2, single: true, ..cases[0].shape };
        let all = Case::new(shape, |row, i| ((row * 7 + i * 13) % 101) as f32 / 101.0 - 0.5);
        let alone: Vec<Case> = (0..rows)
            .map(|row| Case::new(Shape { rows: 1, ..shape }, |_, i| ((row * 7 + i * 13) % 101) as f32 / 101.0 - 0.5))
            .collect();
        let together = run(&program, &[all]).remove(0);
        for (row, y) in run(&program, &alone).into_iter().enumerate() {
            assert!(together[row * 48..(row + 1) * 48] == y, "row {row} of {rows}");
        }
    }

    // A row that is not finite leaves the others alone.
    let shape = Shape { rows: 9, n: 48, k: 900, splits: 2, single: true, ..cases[0].shape };
    let good = |row: usize, i: usize| ((row * 11 + i * 5) % 97) as f32 / 97.0 - 0.5;
    let bad = |row: usize, i: usize| match (row, i) {
        (2, 17) => f32::INFINITY,
        (5, 899) => f32::NAN,
        (7, 3) => 65504.0,
        _ => good(row, i),
    };
    let runs = run(&program, &[Case::new(shape, good), Case::new(shape, bad)]);
    for (row, (good, bad)) in runs[0].chunks(48).zip(runs[1].chunks(48)).enumerate() {
        match row {
            2 | 5 => assert!(bad.iter().all(|y| !y.is_finite()), "row {row}"),
            7 => assert!(bad.iter().all(|y| y.is_finite()), "row {row}"),
            _ => assert!(good == bad, "row {row}"),
        }
    }

    // Every weight by itself: sixteen token rows at a time, each of which sees one input channel.
    let shape = Shape { n: 32, k: 256, rows: 16, single: true, ..cases[0].shape };
    for (bits, group) in [(2, 128), (3, 32), (3, 128), (4, 128)] {
        let hot: Vec<Case> = (0..256)
            .step_by(16)
            .map(|first| Case::new(Shape { bits, group, ..shape }, |row, i| if i == first + row { 1.0 } else { 0.0 }))
            .collect();
        for (block, (case, y)) in hot.iter().zip(run(&program, &hot)).enumerate() {
            for (i, &y) in y.iter().enumerate() {
                let (row, channel) = (i / 32, i % 32);
                let wanted = case.exact(row, channel);
                let off = (f64::from(y) - wanted).abs();
                assert!(
                    off <= 1e-6 * wanted.abs(),
                    "g {group}: weight {} of {channel}: {y}, {wanted}",
                    16 * block + row
                );
            }
        }
    }
}

#[test]
fn weights_without_a_kernel_are_refused() {
    let tiles = |name: &str, n: usize, group: usize, gated: bool| {
        let format = FORMATS.iter().copied().find(|format| format.name == name).expect("a format of the list");
        let packed = (format.pack)(&support::codes_of(format, n, 256, group, 1));
        let scales: Vec<f32> = vec![1.0; n * 256 / group];
        let zero_points = Some(&packed.zero_points[..]).filter(|zeros| !zeros.is_empty());
        let stored = Stored { n, k: 256, group, b: &packed.b, scales: Scales::F32(&scales), zero_points };
        Tiles::new(format, &stored, gated)
    };
    assert!(tiles("w3", 32, 128, true).is_ok());
    assert!(matches!(tiles("w3", 32, 16, false), Err(Error::Group { group: 16 })));
    assert!(matches!(tiles("w3", 33, 128, true), Err(Error::Length { .. })));
    for name in ["w8", "w8a8", "w4a8"] {
        assert!(matches!(tiles(name, 32, 128, false), Err(Error::Device { format }) if format == name));
    }
}
