// 3-bit weights with activations of 16 bits. The tiles are made by `w3/cuda.rs`.
//
// Three words hold 32 weights of a lane as 16 pairs, the even one in the low half. A half has fields of three bits at bits 0,
// 3, 6, 10 and 13, and bit 9 to spare; the spare bits of the three words are the 16th pair.
//
//        15 14 13   12 11 10   9    8 7 6   5 4 3   2 1 0
//       [  q 4   ] [  q 3   ] [r] [ q 2  ] [ q 1 ] [ q 0 ]
//
// A field becomes a float by an AND and an OR (one LOP3): with the exponent for which its lowest bit is worth 1, the mantissa
// is the field, and the value 2^e + q. Subtracting 2^e leaves q exactly.
#include "small.cuh"

template <class T>
struct W3;

// Half precision has ten bits of mantissa: a field at bit p reads 2^(10-p) + q, so one shift serves the upper two fields, and
// shifts by 9, 8 and 7 bring the spare bits to bits 0, 1 and 2.
template <>
struct W3<F16> {
    static const u32 ONE = 0x3c003c00;

    template <int BIT>
    static DEVICE u32 field(u32 word) {
        const u32 offset = 0x64006400u - BIT * 0x04000400u;
        return minus(F16(), and_or(word, 0x00070007u << BIT, offset), offset);
    }

    template <int SHIFT>
    static DEVICE u32 five(u32 word, u32* pairs) {
        u32 high = word >> SHIFT;
        pairs[0] = field<0>(word);
        pairs[1] = field<3>(word);
        pairs[2] = field<6>(word);
        pairs[3] = field<10 - SHIFT>(high);
        pairs[4] = field<13 - SHIFT>(high);
        return high & (0x00010001u << (9 - SHIFT));
    }

    static DEVICE void pairs(const u32 (&words)[3], u32 (&pairs)[16]) {
        u32 rest = 0x64006400u | five<9>(words[0], pairs) | five<8>(words[1], pairs + 5) | five<7>(words[2], pairs + 10);
        pairs[15] = minus(F16(), rest, 0x64006400u);
    }
};

// bfloat16 has seven: a field at bit p reads 2^(7-p) + q for p up to 4, so it takes two shifts to bring the upper three fields
// down.
template <>
struct W3<BF16> {
    static const u32 ONE = 0x3f803f80;

    template <int BIT>
    static DEVICE u32 field(u32 word) {
        const u32 offset = 0x43004300u - BIT * 0x00800080u;
        return minus(BF16(), and_or(word, 0x00070007u << BIT, offset), offset);
    }

    static DEVICE void five(u32 word, u32* pairs) {
        u32 middle = word >> 6, high = word >> 9;
        pairs[0] = field<0>(word);
        pairs[1] = field<3>(word);
        pairs[2] = field<0>(middle);
        pairs[3] = field<4>(middle);
        pairs[4] = field<4>(high);
    }

    static DEVICE void pairs(const u32 (&words)[3], u32 (&pairs)[16]) {
        five(words[0], pairs);
        five(words[1], pairs + 5);
        five(words[2], pairs + 10);
        u32 rest = (words[0] >> 9 & 0x00010001u) | (words[1] >> 8 & 0x00020002u) | (words[2] >> 7 & 0x00040004u);
        pairs[15] = minus(BF16(), rest | 0x43004300u, 0x43004300u);
    }
};

// w3a16_{type}_{token rows}_g{group}: groups of 256 have their scale twice. Two blocks share a multiprocessor, but for 16 token
// rows in short groups, which want more registers.
#define W3A16(type, T, rows, group)                                                                         \
    KERNEL(w3a16_##type##_##rows##_g##group, 256, rows == 16 && group < 128 ? 1 : 2)(const Small arguments) { \
        small<T, W3<T>, rows / 8, 128 / group>(arguments);                                                  \
    }
#define W3A16_GROUPS(type, T, rows) W3A16(type, T, rows, 128) W3A16(type, T, rows, 64) W3A16(type, T, rows, 32)
W3A16_GROUPS(f16, F16, 8)
W3A16_GROUPS(f16, F16, 16)
W3A16_GROUPS(bf16, BF16, 8)
W3A16_GROUPS(bf16, BF16, 16)
