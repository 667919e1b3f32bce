// 17 to 64 token rows: y = x W^T for the tiles of `small.cuh`, dealt out as there, in bands of 8 rows of tiles, one for each warp. Each
// weight is decoded once for all token rows. Shared memory has two stages of everything: while the tensor cores multiply by what is
// there for one place along k, weights and activations for the next are copied.
//
// Zero points are taken from codes (exactly), so that no sums of x are needed; scales are applied to the sums of each group.
#pragma once
#include "small.cuh"

// The arguments of a kernel, launched as those of `small.cuh` with one block for a multiprocessor and `middle_shared` bytes of dynamic
// shared memory. Of `few`, together_log is 3, rows are up to 64; `partial` is [blocks + bands, 2, 32, 8, 32] and `arrived` [bands, 2]:
// halves of the token rows are finished one by one.
struct Middle {
    Small few;
    int groups;  // of a row of a tile: 1, 2 or 4
};

// Bytes of a stage: of activations, and of a warp's weights.
const int MIDDLE_ROWS = 64, X_STAGE = MIDDLE_ROWS * 256;

template <class Weight>
DEVICE constexpr int tile_stage() {
    return 512 * Weight::WORDS + 4 * 128;
}

template <class Weight>
DEVICE constexpr int middle_shared() {
    return 2 * (X_STAGE + WARPS * tile_stage<Weight>());
}

// Where eight of a row of x lie in shared memory, `chunk` of 16: rows that lanes read together do not meet in a bank.
DEVICE int chunk_place(int row, int chunk) { return 256 * row + 16 * (chunk ^ row % 2 * 4); }

// 128 along k of all token rows from `at` on; zeros for rows that there are not, and from `k` on.
DEVICE void fetch_x(const Small& a, u8* stage, int at) {
#pragma unroll
    for (int i = 0; i < X_STAGE / 16 / 256; i++) {
        int row = thread() / 16 + 16 * i, chunk = thread() % 16, from = at + 8 * chunk, left = a.k - from;
        int count = row >= a.rows || left < 0 ? 0 : left < 8 ? left : 8;
        copy_later(stage + chunk_place(row, chunk), a.x + (count ? row * a.x_stride + from : 0), 2 * count);
    }
}

template <int WORDS>
DEVICE void fetch_tile(u8* stage, const u8* tile, int groups, int lane) {
#pragma unroll
    for (int i = 0; i < WORDS; i++) copy_weights_later(stage + 512 * i + 16 * lane, tile + 512 * i + 16 * lane);
    if (lane < 8 * groups) copy_weights_later(stage + 512 * WORDS + 16 * lane, tile + 512 * WORDS + 16 * lane);
}

// Adds the products of a tile with 64 token rows. What a group has before its scale is applied is in `products`.
template <class T, class Weight>
DEVICE void add_middle(float (&out)[2][8][4], float (&products)[2][8][4], const u8* tile, const u8* x, int groups, int lane) {
    const int WORDS = Weight::WORDS;
#pragma unroll
    for (int kh = 0; kh < 2; kh++)
#pragma unroll
        for (int u = 0; u < 2; u++) {
            const int QUARTER = 2 * kh + u;
            const u8* scales = tile + 512 * WORDS + 4 * (QUARTER * groups / 4);
            u32 weights[2][8];
            float scale[2][2];
#pragma unroll
            for (int mt = 0; mt < 2; mt++) {
                const int FIRST = WORDS * (2 * mt + kh);
                Words codes[2] = {load_shared(tile + 512 * (FIRST / 4) + 16 * lane), load_shared(tile + 512 * ((FIRST + WORDS - 1) / 4) + 16 * lane)};
                u32 words[WORDS], pairs[16];
#pragma unroll
                for (int i = 0; i < WORDS; i++) words[i] = codes[(FIRST + i) / 4 - FIRST / 4].at[(FIRST + i) % 4];
                // Half of them are wanted now: registers are dearer than what is decoded twice.
                Weight::pairs(words, pairs);
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    // As in `add_group`; the zero point is put into both halves of a word.
                    u32 both = load_shared_word(scales + 4 * groups * (16 * mt + 8 * half + lane / 4));
                    scale[mt][half] = as_float(both & ~15u);
                    u32 zero = minus(T(), (both & 15u) * 0x00010001u | Mantissa<T>::MAGIC, Mantissa<T>::MAGIC);
#pragma unroll
                    for (int i = 0; i < 4; i++) weights[mt][2 * i + half] = minus(T(), pairs[8 * u + 2 * i + half], zero);
                }
            }
#pragma unroll
            for (int nt = 0; nt < 8; nt++) {
                Words b = load_shared(x + chunk_place(8 * nt + lane / 4, 4 * QUARTER + lane % 4));
#pragma unroll
                for (int s = 0; s < 2; s++)
#pragma unroll
                    for (int mt = 0; mt < 2; mt++) {
                        const u32 four[4] = {weights[mt][4 * s], weights[mt][4 * s + 1], weights[mt][4 * s + 2], weights[mt][4 * s + 3]};
                        mma(T(), products[mt][nt], four, b.at[2 * s], b.at[2 * s + 1]);
                    }
            }
            if ((QUARTER + 1) * groups % 4 != 0) continue;
#pragma unroll
            for (int mt = 0; mt < 2; mt++)
#pragma unroll
                for (int nt = 0; nt < 8; nt++)
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        out[mt][nt][i] = fused(scale[mt][i / 2], products[mt][nt][i], out[mt][nt][i]);
                        products[mt][nt][i] = 0.0f;
                    }
        }
}

