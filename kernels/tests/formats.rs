//! What holds for every weight format: round trips, and kernels against f64.

use half::f16;
use mbqc_kernels::affine::{Codes, dequantize};
use mbqc_kernels::dense::convert::{FloatType, from_f32};
use mbqc_kernels::{Error, FORMATS, Format, GROUPS, Packed, Pool, Scales, Spec, Stored, thirds_to_nibbles};
use proptest::prelude::*;

/// xorshift64*: the same numbers for the same seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    /// In -1..1.
    fn signed(&mut self) -> f32 {
        self.next() as f32 / (1u64 << 47) as f32 - 1.0
    }
}

/// Codes of every value, zero points with 0 and the largest among them, scales over four decades that f16 holds exactly.
fn codes(n: usize, k: usize, group: usize, bits: u32, seed: u64) -> Codes {
    let mut random = Random(seed * 2 + 1);
    let groups = n * k.div_ceil(group);
    let top = (1u64 << bits) - 1;
    Codes {
        n,
        k,
        group,
        bits,
        codes: (0..n * k).map(|_| (random.next() & top) as u8).collect(),
        scales: (0..groups).map(|_| f16::from_f32(10f32.powf(random.signed() * 2.0 - 2.0)).to_f32()).collect(),
        zero_points: (0..groups)
            .map(|_| match random.next() % 4 {
                0 => 0,
                1 => top as u8,
                _ => (random.next() & top) as u8,
            })
            .collect(),
    }
}

/// onnxruntime's rule for `bits`-bit blobs, one bit at a time: bit j of element i is at bit `i * bits + j` of the block.
fn bit_stream(values: &[u8], bits: usize) -> Vec<u8> {
    let mut bytes = vec![0; (values.len() * bits).div_ceil(8)];
    for (i, value) in values.iter().enumerate() {
        for j in 0..bits {
            bytes[(i * bits + j) / 8] |= (value >> j & 1) << ((i * bits + j) % 8);
        }
    }
    bytes
}

fn round_trip(format: &Format, codes: &Codes) -> Result<Packed, TestCaseError> {
    let Codes { n, k, group, bits, .. } = *codes;
    let packed = (format.pack)(codes);
    let groups = k.div_ceil(group);
    prop_assert_eq!(packed.b_dims, [n, groups, group * bits as usize / 8]);
    prop_assert_eq!(packed.b.len(), packed.b_dims.iter().product::<usize>());
    prop_assert_eq!(packed.zero_points.len(), packed.zp_dims.iter().product::<usize>());
    prop_assert_eq!(packed.scale_dims, [n, groups]);
    prop_assert_eq!(&(format.unpack)(&packed.stored(k, group)).expect("what was packed"), codes);

    let halves: Vec<f16> = codes.scales.iter().map(|&scale| f16::from_f32(scale)).collect();
    let bytes = from_f32(FloatType::F16, &codes.scales);
    for scales in [Scales::F16(&halves), Scales::Bytes(FloatType::F16, &bytes)] {
        let stored = Stored { scales, ..packed.stored(k, group) };
        prop_assert_eq!(&(format.unpack)(&stored).expect("what was packed"), codes);
        // Rows on their own are rows of the whole.
        let rows = n / 3..n - n / 4;
        let part = (format.unpack)(&stored.rows(rows.clone())).expect("what was packed");
        prop_assert_eq!(part.codes.as_slice(), &codes.codes[rows.start * k..rows.end * k]);
        prop_assert_eq!(part.scales.as_slice(), &codes.scales[rows.start * groups..rows.end * groups]);
        prop_assert_eq!(part.zero_points.as_slice(), &codes.zero_points[rows.start * groups..rows.end * groups]);
    }
    Ok(packed)
}

