//! Conformance of the kernels: every format, kernel and instruction set, at awkward shapes, against f64 from the codes.

mod rows;
#[path = "../support/mod.rs"]
mod support;

use half::{bf16, f16};
use mbqc_kernels::affine::Codes;
use mbqc_kernels::dense::convert::{FloatType, from_f32};
use mbqc_kernels::dense::{layer_norm, rms_norm};
use mbqc_kernels::{
    Accuracy, Epilogue, Error, FORMATS, Format, Input, Isa, Kernel, Packed, Pool, Product, Scales, Scheme, Spec,
    Stored, Tokens,
};
use support::{Random, codes, codes_of};

/// What a case multiplies.
struct Case {
    scheme: Scheme,
    codes: Codes,
    packed: Packed,
    /// `[MOST_ROWS, k]`.
    x: Vec<f32>,
}

/// One more than the kernels for few rows take.
const MOST_ROWS: usize = 17;

impl Case {
    fn new(format: &Format, n: usize, k: usize, group: usize, x: impl FnMut(usize) -> f32) -> Case {
        let codes = codes_of(format, n, k, group, (n * k + group) as u64);
        let packed = (format.pack)(&codes);
        Case { scheme: format.scheme, codes, packed, x: (0..MOST_ROWS * k).map(x).collect() }
    }

    fn product<'a>(&'a self, rows: usize, epilogue: Epilogue<'a>) -> Product<'a> {
        let (k, group) = (self.codes.k, self.codes.group);
        Product { x: self.x[..rows * k].into(), rows, w: self.packed.stored(k, group), epilogue }
    }

    /// What a kernel answers.
    fn run(&self, kernel: &Kernel, rows: usize, epilogue: Epilogue<'_>, pool: &Pool) -> Vec<f32> {
        let outputs = if epilogue.gated { self.codes.n / 2 } else { self.codes.n };
        let mut y = vec![f32::NAN; rows * outputs];
        (kernel.run)(&self.product(rows, epilogue), &mut y, pool).expect("lengths fit");
        y
    }

    /// `sum_k s (q - z) x` of a row and a channel in f64, and how far a kernel may be from it. Where activations are rounded
    /// by the meaning of the product, x is what they become, and sums are exact.
    fn exact(&self, row: usize, channel: usize, accuracy: Accuracy) -> (f64, f64) {
        let Codes { k, group, .. } = self.codes;
        let x = &self.x[row * k..(row + 1) * k];
        if self.scheme == Scheme::WeightActivation {
            let largest = x.iter().fold(1e-5f32, |largest, x| largest.max(x.abs()));
            let step = largest / 127.0;
            let codes = &self.codes.codes[channel * k..(channel + 1) * k];
            let zero = i64::from(self.codes.zero_points[channel]);
            let terms = codes.iter().zip(x).map(|(&q, x)| (i64::from(q) - zero) * (x / step).round_ties_even() as i64);
            let sum = terms.sum::<i64>() as f64 * f64::from(self.codes.scales[channel]) * f64::from(step);
            return (sum, sum.abs() * 2.0 * f64::from(f32::EPSILON));
        }
        let (mut sum, mut size, mut rounding) = (0.0, 0.0, 0.0);
        for (g, x) in x.chunks(group).enumerate() {
            let place = channel * self.codes.groups() + g;
            let (s, z) = (f64::from(self.codes.scales[place]), f64::from(self.codes.zero_points[place]));
            let largest = x.iter().fold(0.0, |largest, x| f64::max(largest, f64::from(x.abs())));
            // Half of a step, and a little for the f32 arithmetic around it.
            let step = 0.5001
                * match accuracy {
                    Accuracy::Single => 0.0,
                    Accuracy::Int16 => largest / 32639.0,
                    Accuracy::Int8 => largest / 127.0,
                };
            let at = channel * k + g * group;
            for (&q, &x) in self.codes.codes[at..].iter().zip(x) {
                let (q, x) = (f64::from(q), f64::from(x));
                sum += s * (q - z) * x;
                // q * x and z * x are summed apart, so the error of f32 sums scales with q + z.
                size += s * (q + z) * x.abs();
                rounding += s * (q - z).abs() * step;
            }
        }
        // k additions in a row lose at most k/2 units in the last place of the sum of magnitudes; with random signs the root
        // of k is plenty.
        (sum, rounding + size * f64::from(f32::EPSILON) * (4.0 + (k as f64).sqrt()))
    }

