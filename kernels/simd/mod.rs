//! Registers: what the integer kernels ask of an instruction set, and the sets that answer.
//!
//! A kernel is written once, generic over [`Simd`], and compiled for every set; [`run`] calls the version that
//! [`isa`](crate::isa::isa) names. A token of a set (`Avx2`, `Avx512`, ..) is only made where the machine was seen to have
//! it, so its methods may use it. Everything is `#[inline(always)]`: it becomes part of the one function that carries the
//! `target_feature` attribute, and only there do the instructions exist.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

use crate::isa::{Isa, isa};

/// The widest register, in bytes: what buffers are padded and aligned to.
pub(crate) const MOST_BYTES: usize = 64;

/// The registers of an instruction set: bytes, and as many bytes of `i32` and of `f32`.
///
/// Codes are unsigned bytes, activations signed ones. The fused `mul_add` rounds once where the set can do it, so results
/// differ between sets in the last bits, never between two runs on one.
#[expect(unsafe_code, reason = "what takes pointers must be told that they are good")]
pub(crate) trait Simd: Copy {
    /// Bytes of a register; a quarter of it is the number of `i32` and of `f32`.
    const WIDTH: usize;
    /// Whether codes may be any unsigned byte at full speed.
    const RAISES: bool;
    /// Lanes of 8 bits.
    type Bytes: Copy;
    /// Lanes of 32 bits.
    type Ints: Copy;
    /// Lanes of 32 bits.
    type Floats: Copy;

    /// All lanes the same.
    fn bytes(self, value: u8) -> Self::Bytes;
    /// Bitwise.
    fn and(self, a: Self::Bytes, b: Self::Bytes) -> Self::Bytes;
    /// The bits of `a` where `mask` is 1, those of `b` where it is 0.
    fn select(self, mask: Self::Bytes, a: Self::Bytes, b: Self::Bytes) -> Self::Bytes;
    /// Shifts right by `N` within lanes of 16 bits: the low bits of odd bytes move into the even ones, so mask afterwards.
    fn shr<const N: u32>(self, a: Self::Bytes) -> Self::Bytes;
    /// Shifts left by `N` within lanes of 16 bits: the high bits of even bytes move into the odd ones, so mask afterwards.
    fn shl<const N: u32>(self, a: Self::Bytes) -> Self::Bytes;

    /// `WIDTH` bytes from any address.
    ///
    /// # Safety
    ///
    /// They must be readable.
    unsafe fn load(self, at: *const u8) -> Self::Bytes;

    /// Stores `WIDTH` bytes at any address.
    ///
    /// # Safety
    ///
    /// They must be writable.
    unsafe fn store(self, value: Self::Bytes, at: *mut u8);

    /// Sorts `3 * WIDTH` bytes that are pieces of `PIECE` bytes (4 at least, less than `WIDTH`), of three planes in turn,
    /// into the three planes, each in the order of its pieces.
    ///
    /// # Safety
    ///
    /// They must be readable.
    unsafe fn planes<const PIECE: usize>(self, at: *const u8) -> [Self::Bytes; 3];

    /// Adds the products of four codes with four activations to every lane of sums: a step of the product of a tile, whose
    /// registers come one after the other.
    ///
    /// Codes are below `2^bits` (a constant where this is inlined); there are at most 8 registers of them. No sum saturates;
    /// sums are modulo 2^32. What is added may go to `part` first; [`Simd::settle`] brings both together when a tile is done. `apart` asks for that,
    /// so that sums need not wait for one another; with [`Simd::RAISES`] codes that go there may be 16 times as large.
    ///
    /// # Safety
    ///
    /// `WIDTH` bytes must be readable at `x`.
    unsafe fn dot(
        self,
        sum: &mut Self::Ints,
        part: &mut Self::Ints,
        bits: u32,
        apart: bool,
        codes: Self::Bytes,
        x: *const i8,
    );

    /// The sum of a tile: `sum`, and `part` of it. If `raised`, what went apart is 16 times too large.
    fn settle(self, sum: Self::Ints, part: Self::Ints, bits: u32, raised: bool) -> Self::Ints;

    /// Computes `job` in a function of its own, so that its registers do not depend on what is done around it.
    fn apart<J: Job>(self, job: J) -> J::Output;

    /// Does something with as many channels side by side as there are registers for, each with several lines.
    fn abreast<A: Abreast>(self, work: A);

    /// As [`Simd::dot`] for the only register of a tile, with the same four activations for every lane.
    ///
    /// # Safety
    ///
    /// 4 bytes must be readable at `x`.
    unsafe fn dot_same(self, sum: Self::Ints, bits: u32, codes: Self::Bytes, x: *const i8) -> Self::Ints;

    /// All lanes the same.
    fn ints(self, value: i32) -> Self::Ints;
    /// Lane `4 i + j` is the sum of lanes `4 i` to `4 i + 3` of `a[j]`, modulo 2^32.
    fn fold(self, a: [Self::Ints; 4]) -> Self::Ints;
    /// The sum of all lanes, modulo 2^32.
    fn sum_ints(self, a: Self::Ints) -> i32;
    /// The nearest floats.
    fn to_floats(self, a: Self::Ints) -> Self::Floats;

