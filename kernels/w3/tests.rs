use super::*;
use crate::affine::Codes;
use crate::matmul_nbits::pack_bits;
use proptest::prelude::*;

/// formats.md section 2, word for word, one bit at a time.
fn transcription(c: &[u8]) -> Vec<u8> {
    let g = c.len();
    let mut bytes = vec![0u8; 3 * g / 8];
    let bit = |value: u8, at: usize| (value >> at) & 1;
    for t in 0..4 {
        for i in 0..g / 8 {
            let (a, b) = (c[(g / 4) * t + 2 * i], c[(g / 4) * t + 2 * i + 1]);
            let low = if t < 2 { i } else { g / 8 + i };
            for at in 0..2 {
                bytes[low] |= bit(a, at) << (2 * (t % 2) + at);
                bytes[low] |= bit(b, at) << (2 * (t % 2) + 4 + at);
            }
            bytes[2 * g / 8 + i] |= bit(a, 2) << t;
            bytes[2 * g / 8 + i] |= bit(b, 2) << (t + 4);
        }
    }
    bytes
}

/// The four steps of the op's function body, as ONNX executes them on uint8 (a left shift drops what leaves the byte).
fn function_body(block: &[u8]) -> Vec<u8> {
    let third = block.len() / 3;
    let (l0, rest) = block.split_at(third);
    let (l1, h) = rest.split_at(third);
    let both = |l: &[u8], f: fn(u8, u8) -> u8| l.iter().zip(h).map(|(&l, &h)| f(l, h)).collect::<Vec<u8>>();
    [
        both(l0, |l, h| (l & 0x33) | ((h << 2) & 0x44)),
        both(l0, |l, h| ((l >> 2) & 0x33) | ((h << 1) & 0x44)),
        both(l1, |l, h| (l & 0x33) | (h & 0x44)),
        both(l1, |l, h| ((l >> 2) & 0x33) | ((h >> 1) & 0x44)),
    ]
    .concat()
}

#[test]
fn a_block_worked_by_hand() {
    // g = 8, so a third is one byte. Pairs (a, b): t0 (1, 2), t1 (3, 4), t2 (5, 6), t3 (7, 0).
    // L0: a0 = 01 at 0, a1 = 11 at 2, b0 = 10 at 4, b1 = 00 at 6   -> 0b00_10_11_01 = 0x2d
    // L1: a2 = 01 at 0, a3 = 11 at 2, b2 = 10 at 4, b3 = 00 at 6   -> 0b00_10_11_01 = 0x2d
    // H:  high bits a = 0, 0, 1, 1 at 0..4, b = 0, 1, 1, 0 at 4..8 -> 0b0110_1100   = 0x6c
    let codes = Codes {
        n: 1,
        k: 8,
        group: 8,
        bits: 3,
        codes: vec![1, 2, 3, 4, 5, 6, 7, 0],
        scales: vec![0.5],
        zero_points: vec![5],
    };
    let packed = (FORMAT.pack)(&codes);
    assert_eq!((packed.b.as_slice(), packed.shapes.b), ([0x2d, 0x2d, 0x6c].as_slice(), vec![1, 1, 3]));
    assert_eq!((packed.zero_points.as_slice(), packed.shapes.zero_points), ([0x05].as_slice(), Some(vec![1, 1])));
    assert_eq!((packed.scales.as_slice(), packed.shapes.scales), ([0.5].as_slice(), vec![1, 1]));
    assert_eq!(thirds_to_nibbles(&packed.b, 8).expect("a whole block"), [0x21, 0x43, 0x65, 0x07]);
}

#[test]
fn the_rest_of_a_block_is_padded_with_the_zero_point() {
    let codes = Codes {
        n: 1,
        k: 10,
        group: 8,
        bits: 3,
        codes: vec![0, 1, 2, 3, 4, 5, 6, 7, 6, 1],
        scales: vec![1.0, 2.0],
        zero_points: vec![3, 4],
    };
    let packed = (FORMAT.pack)(&codes);
    assert_eq!(packed.b[..3], transcription(&[0, 1, 2, 3, 4, 5, 6, 7]));
    assert_eq!(packed.b[3..], transcription(&[6, 1, 4, 4, 4, 4, 4, 4]));
    assert_eq!(packed.zero_points, [0x43]);
}

#[test]
fn a_nibble_above_seven_is_not_a_zero_point() {
    let b = [0; 6];
    let scales = [1.0; 2];
    let stored =
        crate::Stored { n: 1, k: 16, group: 8, b: &b, scales: crate::Scales::F32(&scales), zero_points: Some(&[0x87]) };
    let error = (FORMAT.unpack)(&stored).expect_err("8 is not a code");
    assert_eq!(error.to_string(), "the zero point of row 0, group 1 is 8, but codes of 3 bits end at 7");
    let missing = crate::Stored { zero_points: None, ..stored };
    assert_eq!((FORMAT.unpack)(&missing).expect("the default").zero_points, [4, 4]);
}

proptest! {
    #[test]
    fn blocks_are_laid_out_as_the_specification_says(
        codes in prop::sample::select(crate::GROUPS).prop_flat_map(|g| prop::collection::vec(0u8..8, g))
    ) {
        let mut block = vec![0xff; 3 * codes.len() / 8];
        pack_block(&codes, &mut block);
        prop_assert_eq!(&block, &transcription(&codes));
        let mut back = vec![0; codes.len()];
        unpack_block(&block, &mut back);
        prop_assert_eq!(back, codes);
    }

    #[test]
    fn four_steps_make_the_four_bit_blob(
        codes in prop::sample::select(crate::GROUPS).prop_flat_map(|g| prop::collection::vec(0u8..8, g))
    ) {
        let mut block = vec![0; 3 * codes.len() / 8];
        pack_block(&codes, &mut block);
        let mut nibbles = vec![0; codes.len() / 2];
        pack_bits(4, &codes, &mut nibbles);
        prop_assert_eq!(&function_body(&block), &nibbles);
        prop_assert_eq!(&thirds_to_nibbles(&block, codes.len()).expect("a whole block"), &nibbles);
    }
}
