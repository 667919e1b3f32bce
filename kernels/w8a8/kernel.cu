// 8-bit weights and activations: signed bytes, row by row. Four words of one row and the four of the row 8 below it are the registers
// of two steps.
#include "integer.cuh"

struct W8Bytes : InRows {
    static DEVICE void bytes(const u32 (&words)[WORDS], u32 (&bytes)[8]) {
#pragma unroll
        for (int i = 0; i < 8; i++) bytes[i] = words[4 * (i % 2) + i / 2];
    }

    static DEVICE int whole(int sum) { return sum; }
};

INTEGER_KERNELS(w8a8, W8Bytes)
