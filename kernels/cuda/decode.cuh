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

// The fields of WIDTH bits at bit BIT of both halves.
template <class T, int WIDTH, int BIT>
DEVICE u32 field(u32 word) {
    static_assert(BIT + WIDTH <= Mantissa<T>::BITS, "the field lies in the mantissa");
    const u32 offset = Mantissa<T>::MAGIC - BIT * Mantissa<T>::HALVED;
    const u32 mask = ((1u << WIDTH) - 1) * 0x00010001u << BIT;
    return minus(T(), and_or(word, mask, offset), offset);
}
