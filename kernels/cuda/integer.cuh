// Up to 16 token rows, or 64, with activations of 8 bits: y = s_n t_row (codes of W) (codes of x)^T, with exact sums. Blocks, units, bands
// and what follows the sums are those of `small.cuh`; sums are integers, so their order does not matter. What lies behind k has
// weights of 0, whatever the activations.
//
//   a lane (g = lane / 4, t = lane % 4) has rows g, g + 8, g + 16, g + 24 of a tile and, of every 64 along k, the sixteen from 16 t on
#pragma once
#include "dequantize.cuh"
#include "middle.cuh"
#include "repack.cuh"

// Exact sums, and the type of what they become, which nothing before depends on.
struct IntegerSums {
    typedef int Sum;
    const float *scales, *token_scales;
    int brain;
    static DEVICE float stored(Sum sum) { return as_float((u32)sum); }
    static DEVICE Sum loaded(float bits) { return (int)as_bits(bits); }
    DEVICE float value(Sum sum, int channel, int row) const { return scaled(sum, of_channel(channel), of_row(row)); }
    DEVICE float of_channel(int channel) const { return scales[channel]; }
    DEVICE float of_row(int row) const { return token_scales[row]; }
    static DEVICE float scaled(Sum sum, float of_channel, float of_row) { return (float)sum * (of_channel * of_row); }
    DEVICE float number(u16 bits) const { return brain ? to_float(BF16(), bits) : to_float(F16(), bits); }
    DEVICE u16 rounded(float value) const { return brain ? from_float(BF16(), value) : from_float(F16(), value); }
};

// The arguments of a kernel, launched as those of `small.cuh` or, for 64 token rows, of `middle.cuh`. Of `few`, x is null; its x_stride is
// that of the codes, in bytes.
struct Integer {
    Small few;
    const u8* codes;            // [rows, x_stride] signed bytes, 16-byte aligned rows
    const float* token_scales;  // [rows]
    const float* scales;        // [n]
    int brain;                  // whether bias, residual and y are bfloat16

    // For the token rows from one on.
    DEVICE IntegerSums sums(int row) const { return {scales, token_scales + row, brain}; }
};

// Where codes lie: in tiles of 32 channels x 128 along k one after another, [W x 512 bytes], in the order of lanes.
template <int W>
struct InTiles {
    static const int WORDS = W;
    // From a tile to the next along k.
    static const int STEP = 512 * W;
    // Where a lane has its part of a tile, and of that the sixteen bytes `i`.
    static DEVICE int own(int lane, int) { return 16 * lane; }
    static DEVICE const u8* part(const u8* own, int i, int) { return own + 512 * i; }
};

// Bytes, row by row, as cuBLASLt takes them too: [channels, 128 k_tiles].
struct InRows {
    static const int WORDS = 8, STEP = 128;
    static DEVICE int own(int lane, int k_tiles) { return 128 * k_tiles * (lane / 4) + 16 * (lane % 4); }
    static DEVICE const u8* part(const u8* own, int i, int k_tiles) {
        return own + ((u64)(8 * 128 * (2 * (i / 4) + i % 2)) * k_tiles + 64 * (i / 2 % 2));
    }
};

template <class Weight>
DEVICE Tile<Weight::WORDS, 1> load_codes(const u8* own, int k_tiles) {
    Tile<Weight::WORDS, 1> loaded;
#pragma unroll
    for (int i = 0; i < Weight::WORDS; i++) loaded.codes[i] = load_weights(Weight::part(own, i, k_tiles));
    return loaded;
}

// The registers of two steps: 32 weights of a lane, those of `mt` and of the half `c` of the tile.
template <class Weight, class Codes>
DEVICE void bytes_of(const Codes& codes, int mt, int c, u32 (&bytes)[8]) {
    u32 words[Weight::WORDS];
#pragma unroll
    for (int i = 0; i < Weight::WORDS; i++) {
        int word = Weight::WORDS * (2 * mt + c) + i;
        words[i] = codes[word / 4].at[word % 4];
    }
    Weight::bytes(words, bytes);
}

// Adds the products of 16 channels with `8 NT` token rows, of 64 along k.
template <int NT>
DEVICE void add_fragments(int (&out)[NT][4], const u32 (&bytes)[8], const Words (&b)[NT]) {
#pragma unroll
    for (int j = 0; j < 2; j++) {
        const u32 weights[4] = {bytes[4 * j], bytes[4 * j + 1], bytes[4 * j + 2], bytes[4 * j + 3]};
#pragma unroll
        for (int nt = 0; nt < NT; nt++) mma(out[nt], weights, b[nt].at[2 * j], b[nt].at[2 * j + 1]);
    }
}

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
            u32 bytes[8];
            bytes_of<Weight>(tile.codes, mt, c, bytes);
            add_fragments(out[mt], bytes, b);
        }
    }
}

