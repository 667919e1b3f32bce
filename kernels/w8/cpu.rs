//! Bytes in registers.

use crate::integer::Decode;
use crate::simd::Simd;

/// A code to a byte; with `SIGNED`, in two's complement.
pub(crate) struct Bytes<const SIGNED: bool>;

impl<const SIGNED: bool> Decode for Bytes<SIGNED> {
    const BITS: u32 = 8;
    const REGISTERS: usize = 1;
    const SIGNED: bool = SIGNED;
    type Tile<S: Simd> = [S::Bytes; 1];

    #[inline(always)]
    #[expect(unsafe_code, reason = "reads the bytes that the caller vouches for")]
    unsafe fn tile<S: Simd>(s: S, row: *const u8, index: usize, _raised: bool) -> [S::Bytes; 1] {
        // SAFETY: a tile is `WIDTH` bytes, one after another.
        let bytes = unsafe { s.load(row.add(index * S::WIDTH)) };
        [if SIGNED { s.xor(bytes, s.bytes(0x80)) } else { bytes }]
    }

    fn source(width: usize, tile: usize, _register: usize, byte: usize) -> usize {
        tile * width + byte
    }
}
