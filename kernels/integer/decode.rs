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
    /// The registers of a tile.
    type Tile<S: Simd>: AsRef<[S::Bytes]>;

    /// Weights of a tile in registers of `width` bytes.
    fn weights(width: usize) -> usize {
        Self::REGISTERS * width
    }

    /// Tile `index` of the row that starts at `row`. If `raised`, every other register holds 16 times its codes: those of
    /// high nibbles, which then need no shift ([`Simd::dot`] undoes it).
    ///
    /// # Safety
    ///
    /// `BITS / 8` bytes per weight of the tile must be readable, from where it starts: `index` times that many bytes, or for
    /// thirds that are longer than a register, within its group.
    unsafe fn tile<S: Simd>(s: S, row: *const u8, index: usize, raised: bool) -> Self::Tile<S>;

    /// The weight (its place along k, counted from the start of the row) of a byte of a register of a tile.
    fn source(width: usize, tile: usize, register: usize, byte: usize) -> usize;

    /// Tiles after which [`Decode::source`] repeats, a period of whole groups further on.
    fn period(width: usize) -> usize {
        let _ = width;
        1
    }
}
