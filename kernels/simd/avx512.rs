//! AVX-512 with BW and VNNI, and VBMI on top of it.

use super::{Abreast, Job, Simd, plane_words, shifts};
use std::arch::x86_64::*;
use std::array;

const LANES: usize = 16;

/// Sixty-four bytes at a time; with `VBMI`, planes are sorted by byte permutations of two registers.
#[derive(Clone, Copy)]
pub(crate) struct Avx512<const VBMI: bool>(());

/// With AVX-512 VNNI (`Isa::Avx512`).
///
/// # Safety
///
/// The machine must have it.
#[expect(unsafe_code, reason = "a function with target features may be called where the machine has them")]
pub(super) unsafe fn run<J: Job>(job: J) -> J::Output {
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    #[inline(never)]
    fn compiled<J: Job>(job: J) -> J::Output {
        job.run(Avx512::<false>(()))
    }
    // SAFETY: the caller vouches for the features.
    unsafe { compiled(job) }
}

/// With AVX-512 VBMI (`Isa::Avx512Vbmi`).
///
/// # Safety
///
/// The machine must have it.
#[expect(unsafe_code, reason = "a function with target features may be called where the machine has them")]
pub(super) unsafe fn run_vbmi<J: Job>(job: J) -> J::Output {
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi")]
    #[inline(never)]
    fn compiled<J: Job>(job: J) -> J::Output {
        job.run(Avx512::<true>(()))
    }
    // SAFETY: the caller vouches for the features.
    unsafe { compiled(job) }
}

/// For each plane of pieces of `piece` bytes, the two-step permutation that collects it from three registers: from the
/// first two (bit 6 of an index chooses), then from the outcome and the third.
const fn plane_bytes(piece: usize) -> [[[u8; 64]; 2]; 3] {
    let mut steps = [[[0; 64]; 2]; 3];
    let mut byte = 0;
    while byte < 192 {
        let (turn, within) = (byte / piece, byte % piece);
        let (plane, order) = (turn % 3, turn / 3 * piece + within);
        if byte < 128 {
            steps[plane][0][order] = byte as u8;
            steps[plane][1][order] = order as u8;
        } else {
            steps[plane][1][order] = (byte - 64) as u8;
        }
        byte += 1;
    }
    steps
}

/// The first word for the lower half of the lanes, the second for the upper.
const HALVES: [u32; LANES] = [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1];

#[expect(
    unsafe_code,
    reason = "intrinsics: a token exists only where the machine has the features (`run`, `run_vbmi`); memory is accessed \
              through pointers that the trait's callers vouch for"
)]
impl<const VBMI: bool> Simd for Avx512<VBMI> {
    const WIDTH: usize = 64;
    const RAISES: bool = true;
    type Bytes = __m512i;
    type Ints = __m512i;
    type Floats = __m512;

    #[inline(always)]
    fn bytes(self, value: u8) -> __m512i {
        // SAFETY: AVX-512 F is there.
        unsafe { _mm512_set1_epi8(value.cast_signed()) }
    }

    #[inline(always)]
    fn and(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: AVX-512 F is there.
        unsafe { _mm512_and_si512(a, b) }
    }

    #[inline(always)]
    fn select(self, mask: __m512i, a: __m512i, b: __m512i) -> __m512i {
        // The truth table of `mask ? a : b`, bit (mask, a, b).
        // SAFETY: AVX-512 F is there.
        unsafe { _mm512_ternarylogic_epi32::<0b1100_1010>(mask, a, b) }
    }

    #[inline(always)]
    fn shr<const N: u32>(self, a: __m512i) -> __m512i {
        // SAFETY: AVX-512 BW is there.
        unsafe { _mm512_srli_epi16::<N>(a) }
    }

    #[inline(always)]
    fn shl<const N: u32>(self, a: __m512i) -> __m512i {
        // SAFETY: AVX-512 BW is there.
        unsafe { _mm512_slli_epi16::<N>(a) }
    }

    #[inline(always)]
    unsafe fn load(self, at: *const u8) -> __m512i {
        // SAFETY: the caller vouches for 64 bytes; the instruction takes any address.
        unsafe { _mm512_loadu_si512(at.cast()) }
    }

    #[inline(always)]
    unsafe fn store(self, value: __m512i, at: *mut u8) {
        // SAFETY: the caller vouches for 64 bytes; the instruction takes any address.
        unsafe { _mm512_storeu_si512(at.cast(), value) }
    }

    #[inline(always)]
    unsafe fn planes<const PIECE: usize>(self, at: *const u8) -> [__m512i; 3] {
        // SAFETY: the caller vouches for 192 bytes; the arrays of places have 64. AVX-512 VBMI is there where it is used.
        unsafe {
            let [a, b, c] = [self.load(at), self.load(at.add(64)), self.load(at.add(128))];
            if VBMI {
                let steps = const { &plane_bytes(PIECE) };
                let plane = |steps: &[[u8; 64]; 2]| {
                    let two = _mm512_permutex2var_epi8(a, self.load(steps[0].as_ptr()), b);
                    _mm512_permutex2var_epi8(two, self.load(steps[1].as_ptr()), c)
                };
                return [plane(&steps[0]), plane(&steps[1]), plane(&steps[2])];
            }
            let words = const { &plane_words::<LANES>(PIECE / 4) };
            let plane = |plane: usize| {
                let blended = _mm512_mask_blend_epi32(words.bits[plane][1], a, b);
                let blended = _mm512_mask_blend_epi32(words.bits[plane][2], blended, c);
                _mm512_permutexvar_epi32(self.load(words.places[plane].as_ptr().cast()), blended)
            };
            [plane(0), plane(1), plane(2)]
        }
    }

