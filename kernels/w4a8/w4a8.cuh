// 4-bit weights, activations of 8 bits: four words hold 32 weights of a lane, signed nibbles, two registers to a word. A nibble in the
// upper half of a byte is sixteen times the weight, a signed byte: so are all sums, and no bit of them is lost. The tiles are those
// of `TileCodes::nibbles`.
#pragma once
#include "integer.cuh"

struct W4Bytes : InTiles<4> {
    static DEVICE void bytes(const u32 (&words)[WORDS], u32 (&bytes)[8]) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            bytes[2 * i] = words[i] & 0xf0f0f0f0u;
            bytes[2 * i + 1] = words[i] << 4 & 0xf0f0f0f0u;
        }
    }

    // Exact: nothing is shifted out.
    static DEVICE int whole(int sum) { return sum >> 4; }

    // As stored (`w4a8/mod.rs`): nibbles, the weight plus 8.
    static DEVICE int stored_bytes(int k) { return (k + 1) / 2; }
    // Of those from k on, an even number, of which so many are left: the first four, as bytes.
    static DEVICE u32 four(const u8* codes, int k, int left) {
        u32 low = codes[k / 2], high = left > 2 ? codes[k / 2 + 1] : 0;
        return ((low & 15) << 4 | (low & 0xf0) << 8 | (high & 15) << 20 | (high & 0xf0) << 24) ^ 0x80808080u;
    }

    // The inverse of `bytes`, for a lane and a quarter of a tile.
    static DEVICE void store(u8* tiles, const u32 (&bytes)[8], int tile_row, int k_tile, int k_tiles, int quarter, int lane) {
        Words words;
#pragma unroll
        for (int i = 0; i < 4; i++) words.at[i] = bytes[2 * i] | bytes[2 * i + 1] >> 4;
        *(Words*)(tiles + (((u64)tile_row * k_tiles + k_tile) * STEP + 512 * quarter + own(lane, k_tiles))) = words;
    }
};
