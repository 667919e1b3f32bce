// 4-bit weights with activations of 16 bits. The tiles are made by `w4/cuda.rs`: four words hold 32 weights of a lane as 16
// pairs, four to a word from the lowest nibble of both halves on.
#include "small.cuh"

template <class T>
struct W4;

template <>
struct W4<F16> {
    static const int WORDS = 4;

    static DEVICE void pairs(const u32 (&words)[WORDS], u32 (&pairs)[16]) {
#pragma unroll
        for (int i = 0; i < WORDS; i++) {
            u32 high = words[i] >> 8;
            pairs[4 * i] = field<F16, 4, 0>(words[i]);
            pairs[4 * i + 1] = field<F16, 4, 4>(words[i]);
            pairs[4 * i + 2] = field<F16, 4, 0>(high);
            pairs[4 * i + 3] = field<F16, 4, 4>(high);
        }
    }
};

// Only one nibble fits into a mantissa of seven bits without a shift.
template <>
struct W4<BF16> {
    static const int WORDS = 4;

    static DEVICE void pairs(const u32 (&words)[WORDS], u32 (&pairs)[16]) {
#pragma unroll
        for (int i = 0; i < WORDS; i++) {
#pragma unroll
            for (int j = 0; j < 4; j++) pairs[4 * i + j] = field<BF16, 4, 0>(words[i] >> 4 * j);
        }
    }
};

SMALL_KERNELS(w4a16, W4)
