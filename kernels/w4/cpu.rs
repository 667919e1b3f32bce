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
    type Tile<S: Simd> = S::Bytes;

    #[inline(always)]
    #[expect(unsafe_code, reason = "reads the bytes that the caller vouches for")]
    unsafe fn load<S: Simd>(s: S, row: *const u8, index: usize) -> S::Bytes {
        // SAFETY: a tile is `WIDTH` bytes, one after another.
        unsafe { s.load(row.add(index * S::WIDTH)) }
    }

    #[inline(always)]
    fn codes<S: Simd, const I: usize>(s: S, bytes: S::Bytes, raised: bool) -> S::Bytes {
        match I {
            0 => s.and(bytes, s.bytes(0x0f)),
            _ if raised => s.and(bytes, s.bytes(0xf0)),
            _ => s.and(s.shr::<4>(bytes), s.bytes(0x0f)),
        }
    }

    fn source(width: usize, tile: usize, register: usize, byte: usize) -> usize {
        2 * (tile * width + byte) + register
    }
}
