// Up to 16 token rows with activations of 8 bits: y = s_n t_row (codes of W) (codes of x)^T, with exact sums. Blocks, units, bands
// and what follows the sums are those of `small.cuh`; sums are integers, so their order does not matter. What lies behind k has
// weights of 0, whatever the activations.
//
//   a lane (g = lane / 4, t = lane % 4) has rows g, g + 8, g + 16, g + 24 of a tile and, of every 64 along k, the sixteen from 16 t on
#pragma once
#include "dequantize.cuh"
#include "small.cuh"

// The arguments of a kernel, launched as those of `small.cuh`. Of `few`, x is null; its x_stride is that of the codes, in bytes.
struct Integer {
    Small few;
    const u8* codes;            // [rows, x_stride] signed bytes, 16-byte aligned rows
    const float* token_scales;  // [rows]
    const float* scales;        // [n]
};

struct IntegerSums {
    typedef int Sum;
    const Integer& a;
    static DEVICE float stored(Sum sum) { return as_float((u32)sum); }
    static DEVICE Sum loaded(float bits) { return (int)as_bits(bits); }
    DEVICE float value(Sum sum, int channel, int row) const { return (float)sum * (a.scales[channel] * a.token_scales[row]); }
};

// Where codes lie: in tiles of 32 channels x 128 along k one after another, [W x 512 bytes], in the order of lanes.
template <int W>
struct InTiles {
    static const int WORDS = W;
    // From a tile to the next along k.
    static const int STEP = 512 * W;
    // Where a lane has its part of a tile.
    static DEVICE int own(int lane, int) { return 16 * lane; }
    static DEVICE Tile<W, 1> load(const u8* own, int) {
        Tile<W, 1> loaded;
#pragma unroll
        for (int i = 0; i < W; i++) loaded.codes[i] = load_weights(own + 512 * i);
        return loaded;
    }
};

// Bytes, row by row, as cuBLASLt takes them too: [channels, 128 k_tiles].
struct InRows {
    static const int WORDS = 8, STEP = 128;
    static DEVICE int own(int lane, int k_tiles) { return 128 * k_tiles * (lane / 4) + 16 * (lane % 4); }
    static DEVICE Tile<8, 1> load(const u8* own, int k_tiles) {
        Tile<8, 1> loaded;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const u8* row = own + (u64)(8 * 128 * i) * k_tiles;
#pragma unroll
            for (int kh = 0; kh < 2; kh++) loaded.codes[4 * (i / 2) + 2 * kh + i % 2] = load_weights(row + 64 * kh);
        }
        return loaded;
    }
};

template <class Weight, int NT>
DEVICE void add_integers(int (&out)[2][NT][4], const Tile<Weight::WORDS, 1>& tile, const u8* x, const int (&rows)[NT], int at, int k) {
#pragma unroll
    for (int c = 0; c < 2; c++) {
        Words b[NT];
#pragma unroll
        for (int nt = 0; nt < NT; nt++) {
            b[nt] = {{0, 0, 0, 0}};
            if (at + 64 * c < k) b[nt] = load_activations((const u16*)(x + (rows[nt] + at + 64 * c)));
        }
#pragma unroll
        for (int mt = 0; mt < 2; mt++) {
            const int FIRST = Weight::WORDS * (2 * mt + c);
            u32 words[Weight::WORDS], bytes[8];
#pragma unroll
            for (int i = 0; i < Weight::WORDS; i++) words[i] = tile.codes[(FIRST + i) / 4].at[(FIRST + i) % 4];
            Weight::bytes(words, bytes);
#pragma unroll
            for (int j = 0; j < 2; j++) {
                const u32 weights[4] = {bytes[4 * j], bytes[4 * j + 1], bytes[4 * j + 2], bytes[4 * j + 3]};
#pragma unroll
                for (int nt = 0; nt < NT; nt++) mma(out[mt][nt], weights, b[nt].at[2 * j], b[nt].at[2 * j + 1]);
            }
        }
    }
}