    /// All lanes the same.
    fn floats(self, value: f32) -> Self::Floats;
    /// `a + b`.
    fn add(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// `a * b`.
    fn mul(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// `a * b + c`.
    fn mul_add(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;
    /// The sum of all lanes, in an order of the set's own.
    fn sum(self, a: Self::Floats) -> f32;
    /// `[j]` is the sum of lanes `j`, `j + 4`, and so on, in an order of the set's own.
    fn sum_fourths(self, a: Self::Floats) -> [f32; 4];

    /// `WIDTH / 4` floats from any address.
    ///
    /// # Safety
    ///
    /// They must be readable.
    unsafe fn load_floats(self, at: *const f32) -> Self::Floats;

    /// Stores `WIDTH / 4` floats at any address.
    ///
    /// # Safety
    ///
    /// They must be writable.
    unsafe fn store_floats(self, value: Self::Floats, at: *mut f32);

    /// `WIDTH / 4` IEEE half floats, as f32.
    ///
    /// # Safety
    ///
    /// `WIDTH / 2` bytes must be readable.
    unsafe fn load_halves(self, at: *const u8) -> Self::Floats;

    /// `WIDTH / 4` unsigned integers of `BITS` bits (2, 4 or 8), the first in the lowest bits of the first byte, as f32.
    ///
    /// # Safety
    ///
    /// `BITS * WIDTH / 32` bytes must be readable.
    unsafe fn load_small<const BITS: u32>(self, at: *const u8) -> Self::Floats;

    /// The places that repeat each of the first `count` lanes, a power of two, so that the register is full: `0 0 1 1` for
    /// two in four lanes.
    fn spreading(self, count: usize) -> Self::Ints;

    /// The lanes of `a` at these places.
    fn spread(self, a: Self::Floats, places: Self::Ints) -> Self::Floats;

    /// A hint that the cache line at `at` will be read. Any address will do.
    fn prefetch(self, at: *const u8);
}

/// Something to be computed with whatever registers there are.
pub(crate) trait Job {
    /// What comes out.
    type Output;
    /// Computes it. `#[inline(always)]`, as everything that it calls with `s`.
    fn run<S: Simd>(self, s: S) -> Self::Output;
}

/// Something that is done with some channels side by side.
pub(crate) trait Abreast {
    /// Does it with `C` at a time. `#[inline(always)]`, as everything that it calls with `s`.
    fn run<S: Simd, const C: usize>(self, s: S);
}

/// Bytes of a register of the set that [`run`] will use.
pub(crate) fn width() -> usize {
    match isa() {
        Isa::Scalar => portable::Portable::WIDTH,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 | Isa::AvxVnni => avx2::Avx2::<false>::WIDTH,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Avx512Vbmi => avx512::Avx512::<false>::WIDTH,
        #[cfg(not(target_arch = "x86_64"))]
        _ => portable::Portable::WIDTH,
    }
}

/// Computes `job` with the instruction set that [`isa`] names.
#[inline(never)]
#[cfg_attr(target_arch = "x86_64", expect(unsafe_code, reason = "instruction sets that the machine was seen to have"))]
pub(crate) fn run<J: Job>(job: J) -> J::Output {
    match isa() {
        Isa::Scalar => job.run(portable::Portable),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `isa` names a set only on machines that have it, here and below.
        Isa::Avx2 => unsafe { avx2::run(job) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::AvxVnni => unsafe { avx2::run_vnni(job) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Avx512 => unsafe { avx512::run(job) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Avx512Vbmi => unsafe { avx512::run_vbmi(job) },
        #[cfg(not(target_arch = "x86_64"))]
        _ => job.run(portable::Portable),
    }
}

/// Where the 32-bit words of three planes lie in `3 * WORDS` words that hold them in pieces in turn.
#[derive(Clone, Copy)]
pub(crate) struct PlaneWords<const WORDS: usize> {
    /// For each plane and each of the three registers, all ones where the word at a place is that plane's.
    pub(crate) words: [[[u32; WORDS]; 3]; 3],
    /// The same as bits, the lowest for the first place.
    pub(crate) bits: [[u16; 3]; 3],
    /// For each plane, the place (in the register that the masks make) of each of its words in order.
    pub(crate) places: [[u32; WORDS]; 3],
}

/// [`PlaneWords`] for pieces of `piece` words. Three is invertible modulo a power of two, so within a plane no two words
/// have the same place, and blending the three registers brings a plane together, out of order.
pub(crate) const fn plane_words<const WORDS: usize>(piece: usize) -> PlaneWords<WORDS> {
    let mut planes = PlaneWords { words: [[[0; WORDS]; 3]; 3], bits: [[0; 3]; 3], places: [[0; WORDS]; 3] };
    let mut word = 0;
    // Pieces of a register or more need no sorting: code that is compiled for them, too, is never called.
    while word < 3 * WORDS && piece < WORDS {
        let (turn, within) = (word / piece, word % piece);
        let (plane, order) = (turn % 3, turn / 3 * piece + within);
        let (register, place) = (word / WORDS, word % WORDS);
        planes.words[plane][register][place] = u32::MAX;
        planes.bits[plane][register] |= 1 << place;
        planes.places[plane][order] = place as u32;
        word += 1;
    }
    planes
}

/// Where integers of `bits` bits begin in a word of 32 bits, for each lane; lanes beyond a word begin again.
#[cfg(target_arch = "x86_64")]
const fn shifts<const LANES: usize>(bits: u32) -> [u32; LANES] {
    let mut shifts = [0; LANES];
    let mut lane = 0;
    while lane < LANES {
        shifts[lane] = lane as u32 * bits % 32;
        lane += 1;
    }
    shifts
}
