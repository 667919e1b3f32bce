// Tiles back to rows of 16-bit numbers, for products with many token rows: s (q - z), exact but for one rounding. A thread takes
// what a lane has of a quarter of a tile: for two channels, twice eight along k.
#pragma once
#include "decode.cuh"

// The arguments of a kernel, which is launched with a grid of (k_tiles, rows of tiles) blocks of 128 threads. Pointers are device
// memory.
struct Dequantize {
    const u8* tiles;  // as for products
    u16* w;           // [channels, stride]: those of the rows of tiles from `first` on, in their order; 16-byte aligned rows
    int first;        // row of tiles
    int n;            // output channels of the weight
    int k;
    int k_tiles;
    int subs;    // groups of a tile: 1, 2 or 4
    int stride;  // k or more, a multiple of 8; numbers behind k that share eight with it become 0
    int gated;   // a tile's 16 channels of the gate, then its 16 of the other half
};

// Eight weights of a row: of the pairs of a quarter of a tile, those of the 32 along k that `u` says and of the upper or lower rows. `both`
// is their scale and zero point.
template <class T>
DEVICE Words eight_of(const u32 (&pairs)[16], int u, int half, u32 both) {
    // Scales have 20 bits and zero points 4, so that their product is exact.
    float scale = as_float(both & ~15u), offset = -scale * (float)(both & 15u);
    Words eight;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        u32 pair = pairs[4 * (2 * u + i / 2) + 2 * (i % 2) + half];
        u32 low = from_float(T(), fused(scale, to_float(T(), (u16)pair), offset));
        u32 high = from_float(T(), fused(scale, to_float(T(), (u16)(pair >> 16)), offset));
        eight.at[i] = low | high << 16;
    }
    return eight;
}

template <class T, class Weight>
DEVICE void dequantize(const Dequantize& a) {
    wait_for_earlier();
    let_next_start();
    const int WORDS = Weight::WORDS;
    int lane = thread() % 32, quarter = thread() / 32;
    int tile_row = a.first + block_y();
    const u8* tile = a.tiles + ((u64)tile_row * a.k_tiles + block_x()) * (512 * WORDS + 128 * a.subs);
    u32 words[WORDS], pairs[16];
#pragma unroll
    for (int i = 0; i < WORDS; i++) {
        int word = WORDS * quarter + i;
        words[i] = *(const u32*)(tile + 512 * (word / 4) + 16 * lane + 4 * (word % 4));
    }
    Weight::pairs(words, pairs);
    int channels = a.gated ? a.n / 2 : a.n, mt = quarter / 2, kh = quarter % 2;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int row = 16 * mt + 8 * half + lane / 4;
        // Among the channels of its half, if there are two.
        int own = a.gated ? 16 * tile_row + row % 16 : 32 * tile_row + row;
        if (own >= channels) continue;
        u16* to = a.w + ((u64)32 * block_y() + row) * a.stride;
#pragma unroll
        for (int u = 0; u < 2; u++) {
            int k = 128 * block_x() + 64 * kh + 32 * u + 8 * (lane % 4);
            if (k >= a.k) continue;
            u32 both = *(const u32*)(tile + 512 * WORDS + 4 * (a.subs * row + k % 128 * a.subs / 128));
            Words eight = eight_of<T>(pairs, u, half, both);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int left = a.k - k - 2 * i;
                if (left < 2) eight.at[i] = left < 1 ? 0 : eight.at[i] & 0xffffu;
            }
            *(Words*)(to + k) = eight;
        }
    }
}

#define DEQUANTIZE_KERNELS(name, Weight)                                                                            \
    KERNEL(name##_dequantize_f16, 128, 4)(const Dequantize arguments) { dequantize<F16, Weight<F16>>(arguments); }  \
    KERNEL(name##_dequantize_bf16, 128, 4)(const Dequantize arguments) { dequantize<BF16, Weight<BF16>>(arguments); }
