//! How stored bytes become registers of codes, and in which order.

use crate::simd::Simd;

/// A stored layout, seen by a kernel.
///
/// A row of a weight (one output channel) is a sequence of *tiles*: as many stored bytes as become [`Decode::REGISTERS`]
/// registers of codes, one code to a byte. Codes leave a tile in whatever order costs least; [`Decode::source`] tells the
/// order, and activations are brought into it once per product. Four bytes that share a lane of 32 bits belong to one group.
#[expect(unsafe_code, reason = "what takes pointers must be told that they are good")]
pub(crate) trait Decode: 'static {
    /// Bits of a code.
    const BITS: u32;
    /// Bits of a stored zero point.
    const ZERO_BITS: u32 = Self::BITS;
    /// Registers of codes in a tile.
    const REGISTERS: usize;
    /// Whether a row has one scale, and its codes the zero point `2^(BITS-1)`: sums are exact to the end of the row.
    const WHOLE_ROWS: bool = false;
    /// Whether registers are low and high nibbles in turn, which may be raised.
    const NIBBLES: bool = false;
    /// A tile as it is stored, in registers.
    type Tile<S: Simd>: Copy;

    /// Weights of a tile in registers of `width` bytes.
    fn weights(width: usize) -> usize {
        Self::REGISTERS * width
    }

    /// Loads tile `index` of the row that starts at `row`.
    ///
    /// # Safety
    ///
    /// `BITS / 8` bytes per weight of the tile must be readable, from where it starts: `index` times that many bytes, or for
    /// thirds that are longer than a register, within its group.
    unsafe fn load<S: Simd>(s: S, row: *const u8, index: usize) -> Self::Tile<S>;

    /// Register `I` of the codes of a tile. If `raised`, odd registers hold 16 times their codes: those of high nibbles, which
    /// then need no shift ([`Simd::settle`] undoes it).
    fn codes<S: Simd, const I: usize>(s: S, tile: Self::Tile<S>, raised: bool) -> S::Bytes;

    /// The weight (its place along k, counted from the start of the row) of a byte of a register of a tile.
    fn source(width: usize, tile: usize, register: usize, byte: usize) -> usize;

    /// Tiles after which [`Decode::source`] repeats, a period of whole groups further on.
    fn period(width: usize) -> usize {
        let _ = width;
        1
    }
}

/// Does something for every register of a tile, one after the other, with the number of the register as a constant.
macro_rules! for_registers {
    ($decode:ty, |$i:ident| $body:block) => {
        for_registers!($decode, $i, $body, 0 1 2 3 4 5 6 7);
    };
    ($decode:ty, $i:ident, $body:block, $($number:literal)*) => {
        $({
            const $i: usize = $number;
            if $i < <$decode>::REGISTERS $body
        })*
    };
}
pub(super) use for_registers;
