//! Nibbles in registers: two registers of codes from one of bytes, even weights and odd ones.

use crate::integer::Decode;
use crate::simd::Simd;

/// Two codes to a byte, the first in the low half; with `WHOLE_ROWS`, of symmetric weights.
pub(crate) struct Nibbles<const WHOLE_ROWS: bool>;

impl<const WHOLE_ROWS: bool> Decode for Nibbles<WHOLE_ROWS> {
    const BITS: u32 = 4;
    const REGISTERS: usize = 2;
    const WHOLE_ROWS: bool = WHOLE_ROWS;
    const NIBBLES: bool = true;
    type Tile<S: Simd> = [S::Bytes; 2];

    #[inline(always)]
    #[expect(unsafe_code, reason = "reads the bytes that the caller vouches for")]
    unsafe fn tile<S: Simd>(s: S, row: *const u8, index: usize, raised: bool) -> [S::Bytes; 2] {
        // SAFETY: a tile is `WIDTH` bytes, one after another.
        let bytes = unsafe { s.load(row.add(index * S::WIDTH)) };
        let low = s.bytes(0x0f);
        let high = if raised { s.and(bytes, s.bytes(0xf0)) } else { s.and(s.shr::<4>(bytes), low) };
        [s.and(bytes, low), high]
    }

    fn source(width: usize, tile: usize, register: usize, byte: usize) -> usize {
        2 * (tile * width + byte) + register
    }
}
