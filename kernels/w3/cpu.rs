//! Thirds in registers, read as they are stored: eight registers of codes from three of bytes.

use crate::integer::Decode;
use crate::simd::Simd;

/// Thirds of `THIRD` bytes (groups of `8 * THIRD`), a multiple of 4.
///
/// Where a third is at least a register long, a tile is a register of each plane. Where it is shorter, a tile is three
/// registers one after another, which hold the planes of several groups in turn and are sorted first.
pub(crate) struct Thirds<const THIRD: usize>;

impl<const THIRD: usize> Decode for Thirds<THIRD> {
    const BITS: u32 = 3;
    const ZERO_BITS: u32 = 4;
    const REGISTERS: usize = 8;
    const NIBBLES: bool = true;
    type Tile<S: Simd> = [S::Bytes; 8];

    #[inline(always)]
    #[expect(unsafe_code, reason = "reads the bytes that the caller vouches for")]
    unsafe fn tile<S: Simd>(s: S, row: *const u8, index: usize, raised: bool) -> [S::Bytes; 8] {
        let [low, middle, high] = if THIRD >= S::WIDTH {
            let tiles = THIRD / S::WIDTH;
            let (group, tile) = (index / tiles, index % tiles);
            // SAFETY: the three planes of a group follow one another.
            unsafe {
                let at = row.add(3 * THIRD * group + S::WIDTH * tile);
                [s.load(at), s.load(at.add(THIRD)), s.load(at.add(2 * THIRD))]
            }
        } else {
            // SAFETY: a tile is `3 * WIDTH` bytes, one after another.
            unsafe { s.planes::<THIRD>(row.add(3 * S::WIDTH * index)) }
        };
        // Bytes of two nibbles: low two bits from a low plane, the third from the high one. See the drawing in `w3`.
        let (two, code) = (s.bytes(0x33), s.bytes(0x07));
        let pairs = [
            s.select(two, low, s.shl::<2>(high)),
            s.select(two, s.shr::<2>(low), s.shl::<1>(high)),
            s.select(two, middle, high),
            s.select(two, s.shr::<2>(middle), s.shr::<1>(high)),
        ];
        let mut codes = [code; 8];
        for (i, &pair) in pairs.iter().enumerate() {
            codes[2 * i] = s.and(pair, code);
            codes[2 * i + 1] = if raised { s.and(pair, s.bytes(0x70)) } else { s.and(s.shr::<4>(pair), code) };
        }
        codes
    }

    fn source(width: usize, tile: usize, register: usize, byte: usize) -> usize {
        let byte = tile * width + byte;
        let (group, byte) = (byte / THIRD, byte % THIRD);
        8 * THIRD * group + 2 * THIRD * (register / 2) + 2 * byte + register % 2
    }

    fn period(width: usize) -> usize {
        (THIRD / width).max(1)
    }
}
