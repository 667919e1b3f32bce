// Up to 64 token rows: y = x W^T for the tiles of `small.cuh`, dealt out as there. Each weight is decoded once for all token rows. Shared
// memory has two stages of everything, or more: while the tensor cores multiply by what is there, a tile for each warp and the activations
// for all of these, weights and activations for what comes next are copied.
//
// Zero points are taken from codes (exactly), so that no sums of x are needed; scales are applied to the sums of each group. With
// activations of 8 bits (`integer.cuh`) there are neither.
#pragma once
#include "small.cuh"

// The arguments of a kernel, launched as those of `small.cuh` with one block for a multiprocessor and `middle_shared` bytes of dynamic
// shared memory. Of `few`, rows are up to 64; `partial` is [blocks + bands, 2, 32, together, 32] and `arrived` [bands, 2]: halves of the
// token rows are finished one by one.
struct Middle {
    Small few;
    int groups;  // of a row of a tile: 1, 2 or 4
};

const int MIDDLE_ROWS = 64;

// How activations lie in shared memory: 128 along k of all token rows.
template <class Number>
struct Activations {
    static const int SIZE = sizeof(Number), ROW = 128 * SIZE, BYTES = MIDDLE_ROWS * ROW, CHUNKS = ROW / 16;

    // Sixteen bytes of a row: rows that lanes read together do not meet in a bank.
    static DEVICE int place(int row, int chunk) { return ROW * row + 16 * (chunk ^ row % 2 * 4); }

    // Those of the token row 8 nt + g that lane (g, t) multiplies by, the chunk 4 quarter + t: constants away from one of two places.
    static DEVICE Words load(const u8* stage, int nt, int quarter, int lane) {
        return load_shared(stage + place(lane / 4, 4 * (quarter % 2) + lane % 4) + (8 * ROW * nt + 128 * (quarter / 2)));
    }

    // Those from `at` on; zeros for rows that there are not, and from `k` on.
    static DEVICE void fetch(const Small& a, const Number* x, u8* stage, int at) {
#pragma unroll
        for (int i = 0; i < BYTES / 16 / 256; i++) {
            int row = thread() / CHUNKS + 256 / CHUNKS * i, chunk = thread() % CHUNKS, from = at + 16 / SIZE * chunk, left = a.k - from;
            int count = row >= a.rows || left < 0 ? 0 : left < 16 / SIZE ? left : 16 / SIZE;
            copy_later(stage + place(row, chunk), (const u16*)(x + (count ? row * a.x_stride + from : 0)), SIZE * count);
        }
    }
};

// Bytes of shared memory for what a kind of product has in its stages: of activations, as many places along k as warps are at.
template <class Kind>
DEVICE constexpr int middle_shared(int together_log) {
    return Kind::STAGES * ((WARPS >> together_log) * Kind::X::BYTES + WARPS * Kind::TILE);
}