    /// The error of outputs, root mean square over root mean square.
    fn relative_error(&self, y: &[f32]) -> f64 {
        let (mut error, mut size) = (0.0, 0.0);
        for (i, &y) in y.iter().enumerate() {
            let (wanted, _) = self.exact(i / self.codes.n, i % self.codes.n, Accuracy::Single);
            error += (f64::from(y) - wanted).powi(2);
            size += wanted.powi(2);
        }
        (error / size).sqrt()
    }

    fn check(&self, kernel: &Kernel, rows: usize, pool: &Pool, what: &str) {
        let n = self.codes.n;
        let y = self.run(kernel, rows, Epilogue::default(), pool);
        for (i, &y) in y.iter().enumerate() {
            let (wanted, tolerance) = self.exact(i / n, i % n, kernel.accuracy);
            let error = (f64::from(y) - wanted).abs();
            assert!(error <= tolerance, "{what}, output {i}: {y} for {wanted}, at most {tolerance:e} off");
        }
    }
}

/// The group size of a format for which this one is asked.
fn group_of(format: &Format, k: usize, group: usize) -> usize {
    if format.scheme == Scheme::WeightOnly { group } else { k.max(1) }
}

/// Calls `f` for every format, kernel that fits the shape, and instruction set that this machine has.
fn each(k: usize, group: usize, mut f: impl FnMut(&'static Format, &'static Kernel, &str)) {
    for format in FORMATS {
        for isa in Isa::available() {
            let walk = || {
                let group = group_of(format, k, group);
                for kernel in format.kernels.iter().filter(|kernel| (kernel.fits)(k, group)) {
                    f(format, kernel, &format!("{} {} by {isa}, k {k}, g {group}", format.name, kernel.name));
                }
            };
            isa.with(walk).expect("it is available");
        }
    }
}

/// Bell-shaped numbers: none is much larger than the others of its group.
fn bell(seed: u64) -> impl FnMut(usize) -> f32 {
    let mut random = Random(seed);
    move |_| (0..12).map(|_| random.signed()).sum()
}

/// Numbers of many sizes: a few of them dominate their group.
fn heavy_tailed(seed: u64) -> impl FnMut(usize) -> f32 {
    let mut random = Random(seed);
    move |_| random.signed() * 10f32.powf(random.signed() * 2.0)
}

#[test]
fn every_kernel_agrees_with_f64() {
    let pool = Pool::new(2);
    let shapes = [
        (1, 128, 128),
        (1, 16, 16),
        (5, 4304, 128),
        (3, 4304, 32),
        (130, 256, 64),
        (64, 33, 16),
        (200, 7, 256),
        (35, 1152, 128),
        (33, 512, 256),
        (2, 96, 24),
        (3, 18944, 128),
        (7, 1024, 512),
        (9, 72, 8),
    ];
    for (n, k, group) in shapes {
        each(k, group, |format, kernel, what| {
            // Activations of two limbs, and of three.
            let cases = [Case::new(format, n, k, group, bell(98)), Case::new(format, n, k, group, heavy_tailed(99))];
            for case in cases {
                for rows in (1..=MOST_ROWS).step_by(if n * k > 8_000 { 4 } else { 1 }) {
                    case.check(kernel, rows, &pool, &format!("{what}, n {n}, {rows} rows"));
                }
            }
        });
    }
}