template <class T, class Weight, int NT>
DEVICE void integers(const Integer& a) {
    const int WORDS = Weight::WORDS, BYTES = 512 * WORDS;
    const Small& few = a.few;
    int unit = first_unit(few, block_x());
    for (;;) {
        int lane = thread() % 32, warp = thread() / 32;
        Share share = share_of(few, unit, warp);
        const u8* next = few.tiles + (u64)share.tile_row * few.k_tiles * BYTES + share.mine * Weight::STEP + Weight::own(lane, few.k_tiles);
        Tile<WORDS, 1> now;
        if (share.mine < share.end) now = Weight::load(next, few.k_tiles);
        if (unit == first_unit(few, block_x())) {
            // Weights have set out before the kernels that compute x have ended.
            let_next_start();
            wait_for_earlier();
        }
        int rows[NT], out[2][NT][4];
        rows_of<NT>(few, lane, rows);
#pragma unroll
        for (int nt = 0; nt < NT; nt++)
#pragma unroll
            for (int i = 0; i < 4; i++) out[0][nt][i] = out[1][nt][i] = 0;
        while (share.mine < share.end) {
            Tile<WORDS, 1> then;
            next += share.strides * Weight::STEP;
            if (share.mine + share.strides < share.end) then = Weight::load(next, few.k_tiles);
            add_integers<Weight, NT>(out, now, a.codes, rows, 128 * share.mine + 16 * (lane % 4), few.k);
            now = then;
            share.mine += share.strides;
        }
#pragma unroll
        for (int nt = 0; nt < NT; nt++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                out[0][nt][i] = Weight::whole(out[0][nt][i]);
                out[1][nt][i] = Weight::whole(out[1][nt][i]);
            }
        // What is known anyway is found out again, so that no register holds it through the loop.
        lane = thread() % 32, warp = thread() / 32;
        // Rows of tiles are as many bytes in either order; behind the last tile of rows, `next` is still within the 32 rows.
        u32 tiles = (u32)((u64)(next - few.tiles) / BYTES) - (Weight::STEP == BYTES ? share.mine : 0), tile_row = tiles / again(few.k_tiles);
        unit = (int)(tile_row >> few.together_log) * few.k_tiles;
        finish_band<T, NT>(few, IntegerSums{a}, out, unit, lane, warp);
        unit = next_band(few, unit);
        if (!unit) return;
        // All have read what is in shared memory.
        sync();
    }
}

// Codes in tiles back to rows of signed bytes (`Weight::whole` makes the sums of what they are), for products with many token rows; zeros behind
// k, up to sixteen. Launched as `dequantize`; w is of bytes, its stride a multiple of 16.
template <class Weight>
DEVICE void codes(const Dequantize& a) {
    wait_for_earlier();
    let_next_start();
    const int WORDS = Weight::WORDS;
    int lane = thread() % 32, quarter = thread() / 32, tile_row = a.first + block_y();
    const u8* tile = a.tiles + ((u64)tile_row * a.k_tiles + block_x()) * (512 * WORDS);
    u32 words[WORDS], bytes[8];
#pragma unroll
    for (int i = 0; i < WORDS; i++) {
        int word = WORDS * quarter + i;
        words[i] = *(const u32*)(tile + 512 * (word / 4) + 16 * lane + 4 * (word % 4));
    }
    Weight::bytes(words, bytes);
    int channels = a.gated ? a.n / 2 : a.n, k = 128 * block_x() + 64 * (quarter % 2) + 16 * (lane % 4);
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int row = 16 * (quarter / 2) + 8 * half + lane / 4;
        int own = a.gated ? 16 * tile_row + row % 16 : 32 * tile_row + row;
        if (own >= channels || k >= a.k) continue;
        u8* to = (u8*)a.w + ((u64)32 * block_y() + row) * a.stride + k;
        *(Words*)to = {{bytes[half], bytes[2 + half], bytes[4 + half], bytes[6 + half]}};
    }
}

// {name}_codes
#define CODES_KERNEL(name, Weight) \
    KERNEL(name##_codes, 128, 4)(const Dequantize arguments) { codes<Weight>(arguments); }

// {name}_{type}_{token rows}
#define INTEGER_KERNEL(name, type, T, Weight, rows) \
    KERNEL(name##_##type##_##rows, 256, 2)(const Integer arguments) { integers<T, Weight, rows / 8>(arguments); }
#define INTEGER_KERNELS(name, Weight)           \
    INTEGER_KERNEL(name, f16, F16, Weight, 8)   \
    INTEGER_KERNEL(name, f16, F16, Weight, 16)  \
    INTEGER_KERNEL(name, bf16, BF16, Weight, 8) \
    INTEGER_KERNEL(name, bf16, BF16, Weight, 16)