// Adds the products of a tile with 64 token rows.
template <class T, class Weight>
DEVICE void add_middle(float (&out)[2][8][4], const u8* tile, const u8* x, int groups, int lane) {
    const int WORDS = Weight::WORDS;
    // What a group has before its scale is applied.
    float products[2][8][4];
#pragma unroll
    for (int mt = 0; mt < 2; mt++)
#pragma unroll
        for (int nt = 0; nt < 8; nt++)
#pragma unroll
            for (int i = 0; i < 4; i++) products[mt][nt][i] = 0.0f;
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
                Words b = Activations<u16>::load(x, nt, QUARTER, lane);
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

// Weights that have groups.
template <class T, class Weight>
struct Grouped {
    typedef float Sum;
    typedef Activations<u16> X;
    static const int STAGES = 2, TILE = 512 * Weight::WORDS + 4 * 128;
    const Middle& m;

    DEVICE const Small& few() const { return m.few; }
    DEVICE const u16* x() const { return m.few.x; }
    // Bytes from a tile to the next along k, and where a tile begins.
    DEVICE int step() const { return 512 * Weight::WORDS + 128 * m.groups; }
    DEVICE const u8* tile(int tile_row, int at, int) const { return m.few.tiles + ((u64)tile_row * m.few.k_tiles + at) * step(); }

    DEVICE void fetch(u8* stage, const u8* tile, int lane) const {
#pragma unroll
        for (int i = 0; i < Weight::WORDS; i++) copy_weights_later(stage + 512 * i + 16 * lane, tile + 512 * i + 16 * lane);
        int scales = 512 * Weight::WORDS + 16 * lane;
        if (lane < 8 * m.groups) copy_weights_later(stage + scales, tile + scales);
    }

    DEVICE void add(float (&out)[2][8][4], const u8* tile, const u8* x, int lane) const { add_middle<T, Weight>(out, tile, x, m.groups, lane); }
    static DEVICE float whole(float sum) { return sum; }
    // For the token rows from one on.
    DEVICE FloatSums<T> sums(int) const { return FloatSums<T>(); }
};

// What a block has of a band, to y: 32 token rows at a time.
template <class Kind>
DEVICE void finish_middle(const Kind& kind, const typename Kind::Sum (&out)[2][8][4], int unit, int lane, int warp) {
    const Small& a = kind.few();
#pragma unroll 1
    for (int half = 0; 32 * half < a.rows; half++) {
        // All have read what is in shared memory.
        sync();
        Small some = a;
        some.rows = a.rows - 32 * half < 32 ? a.rows - 32 * half : 32;
        u64 before = (u64)(32 * half) * a.y_stride;
        some.y = (u8*)a.y + before * (a.single ? 4 : 2);
        if (a.residual) some.residual = a.residual + before;
        typename Kind::Sum own[2][4][4];
#pragma unroll
        for (int mt = 0; mt < 2; mt++)
#pragma unroll
            for (int nt = 0; nt < 4; nt++)
#pragma unroll
                for (int i = 0; i < 4; i++) own[mt][nt][i] = Kind::whole(half ? out[mt][4 + nt][i] : out[mt][nt][i]);
        finish_band<4>(some, kind.sums(32 * half), own, unit, lane, warp, 2, half);
    }
}

// The activations of a stage: at `places` places along k from tile `at` on, up to `end`.
template <class Kind>
DEVICE void fetch_stage(const Kind& kind, u8* stage, int at, int places, int end) {
#pragma unroll 1
    for (int i = 0; i < places && at + i < end; i++) Kind::X::fetch(kind.few(), kind.x(), stage + Kind::X::BYTES * i, 128 * (at + i));
}

template <class Kind>
DEVICE void middle(const Kind& kind) {
    const int STAGES = Kind::STAGES, TILE = Kind::TILE, X_BYTES = Kind::X::BYTES;
    const Small& a = kind.few();
    int unit = first_unit(a, block_x());
    for (;;) {
        int lane = thread() % 32, warp = thread() / 32, at = unit % again(a.k_tiles);
        Share share = share_of(a, unit, warp);
        int places = share.strides, x_stage = X_BYTES * places;
        const u8* next = kind.tile(share.tile_row, share.mine, lane);
        u8* x = shared_memory();
        u8* tiles = x + STAGES * (x_stage + TILE * warp);
#pragma unroll
        for (int i = 0; i < STAGES - 1; i++) {
            if (share.mine + i * places < share.end) kind.fetch(tiles + TILE * i, next, lane);
            next += places * kind.step();
        }
        if (unit == first_unit(a, block_x())) {
            // Weights have set out before the kernels that compute x have ended.
            let_next_start();
            wait_for_earlier();
        }
#pragma unroll
        for (int i = 0; i < STAGES - 1; i++) {
            fetch_stage(kind, x + x_stage * i, at + i * places, places, share.end);
            close_copies();
        }
        typename Kind::Sum out[2][8][4];
#pragma unroll
        for (int mt = 0; mt < 2; mt++)
#pragma unroll
            for (int nt = 0; nt < 8; nt++)
#pragma unroll
                for (int i = 0; i < 4; i++) out[mt][nt][i] = 0;
        // A warp's own place within those of a stage.
        const u8* own = x + X_BYTES * (share.mine - at);
        int stage = 0, free = STAGES - 1;
#pragma unroll 1
        for (; at < share.end; at += places) {
            // What was copied is there for all, and all have read what the next copies replace.
            wait_for_copies<STAGES - 2>();
            sync();
            if (share.mine + (STAGES - 1) * places < share.end) kind.fetch(tiles + TILE * free, next, lane);
            fetch_stage(kind, x + x_stage * free, at + (STAGES - 1) * places, places, share.end);
            close_copies();
            next += places * kind.step();
            if (share.mine < share.end) kind.add(out, tiles + TILE * stage, own + x_stage * stage, lane);
            share.mine += places;
            free = stage;
            stage = stage + 1 < STAGES ? stage + 1 : 0;
        }
        finish_middle(kind, out, unit, lane, warp);
        unit = next_band(a, unit);
        if (!unit) return;
        // All have read what is in shared memory.
        sync();
    }
}

// {name}_{type}_64
#define MIDDLE_KERNEL(name, type, T, Weight) \
    KERNEL(name##_##type##_64, 256, 1)(const Middle arguments) { middle(Grouped<T, Weight<T>>{arguments}); }
#define MIDDLE_KERNELS(name, Weight)       \
    MIDDLE_KERNEL(name, f16, F16, Weight)  \
    MIDDLE_KERNEL(name, bf16, BF16, Weight)