/// Scales of every type, at any address, and zero points that are left out are what they stand for: bit for bit.
#[test]
fn weights_are_read_as_they_are_stored() {
    let pool = Pool::single();
    for (n, k, group) in [(5, 1100, 64), (3, 200, 32), (6, 4304, 128), (2, 2064, 16)] {
        each(k, group, |format, kernel, what| {
            let mut case = Case::new(format, n, k, group, bell(7));
            for scale in &mut case.codes.scales {
                *scale = bf16::from_f32(*scale).to_f32();
            }
            for middle in [false, true] {
                if middle {
                    case.codes.zero_points.fill(1 << (format.bits - 1));
                }
                case.packed = (format.pack)(&case.codes);
                let scales = &case.codes.scales;
                let halves: Vec<f16> = scales.iter().map(|&scale| f16::from_f32(scale)).collect();
                // One byte further on than anything is aligned to.
                let bytes = [FloatType::F32, FloatType::F16, FloatType::BF16]
                    .map(|float| (float, [vec![0u8], from_f32(float, scales)].concat()));
                let mut stored = vec![Scales::F16(&halves)];
                stored.extend(bytes.iter().map(|(float, bytes)| Scales::Bytes(*float, &bytes[1..])));
                for rows in [1, 3, MOST_ROWS] {
                    let wanted = case.run(kernel, rows, Epilogue::default(), &pool);
                    let product = case.product(rows, Epilogue::default());
                    for (which, &scales) in stored.iter().enumerate() {
                        for left_out in [false, true] {
                            let zero_points = product.w.zero_points.filter(|_| !(middle && left_out));
                            let w = Stored { scales, zero_points, ..product.w };
                            let mut y = vec![f32::NAN; rows * n];
                            (kernel.run)(&Product { w, ..product }, &mut y, &pool).expect("lengths fit");
                            assert_eq!(y, wanted, "{what}, {rows} rows, scales {which}, no zero points: {left_out}");
                        }
                    }
                }
            }
        });
    }
}

/// The largest sums that there are: all codes at the top, all activations at the top, one sign or the other.
#[test]
fn the_largest_sums_do_not_overflow() {
    for (n, k, group) in [(2, 1024, 512), (2, 1024, 128), (2, 512, 256), (2, 131_071, 128), (2, 131_072, 128)] {
        each(k, group, |format, kernel, what| {
            // Sums in f32 lose more where all terms have one sign.
            if !kernel.name.starts_with("int") || (k > 1024 && format.scheme == Scheme::WeightOnly) {
                return;
            }
            for sign in [1.0, -1.0] {
                let mut case = Case::new(format, n, k, group, |_| sign);
                let top = u8::MAX >> (8 - format.bits);
                case.codes.codes[..k].fill(top);
                case.codes.codes[k..].fill(0);
                if format.scheme == Scheme::WeightOnly {
                    let groups = case.codes.groups();
                    case.codes.zero_points[..groups].fill(0);
                    case.codes.zero_points[groups..].fill(top);
                }
                case.packed = (format.pack)(&case.codes);
                for rows in [1, 2, 8, MOST_ROWS] {
                    case.check(kernel, rows, &Pool::single(), &format!("{what}, {rows} rows of {sign}"));
                }
            }
        });
    }
}

