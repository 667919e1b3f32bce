use super::row::round;
use super::*;
use crate::isa::Isa;

fn rounding(bits: u32, group: usize, range: Range) -> Rounding {
    Rounding { bits, group, range, scale: ScaleType::F32 }
}

/// Random weights in about (-6, 6) times `spread`, shifted; the same for the same seed.
fn weights(count: usize, seed: u64, spread: f32, shift: f32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    (0..count).map(|_| (0..12).map(|_| next()).sum::<f32>() * spread + shift).collect()
}

/// The formula of the module's doc with the standard library's rounding, one weight at a time, for finite scales.
fn plain(w: &[f32], n: usize, k: usize, rounding: &Rounding) -> Codes {
    let top = ((1u32 << rounding.bits) - 1) as f32;
    let mut out = Codes {
        n,
        k,
        group: rounding.group,
        bits: rounding.bits,
        codes: Vec::new(),
        scales: Vec::new(),
        zero_points: Vec::new(),
    };
    for row in w.chunks(k) {
        for group in row.chunks(rounding.group) {
            let start = match rounding.range {
                Range::Reference => group[0],
                Range::IncludeZero => 0.0,
            };
            let min = group.iter().fold(start, |a, &b| a.min(b));
            let max = group.iter().fold(start, |a, &b| a.max(b));
            let scale = rounding.scale.round((max - min).max(1e-5) / top);
            let zero = (-(min / scale).round_ties_even()).clamp(0.0, top);
            out.codes.extend(group.iter().map(|w| ((w / scale).round_ties_even() + zero).clamp(0.0, top) as u8));
            out.scales.push(scale);
            out.zero_points.push(zero as u8);
        }
    }
    out
}

/// The sum that `search_range` minimises.
fn lost(w: &[f32], codes: &Codes) -> f64 {
    let pairs = w.iter().zip(dequantize(codes));
    pairs.map(|(a, b)| f64::from(a - b).abs().powf(POWER)).sum()
}

#[test]
fn hand_worked_vectors() {
    // algorithm.md 10.3; exact where the values are dyadic, to an f32's last digit where not.
    let check = |w: &[f32], range, scale: f32, zero: u8, q: &[u8], back: &[f32]| {
        let codes = quantize(w, 1, w.len(), &rounding(3, 8, range)).expect("finite weights");
        assert_eq!(
            (codes.scales[0], codes.zero_points[0], codes.codes.as_slice()),
            (scale, zero, q),
            "{w:?} {range:?}"
        );
        for (found, wanted) in dequantize(&codes).iter().zip(back) {
            assert!((found - wanted).abs() < 1e-6, "{w:?} {range:?}: {found} for {wanted}");
        }
    };
    let two_sided = [-1.0, 0.0, 0.5, 2.0];
    for range in [Range::Reference, Range::IncludeZero] {
        check(&two_sided, range, 3.0 / 7.0, 2, &[0, 2, 3, 7], &[-0.857_143, 0.0, 0.428_571, 2.142_857]);
    }
    let one_sided = [1.0, 1.5, 2.0];
    check(&one_sided, Range::Reference, 1.0 / 7.0, 0, &[7, 7, 7], &[1.0, 1.0, 1.0]);
    // In exact arithmetic 1 / (2/7) is a tie, 3.5, and goes to 4; in f32 2/7 lies above and the quotient below.
    check(&one_sided, Range::IncludeZero, 2.0 / 7.0, 0, &[3, 5, 7], &[0.857_143, 1.428_571, 2.0]);
    check(&[0.875, 1.3125, 1.75], Range::IncludeZero, 0.25, 0, &[4, 5, 7], &[1.0, 1.25, 1.75]);
}

#[test]
fn hand_worked_symmetric_vector() {
    let codes = quantize_symmetric(&[-0.875, 0.4375, 0.0625], 1, 3, 4, ScaleType::F32).expect("finite weights");
    assert_eq!((codes.scales.as_slice(), codes.codes.as_slice()), ([0.125].as_slice(), [1, 12, 8].as_slice()));
    assert_eq!((codes.group, codes.zero_points.as_slice()), (3, [8].as_slice()));
    assert_eq!(dequantize(&codes), [-0.875, 0.5, 0.0]);
}

#[test]
fn symmetric_codes_are_those_of_the_plain_formula() {
    let (n, k) = (5, 77);
    let w = weights(n * k, 3, 0.02, 0.001);
    for bits in 2..=8 {
        let codes = quantize_symmetric(&w, n, k, bits, ScaleType::F16).expect("finite weights");
        let top = ((1 << (bits - 1)) - 1) as f32;
        for (row, w) in w.chunks(k).enumerate() {
            let largest = w.iter().fold(0.0f32, |a, b| a.max(b.abs()));
            assert_eq!(codes.scales[row], ScaleType::F16.round(largest.max(1e-5) / top));
            let signed = |w: &f32| (w / codes.scales[row]).round_ties_even().clamp(-top - 1.0, top) as i16;
            let wanted: Vec<u8> = w.iter().map(|w| (signed(w) + (1 << (bits - 1))) as u8).collect();
            assert_eq!(codes.codes[row * k..(row + 1) * k], wanted, "{bits} bits, row {row}");
        }
    }
}

