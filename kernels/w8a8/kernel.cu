// 8-bit weights and activations: eight words hold 32 weights of a lane, signed bytes in the order of the registers. The tiles are
// made by `TileCodes::bytes`.
#include "integer.cuh"

struct W8Bytes {
    static const int WORDS = 8;

    static DEVICE void bytes(const u32 (&words)[WORDS], u32 (&bytes)[8]) {
#pragma unroll
        for (int i = 0; i < 8; i++) bytes[i] = words[i];
    }

    static DEVICE int whole(int sum) { return sum; }
};

INTEGER_KERNELS(w8a8, W8Bytes)
CODES_KERNEL(w8a8, W8Bytes)
