//! How fast weights are read, rounded and packed, on one thread; each path checks itself before it is timed.
//!
//! `cargo bench -p mbqc-kernels --bench quantize`, with `-- TEXT` for the lines that contain TEXT alone

#![expect(clippy::print_stdout, reason = "the figures are what the program is for")]

use mbqc_kernels::affine::{
    Rounding, ScaleType, dequantize, fake_quantize, quantize, quantize_symmetric, search_range,
};
use mbqc_kernels::dense::convert::{FloatType, from_f32, to_f32};
use mbqc_kernels::dense::{Accumulate, Mat, gemm, transpose_rows};
use mbqc_kernels::{FORMATS, Pool, Scheme};
use std::hint::black_box;
use std::time::Instant;

const N: usize = 2048;
const K: usize = 4096;

/// The best of several runs, in millions of `unit` per second, `count` of them per run.
fn time(what: &str, unit: &str, count: f64, mut run: impl FnMut()) {
    if std::env::args().skip(1).any(|text| !text.starts_with("--") && !what.contains(&text)) {
        return;
    }
    run();
    let best = (0..5).map(|_| {
        let start = Instant::now();
        run();
        start.elapsed().as_secs_f64()
    });
    println!("{what:<44} {:9.1} {unit}/s", count / best.fold(f64::INFINITY, f64::min) / 1e6);
}

fn main() {
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u32 << 24) as f32 - 0.5
    };
    let wt: Vec<f32> = (0..K * N).map(|_| (next() + next() + next()) * 0.02).collect();
    let halves = from_f32(FloatType::F16, &wt);
    let rounding = Rounding { scale: ScaleType::F16, ..Rounding::new(3, 128) };
    let count = (N * K) as f64;

    let mut w = vec![0.0; N * K];
    transpose_rows(FloatType::F16, &halves, K, N, 0..N, &mut w).expect("lengths fit");
    let codes = quantize(&w, N, K, &rounding).expect("finite weights");
    assert_eq!(fake_quantize(&w, N, K, &rounding).expect("finite weights"), dequantize(&codes));

    time("f16 bytes to f32", "M weights", count, || to_f32(FloatType::F16, &halves, black_box(&mut w)).expect("fits"));
    time("transposed f16 bytes to f32", "M weights", count, || {
        transpose_rows(FloatType::F16, &halves, K, N, 0..N, black_box(&mut w)).expect("fits");
    });
    time("quantize w3g128", "M weights", count, || {
        black_box(quantize(&w, N, K, &rounding).expect("finite weights"));
    });
    time("transposed f16 bytes to w3g128, 64 rows a time", "M weights", count, || {
        let mut w = vec![0.0; 64 * K];
        for n0 in (0..N).step_by(64) {
            transpose_rows(FloatType::F16, &halves, K, N, n0..n0 + 64, &mut w).expect("fits");
            black_box(quantize(&w, 64, K, &rounding).expect("finite weights"));
        }
    });
    time("fake_quantize w3g128", "M weights", count, || {
        black_box(fake_quantize(&w, N, K, &rounding).expect("finite weights"));
    });
    time("dequantize w3g128", "M weights", count, || {
        black_box(dequantize(&codes));
    });
    let few = 128;
    time("search_range w3g128", "M weights", (few * K) as f64, || {
        black_box(search_range(&w[..few * K], few, K, &rounding).expect("finite weights"));
    });
    let x: Vec<f32> = (0..256 * K).map(|_| next()).collect();
    let mut y = vec![0.0; 256 * N];
    let pool = Pool::single();
    for format in FORMATS {
        let (group, codes) = match format.scheme {
            Scheme::WeightOnly => {
                let rounding = Rounding { scale: ScaleType::F16, ..Rounding::new(format.bits, 128) };
                (128, quantize(&w, N, K, &rounding))
            }
            Scheme::WeightActivation => (K, quantize_symmetric(&w, N, K, format.bits, ScaleType::F16)),
        };
        let codes = codes.expect("finite weights");
        let packed = (format.pack)(&codes);
        let stored = packed.stored(K, group);
        assert_eq!((format.unpack)(&stored).expect("what was packed"), codes);
        time(&format!("pack {}, groups of {group}", format.name), "M weights", count, || {
            black_box((format.pack)(&codes));
        });
        time(&format!("unpack {}, groups of {group}", format.name), "M weights", count, || {
            black_box((format.unpack)(&stored).expect("what was packed"));
        });
    }
    for rows in [1, 16, 256] {
        time(&format!("dense f32, rows {rows}"), "M multiply-adds", count * rows as f64, || {
            let (x, w) = (Mat::rows(&x[..rows * K], K), Mat::rows(&w, K).t());
            gemm(rows, N, K, x, w, &mut y[..rows * N], Accumulate::Replace, &pool);
        });
        time(&format!("dense f32, W^T in memory, rows {rows}"), "M multiply-adds", count * rows as f64, || {
            let (x, w) = (Mat::rows(&x[..rows * K], K), Mat::rows(&w, N));
            gemm(rows, N, K, x, w, &mut y[..rows * N], Accumulate::Replace, &pool);
        });
    }
}
