//! AVX2 (with FMA and F16C, without which it is not chosen), and AVX-VNNI on top of it.

use super::{Abreast, Job, Simd, plane_words, shifts};
use std::arch::x86_64::*;
use std::array;

const LANES: usize = 8;

/// Thirty-two bytes at a time; with `VNNI`, the dot product is one instruction.
#[derive(Clone, Copy)]
pub(crate) struct Avx2<const VNNI: bool>(());

/// With AVX2 (`Isa::Avx2`).
///
/// # Safety
///
/// The machine must have it.
#[expect(unsafe_code, reason = "a function with target features may be called where the machine has them")]
pub(super) unsafe fn run<J: Job>(job: J) -> J::Output {
    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline(never)]
    fn compiled<J: Job>(job: J) -> J::Output {
        job.run(Avx2::<false>(()))
    }
    // SAFETY: the caller vouches for the features.
    unsafe { compiled(job) }
}

/// With AVX-VNNI (`Isa::AvxVnni`).
///
/// # Safety
///
/// The machine must have it.
#[expect(unsafe_code, reason = "a function with target features may be called where the machine has them")]
pub(super) unsafe fn run_vnni<J: Job>(job: J) -> J::Output {
    #[target_feature(enable = "avx2,fma,f16c,avxvnni")]
    #[inline(never)]
    fn compiled<J: Job>(job: J) -> J::Output {
        job.run(Avx2::<true>(()))
    }
    // SAFETY: the caller vouches for the features.
    unsafe { compiled(job) }
}

#[expect(
    unsafe_code,
    reason = "intrinsics: a token exists only where the machine has the features (`run`, `run_vnni`); memory is accessed \
              through pointers that the trait's callers vouch for"
)]
impl<const VNNI: bool> Simd for Avx2<VNNI> {
    const WIDTH: usize = 32;
    const RAISES: bool = VNNI;
    type Bytes = __m256i;
    type Ints = __m256i;
    type Floats = __m256;

    #[inline(always)]
    fn bytes(self, value: u8) -> __m256i {
        // SAFETY: AVX2 is there.
        unsafe { _mm256_set1_epi8(value.cast_signed()) }
    }

    #[inline(always)]
    fn and(self, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: AVX2 is there.
        unsafe { _mm256_and_si256(a, b) }
    }

    #[inline(always)]
    fn select(self, mask: __m256i, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: AVX2 is there.
        unsafe { _mm256_or_si256(_mm256_and_si256(mask, a), _mm256_andnot_si256(mask, b)) }
    }

    #[inline(always)]
    fn shr<const N: u32>(self, a: __m256i) -> __m256i {
        // SAFETY: AVX2 is there.
        unsafe { _mm256_srl_epi16(a, _mm_cvtsi32_si128(N.cast_signed())) }
    }

    #[inline(always)]
    fn shl<const N: u32>(self, a: __m256i) -> __m256i {
        // SAFETY: AVX2 is there.
        unsafe { _mm256_sll_epi16(a, _mm_cvtsi32_si128(N.cast_signed())) }
    }

    #[inline(always)]
    unsafe fn load(self, at: *const u8) -> __m256i {
        // SAFETY: the caller vouches for 32 bytes; the instruction takes any address.
        unsafe { _mm256_loadu_si256(at.cast()) }
    }

    #[inline(always)]
    unsafe fn store(self, value: __m256i, at: *mut u8) {
        // SAFETY: the caller vouches for 32 bytes; the instruction takes any address.
        unsafe { _mm256_storeu_si256(at.cast(), value) }
    }