#[test]
fn magic_rounding_is_half_to_even() {
    let near = (-20_000..20_000).map(|i| i as f32 * 0.125);
    let far = (0..20_000).map(|i| 4_194_304.0 - i as f32 * 0.5);
    for x in near.chain(far) {
        assert_eq!(round(x), x.round_ties_even(), "{x}");
        assert_eq!(round(-x), (-x).round_ties_even(), "-{x}");
    }
    // Beyond 2^22 only what a clamp to a code sees is promised.
    for x in [4_194_305.5f32, 8_388_607.5, 1.3e7, 1e9, 1e30, f32::MAX, f32::INFINITY] {
        for x in [x, -x] {
            assert_eq!(row::clamp(round(x), -255.0, 510.0), x.round_ties_even().clamp(-255.0, 510.0), "{x}");
        }
    }
}

#[test]
fn codes_are_those_of_the_plain_formula() {
    for (seed, (spread, shift)) in
        [(1.0, 0.0), (0.02, 0.001), (0.02, 1.0), (1e-3, -700.0), (1e-8, 0.0), (1e-8, 3.0), (1e4, 0.0), (0.0, 0.25)]
            .into_iter()
            .enumerate()
    {
        for (n, k, group) in [(1, 128, 128), (3, 300, 128), (7, 17, 16), (2, 5, 64), (4, 1, 1)] {
            let w = weights(n * k, seed as u64 + 1, spread, shift);
            for bits in 1..=8 {
                for range in [Range::Reference, Range::IncludeZero] {
                    for scale in [ScaleType::F32, ScaleType::F16, ScaleType::BF16] {
                        let rounding = Rounding { bits, group, range, scale };
                        let found = quantize(&w, n, k, &rounding).expect("finite weights");
                        assert_eq!(found, plain(&w, n, k, &rounding), "{rounding:?} spread {spread} shift {shift}");
                        let back = dequantize(&found);
                        assert_eq!(fake_quantize(&w, n, k, &rounding).expect("finite weights"), back);
                        let steps = found.codes.iter().enumerate().map(|(i, &q)| {
                            let place = i / k * found.groups() + i % k / group;
                            (f32::from(q) - f32::from(found.zero_points[place])) * found.scales[place]
                        });
                        assert_eq!(back, steps.collect::<Vec<_>>());
                    }
                }
            }
        }
    }
}

#[test]
fn a_constant_group_keeps_its_value() {
    for value in [1.0f32, -3.0, 0.01, 1e-4, 0.0, 2000.0] {
        for bits in [2, 3, 4, 8] {
            let back = fake_quantize(&[value; 128], 1, 128, &Rounding::new(bits, 128)).expect("finite weights");
            assert!(
                back.iter().all(|b| (b - value).abs() <= value.abs() * 1e-6),
                "{value} in {bits} bits: {}",
                back[0]
            );
        }
    }
}

#[test]
fn a_half_step_is_the_worst_error_when_zero_is_included() {
    let w = weights(64 * 256, 9, 0.05, 0.02);
    for bits in [2, 3, 4, 8] {
        let codes = quantize(&w, 64, 256, &Rounding::new(bits, 64)).expect("finite weights");
        for (i, (a, b)) in w.iter().zip(dequantize(&codes)).enumerate() {
            // One step at the ends, where the rounded zero point may push the range by half a step.
            let step = codes.scales[i / 64];
            assert!((a - b).abs() <= step * 1.0001, "{a} became {b}, step {step}");
        }
    }
}

#[test]
fn what_cannot_be_coded_is_named() {
    let mut w = weights(3 * 40, 1, 1.0, 0.0);
    let wide = Rounding::new(3, 16);
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for place in [0, 15, 16, 39, 40 + 33, 119] {
            let kept = std::mem::replace(&mut w[place], value);
            for (what, error) in [
                ("quantize", quantize(&w, 3, 40, &wide).expect_err("a weight is not finite")),
                ("fake_quantize", fake_quantize(&w, 3, 40, &wide).expect_err("a weight is not finite")),
                ("search_range", search_range(&w, 3, 40, &wide).expect_err("a weight is not finite")),
                ("symmetric", quantize_symmetric(&w, 3, 40, 4, ScaleType::F32).expect_err("a weight is not finite")),
            ] {
                let Error::NotFinite { row, column, value: found } = error else { panic!("{what}: {error}") };
                assert_eq!((row, column, found.to_bits()), (place / 40, place % 40, value.to_bits()), "{what}");
            }
            w[place] = kept;
        }
    }
    w[57] = 1e6;
    let half = Rounding { scale: ScaleType::F16, ..wide };
    let error = quantize(&w, 3, 40, &half).expect_err("1e6 / 7 is above 65504");
    assert!(matches!(error, Error::ScaleOverflow { row: 1, group: 1, stored: "f16", .. }), "{error}");
    w[57] = f32::MAX;
    w[58] = f32::MIN;
    let error = quantize(&w, 3, 40, &wide).expect_err("the range of the group overflows");
    assert!(matches!(error, Error::ScaleOverflow { row: 1, group: 1, stored: "f32", .. }), "{error}");
}