#[test]
fn one_hot_rows_find_every_weight() {
    let pool = Pool::single();
    for (k, group) in [(512, 128), (512, 64), (512, 32), (512, 256), (32, 16), (2048, 128)] {
        each(k, group, |format, kernel, what| {
            let mut case = Case::new(format, 40, k, group, |_| 0.0);
            for hot in 0..k {
                case.x[..k].fill(0.0);
                case.x[hot] = 1.0;
                let rows = if hot % 7 == 0 { MOST_ROWS } else { 1 };
                let y = case.run(kernel, rows, Epilogue::default(), &pool);
                for (channel, y) in y[..40].iter().enumerate() {
                    let place = channel * case.codes.groups() + hot / case.codes.group;
                    let (q, z) = (case.codes.codes[channel * k + hot], case.codes.zero_points[place]);
                    let (q, z, s) = (f32::from(q), f32::from(z), case.codes.scales[place]);
                    // q and z times scales whose quotient was rounded, summed apart.
                    let error = (y - s * (q - z)).abs();
                    assert!(
                        error <= 4.0 * f32::EPSILON * s * (q + z),
                        "{what}: weight {hot} of {channel} is {}, not {y}",
                        s * (q - z)
                    );
                }
                assert!(y[40..].iter().all(|&y| y == 0.0), "{what}: other rows are zero");
            }
            // A different weight for every row.
            for rows in [2, 3, 8, 16, MOST_ROWS] {
                case.x.fill(0.0);
                let hot = |row: usize| (row * 37 + rows) % k;
                for row in 0..rows {
                    case.x[row * k + hot(row)] = 1.0;
                }
                let y = case.run(kernel, rows, Epilogue::default(), &pool);
                for (i, y) in y.iter().enumerate() {
                    let (row, channel) = (i / 40, i % 40);
                    let place = channel * case.codes.groups() + hot(row) / case.codes.group;
                    let (q, z) = (case.codes.codes[channel * k + hot(row)], case.codes.zero_points[place]);
                    let (q, z, s) = (f32::from(q), f32::from(z), case.codes.scales[place]);
                    let error = (y - s * (q - z)).abs();
                    assert!(
                        error <= 4.0 * f32::EPSILON * s * (q + z),
                        "{what}: weight {} of {channel}, row {row} of {rows}, is {}, not {y}",
                        hot(row),
                        s * (q - z)
                    );
                }
            }
        });
    }
}

/// Activations that integers hold exactly, and scales that are powers of two: then every kernel is as good as f32.
#[test]
fn integers_are_exact() {
    for (n, k, group) in [(37, 1024, 128), (9, 4304, 64), (20, 512, 256), (33, 544, 32)] {
        each(k, group, |format, kernel, what| {
            let mut random = Random(3);
            let mut case =
                Case::new(format, n, k, group, |i| if i % 8 == 0 { 127.0 } else { (random.signed() * 127.0).round() });
            for scale in &mut case.codes.scales {
                *scale = 2f32.powi((*scale * 1000.0) as i32 % 5 - 2);
            }
            case.packed = (format.pack)(&case.codes);
            if kernel.accuracy == Accuracy::Int16 {
                // 32639 = 257 * 127: then the unit of the low bytes is 1/257.
                case.x.iter_mut().for_each(|x| *x *= 257.0);
            }
            for rows in [1, 2, 4, 5, 12, 16, 17] {
                let y = case.run(kernel, rows, Epilogue::default(), &Pool::new(2));
                for (i, &y) in y.iter().enumerate() {
                    let (wanted, tolerance) = case.exact(i / n, i % n, Accuracy::Single);
                    let error = (f64::from(y) - wanted).abs();
                    assert!(error <= tolerance, "{what}, {rows} rows, output {i}: {y} for {wanted}");
                }
            }
        });
    }
}

/// The error of a product, root mean square over root mean square. Bell-shaped activations reach 2.7 times their deviation in
/// a group of 128, so a step of 16 bits is 8e-5 of it; where a few dominate their group, what is left is rounded again.
#[test]
fn relative_errors_are_what_the_accuracies_promise() {
    for format in FORMATS {
        for (what, case, most) in [
            ("bell-shaped", Case::new(format, 64, 3584, 128, bell(5)), [5e-6, 5e-5, 1.2e-2]),
            ("heavy-tailed", Case::new(format, 64, 3584, 128, heavy_tailed(5)), [5e-6, 5e-5, 2.5e-2]),
        ] {
            for kernel in format.kernels {
                let y = case.run(kernel, 4, Epilogue::default(), &Pool::single());
                let relative = case.relative_error(&y);
                let most = most[kernel.accuracy as usize];
                assert!(relative <= most, "{} {}, {what}: {relative:e}", format.name, kernel.name);
            }
        }
    }
}

