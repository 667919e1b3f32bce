// 8-bit weights and activations: signed bytes, row by row. Four words of one row and the four of the row 8 below it are the registers
// of two steps.
#pragma once
#include "integer.cuh"

struct W8Bytes : InRows {
    static DEVICE void bytes(const u32 (&words)[WORDS], u32 (&bytes)[8]) {
#pragma unroll
        for (int i = 0; i < 8; i++) bytes[i] = words[4 * (i % 2) + i / 2];
    }

    static DEVICE int whole(int sum) { return sum; }

    // As stored (`w8a8/mod.rs`): bytes, the weight plus 128.
    static DEVICE int stored_bytes(int k) { return k; }
    // Of those from k on, of which so many are left: the first four.
    static DEVICE u32 four(const u8* codes, int k, int left) {
        u32 bytes = 0;
#pragma unroll
        for (int i = 0; i < 4; i++)
            if (i < left) bytes |= (u32)codes[k + i] << 8 * i;
        return bytes ^ 0x80808080u;
    }

    // Of two rows.
    static DEVICE void store(u8* tiles, const u32 (&bytes)[8], int tile_row, int k_tile, int k_tiles, int quarter, int lane) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            u8* row = tiles + ((u64)(32 * tile_row + 16 * (quarter / 2) + 8 * half) * (128 * k_tiles) + 128 * k_tile + 64 * (quarter % 2));
            *(Words*)(row + own(lane, k_tiles)) = {{bytes[half], bytes[2 + half], bytes[4 + half], bytes[6 + half]}};
        }
    }
};