// What a block has of a band, to y: 32 token rows at a time.
template <class T>
DEVICE void finish_middle(const Small& a, const float (&out)[2][8][4], int unit, int lane, int warp) {
#pragma unroll 1
    for (int half = 0; 32 * half < a.rows; half++) {
        // All have read what is in shared memory.
        sync();
        Small some = a;
        some.rows = a.rows - 32 * half < 32 ? a.rows - 32 * half : 32;
        u64 before = (u64)(32 * half) * a.y_stride;
        some.y = (u8*)a.y + before * (a.single ? 4 : 2);
        if (a.residual) some.residual = a.residual + before;
        float own[2][4][4];
#pragma unroll
        for (int mt = 0; mt < 2; mt++)
#pragma unroll
            for (int nt = 0; nt < 4; nt++)
#pragma unroll
                for (int i = 0; i < 4; i++) own[mt][nt][i] = half ? out[mt][4 + nt][i] : out[mt][nt][i];
        finish_band<T, 4>(some, FloatSums(), own, unit, lane, warp, 2, half);
    }
}

template <class T, class Weight>
DEVICE void middle(const Middle& m) {
    const int WORDS = Weight::WORDS, STAGE = tile_stage<Weight>();
    const Small& a = m.few;
    int unit = first_unit(a, block_x());
    for (;;) {
        int lane = thread() % 32, warp = thread() / 32, bytes = 512 * WORDS + 128 * m.groups, start = unit % again(a.k_tiles);
        Share share = share_of(a, unit, warp);
        // Below the last row of tiles a warp has nothing to do, but to copy activations.
        bool has = share.mine == start;
        const u8* next = a.tiles + ((u64)share.tile_row * a.k_tiles + start) * bytes;
        u8* x = shared_memory();
        u8* tiles = x + 2 * X_STAGE + 2 * STAGE * warp;
        if (has) fetch_tile<WORDS>(tiles, next, m.groups, lane);
        if (unit == first_unit(a, block_x())) {
            // Weights have set out before the kernels that compute x have ended.
            let_next_start();
            wait_for_earlier();
        }
        fetch_x(a, x, 128 * start);
        close_copies();
        float out[2][8][4], products[2][8][4];
#pragma unroll
        for (int mt = 0; mt < 2; mt++)
#pragma unroll
            for (int nt = 0; nt < 8; nt++)
#pragma unroll
                for (int i = 0; i < 4; i++) out[mt][nt][i] = products[mt][nt][i] = 0.0f;
#pragma unroll 1
        for (int at = start; at < share.end; at++) {
            // What was copied is there for all, and all have read what the next copies replace.
            wait_for_copies();
            sync();
            int stage = (at - start) % 2;
            next += bytes;
            if (at + 1 < share.end) {
                if (has) fetch_tile<WORDS>(tiles + STAGE * (1 - stage), next, m.groups, lane);
                fetch_x(a, x + X_STAGE * (1 - stage), 128 * (at + 1));
                close_copies();
            }
            if (has) add_middle<T, Weight>(out, products, tiles + STAGE * stage, x + X_STAGE * stage, m.groups, lane);
        }
        finish_middle<T>(a, out, unit, lane, warp);
        unit = next_band(a, unit);
        if (!unit) return;
        // All have read what is in shared memory.
        sync();
    }
}

// {name}_{type}_64
#define MIDDLE_KERNELS(name, Weight)                                                                       \
    KERNEL(name##_f16_64, 256, 1)(const Middle arguments) { middle<F16, Weight<F16>>(arguments); }         \
    KERNEL(name##_bf16_64, 256, 1)(const Middle arguments) { middle<BF16, Weight<BF16>>(arguments); }
