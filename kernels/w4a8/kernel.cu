// 4-bit weights, activations of 8 bits: four words hold 32 weights of a lane, signed nibbles, two registers to a word. A nibble in the
// upper half of a byte is sixteen times the weight, a signed byte: so are all sums, and no bit of them is lost. The tiles are made
// by `TileCodes::nibbles`.
#include "integer.cuh"

struct W4Bytes : InTiles<4> {
    static DEVICE void bytes(const u32 (&words)[WORDS], u32 (&bytes)[8]) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            bytes[2 * i] = words[i] & 0xf0f0f0f0u;
            bytes[2 * i + 1] = words[i] << 4 & 0xf0f0f0f0u;
        }
    }

    static DEVICE int whole(int sum) { return sum / 16; }
};

INTEGER_KERNELS(w4a8, W4Bytes)
CODES_KERNEL(w4a8, W4Bytes)
