// How 3-bit weights lie in tiles, which `w3/cuda.rs` makes, and are decoded.
//
// Three words hold 32 weights of a lane as 16 pairs, the even one in the low half. A half has fields of three bits at bits 0,
// 3, 6, 10 and 13, and bit 9 to spare; the spare bits of the three words are the 16th pair.
//
//        15 14 13   12 11 10   9    8 7 6   5 4 3   2 1 0
//       [  q 4   ] [  q 3   ] [r] [ q 2  ] [ q 1 ] [ q 0 ]
#pragma once
#include "decode.cuh"

template <class T>
struct W3;

// Half precision has ten bits of mantissa, so one shift serves the upper two fields, and shifts by 9, 8 and 7 bring the spare
// bits to bits 0, 1 and 2.
template <>
struct W3<F16> {
    static const int WORDS = 3;

    template <int SHIFT>
    static DEVICE u32 five(u32 word, u32* pairs) {
        u32 high = word >> SHIFT;
        pairs[0] = field<F16, 3>(word, 0);
        pairs[1] = field<F16, 3>(word, 3);
        pairs[2] = field<F16, 3>(word, 6);
        pairs[3] = field<F16, 3>(high, 10 - SHIFT);
        pairs[4] = field<F16, 3>(high, 13 - SHIFT);
        return high & (0x00010001u << (9 - SHIFT));
    }

    static DEVICE void pairs(const u32 (&words)[WORDS], u32 (&pairs)[16]) {
        u32 rest = five<9>(words[0], pairs) | five<8>(words[1], pairs + 5) | five<7>(words[2], pairs + 10);
        pairs[15] = minus(F16(), rest | Mantissa<F16>::MAGIC, Mantissa<F16>::MAGIC);
    }
};

// bfloat16 has seven, so it takes two shifts to bring the upper three fields down.
template <>
struct W3<BF16> {
    static const int WORDS = 3;

    static DEVICE void five(u32 word, u32* pairs) {
        u32 middle = word >> 6, high = word >> 9;
        pairs[0] = field<BF16, 3>(word, 0);
        pairs[1] = field<BF16, 3>(word, 3);
        pairs[2] = field<BF16, 3>(middle, 0);
        pairs[3] = field<BF16, 3>(middle, 4);
        pairs[4] = field<BF16, 3>(high, 4);
    }

    static DEVICE void pairs(const u32 (&words)[WORDS], u32 (&pairs)[16]) {
        five(words[0], pairs);
        five(words[1], pairs + 5);
        five(words[2], pairs + 10);
        u32 rest = (words[0] >> 9 & 0x00010001u) | (words[1] >> 8 & 0x00020002u) | (words[2] >> 7 & 0x00040004u);
        pairs[15] = minus(BF16(), rest | Mantissa<BF16>::MAGIC, Mantissa<BF16>::MAGIC);
    }
};
