// 3-bit weights with activations of 16 bits.
#include "dequantize.cuh"
#include "middle.cuh"
#include "repack.cuh"
#include "w3.cuh"

SMALL_KERNELS(w3a16, W3)
MIDDLE_KERNELS(w3a16, W3)

// As stored (`w3/mod.rs`): two thirds of low bits, one of high bits. Zero points are nibbles.
struct Thirds {
    static const int WORDS = 3, WIDTH = 3, ZERO_BITS = 4;

    // Of a group of 2^log.
    static DEVICE u32 code(const u8* block, int log, int at) {
        int third = 1 << (log - 3), quarter = at >> (log - 2), byte = at / 2 & (third - 1), b = at % 2;
        u32 low = block[quarter / 2 * third + byte] >> (2 * (quarter % 2) + 4 * b) & 3;
        u32 high = block[2 * third + byte] >> (quarter + 4 * b) & 1;
        return low | high << 2;
    }

    static DEVICE void put(u32 (&words)[WORDS], int pair, int half, u32 code) {
        if (pair < 15) {
            int field = pair % 5;
            words[pair / 5] |= code << (3 * field + field / 3 + 16 * half);
        } else {
#pragma unroll
            for (int i = 0; i < 3; i++) words[i] |= (code >> i & 1) << (9 + 16 * half);
        }
    }
};

REPACK_KERNEL(w3, Thirds)
DEQUANTIZE_KERNELS(w3, W3)
