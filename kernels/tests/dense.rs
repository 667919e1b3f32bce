//! Dense operations against plain f64 loops.

use half::{bf16, f16};
use mbqc_kernels::dense::convert::{FloatType, from_f32, to_f32, to_f32_vec};
use mbqc_kernels::dense::{Accumulate, Mat, exp, gemm, layer_norm, rms_norm, sigmoid, softmax, tanh, transpose_rows};
use mbqc_kernels::{Float, Isa, Pool};

/// Numbers in -1..1, the same for the same seed.
fn random<T: Float>(count: usize, seed: u64) -> Vec<T> {
    let mut state = seed * 2 + 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as f64 / f64::from(1u32 << 30) - 1.0
    };
    (0..count).map(|_| T::from_f64(next())).collect()
}

fn near<T: Float>(found: T, wanted: f64, tolerance: f64, what: &str) {
    assert!((found.to_f64() - wanted).abs() <= tolerance, "{what}: {found:?} for {wanted}");
}

/// `a` transposed in memory: `[rows, columns]` to `[columns, rows]`.
fn transposed<T: Float>(a: &[T], columns: usize) -> Vec<T> {
    let rows = a.len() / columns.max(1);
    (0..columns * rows).map(|i| a[i % rows * columns + i / rows]).collect()
}

const SHAPES: [(usize, usize, usize); 14] = [
    (1, 1, 1),
    (1, 300, 77),
    (300, 1, 77),
    (2, 259, 4304),
    (17, 33, 129),
    (256, 256, 64),
    (257, 511, 65),
    (600, 260, 31),
    (5, 1030, 9),
    (0, 4, 4),
    (4, 0, 4),
    (4, 4, 0),
    (0, 0, 0),
    (1, 1, 0),
];

fn check_gemm<T: Float>(epsilon: f64) {
    for (m, n, k) in SHAPES {
        let (a, b, start): (Vec<T>, Vec<T>, Vec<T>) = (random(m * k, 1), random(k * n, 2), random(m * n, 3));
        let (a_t, b_t) = (transposed(&a, k), transposed(&b, n));
        let run = |a, b, accumulate, threads| {
            let mut c = start.clone();
            gemm(m, n, k, a, b, &mut c, accumulate, &Pool::new(threads));
            c
        };
        let rows = (Mat::rows(&a, k), Mat::rows(&b, n));
        let columns = (Mat::rows(&a_t, m).t(), Mat::rows(&b_t, k).t());
        for (a_mat, b_mat, layout) in
            [(rows.0, rows.1, "nn"), (columns.0, rows.1, "tn"), (rows.0, columns.1, "nt"), (columns.0, columns.1, "tt")]
        {
            for accumulate in [Accumulate::Replace, Accumulate::Add] {
                let one = run(a_mat, b_mat, accumulate, 1);
                for threads in [2, 3, 5] {
                    assert_eq!(run(a_mat, b_mat, accumulate, threads), one, "{m} {n} {k} {layout}, {threads} threads");
                }
                for (place, &found) in one.iter().enumerate() {
                    let (i, j) = (place / n, place % n);
                    let sum: f64 = (0..k).map(|l| a[i * k + l].to_f64() * b[l * n + j].to_f64()).sum();
                    let before = if accumulate == Accumulate::Add { start[place].to_f64() } else { 0.0 };
                    // Products are below 1 and k sums lose half a unit each at most.
                    let what = format!("{m} {n} {k} {layout} {accumulate:?} at {i}, {j}");
                    near(found, before + sum, epsilon * (2.0 + k as f64), &what);
                }
            }
        }
    }
}

#[test]
fn products_in_f32() {
    check_gemm::<f32>(f64::from(f32::EPSILON));
}

#[test]
fn products_in_f64() {
    check_gemm::<f64>(f64::EPSILON * 4.0);
}

#[test]
fn a_product_may_broadcast_by_a_stride_of_zero() {
    let mut c = [0.0f32; 6];
    gemm(
        2,
        3,
        2,
        Mat::strided(&[1.0, 2.0], 0, 1),
        Mat::strided(&[10.0], 0, 0),
        &mut c,
        Accumulate::Replace,
        &Pool::single(),
    );
    assert_eq!(c, [30.0; 6]);
}