/// `w` with its tail groups filled up: `[n * groups, group]`.
fn padded_blocks(codes: &Codes) -> Vec<Vec<u8>> {
    let rows = codes.codes.chunks(codes.k);
    let blocks = rows.flat_map(|row| row.chunks(codes.group));
    let pad = |(block, &zero): (&[u8], &u8)| [block, &vec![zero; codes.group - block.len()]].concat();
    blocks.zip(&codes.zero_points).map(pad).collect()
}

proptest! {
    #[test]
    fn codes_survive_packing(
        format in prop::sample::select(FORMATS),
        group in prop::sample::select(GROUPS),
        n in 1usize..6,
        k in 1usize..700,
        seed in any::<u32>(),
    ) {
        round_trip(format, &codes(n, k, group, format.bits, seed.into()))?;
    }

    #[test]
    fn stored_bytes_are_those_that_stock_runtimes_read(
        format in prop::sample::select(FORMATS),
        group in prop::sample::select(GROUPS),
        n in 1usize..4,
        k in 1usize..400,
        seed in any::<u32>(),
    ) {
        let codes = codes(n, k, group, format.bits, seed.into());
        let packed = (format.pack)(&codes);
        // Three bits reach a stock runtime as four.
        let bits = if format.bits == 3 { 4 } else { format.bits as usize };
        let b = if format.bits == 3 { thirds_to_nibbles(&packed.b, group).expect("whole blocks") } else { packed.b };
        let wanted: Vec<u8> = padded_blocks(&codes).iter().flat_map(|block| bit_stream(block, bits)).collect();
        prop_assert_eq!(b, wanted);
        let zeros = codes.zero_points.chunks(codes.groups()).flat_map(|zeros| bit_stream(zeros, bits));
        prop_assert_eq!(packed.zero_points, zeros.collect::<Vec<u8>>());
    }

    #[test]
    fn any_bytes_are_answered(
        format in prop::sample::select(FORMATS),
        group in prop::sample::select(&[0usize, 1, 8, 12, 16, 128, usize::MAX - 7, 1 << 62][..]),
        n in prop::sample::select(&[0usize, 1, 2, 3, usize::MAX, 1 << 60][..]),
        k in prop::sample::select(&[0usize, 1, 15, 16, 33, usize::MAX, 1 << 61][..]),
        b in prop::collection::vec(any::<u8>(), 0..100),
        scales in prop::collection::vec(any::<f32>(), 0..20),
        zeros in prop::option::of(prop::collection::vec(any::<u8>(), 0..20)),
    ) {
        let stored = Stored { n, k, group, b: &b, scales: Scales::F32(&scales), zero_points: zeros.as_deref() };
        if let Ok(codes) = (format.unpack)(&stored) {
            prop_assert!(codes.check().is_ok());
        }
        for kernel in format.kernels {
            let mut y = vec![0.0; 3];
            let _ = (kernel.run)(&[1.0; 48], 3, &stored, None, &mut y, &Pool::single());
        }
    }
}

#[test]
fn long_tails_survive_packing() {
    for format in FORMATS {
        for &group in GROUPS {
            for k in [group, 2 * group - 1, group + 1, 4304] {
                let codes = codes(3, k, group, format.bits, k as u64);
                round_trip(format, &codes).expect("a round trip");
            }
        }
    }
}

/// `y = sum_g s_g * (sum_k q * x - z_g * sum_k x) + bias` in f64, and what f32 sums may lose: `sum |q - z| s |x|`.
fn product(codes: &Codes, x: &[f32], rows: usize, bias: Option<&[f32]>) -> (Vec<f64>, Vec<f64>) {
    let (n, k, groups) = (codes.n, codes.k, codes.groups());
    let mut y = Vec::new();
    let mut magnitude = Vec::new();
    for row in 0..rows {
        for channel in 0..n {
            let start = bias.map_or(0.0, |bias| f64::from(bias[channel]));
            let (mut sum, mut size) = (start, start.abs());
            for i in 0..k {
                let place = channel * groups + i / codes.group;
                let (q, z) = (f64::from(codes.codes[channel * k + i]), f64::from(codes.zero_points[place]));
                let (s, x) = (f64::from(codes.scales[place]), f64::from(x[row * k + i]));
                sum += s * (q - z) * x;
                // The reference sums q * x and z * x apart, so that its error scales with q + z.
                size += s * (q + z) * x.abs();
            }
            y.push(sum);
            magnitude.push(size);
        }
    }
    (y, magnitude)
}

