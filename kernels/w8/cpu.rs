//! Bytes in registers.

use crate::integer::Decode;
use crate::simd::Simd;

/// A code to a byte; with `WHOLE_ROWS`, of symmetric weights.
pub(crate) struct Bytes<const WHOLE_ROWS: bool>;

impl<const WHOLE_ROWS: bool> Decode for Bytes<WHOLE_ROWS> {
    const BITS: u32 = 8;
    const REGISTERS: usize = 1;
    const WHOLE_ROWS: bool = WHOLE_ROWS;
    type Tile<S: Simd> = S::Bytes;

    #[inline(always)]
    #[expect(unsafe_code, reason = "reads the bytes that the caller vouches for")]
    unsafe fn load<S: Simd>(s: S, row: *const u8, index: usize) -> S::Bytes {
        // SAFETY: a tile is `WIDTH` bytes, one after another.
        unsafe { s.load(row.add(index * S::WIDTH)) }
    }

    #[inline(always)]
    fn codes<S: Simd, const I: usize>(_s: S, bytes: S::Bytes, _raised: bool) -> S::Bytes {
        bytes
    }

    fn source(width: usize, tile: usize, _register: usize, byte: usize) -> usize {
        tile * width + byte
    }
}
