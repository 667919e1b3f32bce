// 2-bit weights with activations of 16 bits. The tiles are made by `w2/cuda.rs`: two words hold 32 weights of a lane as 16
// pairs, eight to a word from the lowest two bits of both halves on.
#include "small.cuh"

template <class T>
struct W2;

template <>
struct W2<F16> {
    static const int WORDS = 2;

    static DEVICE void pairs(const u32 (&words)[WORDS], u32 (&pairs)[16]) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            u32 word = words[i / 2] >> 8 * (i % 2);
            pairs[4 * i] = field<F16, 2, 0>(word);
            pairs[4 * i + 1] = field<F16, 2, 2>(word);
            pairs[4 * i + 2] = field<F16, 2, 4>(word);
            pairs[4 * i + 3] = field<F16, 2, 6>(word);
        }
    }
};

// Three fields fit into a mantissa of seven bits.
template <>
struct W2<BF16> {
    static const int WORDS = 2;

    static DEVICE void pairs(const u32 (&words)[WORDS], u32 (&pairs)[16]) {
#pragma unroll
        for (int i = 0; i < WORDS; i++) {
            u32 middle = words[i] >> 6, high = words[i] >> 12;
            pairs[8 * i] = field<BF16, 2, 0>(words[i]);
            pairs[8 * i + 1] = field<BF16, 2, 2>(words[i]);
            pairs[8 * i + 2] = field<BF16, 2, 4>(words[i]);
            pairs[8 * i + 3] = field<BF16, 2, 0>(middle);
            pairs[8 * i + 4] = field<BF16, 2, 2>(middle);
            pairs[8 * i + 5] = field<BF16, 2, 4>(middle);
            pairs[8 * i + 6] = field<BF16, 2, 0>(high);
            pairs[8 * i + 7] = field<BF16, 2, 2>(high);
        }
    }
};

SMALL_KERNELS(w2a16, W2)
