//! What holds for every weight format: round trips, and what its kernels answer to any bytes.

mod support;

use half::f16;
use mbqc_kernels::affine::Codes;
use mbqc_kernels::cuda::Tiles;
use mbqc_kernels::dense::convert::{FloatType, from_f32};
use mbqc_kernels::{
    Accuracy, Epilogue, Error, FORMATS, Format, GROUPS, Kernel, Packed, Pool, Product, Scales, Scheme, Shapes, Stored,
    thirds_to_nibbles,
};
use proptest::prelude::*;
use support::{codes, codes_of};

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
    let (groups, bits) = (k.div_ceil(group), bits as usize);
    prop_assert_eq!(&packed.shapes, &format.shapes(n, k, group));
    let wanted = match format.scheme {
        Scheme::WeightOnly => Shapes {
            b: vec![n, groups, group * bits / 8],
            scales: vec![n, groups],
            zero_points: Some(vec![n, (groups * format.zero_point_bits as usize).div_ceil(8)]),
        },
        Scheme::WeightActivation => Shapes { b: vec![n, (k * bits).div_ceil(8)], scales: vec![n], zero_points: None },
    };
    prop_assert_eq!(&packed.shapes, &wanted);
    prop_assert_eq!(packed.b.len(), wanted.b.iter().product::<usize>());
    prop_assert_eq!(packed.zero_points.len(), wanted.zero_points.map_or(0, |shape| shape.iter().product::<usize>()));
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
        round_trip(format, &codes_of(format, n, k, group, seed.into()))?;
    }

    #[test]
    fn stored_bytes_are_those_that_stock_runtimes_read(
        format in prop::sample::select(FORMATS).prop_filter("in groups", |f| f.scheme == Scheme::WeightOnly),
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
    fn symmetric_codes_lie_in_rows(
        format in prop::sample::select(FORMATS).prop_filter("in rows", |f| f.scheme == Scheme::WeightActivation),
        n in 1usize..4,
        k in 1usize..400,
        seed in any::<u32>(),
    ) {
        let codes = codes_of(format, n, k, 0, seed.into());
        let packed = (format.pack)(&codes);
        let rows = codes.codes.chunks(k).map(|row| bit_stream(row, format.bits as usize));
        prop_assert_eq!(packed.b, rows.flatten().collect::<Vec<u8>>());
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
            let product = Product { x: [1.0; 48][..].into(), rows: 3, w: stored, epilogue: Epilogue::default() };
            let _ = (kernel.run)(&product, &mut [0.0; 3], &Pool::single());
        }
    }
}

#[test]
fn long_tails_survive_packing() {
    for format in FORMATS {
        for &group in GROUPS {
            for k in [group, 2 * group - 1, group + 1, 4304] {
                let codes = codes_of(format, 3, k, group, k as u64);
                round_trip(format, &codes).expect("a round trip");
            }
        }
    }
}

#[test]
fn the_list_is_in_order_and_described() {
    let order = |format: &Format| (format.scheme == Scheme::WeightActivation, format.bits);
    assert!(FORMATS.windows(2).all(|pair| order(pair[0]) < order(pair[1])));
    for format in FORMATS {
        let activations = if format.scheme == Scheme::WeightActivation { "a8" } else { "" };
        assert!(!format.about.is_empty() && format.name == format!("w{}{activations}", format.bits));
        assert_eq!(format.schema.slot("zero_points").is_some(), format.zero_point_bits != 0);
        assert_eq!(format.kernels[0].name, "reference");
        assert!(format.kernels.iter().all(|kernel| !kernel.about.is_empty()));
        let by_accuracy = |pair: &[Kernel]| pair[0].accuracy <= pair[1].accuracy;
        assert!(format.kernels.windows(2).all(by_accuracy), "{}: the fastest kernel is the last", format.name);
        for accuracy in [Accuracy::Single, Accuracy::Int16, Accuracy::Int8] {
            for (k, group) in
                [(128, 128), (7, 256), (4304, 32), (100, 24), (4096, 1024), (usize::MAX, 16), (1, usize::MAX)]
            {
                let kernel = format.kernel(accuracy, k, group);
                assert!((kernel.fits)(k, group) && kernel.accuracy <= accuracy);
            }
        }
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
        let zeros = (format.scheme == Scheme::WeightOnly).then_some(3);
        assert_eq!((schema.slot("A"), schema.slot("zero_points"), schema.slot("axes")), (Some(0), zeros, None));
    }
    assert!(Format::carried_by("com.microsoft", "MatMulNBits", 3).is_none());
}

#[test]
fn weights_without_a_cuda_kernel_are_refused() {
    let tiles = |name: &str, n: usize, group: usize, gated: bool| {
        let format = FORMATS.iter().copied().find(|format| format.name == name).expect("a format of the list");
        let packed = (format.pack)(&codes_of(format, n, 256, group, 1));
        let scales: Vec<f32> = vec![1.0; n * 256 / group];
        let zero_points = Some(&packed.zero_points[..]).filter(|zeros| !zeros.is_empty());
        let stored = Stored { n, k: 256, group, b: &packed.b, scales: Scales::F32(&scales), zero_points };
        Tiles::new(format, &stored, gated)
    };
    assert!(tiles("w3", 32, 128, true).is_ok());
    assert!(matches!(tiles("w3", 32, 16, false), Err(Error::Group { group: 16 })));
    assert!(matches!(tiles("w3", 33, 128, true), Err(Error::Length { .. })));
    assert!(matches!(tiles("w8", 32, 128, false), Err(Error::Device { format: "w8" })));
}