template <class Weight, int NT>
DEVICE void integers(const Integer& a) {
    const int WORDS = Weight::WORDS, BYTES = 512 * WORDS;
    const Small& few = a.few;
    int unit = first_unit(few, block_x());
    for (;;) {
        int lane = thread() % 32, warp = thread() / 32;
        Share share = share_of(few, unit, warp);
        const u8* next = few.tiles + (u64)share.tile_row * few.k_tiles * BYTES + share.mine * Weight::STEP + Weight::own(lane, few.k_tiles);
        Tile<WORDS, 1> now;
        if (share.mine < share.end) now = load_codes<Weight>(next, few.k_tiles);
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
            if (share.mine + share.strides < share.end) then = load_codes<Weight>(next, few.k_tiles);
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
        finish_band<NT>(few, a.sums(0), out, unit, lane, warp);
        unit = next_band(few, unit);
        if (!unit) return;
        // All have read what is in shared memory.
        sync();
    }
}

// The same for up to 64 token rows, as in `middle.cuh`. More of its weights are on their way at once where these are few.
template <class Weight>
struct Integers {
    typedef int Sum;
    typedef Activations<u8> X;
    static const int STAGES = Weight::WORDS < 8 ? 3 : 2, TILE = 512 * Weight::WORDS;
    const Integer& m;

    DEVICE const Small& few() const { return m.few; }
    DEVICE const u8* x() const { return m.codes; }
    DEVICE int step() const { return Weight::STEP; }
    DEVICE const u8* tile(int tile_row, int at, int lane) const {
        int k_tiles = m.few.k_tiles;
        return m.few.tiles + ((u64)tile_row * k_tiles * TILE + at * Weight::STEP + Weight::own(lane, k_tiles));
    }

    // A lane copies what it will read.
    DEVICE void fetch(u8* stage, const u8* own, int lane) const {
#pragma unroll
        for (int i = 0; i < Weight::WORDS; i++) copy_weights_later(stage + 512 * i + 16 * lane, Weight::part(own, i, m.few.k_tiles));
    }

    DEVICE void add(int (&out)[2][8][4], const u8* tile, const u8* x, int lane) const {
#pragma unroll
        for (int c = 0; c < 2; c++) {
            Words b[8];
#pragma unroll
            for (int nt = 0; nt < 8; nt++) b[nt] = X::load(x, nt, c, lane);
#pragma unroll
            for (int mt = 0; mt < 2; mt++) {
                Words codes[Weight::WORDS];
                u32 bytes[8];
#pragma unroll
                for (int i = 0; i < Weight::WORDS; i++) codes[i] = load_shared(tile + 512 * i + 16 * lane);
                bytes_of<Weight>(codes, mt, c, bytes);
                add_fragments(out[mt], bytes, b);
            }
        }
    }

    static DEVICE int whole(int sum) { return Weight::whole(sum); }
    DEVICE IntegerSums sums(int row) const { return m.sums(row); }
};

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

// Stored codes to where kernels read them, as `repack` does: rows of them are ceil(k BITS / 8) bytes, and there are no groups.
template <class Weight>
DEVICE void repack_codes(const Repack& a) {
    let_next_start();
    wait_for_earlier();
    int lane = thread() % 32, quarter = thread() / 32, tile_row = block_y();
    int channels = a.gated ? a.n / 2 : a.n, first = 128 * block_x() + 64 * (quarter % 2) + 16 * (lane % 4);
    u32 bytes[8];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int row = 16 * (quarter / 2) + 8 * half + lane / 4, own = a.gated ? 16 * tile_row + row % 16 : 32 * tile_row + row;
        const u8* codes = a.codes + (u64)(own + (a.gated && row >= 16 ? channels : 0)) * Weight::stored_bytes(a.k);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int k = first + 4 * i, left = own < channels ? a.k - k : 0;
            u32 four = left > 0 ? Weight::four(codes, k, left) : 0;
            bytes[2 * i + half] = left > 0 && left < 4 ? four & ((1u << 8 * left) - 1) : four;
        }
    }
    Weight::store(a.tiles, bytes, tile_row, block_x(), a.k_tiles, quarter, lane);
}

// {name}_repack
#define REPACK_CODES_KERNEL(name, Weight) \
    KERNEL(name##_repack, 128, 4)(const Repack arguments) { repack_codes<Weight>(arguments); }

// {name}_codes
#define CODES_KERNEL(name, Weight) \
    KERNEL(name##_codes, 128, 4)(const Dequantize arguments) { codes<Weight>(arguments); }

// {name}_{token rows}
#define INTEGER_KERNELS(name, Weight)                                                                      \
    KERNEL(name##_8, 256, 2)(const Integer arguments) { integers<Weight, 1>(arguments); }                  \
    KERNEL(name##_16, 256, 2)(const Integer arguments) { integers<Weight, 2>(arguments); }                 \
    KERNEL(name##_64, 256, 1)(const Integer arguments) { middle(Integers<Weight>{arguments}); }