/// 16 bits keep their promise however far the largest of a group stands out, on both sides of where a third byte begins.
#[test]
fn peaks_of_any_size_keep_the_accuracy() {
    let format = &FORMATS[1];
    for tenths in [10, 20, 30, 40, 45, 50, 54, 56, 60, 70, 79, 81, 100, 200] {
        for (what, mut case) in [
            ("bell-shaped", Case::new(format, 64, 3584, 128, bell(31))),
            (
                "uniform",
                Case::new(format, 64, 3584, 128, {
                    let mut random = Random(33);
                    move |_| random.signed()
                }),
            ),
        ] {
            for (i, x) in case.x.chunks_mut(128).enumerate() {
                let mean = x[1..].iter().map(|x| x.abs()).sum::<f32>() / 127.0;
                x[0] = mean * (tenths + i as i32 % 5) as f32 / 10.0;
            }
            let kernel = format.kernel(Accuracy::Int16, 3584, 128);
            let relative = case.relative_error(&case.run(kernel, 4, Epilogue::default(), &Pool::single()));
            assert!(relative <= 5e-5, "{what}, peaks of {tenths} tenths of the mean: {relative:e}");
        }
    }
}

/// A channel a thousand times larger than its neighbours, by weights a thousand times smaller: what models do whose norms
/// amplify some channels. The others must not be lost beside it.
#[test]
fn outliers_do_not_drown_the_others() {
    for format in FORMATS.iter().filter(|format| format.scheme == Scheme::WeightOnly) {
        let mut random = Random(17);
        let case = Case::new(format, 32, 1024, 128, |i| random.signed() * if i % 128 == 5 { 1000.0 } else { 1.0 });
        let mut quiet = Case::new(format, 32, 1024, 128, |_| 0.0);
        quiet.x.clone_from(&case.x);
        quiet.x.iter_mut().skip(5).step_by(128).for_each(|x| *x = 0.0);
        let kernel = format.kernel(Accuracy::Int16, 1024, case.codes.group);
        for rows in [1, 2, 3, 5, 8, MOST_ROWS] {
            let (loud, quiet_y) =
                [&case, &quiet].map(|case| case.run(kernel, rows, Epilogue::default(), &Pool::single())).into();
            let (mut error, mut size) = (0.0, 0.0);
            for (i, (loud, quiet_y)) in loud.iter().zip(&quiet_y).enumerate() {
                let exact = |case: &Case| case.exact(i / 32, i % 32, Accuracy::Single).0;
                // What the product without outliers must be, once they are taken away in f64.
                let without = f64::from(*loud) - (exact(&case) - exact(&quiet));
                error += (without - exact(&quiet)).powi(2);
                size += f64::from(*quiet_y).powi(2);
            }
            let relative = (error / size).sqrt();
            assert!(relative <= 2e-4, "{} {}, {rows} rows: {relative:e}", format.name, kernel.name);
        }
    }
}

