//! Plain arrays: correct on every machine, and what the compiler makes vectors of where the architecture has any.

use super::{Abreast, Job, Simd, plane_words};
use half::f16;
use std::array;

const WIDTH: usize = 16;
const LANES: usize = WIDTH / 4;

/// Sixteen bytes at a time.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

#[expect(unsafe_code, reason = "reads and writes through the pointers that the trait's callers vouch for")]
impl Simd for Portable {
    const WIDTH: usize = WIDTH;
    const RAISES: bool = false;
    type Bytes = [u8; WIDTH];
    type Ints = [i32; LANES];
    type Floats = [f32; LANES];

    #[inline(always)]
    fn bytes(self, value: u8) -> Self::Bytes {
        [value; WIDTH]
    }

    #[inline(always)]
    fn and(self, a: Self::Bytes, b: Self::Bytes) -> Self::Bytes {
        array::from_fn(|i| a[i] & b[i])
    }

    #[inline(always)]
    fn select(self, mask: Self::Bytes, a: Self::Bytes, b: Self::Bytes) -> Self::Bytes {
        array::from_fn(|i| a[i] & mask[i] | b[i] & !mask[i])
    }

    #[inline(always)]
    fn shr<const N: u32>(self, a: Self::Bytes) -> Self::Bytes {
        a.map(|a| a >> N)
    }

    #[inline(always)]
    fn shl<const N: u32>(self, a: Self::Bytes) -> Self::Bytes {
        a.map(|a| a << N)
    }

    #[inline(always)]
    unsafe fn load(self, at: *const u8) -> Self::Bytes {
        // SAFETY: the caller vouches for `WIDTH` bytes; an array of bytes has no alignment.
        unsafe { at.cast::<[u8; WIDTH]>().read() }
    }

    #[inline(always)]
    unsafe fn store(self, value: Self::Bytes, at: *mut u8) {
        // SAFETY: as in `load`.
        unsafe { at.cast::<[u8; WIDTH]>().write(value) }
    }

    #[inline(always)]
    unsafe fn planes<const PIECE: usize>(self, at: *const u8) -> [Self::Bytes; 3] {
        // SAFETY: the caller vouches for `3 * WIDTH` bytes.
        let all = unsafe { at.cast::<[[u8; 4]; 3 * LANES]>().read() };
        let words = const { plane_words::<LANES>(PIECE / 4) };
        array::from_fn(|plane| {
            let of_plane = |word: &u32| {
                let place = *word as usize;
                let register = (0..3).find(|&r| words.bits[plane][r] >> place & 1 == 1).unwrap_or(0);
                all[register * LANES + place]
            };
            let mut bytes = [0; WIDTH];
            for (out, word) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(&words.places[plane]) {
                *out = of_plane(word);
            }
            bytes
        })
    }

    #[inline(always)]
    unsafe fn dot(
        self,
        sum: &mut Self::Ints,
        _part: &mut Self::Ints,
        _bits: u32,
        _apart: bool,
        codes: Self::Bytes,
        x: *const i8,
    ) {
        // SAFETY: the caller vouches for `WIDTH` bytes.
        let x = unsafe { x.cast::<[i8; WIDTH]>().read() };
        let products: [i32; WIDTH] = array::from_fn(|i| i32::from(codes[i]) * i32::from(x[i]));
        *sum = array::from_fn(|i| sum[i].wrapping_add(products[4 * i..4 * i + 4].iter().sum()));
    }

    #[inline(always)]
    fn settle(self, sum: Self::Ints, _part: Self::Ints, _bits: u32, _raised: bool) -> Self::Ints {
        sum
    }

    #[inline(never)]
    fn apart<J: Job>(self, job: J) -> J::Output {
        job.run(self)
    }

    #[inline(always)]
    fn abreast<A: Abreast>(self, work: A) {
        work.run::<Self, 1>(self);
    }

    #[inline(always)]
    unsafe fn dot_same(self, sum: Self::Ints, _bits: u32, codes: Self::Bytes, x: *const i8) -> Self::Ints {
        // SAFETY: the caller vouches for 4 bytes.
        let x = unsafe { x.cast::<[i8; 4]>().read() };
        let products: [i32; WIDTH] = array::from_fn(|i| i32::from(codes[i]) * i32::from(x[i % 4]));
        array::from_fn(|i| sum[i].wrapping_add(products[4 * i..4 * i + 4].iter().sum()))
    }

    #[inline(always)]
    fn ints(self, value: i32) -> Self::Ints {
        [value; LANES]
    }

    #[inline(always)]
    fn fold(self, a: [Self::Ints; 4]) -> Self::Ints {
        a.map(|a| self.sum_ints(a))
    }

    #[inline(always)]
    fn sum_ints(self, a: Self::Ints) -> i32 {
        a.into_iter().fold(0, i32::wrapping_add)
    }

    #[inline(always)]
    fn to_floats(self, a: Self::Ints) -> Self::Floats {
        a.map(|a| a as f32)
    }

    #[inline(always)]
    fn floats(self, value: f32) -> Self::Floats {
        [value; LANES]
    }

    #[inline(always)]
    fn add(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        array::from_fn(|i| a[i] + b[i])
    }

    #[inline(always)]
    fn mul(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        array::from_fn(|i| a[i] * b[i])
    }

    #[inline(always)]
    fn mul_add(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats {
        array::from_fn(|i| a[i] * b[i] + c[i])
    }

    #[inline(always)]
    fn sum(self, a: Self::Floats) -> f32 {
        (a[0] + a[2]) + (a[1] + a[3])
    }

    #[inline(always)]
    fn sum_fourths(self, a: Self::Floats) -> [f32; 4] {
        a
    }

    #[inline(always)]
    unsafe fn load_floats(self, at: *const f32) -> Self::Floats {
        // SAFETY: the caller vouches for `LANES` floats, at any address.
        unsafe { at.cast::<[f32; LANES]>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store_floats(self, value: Self::Floats, at: *mut f32) {
        // SAFETY: as in `load_floats`.
        unsafe { at.cast::<[f32; LANES]>().write_unaligned(value) }
    }

    #[inline(always)]
    unsafe fn load_halves(self, at: *const u8) -> Self::Floats {
        // SAFETY: the caller vouches for `WIDTH / 2` bytes.
        let bytes = unsafe { at.cast::<[[u8; 2]; LANES]>().read() };
        bytes.map(|bytes| f16::from_le_bytes(bytes).to_f32())
    }

    #[inline(always)]
    unsafe fn load_small<const BITS: u32>(self, at: *const u8) -> Self::Floats {
        let per_byte = 8 / BITS as usize;
        array::from_fn(|i| {
            // SAFETY: the caller vouches for `BITS * LANES / 8` bytes.
            let byte = unsafe { at.add(i / per_byte).read() };
            f32::from(byte >> (BITS as usize * (i % per_byte)) & (u8::MAX >> (8 - BITS)))
        })
    }

    #[inline(always)]
    fn spreading(self, count: usize) -> Self::Ints {
        array::from_fn(|lane| (lane * count / LANES) as i32)
    }

    #[inline(always)]
    fn spread(self, a: Self::Floats, places: Self::Ints) -> Self::Floats {
        places.map(|place| a[place as usize % LANES])
    }

    #[inline(always)]
    fn prefetch(self, _at: *const u8) {}
}
