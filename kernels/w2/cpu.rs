//! Four codes to a byte in registers: four registers of codes from one of bytes.

use crate::integer::Decode;
use crate::simd::Simd;

/// Four codes to a byte, the first in the lowest bits.
pub(crate) struct Quarters;

impl Decode for Quarters {
    const BITS: u32 = 2;
    const REGISTERS: usize = 4;
    type Tile<S: Simd> = S::Bytes;

    #[inline(always)]
    #[expect(unsafe_code, reason = "reads the bytes that the caller vouches for")]
    unsafe fn load<S: Simd>(s: S, row: *const u8, index: usize) -> S::Bytes {
        // SAFETY: a tile is `WIDTH` bytes, one after another.
        unsafe { s.load(row.add(index * S::WIDTH)) }
    }

    #[inline(always)]
    fn codes<S: Simd, const I: usize>(s: S, bytes: S::Bytes, _raised: bool) -> S::Bytes {
        let lowered = match I {
            0 => bytes,
            1 => s.shr::<2>(bytes),
            2 => s.shr::<4>(bytes),
            _ => s.shr::<6>(bytes),
        };
        s.and(lowered, s.bytes(0x03))
    }

    fn source(width: usize, tile: usize, register: usize, byte: usize) -> usize {
        4 * (tile * width + byte) + register
    }
}