#[test]
fn norms_round_what_they_normalise() {
    for (rows, k) in [(1, 1), (3, 64), (17, 333), (40, 16)] {
        let mut random = Random(23);
        let mut some = |count: usize| -> Vec<f32> { (0..count).map(|_| random.signed()).collect() };
        let (mut x, gain, bias) = (some(rows * k), some(k), some(k));
        x[..k].fill(0.0);
        if rows > 2 {
            x[2 * k] = f32::INFINITY;
        }
        let mut y = vec![0.0; rows * k];
        for isa in Isa::available() {
            for pool in [Pool::single(), Pool::new(3)] {
                let answer = || {
                    let rms = Tokens::of_rms_norm(&x, &gain, 1e-5, &pool);
                    let layer = Tokens::of_layer_norm(&x, &gain, Some(&bias), 1e-5, &pool);
                    (rms, layer)
                };
                let (rms, layer) = isa.with(answer).expect("it is available");
                for (tokens, which) in [(rms, 0), (layer, 1)] {
                    match which {
                        0 => rms_norm(&x, &gain, 1e-5, &mut y),
                        _ => layer_norm(&x, &gain, Some(&bias), 1e-5, &mut y),
                    }
                    assert_eq!((tokens.rows(), tokens.k()), (rows, k));
                    for (row, y) in y.chunks(k).enumerate() {
                        let codes = &tokens.codes()[row * k..(row + 1) * k];
                        if y.iter().any(|y| !y.is_finite()) {
                            assert!(tokens.scales()[row].is_nan() && codes.iter().all(|&p| p == 0));
                            continue;
                        }
                        let scale = y.iter().fold(1e-5f32, |largest, y| largest.max(y.abs())) / 127.0;
                        let wanted: Vec<i8> = y.iter().map(|y| (y / scale).round_ties_even() as i8).collect();
                        assert_eq!((tokens.scales()[row], codes), (scale, &wanted[..]), "{isa}, {rows}x{k}, row {row}");
                    }
                }
            }
        }
    }
}

#[test]
fn epilogues_follow_the_product() {
    let (n, k, group, rows) = (70, 256, 64, MOST_ROWS);
    each(k, group, |format, kernel, what| {
        let case = Case::new(format, n, k, group, heavy_tailed(11));
        let mut random = Random(13);
        let bias: Vec<f32> = (0..n).map(|_| random.signed()).collect();
        let residual: Vec<f32> = (0..rows * n).map(|_| random.signed()).collect();
        for (gated, outputs) in [(false, n), (true, n / 2)] {
            for rows in [1, 2, 5, 16, rows] {
                let plain = case.run(kernel, rows, Epilogue::default(), &Pool::new(2));
                let at = |row: usize, channel: usize| f64::from(plain[row * n + channel]) + f64::from(bias[channel]);
                let epilogue = Epilogue { bias: Some(&bias), gated, residual: Some(&residual[..rows * outputs]) };
                let y = case.run(kernel, rows, epilogue, &Pool::new(2));
                for (i, &y) in y.iter().enumerate() {
                    let (row, j) = (i / outputs, i % outputs);
                    let v = at(row, j);
                    let v = if gated { v / (1.0 + (-v).exp()) * at(row, outputs + j) } else { v };
                    let wanted = v + f64::from(residual[i]);
                    let size = wanted.abs().max(v.abs()).max(1.0);
                    assert!(
                        (f64::from(y) - wanted).abs() <= 1e-5 * size,
                        "{what}, gated: {gated}, output {i}: {y}, {wanted}"
                    );
                }
            }
        }
    });
}

#[test]
fn what_is_not_finite_stays_so() {
    let (n, k, group) = (40, 256, 128);
    each(k, group, |format, kernel, what| {
        let mut case = Case::new(format, n, k, group, |i| (i % 5) as f32);
        // Zero points of which no code is equal, so that no product with infinity is undefined by accident.
        for (bad, place) in [(f32::NAN, 3), (f32::INFINITY, 130)] {
            let kept = std::mem::replace(&mut case.x[k + place], bad);
            for rows in [3, 8] {
                let y = case.run(kernel, rows, Epilogue::default(), &Pool::single());
                assert!(y[n..2 * n].iter().all(|y| !y.is_finite()), "{what}, {rows} rows: {bad} disappears");
                assert!(
                    y[..n].iter().chain(&y[2 * n..]).all(|y| y.is_finite()),
                    "{what}, {rows} rows: {bad} leaves its row"
                );
            }
            case.x[k + place] = kept;
        }
    });
}