#[test]
fn kernels_agree_with_f64() {
    let shapes =
        [(1, 128, 128), (1, 16, 16), (5, 4304, 128), (3, 4304, 32), (130, 256, 64), (64, 33, 16), (200, 7, 256)];
    for format in FORMATS {
        for (n, k, group) in shapes {
            let codes = codes(n, k, group, format.bits, (n * k) as u64);
            let packed = (format.pack)(&codes);
            let stored = packed.stored(k, group);
            let mut random = Random(99);
            let x: Vec<f32> = (0..17 * k).map(|_| random.signed() * 3.0).collect();
            let bias: Vec<f32> = (0..n).map(|_| random.signed()).collect();
            for rows in (1..=17).step_by(if n * k > 10_000 { 4 } else { 1 }) {
                for bias in [None, Some(bias.as_slice())] {
                    let x = &x[..rows * k];
                    let (wanted, magnitude) = product(&codes, x, rows, bias);
                    for kernel in format.kernels {
                        let mut y = vec![f32::NAN; rows * n];
                        (kernel.run)(x, rows, &stored, bias, &mut y, &Pool::new(2)).expect("lengths fit");
                        for (i, &y) in y.iter().enumerate() {
                            // k additions in a row lose at most k/2 units in the last place of the sum of magnitudes; with random
                            // signs the root of k is plenty.
                            let tolerance = magnitude[i] * f64::from(f32::EPSILON) * (4.0 + (k as f64).sqrt());
                            let error = (f64::from(y) - wanted[i]).abs();
                            assert!(
                                error <= tolerance,
                                "{} {} n {n} k {k} g {group} rows {rows}, output {i}: {y} for {}",
                                format.name,
                                kernel.name,
                                wanted[i]
                            );
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn kernels_do_not_depend_on_the_number_of_threads() {
    for format in FORMATS {
        let (n, k, group, rows) = (333, 200, 64, 7);
        let codes = codes(n, k, group, format.bits, 5);
        let packed = (format.pack)(&codes);
        let mut random = Random(7);
        let x: Vec<f32> = (0..rows * k).map(|_| random.signed()).collect();
        for kernel in format.kernels {
            let run = |threads| {
                let mut y = vec![f32::NAN; rows * n];
                (kernel.run)(&x, rows, &packed.stored(k, group), None, &mut y, &Pool::new(threads))
                    .expect("lengths fit");
                y.into_iter().map(f32::to_bits).collect::<Vec<_>>()
            };
            let one = run(1);
            for threads in [2, 3, 8] {
                assert_eq!(run(threads), one, "{} {} with {threads} threads", format.name, kernel.name);
            }
        }
    }
}

#[test]
fn kernels_name_what_does_not_fit() {
    for format in FORMATS {
        let codes = codes(70, 32, 16, format.bits, 1);
        let packed = (format.pack)(&codes);
        let stored = packed.stored(32, 16);
        for kernel in format.kernels {
            let run = |x: usize, stored: &Stored<'_>, bias: Option<usize>, y: usize| {
                let bias = bias.map(|length| vec![0.0; length]);
                (kernel.run)(&vec![0.0; x], 2, stored, bias.as_deref(), &mut vec![0.0; y], &Pool::single())
            };
            let short = Stored { b: &packed.b[1..], ..stored };
            let wrong = |error: Result<(), Error>| matches!(error, Err(Error::Length { .. }));
            assert_eq!(run(64, &stored, Some(70), 140), Ok(()));
            assert!(wrong(run(63, &stored, None, 140)));
            assert!(wrong(run(64, &stored, None, 141)));
            assert!(wrong(run(64, &stored, Some(69), 140)));
            assert!(wrong(run(64, &short, None, 140)));
        }
    }
    let w3 = "w3g16".parse::<Spec>().expect("a format").format;
    let mut packed = (w3.pack)(&codes(70, 32, 16, 3, 1));
    packed.zero_points[66] = 0x90;
    for kernel in w3.kernels {
        let error = (kernel.run)(&[0.0; 64], 2, &packed.stored(32, 16), None, &mut [0.0; 140], &Pool::new(2));
        assert_eq!(error, Err(Error::ZeroPoint { row: 66, group: 1, value: 9, bits: 3 }), "{}", kernel.name);
    }
}

#[test]
fn empty_products_are_the_bias() {
    for format in FORMATS {
        for (n, k, rows) in [(0, 16, 2), (3, 0, 2), (3, 16, 0)] {
            let codes = codes(n, k, 16, format.bits, 1);
            assert_eq!(dequantize(&codes).len(), n * k);
            let packed = (format.pack)(&codes);
            for kernel in format.kernels {
                let mut y = vec![f32::NAN; rows * n];
                let (x, bias) = (vec![1.0; rows * k], vec![2.0; n]);
                (kernel.run)(&x, rows, &packed.stored(k, 16), Some(&bias), &mut y, &Pool::new(2)).expect("lengths fit");
                assert!(k != 0 || y.iter().all(|&y| y == 2.0), "{} {}", format.name, kernel.name);
            }
        }
    }
}

#[test]
fn the_list_is_in_order_and_described() {
    assert!(FORMATS.windows(2).all(|pair| pair[0].bits < pair[1].bits));
    for format in FORMATS {
        assert!(!format.about.is_empty() && format.name == format!("w{}", format.bits));
        assert_eq!(format.kernels[0].name, "reference");
        assert!(format.kernels.iter().all(|kernel| !kernel.about.is_empty()));
        assert!((0..2000).all(|rows| (format.kernel(rows).fits)(rows)));
        assert!(format.schema.bits.is_none_or(|bits| bits == i64::from(format.bits)));
    }
}

#[test]
fn a_format_is_found_by_the_op_that_carries_it() {
    for format in FORMATS {
        let schema = &format.schema;
        let found = Format::carried_by(schema.domain, schema.op, schema.bits.unwrap_or(4));
        assert_eq!(found.map(|found| found.name), Some(format.name));
        assert!(Format::carried_by("other", schema.op, 4).is_none());
        assert_eq!((schema.slot("A"), schema.slot("zero_points"), schema.slot("axes")), (Some(0), Some(3), None));
    }
    assert!(Format::carried_by("com.microsoft", "MatMulNBits", 3).is_none());
}

/// Sizes come from files: whatever they claim, nothing is allocated for them before the bytes were counted.
#[test]
fn a_product_believes_no_sizes() {
    for format in FORMATS {
        let packed = (format.pack)(&codes(3, 32, 16, format.bits, 1));
        let (pool, true_sizes) = (Pool::single(), packed.stored(32, 16));
        let product = format.product(&[1.0; 64], 2, &true_sizes, Some(&[2.0; 3]), &pool);
        assert_eq!(product.map(|y| y.len()), Ok(6));
        for false_sizes in [Stored { n: usize::MAX, ..true_sizes }, Stored { k: usize::MAX, ..true_sizes }] {
            let refused = format.product(&[1.0; 64], 2, &false_sizes, None, &pool);
            assert!(matches!(refused, Err(Error::Length { what: "the packed codes", .. })), "{refused:?}");
        }
        let refused = format.product(&[1.0; 64], usize::MAX, &true_sizes, None, &pool);
        assert!(matches!(refused, Err(Error::Length { what: "x", .. })), "{refused:?}");
    }
}
