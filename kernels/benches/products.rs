//! Products by quantized weights, on one thread and on two, with weights that no cache holds.
//!
//! `cargo bench -p mbqc-kernels --bench products -- w3`; `MBQC_ISA` chooses the instruction set. Before it is timed, every
//! kernel is compared with the reference on a part of the weight. Figures are only good beside one another: `read` is what
//! reading the same bytes takes.

use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use mbqc_kernels::dense::convert::{FloatType, from_f32};
use mbqc_kernels::dense::{Accumulate, Mat, gemm};
use mbqc_kernels::{Epilogue, FORMATS, Format, Kernel, Pool, Product, Scales, Scheme, Stored, read_all};
use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

fn main() {
    divan::main();
}

const GROUP: usize = 128;

/// Bytes that codes are taken from, one weight after another: several times what a last-level cache holds.
const POOL_BYTES: usize = 256 << 20;

/// `(k, n)` of a 7B decoder's layers, and a square.
const SHAPES: &[(usize, usize)] = &[(3584, 18944), (18944, 3584), (8192, 8192)];

/// `(k, n)` for many rows.
const TALL: &[(usize, usize)] = &[(1024, 4096), (3584, 3584)];

/// Random bytes: any are codes of every format.
fn bytes() -> &'static [u8] {
    static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
    BYTES.get_or_init(|| {
        let mut state = 1u64;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        (0..POOL_BYTES / 8).flat_map(|_| next().to_le_bytes()).collect()
    })
}

struct Case {
    format: &'static Format,
    kernel: &'static Kernel,
    k: usize,
    n: usize,
    rows: usize,
    threads: usize,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Case { format, kernel, k, n, rows, threads } = self;
        write!(f, "{} {} {k}x{n} rows {rows} threads {threads}", format.name, kernel.name)
    }
}

fn cases(shapes: &[(usize, usize)], rows: &[usize]) -> Vec<Case> {
    let mut cases = Vec::new();
    for &format in FORMATS {
        for kernel in format.kernels.iter().filter(|kernel| kernel.name.starts_with("int")) {
            for &(k, n) in shapes {
                for &rows in rows {
                    cases.extend([1, 2].map(|threads| Case { format, kernel, k, n, rows, threads }));
                }
            }
        }
    }
    cases
}

impl Case {
    fn time(&self, bencher: Bencher<'_, '_>) {
        let &Case { format, kernel, k, n, rows, threads } = self;
        let group = if format.scheme == Scheme::WeightOnly { GROUP } else { k };
        let shapes = format.shapes(n, k, group);
        let [weight, scales] = [&shapes.b, &shapes.scales].map(|shape| shape.iter().product::<usize>());
        let zero_points = shapes.zero_points.map(|shape| vec![0x11; shape.iter().product()]);
        let scales = from_f32(FloatType::F16, &vec![0.01; scales]);
        let stored = |start: usize| Stored {
            n,
            k,
            group,
            b: &bytes()[start..start + weight],
            scales: Scales::Bytes(FloatType::F16, &scales),
            zero_points: zero_points.as_deref(),
        };
        let x: Vec<f32> =
            bytes()[..4 * rows * k].iter().step_by(4).map(|&byte| f32::from(byte) / 128.0 - 1.0).collect();
        let pool = Pool::new(threads);
        check(format, kernel, &x, rows.min(MOST_CHECKED), stored(0).rows(0..n.min(40)), &pool);
        let next = AtomicUsize::new(0);
        let mut y = vec![0.0; rows * n];
        bencher.counter(BytesCount::new(weight)).counter(ItemsCount::new(rows * n * k)).bench_local(|| {
            let start = next.fetch_add(1, Ordering::Relaxed) % (POOL_BYTES / weight) * weight;
            let product = Product { x: (&x).into(), rows, w: stored(start), epilogue: Epilogue::default() };
            (kernel.run)(&product, &mut y, &pool).expect("lengths fit");
        });
    }
}

/// Rows that are compared: enough for the kernel of many rows.
const MOST_CHECKED: usize = 20;

/// Panics if a kernel is not as close to the reference as it says.
fn check(format: &Format, kernel: &Kernel, x: &[f32], rows: usize, w: Stored<'_>, pool: &Pool) {
    let run = |kernel: &Kernel| {
        let mut y = vec![0.0; rows * w.n];
        let product = Product { x: x[..rows * w.k].into(), rows, w, epilogue: Epilogue::default() };
        (kernel.run)(&product, &mut y, pool).expect("lengths fit");
        y
    };
    let (wanted, found) = (run(&format.kernels[0]), run(kernel));
    let size = wanted.iter().fold(0f32, |size, y| size.max(y.abs()));
    let most = [1e-5, 1e-4, 3e-2][kernel.accuracy as usize] * size;
    let error = wanted.iter().zip(&found).fold(0f32, |error, (a, b)| error.max((a - b).abs()));
    assert!(error <= most, "{} {}: off by {error} of {size}", format.name, kernel.name);
}

/// The limit: reading as many bytes as the w3 weight of 8192x8192 has.
#[divan::bench(args = [1, 2], sample_count = 20, sample_size = 1)]
fn read(bencher: Bencher<'_, '_>, threads: usize) {
    let length = 8192 * 8192 / 8 * 3;
    let (pool, next) = (Pool::new(threads), AtomicUsize::new(0));
    bencher.counter(BytesCount::new(length)).bench_local(|| {
        let start = next.fetch_add(1, Ordering::Relaxed) % (POOL_BYTES / length) * length;
        read_all(&bytes()[start..start + length], &pool)
    });
}

#[divan::bench(args = cases(SHAPES, &[1, 8]), sample_count = 20, sample_size = 1)]
fn few_rows(bencher: Bencher<'_, '_>, case: &Case) {
    case.time(bencher);
}

#[divan::bench(args = cases(TALL, &[512]), sample_count = 5, sample_size = 1)]
fn many_rows(bencher: Bencher<'_, '_>, case: &Case) {
    case.time(bencher);
}

/// The dense product that integers replace.
#[divan::bench(args = TALL, sample_count = 5, sample_size = 1)]
fn dense_f32_512_rows(bencher: Bencher<'_, '_>, &(k, n): &(usize, usize)) {
    let (x, w) = (vec![0.5; 512 * k], vec![0.25; n * k]);
    let mut y = vec![0.0; 512 * n];
    bencher.counter(ItemsCount::new(512 * n * k)).bench_local(|| {
        gemm(512, n, k, Mat::rows(&x, k), Mat::rows(&w, k).t(), &mut y, Accumulate::Replace, &Pool::single());
    });
}