#[test]
fn kernels_name_what_does_not_fit() {
    for format in FORMATS {
        for group in [16, 32] {
            let group = group_of(format, 32, group);
            let codes = codes_of(format, 70, 32, group, 1);
            let packed = (format.pack)(&codes);
            let stored = packed.stored(32, group);
            for kernel in format.kernels.iter().filter(|kernel| (kernel.fits)(32, group)) {
                let run = |x: usize, w: Stored<'_>, bias: Option<usize>, y: usize| {
                    let bias = bias.map(|length| vec![0.0; length]);
                    let epilogue = Epilogue::bias(bias.as_deref());
                    let x = vec![0.0; x];
                    let product = Product { x: (&x).into(), rows: 2, w, epilogue };
                    (kernel.run)(&product, &mut vec![0.0; y], &Pool::single())
                };
                let short = Stored { b: &packed.b[1..], ..stored };
                let wrong = |error: Result<(), Error>| matches!(error, Err(Error::Length { .. }));
                assert_eq!(run(64, stored, Some(70), 140), Ok(()));
                assert!(wrong(run(63, stored, None, 140)));
                assert!(wrong(run(64, stored, None, 141)));
                assert!(wrong(run(64, stored, Some(69), 140)));
                assert!(wrong(run(64, short, None, 140)));
            }
        }
    }
    for group in [16, 32] {
        let w3 = "w3g16".parse::<Spec>().expect("a format").format;
        let mut packed = (w3.pack)(&codes(70, 64, group, 3, 1));
        let bytes = packed.zero_points.len() / 70;
        packed.zero_points[66 * bytes] = 0x91;
        for kernel in w3.kernels.iter().filter(|kernel| (kernel.fits)(64, group)) {
            for rows in [2, MOST_ROWS] {
                let (x, w) = (vec![0.0; rows * 64], packed.stored(64, group));
                let product = Product { x: (&x).into(), rows, w, epilogue: Epilogue::default() };
                let error = (kernel.run)(&product, &mut vec![0.0; rows * 70], &Pool::new(2));
                assert_eq!(error, Err(Error::ZeroPoint { row: 66, group: 1, value: 9, bits: 3 }), "{}", kernel.name);
            }
        }
    }
}

#[test]
fn empty_products_are_the_bias() {
    for (n, k, rows) in [(0, 64, 2), (3, 0, 2), (3, 64, 0), (3, 0, 20)] {
        each(k, 64, |format, kernel, what| {
            let case = Case::new(format, n, k, 64, |_| 1.0);
            let bias = vec![2.0; n];
            let x = vec![1.0; rows * k];
            let product = Product { x: (&x).into(), rows, ..case.product(0, Epilogue::bias(Some(&bias))) };
            let mut y = vec![f32::NAN; rows * n];
            (kernel.run)(&product, &mut y, &Pool::new(2)).expect("lengths fit");
            assert!(k != 0 || y.iter().all(|&y| y == 2.0), "{what}: {y:?}");
        });
    }
}

/// Sizes come from files: whatever they claim, nothing is allocated for them before the bytes were counted.
#[test]
fn a_product_believes_no_sizes() {
    for format in FORMATS {
        let packed = (format.pack)(&codes_of(format, 3, 32, 32, 1));
        let (pool, true_sizes) = (Pool::single(), packed.stored(32, 32));
        for accuracy in [Accuracy::Single, Accuracy::Int16, Accuracy::Int8] {
            let run = |rows, w, bias| {
                let product = Product { x: [1.0; 64][..].into(), rows, w, epilogue: Epilogue::bias(bias) };
                format.product(&product, accuracy, &pool)
            };
            assert_eq!(run(2, true_sizes, Some(&[2.0; 3])).map(|y| y.len()), Ok(6));
            for false_sizes in [Stored { n: usize::MAX, ..true_sizes }, Stored { k: usize::MAX, ..true_sizes }] {
                let refused = run(2, false_sizes, None);
                assert!(matches!(refused, Err(Error::Length { what, .. }) if what != "x"), "{refused:?}");
            }
            let refused = run(usize::MAX, true_sizes, None);
            assert!(matches!(refused, Err(Error::Length { what: "x", .. })), "{refused:?}");
        }
    }
}