    #[inline(always)]
    unsafe fn planes<const PIECE: usize>(self, at: *const u8) -> [__m256i; 3] {
        let words = const { &plane_words::<LANES>(PIECE / 4) };
        // SAFETY: the caller vouches for 96 bytes; the arrays of masks and places have 32.
        unsafe {
            let parts = [self.load(at), self.load(at.add(32)), self.load(at.add(64))];
            let constant = |words: &[u32; LANES]| self.load(words.as_ptr().cast());
            let plane = |plane: usize| {
                let blended = _mm256_blendv_epi8(parts[0], parts[1], constant(&words.words[plane][1]));
                let blended = _mm256_blendv_epi8(blended, parts[2], constant(&words.words[plane][2]));
                _mm256_permutevar8x32_epi32(blended, constant(&words.places[plane]))
            };
            [plane(0), plane(1), plane(2)]
        }
    }

    #[inline(always)]
    unsafe fn dot(self, sum: &mut __m256i, part: &mut __m256i, bits: u32, apart: bool, codes: __m256i, x: *const i8) {
        // SAFETY: the caller vouches for 32 bytes; AVX2 (and AVX-VNNI where it is used) is there.
        unsafe {
            let x = _mm256_loadu_si256(x.cast());
            if VNNI {
                let sum = if apart { part } else { sum };
                *sum = _mm256_dpbusd_avx_epi32(*sum, codes, x);
            } else if bits > 4 {
                *sum = self.dot_words(*sum, codes, x);
            } else {
                // Two products of a code of at most 15 with an activation are at most 2 * 15 * 128 = 3840 in size: the sums of
                // eight registers fit 16 bits.
                *part = _mm256_add_epi16(*part, _mm256_maddubs_epi16(codes, x));
            }
        }
    }

    #[inline(always)]
    fn settle(self, sum: __m256i, part: __m256i, bits: u32, raised: bool) -> __m256i {
        // SAFETY: AVX2 is there.
        unsafe {
            let part = match (VNNI, bits) {
                (true, _) if raised => _mm256_srai_epi32::<4>(part),
                (true, _) => part,
                (false, 5..) => return sum,
                (false, _) => _mm256_madd_epi16(part, _mm256_set1_epi16(1)),
            };
            _mm256_add_epi32(sum, part)
        }
    }

    #[inline(always)]
    fn apart<J: Job>(self, job: J) -> J::Output {
        // SAFETY: a token is only made on machines that have its set.
        unsafe { if VNNI { run_vnni(job) } else { run(job) } }
    }

    #[inline(always)]
    fn abreast<A: Abreast>(self, work: A) {
        work.run::<Self, 1>(self);
    }

    #[inline(always)]
    unsafe fn dot_same(self, sum: __m256i, bits: u32, codes: __m256i, x: *const i8) -> __m256i {
        // SAFETY: the caller vouches for 4 bytes; AVX2 (and AVX-VNNI where it is used) is there.
        unsafe {
            let x = _mm256_set1_epi32(x.cast::<i32>().read_unaligned());
            if VNNI {
                _mm256_dpbusd_avx_epi32(sum, codes, x)
            } else if bits > 4 {
                self.dot_words(sum, codes, x)
            } else {
                let pairs = _mm256_maddubs_epi16(codes, x);
                _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
            }
        }
    }

    #[inline(always)]
    fn ints(self, value: i32) -> __m256i {
        // SAFETY: AVX2 is there.
        unsafe { _mm256_set1_epi32(value) }
    }

    #[inline(always)]
    fn fold(self, [a, b, c, d]: [__m256i; 4]) -> __m256i {
        // SAFETY: AVX2 is there.
        unsafe { _mm256_hadd_epi32(_mm256_hadd_epi32(a, b), _mm256_hadd_epi32(c, d)) }
    }

