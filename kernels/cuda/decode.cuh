// Codes to floats without a conversion. A field of a word is put into the mantissa of a number whose exponent makes the field's
// lowest bit worth 1 (one LOP3): that reads 2^e + q, and subtracting 2^e leaves q, exactly. The exponent depends on where the
// field lies, so fields need not be shifted to the lowest bits. Both halves of a word at once.
#pragma once
#include "arch.cuh"

// The two types of activations, both halves: 1; 2^BITS, whose mantissa counts ones; what halves such a power when it is taken
// away; and the bits of the mantissa.
template <class T>
struct Mantissa;

template <>
struct Mantissa<F16> {
    static const u32 ONE = 0x3c003c00, MAGIC = 0x64006400, HALVED = 0x04000400;
    static const int BITS = 10;
};

template <>
struct Mantissa<BF16> {
    static const u32 ONE = 0x3f803f80, MAGIC = 0x43004300, HALVED = 0x00800080;
    static const int BITS = 7;
};

// The fields of WIDTH bits at bit `bit` (a constant, once loops are unrolled) of both halves; they must lie in the mantissa.
template <class T, int WIDTH>
DEVICE u32 field(u32 word, int bit) {
    u32 offset = Mantissa<T>::MAGIC - bit * Mantissa<T>::HALVED;
    u32 mask = ((1u << WIDTH) - 1) * 0x00010001u << bit;
    return minus(T(), and_or(word, mask, offset), offset);
}

// Weights of WIDTH bits that fill words without a gap: 32 of them in WIDTH words as 16 pairs, from the lowest bits of both halves
// on. As many fields as the mantissa holds share a shift.
template <class T, int WIDTH>
struct Fields {
    static const int WORDS = WIDTH;

    static DEVICE void pairs(const u32 (&words)[WORDS], u32 (&pairs)[16]) {
        const int TO_A_WORD = 16 / WIDTH, TO_A_SHIFT = Mantissa<T>::BITS / WIDTH;
#pragma unroll
        for (int i = 0; i < 16; i++) {
            int place = i % TO_A_WORD, together = place / TO_A_SHIFT * TO_A_SHIFT;
            pairs[i] = field<T, WIDTH>(words[i / TO_A_WORD] >> WIDTH * together, WIDTH * (place - together));
        }
    }
};