#[test]
fn wrong_arguments_are_named() {
    let text = |error: Result<Codes, Error>| error.expect_err("a wrong argument").to_string();
    assert_eq!(text(quantize(&[0.0; 5], 2, 3, &Rounding::new(3, 16))), "the weight holds 5 elements, expected 6");
    assert_eq!(text(quantize(&[0.0; 6], 2, 3, &Rounding::new(9, 16))), "9 bits: a code has 1 to 8");
    assert!(text(quantize(&[0.0; 6], 2, 3, &Rounding::new(3, 0))).starts_with("group size 0"));
    let error = quantize_symmetric(&[0.0; 6], 2, 3, 1, ScaleType::F32).expect_err("one bit has no sign");
    assert_eq!(error.to_string(), "1 bits: a code has 2 to 8");
}

#[test]
fn empty_weights_have_empty_codes() {
    for (n, k) in [(0, 5), (5, 0), (0, 0)] {
        let codes = quantize(&[], n, k, &Rounding::new(3, 16)).expect("nothing to code");
        assert_eq!((codes.codes.len(), codes.scales.len()), (0, n * k.div_ceil(16)));
        let signed = quantize_symmetric(&[], n, k, 8, ScaleType::F32).expect("nothing to code");
        assert_eq!(signed.check(), Ok(()));
        assert!(dequantize(&codes).is_empty() && dequantize(&signed).is_empty());
        assert!(fake_quantize(&[], n, k, &Rounding::new(3, 16)).expect("nothing to code").is_empty());
    }
}

#[test]
fn a_searched_range_is_never_worse_than_the_plain_one() {
    for (seed, (spread, shift)) in
        [(0.02, 0.0), (1.0, 3.0), (1e-3, -0.5), (1e-7, 0.0), (1e3, 0.0)].into_iter().enumerate()
    {
        let (n, k) = (9, 200);
        let mut w = weights(n * k, seed as u64 + 20, spread, shift);
        // A few far outliers: what a narrower range gives up.
        for w in w.iter_mut().step_by(37) {
            *w *= 4.0;
        }
        for bits in [2, 3, 4, 8] {
            for range in [Range::Reference, Range::IncludeZero] {
                let rounding = Rounding { bits, group: 64, range, scale: ScaleType::F16 };
                let plain = lost(&w, &quantize(&w, n, k, &rounding).expect("finite weights"));
                let found = lost(&w, &search_range(&w, n, k, &rounding).expect("finite weights"));
                assert!(found <= plain * 1.00001, "{rounding:?}: {found} instead of {plain}");
                if bits <= 3 && shift == 0.0 && spread > 1e-4 {
                    assert!(found < plain * 0.95, "{rounding:?}: {found} is hardly less than {plain}");
                }
            }
        }
    }
}

#[test]
fn three_sweeps_find_nearly_what_the_whole_grid_has() {
    let (n, k) = (40, 128);
    let mut w = weights(n * k, 77, 0.02, 0.003);
    for w in w.iter_mut().step_by(31) {
        *w *= 3.0;
    }
    let rounding = Rounding::new(3, 128);
    let found = lost(&w, &search_range(&w, n, k, &rounding).expect("finite weights"));
    let mut whole = 0.0;
    for w in w.chunks(k) {
        let (min, max) = row::range(w, rounding.range);
        let grid = SHRINK.iter().flat_map(|low| SHRINK.map(|high| (min * low, max * high)));
        let errors = grid.map(|(min, max)| {
            let scale = row::scale(min, max, 7.0);
            let zero = row::zero_point(min, scale, 7.0);
            let back = w.iter().map(|&w| (row::code(w, scale, zero, 7.0) - zero) * scale);
            w.iter().zip(back).map(|(a, b)| f64::from(a - b).abs().powf(POWER)).sum::<f64>()
        });
        whole += errors.fold(f64::INFINITY, f64::min);
    }
    assert!(found >= whole * 0.9999 && found < whole * 1.1, "{found} against {whole} of the whole grid");
}

#[test]
fn every_instruction_set_gives_the_same_codes() {
    let (n, k) = (13, 333);
    let w = weights(n * k, 5, 0.02, 0.001);
    for bits in [2, 3, 4, 8] {
        for group in [16, 100, 128] {
            let rounding = Rounding { scale: ScaleType::F16, ..Rounding::new(bits, group) };
            let answer = || {
                let plain = quantize(&w, n, k, &rounding).expect("finite weights");
                let searched = search_range(&w, n, k, &rounding).expect("finite weights");
                let signed = quantize_symmetric(&w, n, k, bits, ScaleType::BF16).expect("finite weights");
                let back = dequantize(&searched);
                (plain, searched, signed, back)
            };
            let scalar = Isa::Scalar.with(answer);
            for isa in Isa::available() {
                assert_eq!(isa.with(answer), scalar, "{isa}, {bits} bits, groups of {group}");
            }
        }
    }
}