    #[inline(always)]
    fn sum_ints(self, a: __m256i) -> i32 {
        // SAFETY: AVX2 is there.
        unsafe {
            let four = _mm_add_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256::<1>(a));
            let two = _mm_add_epi32(four, _mm_shuffle_epi32::<0b01_00_11_10>(four));
            _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32::<0b10_11_00_01>(two)))
        }
    }

    #[inline(always)]
    fn to_floats(self, a: __m256i) -> __m256 {
        // SAFETY: AVX2 is there.
        unsafe { _mm256_cvtepi32_ps(a) }
    }

    #[inline(always)]
    fn floats(self, value: f32) -> __m256 {
        // SAFETY: AVX2 is there.
        unsafe { _mm256_set1_ps(value) }
    }

    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: AVX2 is there.
        unsafe { _mm256_add_ps(a, b) }
    }

    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: AVX2 is there.
        unsafe { _mm256_mul_ps(a, b) }
    }

    #[inline(always)]
    fn mul_add(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        // SAFETY: FMA is there.
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn sum(self, a: __m256) -> f32 {
        // SAFETY: AVX2 is there.
        unsafe {
            let four = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
    }

    #[inline(always)]
    fn sum_fourths(self, a: __m256) -> [f32; 4] {
        // SAFETY: AVX2 is there; the array has 16 bytes.
        unsafe {
            let mut sums = [0.0; 4];
            _mm_storeu_ps(sums.as_mut_ptr(), _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a)));
            sums
        }
    }

    #[inline(always)]
    unsafe fn load_floats(self, at: *const f32) -> __m256 {
        // SAFETY: the caller vouches for 8 floats; the instruction takes any address.
        unsafe { _mm256_loadu_ps(at) }
    }

    #[inline(always)]
    unsafe fn store_floats(self, value: __m256, at: *mut f32) {
        // SAFETY: the caller vouches for 8 floats; the instruction takes any address.
        unsafe { _mm256_storeu_ps(at, value) }
    }

    #[inline(always)]
    unsafe fn load_halves(self, at: *const u8) -> __m256 {
        // SAFETY: the caller vouches for 16 bytes; F16C is there.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(at.cast())) }
    }

    #[inline(always)]
    unsafe fn load_small<const BITS: u32>(self, at: *const u8) -> __m256 {
        // SAFETY: the caller vouches for 2, 4 or 8 bytes; the array has 32. AVX2 is there.
        unsafe {
            let word = match BITS {
                2 => at.cast::<u16>().read_unaligned().into(),
                4 => at.cast::<i32>().read_unaligned(),
                _ => return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(at.cast()))),
            };
            let shifts = const { &shifts::<LANES>(BITS) };
            let small = _mm256_srlv_epi32(_mm256_set1_epi32(word), self.load(shifts.as_ptr().cast()));
            _mm256_cvtepi32_ps(_mm256_and_si256(small, _mm256_set1_epi32((1 << BITS) - 1)))
        }
    }

    #[inline(always)]
    fn spreading(self, count: usize) -> __m256i {
        let places: [i32; LANES] = array::from_fn(|lane| (lane * count / LANES) as i32);
        // SAFETY: the array has 32 bytes.
        unsafe { _mm256_loadu_si256(places.as_ptr().cast()) }
    }

    #[inline(always)]
    fn spread(self, a: __m256, places: __m256i) -> __m256 {
        // SAFETY: AVX2 is there.
        unsafe { _mm256_permutevar8x32_ps(a, places) }
    }

    #[inline(always)]
    fn prefetch(self, at: *const u8) {
        // SAFETY: a prefetch of any address is harmless.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) }
    }
}

impl<const VNNI: bool> Avx2<VNNI> {
    /// The dot product for codes up to 255: as 16-bit words, so that nothing saturates.
    #[inline(always)]
    #[expect(unsafe_code, reason = "intrinsics; a token exists only where the machine has the features")]
    fn dot_words(self, sum: __m256i, codes: __m256i, x: __m256i) -> __m256i {
        // SAFETY: AVX2 is there.
        unsafe {
            let even = _mm256_and_si256(codes, _mm256_set1_epi16(0xff));
            let odd = _mm256_srli_epi16::<8>(codes);
            let x_even = _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(x));
            let x_odd = _mm256_srai_epi16::<8>(x);
            let sum = _mm256_add_epi32(sum, _mm256_madd_epi16(even, x_even));
            _mm256_add_epi32(sum, _mm256_madd_epi16(odd, x_odd))
        }
    }
}