#[test]
fn a_replaced_content_is_not_read() {
    let mut c = [f32::NAN; 4];
    let (a, b) = ([1.0f32, 2.0, 3.0, 4.0], [1.0, 0.0, 0.0, 1.0]);
    gemm(2, 2, 2, Mat::rows(&a, 2), Mat::rows(&b, 2), &mut c, Accumulate::Replace, &Pool::single());
    assert_eq!(c, a);
    let mut c = [f32::NAN; 4];
    gemm(2, 2, 0, Mat::rows(&a[..0], 0), Mat::rows(&b[..0], 2), &mut c, Accumulate::Replace, &Pool::single());
    assert_eq!(c, [0.0; 4]);
}

fn check_norms<T: Float>(tolerance: f64) {
    for (rows, columns) in [(1, 1), (3, 5), (2, 16), (4, 100), (2, 4304), (0, 7)] {
        let x: Vec<T> = random::<T>(rows * columns, 5).into_iter().map(|x| x * T::from_f64(4.0) + T::ONE).collect();
        let (gain, bias): (Vec<T>, Vec<T>) = (random(columns, 6), random(columns, 7));
        let (mut layer, mut plain, mut rms) = (x.clone(), x.clone(), x.clone());
        layer_norm(&x, &gain, Some(&bias), T::from_f64(1e-5), &mut layer);
        layer_norm(&x, &gain, None, T::from_f64(1e-5), &mut plain);
        rms_norm(&x, &gain, T::from_f64(1e-5), &mut rms);
        for row in 0..rows {
            let places = row * columns..(row + 1) * columns;
            let x: Vec<f64> = x[places.clone()].iter().map(|x| x.to_f64()).collect();
            let mean = x.iter().sum::<f64>() / columns as f64;
            let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / columns as f64;
            let square = x.iter().map(|x| x * x).sum::<f64>() / columns as f64;
            for (column, place) in places.enumerate() {
                let wanted = (x[column] - mean) / (variance + 1e-5).sqrt() * gain[column].to_f64();
                near(plain[place], wanted, tolerance, "layer_norm without bias");
                near(layer[place], wanted + bias[column].to_f64(), tolerance, "layer_norm");
                near(rms[place], x[column] / (square + 1e-5).sqrt() * gain[column].to_f64(), tolerance, "rms_norm");
            }
        }
    }
}

#[test]
fn norms() {
    // Outputs are below 4; some ten roundings each.
    check_norms::<f32>(4e-6);
    check_norms::<f64>(1e-14);
}

fn check_softmax<T: Float>(tolerance: f64) {
    for columns in [1, 2, 7, 64, 1000] {
        let x: Vec<T> = random::<T>(3 * columns, 8).into_iter().map(|x| x * T::from_f64(30.0)).collect();
        let mut y = x.clone();
        softmax(&mut y, columns);
        for (x, y) in x.chunks(columns).zip(y.chunks(columns)) {
            let max = x.iter().fold(f64::NEG_INFINITY, |max, x| max.max(x.to_f64()));
            let sum: f64 = x.iter().map(|x| (x.to_f64() - max).exp()).sum();
            for (x, &y) in x.iter().zip(y) {
                near(y, (x.to_f64() - max).exp() / sum, tolerance, "softmax");
            }
        }
    }
}

#[test]
fn softmax_of_ordinary_rows() {
    check_softmax::<f32>(2e-6);
    check_softmax::<f64>(1e-14);
}

#[test]
fn softmax_of_masked_rows() {
    let low = f32::NEG_INFINITY;
    let mut x = [1.0, low, 1.0, low, low, low, f32::NAN, 0.0, 0.0, f32::INFINITY, 0.0, low];
    softmax(&mut x, 3);
    assert_eq!(x[..3], [0.5, 0.0, 0.5]);
    assert!(x[3..9].iter().all(|x| x.is_nan()), "all masked, and a NaN: {x:?}");
    assert!(x[9].is_nan(), "infinity over infinity: {x:?}");
    let mut far = [f32::MAX, -f32::MAX, 3e38];
    softmax(&mut far, 3);
    assert_eq!(far, [1.0, 0.0, 0.0]);
    softmax::<f32>(&mut [], 0);
}

