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
    type Tile<S: Simd> = [S::Bytes; 3];

    #[inline(always)]
    #[expect(unsafe_code, reason = "reads the bytes that the caller vouches for")]
    unsafe fn load<S: Simd>(s: S, row: *const u8, index: usize) -> [S::Bytes; 3] {
        if THIRD >= S::WIDTH {
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
        }
    }

    #[inline(always)]
    fn codes<S: Simd, const I: usize>(s: S, [low, middle, high]: [S::Bytes; 3], raised: bool) -> S::Bytes {
        // Bytes of two nibbles: low two bits from a low plane, the third from the high one. See the drawing in `w3`.
        let two = s.bytes(0x33);
        let pair = match I / 2 {
            0 => s.select(two, low, s.shl::<2>(high)),
            1 => s.select(two, s.shr::<2>(low), s.shl::<1>(high)),
            2 => s.select(two, middle, high),
            _ => s.select(two, s.shr::<2>(middle), s.shr::<1>(high)),
        };
        match I % 2 {
            0 => s.and(pair, s.bytes(0x07)),
            _ if raised => s.and(pair, s.bytes(0x70)),
            _ => s.and(s.shr::<4>(pair), s.bytes(0x07)),
        }
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