    #[inline(always)]
    unsafe fn dot(self, sum: &mut __m512i, part: &mut __m512i, _bits: u32, apart: bool, codes: __m512i, x: *const i8) {
        let sum = if apart { part } else { sum };
        // SAFETY: the caller vouches for 64 bytes; AVX-512 VNNI is there.
        *sum = unsafe { _mm512_dpbusd_epi32(*sum, codes, _mm512_loadu_si512(x.cast())) };
    }

    #[inline(always)]
    fn settle(self, sum: __m512i, part: __m512i, _bits: u32, raised: bool) -> __m512i {
        // SAFETY: AVX-512 F is there.
        unsafe {
            let part = if raised { _mm512_srai_epi32::<4>(part) } else { part };
            _mm512_add_epi32(sum, part)
        }
    }

    #[inline(always)]
    fn apart<J: Job>(self, job: J) -> J::Output {
        // SAFETY: a token is only made on machines that have its set.
        unsafe { if VBMI { run_vbmi(job) } else { run(job) } }
    }

    #[inline(always)]
    fn abreast<A: Abreast>(self, work: A) {
        work.run::<Self, 2>(self);
    }

    #[inline(always)]
    unsafe fn dot_same(self, sum: __m512i, _bits: u32, codes: __m512i, x: *const i8) -> __m512i {
        // SAFETY: the caller vouches for 4 bytes; AVX-512 VNNI is there.
        unsafe { _mm512_dpbusd_epi32(sum, codes, _mm512_set1_epi32(x.cast::<i32>().read_unaligned())) }
    }

    #[inline(always)]
    fn ints(self, value: i32) -> __m512i {
        // SAFETY: AVX-512 F is there.
        unsafe { _mm512_set1_epi32(value) }
    }

    #[inline(always)]
    fn fold(self, [a, b, c, d]: [__m512i; 4]) -> __m512i {
        // SAFETY: AVX-512 F is there.
        unsafe {
            let ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
            let cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
            _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd))
        }
    }

    #[inline(always)]
    fn sum_ints(self, a: __m512i) -> i32 {
        // SAFETY: AVX-512 F is there.
        unsafe { _mm512_reduce_add_epi32(a) }
    }

    #[inline(always)]
    fn to_floats(self, a: __m512i) -> __m512 {
        // SAFETY: AVX-512 F is there.
        unsafe { _mm512_cvtepi32_ps(a) }
    }

    #[inline(always)]
    fn floats(self, value: f32) -> __m512 {
        // SAFETY: AVX-512 F is there.
        unsafe { _mm512_set1_ps(value) }
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: AVX-512 F is there.
        unsafe { _mm512_add_ps(a, b) }
    }

    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: AVX-512 F is there.
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: AVX-512 F is there.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn sum(self, a: __m512) -> f32 {
        // SAFETY: AVX-512 DQ is there. (The library's own reduction leaves its order open.)
        unsafe {
            let eight = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps::<1>(a));
            let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
    }

    #[inline(always)]
    fn sum_fourths(self, a: __m512) -> [f32; 4] {
        // SAFETY: AVX-512 DQ is there; the array has 16 bytes.
        unsafe {
            let eight = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps::<1>(a));
            let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let mut sums = [0.0; 4];
            _mm_storeu_ps(sums.as_mut_ptr(), four);
            sums
        }
    }

    #[inline(always)]
    unsafe fn load_floats(self, at: *const f32) -> __m512 {
        // SAFETY: the caller vouches for 16 floats; the instruction takes any address.
        unsafe { _mm512_loadu_ps(at) }
    }

    #[inline(always)]
    unsafe fn store_floats(self, value: __m512, at: *mut f32) {
        // SAFETY: the caller vouches for 16 floats; the instruction takes any address.
        unsafe { _mm512_storeu_ps(at, value) }
    }

    #[inline(always)]
    unsafe fn load_halves(self, at: *const u8) -> __m512 {
        // SAFETY: the caller vouches for 32 bytes; AVX-512 F is there.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(at.cast())) }
    }

    #[inline(always)]
    unsafe fn load_small<const BITS: u32>(self, at: *const u8) -> __m512 {
        // SAFETY: the caller vouches for 4, 8 or 16 bytes; the arrays have 64. AVX-512 F is there.
        unsafe {
            let words = match BITS {
                2 => _mm512_set1_epi32(at.cast::<i32>().read_unaligned()),
                4 => _mm512_permutexvar_epi32(
                    self.load(HALVES.as_ptr().cast()),
                    _mm512_castsi128_si512(_mm_loadl_epi64(at.cast())),
                ),
                _ => return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(at.cast()))),
            };
            let shifts = const { &shifts::<LANES>(BITS) };
            let small = _mm512_srlv_epi32(words, self.load(shifts.as_ptr().cast()));
            _mm512_cvtepi32_ps(_mm512_and_si512(small, _mm512_set1_epi32((1 << BITS) - 1)))
        }
    }

    #[inline(always)]
    fn spreading(self, count: usize) -> __m512i {
        let places: [i32; LANES] = array::from_fn(|lane| (lane * count / LANES) as i32);
        // SAFETY: the array has 64 bytes.
        unsafe { _mm512_loadu_si512(places.as_ptr().cast()) }
    }

    #[inline(always)]
    fn spread(self, a: __m512, places: __m512i) -> __m512 {
        // SAFETY: AVX-512 F is there.
        unsafe { _mm512_permutexvar_ps(places, a) }
    }

    #[inline(always)]
    fn prefetch(self, at: *const u8) {
        // SAFETY: a prefetch of any address is harmless.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) }
    }
}