/// Over all floats, in steps of their bits: units in the last place that results are off, at most, where they are not below
/// `least`.
fn check_elementary(f: fn(&[f32], &mut [f32]), exact: fn(f64) -> f64, most: f64, least: f32, what: &str) {
    let x: Vec<f32> = (0..=u32::MAX).step_by(4099).map(f32::from_bits).collect();
    let mut y = vec![0.0; x.len()];
    f(&x, &mut y);
    for (&x, &y) in x.iter().zip(&y) {
        let wanted = exact(f64::from(x));
        if wanted.is_nan() {
            assert!(y.is_nan(), "{what} of {x:e}: {y:e}");
            continue;
        }
        let nearest = wanted as f32;
        if nearest.is_infinite() {
            assert_eq!(y, nearest, "{what} of {x:e}");
            continue;
        }
        let unit = f64::from(f32::from_bits(nearest.abs().to_bits() + 1)) - f64::from(nearest.abs());
        let error = (f64::from(y) - wanted).abs() / unit;
        assert!(
            error <= most || wanted.abs().max(f64::from(y.abs())) < f64::from(least),
            "{what} of {x:e}: {y:e} for {wanted:e}, {error} units off"
        );
    }
    for isa in Isa::available() {
        let mut other = vec![0.0; x.len()];
        isa.with(|| f(&x, &mut other)).expect("it is available");
        let same =
            y.iter().zip(&other).all(|(y, other)| y.to_bits() == other.to_bits() || (y.is_nan() && other.is_nan()));
        assert!(same, "{what} is the same by {isa}");
    }
}

#[test]
fn elementary_functions() {
    check_elementary(exp, f64::exp, 1.0, 0.0, "e^x");
    check_elementary(tanh, f64::tanh, 1.1, 0.0, "tanh");
    // Where e^-x is infinite in f32, 1 over it is 0.
    check_elementary(sigmoid, |x| 1.0 / (1.0 + (-x).exp()), 2.5, f32::MIN_POSITIVE, "sigmoid");
}

#[test]
fn every_half_converts() {
    for bits in 0..=u16::MAX {
        let bytes = bits.to_le_bytes();
        let (mut half, mut brain) = ([0.0], [0.0]);
        to_f32(FloatType::F16, &bytes, &mut half).expect("one element");
        to_f32(FloatType::BF16, &bytes, &mut brain).expect("one element");
        let same = |a: f32, b: f32| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan());
        assert!(same(half[0], f16::from_bits(bits).to_f32()), "f16 {bits:#x}");
        assert!(same(brain[0], bf16::from_bits(bits).to_f32()), "bf16 {bits:#x}");
    }
}

#[test]
fn bytes_at_odd_addresses_convert_back_and_forth() {
    let values: Vec<f32> = random::<f32>(1300, 4).iter().map(|&x| f16::from_f32(x).to_f32()).collect();
    for float in [FloatType::F16, FloatType::F32, FloatType::F64] {
        let bytes = [&[0u8][..], &from_f32(float, &values)].concat();
        assert_eq!(to_f32_vec(float, &bytes[1..]).expect("whole elements"), values, "{float:?}");
        assert!(to_f32_vec(float, &bytes).is_err(), "{float:?} with a byte too many");
        assert!(to_f32(float, &bytes[1..], &mut [0.0; 3]).is_err());
    }
    let brain: Vec<f32> = values.iter().map(|&x| bf16::from_f32(x).to_f32()).collect();
    assert_eq!(to_f32_vec(FloatType::BF16, &from_f32(FloatType::BF16, &values)).expect("whole elements"), brain);
}

#[test]
fn rows_of_a_transposed_weight() {
    for (k, n) in [(1, 1), (3, 5), (64, 64), (65, 130), (200, 77), (0, 4), (4, 0)] {
        let values: Vec<f32> = (0..k * n).map(|i| (i % 2000) as f32).collect();
        for float in [FloatType::F16, FloatType::BF16, FloatType::F32, FloatType::F64] {
            let bytes = from_f32(float, &values);
            let stored = to_f32_vec(float, &bytes).expect("whole elements");
            for rows in [0..n, n / 3..n, n / 2..n / 2, 0..n.min(1)] {
                let mut out = vec![f32::NAN; rows.len() * k];
                transpose_rows(float, &bytes, k, n, rows.clone(), &mut out).expect("lengths fit");
                let wanted: Vec<f32> =
                    rows.flat_map(|j| (0..k).map(move |i| (i, j))).map(|(i, j)| stored[i * n + j]).collect();
                assert_eq!(out, wanted, "{float:?} k {k} n {n}");
            }
            assert!(transpose_rows(float, &bytes, k, n, 0..n + 1, &mut vec![0.0; (n + 1) * k]).is_err());
        }
    }
}
