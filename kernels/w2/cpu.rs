//! Four codes to a byte in registers: four registers of codes from one of bytes.

use crate::integer::Decode;
use crate::simd::Simd;

/// Four codes to a byte, the first in the lowest bits.
pub(crate) struct Quarters;

impl Decode for Quarters {
    const BITS: u32 = 2;
    const REGISTERS: usize = 4;
    type Tile<S: Simd> = [S::Bytes; 4];

    #[inline(always)]
    #[expect(unsafe_code, reason = "reads the bytes that the caller vouches for")]
    unsafe fn tile<S: Simd>(s: S, row: *const u8, index: usize, _raised: bool) -> [S::Bytes; 4] {
        // SAFETY: a tile is `WIDTH` bytes, one after another.
        let bytes = unsafe { s.load(row.add(index * S::WIDTH)) };
        let low = s.bytes(0x03);
        [s.and(bytes, low), s.and(s.shr::<2>(bytes), low), s.and(s.shr::<4>(bytes), low), s.and(s.shr::<6>(bytes), low)]
    }

    fn source(width: usize, tile: usize, register: usize, byte: usize) -> usize {
        4 * (tile * width + byte) + register
    }
}
