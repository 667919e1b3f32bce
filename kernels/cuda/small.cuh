// Up to 16 token rows: y = x W^T for a weight whose tiles lie in the order of tensor-core fragments.
//
// A block takes `together` rows of tiles (1, 2, 4 or 8, of 32 output channels each) and a part of k. Its warps are dealt to the rows;
// those of a row take its tiles in turn and add up what they have in a fixed order. Warps at the same place along k want the same
// activations, which the first-level cache then holds: the more rows together, the fewer activations come from afar. Where a row
// of tiles is shared by several blocks (`splits`), the last one to arrive adds up what all have written, in the order of k. So no
// result depends on who came when. A column of x is never mixed with another: with the same `together` and `splits`, an output is
// the same bits for any number of token rows.
//
//   tile: 32 channels x 128 along k, [WORDS x 512 bytes of codes] [32 rows, SUBS] words of scale and zero point
//   a lane (g = lane / 4, t = lane % 4) has rows g, g + 8, g + 16, g + 24 and, of every 32 along k, the eight from 8 t on
//
// Group sums of x come from the tensor cores, too: a fragment of ones gives every lane the sums of its columns.
#pragma once
#include "decode.cuh"

// The arguments of a kernel, which is launched with a grid of (ceil(n / 32 / together), splits) blocks of 256 threads and
// `small_shared<NT>()` bytes of dynamic shared memory. Pointers are device memory; what may be null says so. `x` overlaps nothing
// that is written; `residual` may be `y`. `partial` and `arrived` are one stream's.
struct Small {
    const u8* tiles;      // [ceil(n / 32), k_tiles, TILE], 16-byte aligned
    const u16* x;         // [rows, x_stride], 16-byte aligned rows
    const u16* bias;      // [n], or null
    const u16* residual;  // [rows, y_stride], or null
    void* y;              // [rows, y_stride]: 16 bits, or f32 if `single`
    float* partial;       // [splits, ceil(n / 32), 32 * 8 * NT], or null if splits is 1
    u32* arrived;         // [ceil(n / 32 / together)], zero before and after, or null if splits is 1
    int rows;             // 1 to 8 * NT
    int k;
    int n;  // output channels of the weight; for a gate, y has half as many
    int x_stride;  // rows * x_stride is below 2^31
    int y_stride;  // outputs or more
    int k_tiles;   // ceil(k / 128)
    int together_log;  // of the rows of tiles of a block: 0 to 3
    int splits;
    int tiles_each;  // k_tiles / splits
    int tiles_left;  // k_tiles % splits
    int gated;   // tiles hold 16 channels of the gate above 16 of the other half: y = silu(gate) * up
    int single;
};

const int WARPS = 8;

// Blocks that share a multiprocessor and its registers.
DEVICE constexpr int blocks_together(int nt, int subs, int words) { return nt == 2 && (subs > 1 || words != 3) ? 1 : 2; }

// What a lane has of a tile: WORDS words for each quarter of its weights.
template <int WORDS, int SUBS>
struct Tile {
    Words codes[WORDS];
    u32 scales[SUBS];  // of row `lane`, for each group of the tile
};

template <int WORDS, int SUBS>
DEVICE Tile<WORDS, SUBS> load_tile(const u8* tile, int lane) {
    Tile<WORDS, SUBS> loaded;
#pragma unroll
    for (int i = 0; i < WORDS; i++) loaded.codes[i] = load_weights(tile + 512 * i + 16 * lane);
    load_words(tile + 512 * WORDS + 4 * SUBS * lane, loaded.scales);
    return loaded;
}

// Codes alone.
template <int WORDS>
DEVICE Tile<WORDS, 1> load_codes(const u8* tile, int lane) {
    Tile<WORDS, 1> loaded;
#pragma unroll
    for (int i = 0; i < WORDS; i++) loaded.codes[i] = load_weights(tile + 512 * i + 16 * lane);
    return loaded;
}

// Eight of a row of x from `at` on; zeros from `k` on, if the row may end there.
template <bool ENDS>
DEVICE Words load_x(const u16* x_of_all, int row, int at, int k) {
    int left = k - at;
    Words x = {{0, 0, 0, 0}};
    if (ENDS && left <= 0) return x;
    x = load_activations(x_of_all + (row + at));
    if (ENDS && left < 8) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int halves = left - 2 * i;
            x.at[i] = halves >= 2 ? x.at[i] : halves == 1 ? x.at[i] & 0xffffu : 0u;
        }
    }
    return x;
}

// Adds `scale * (products - zero point * sums)` of one group to what the 16 channels from `row` on have.
template <int NT>
DEVICE void add_group(float (&out)[NT][4], const float (&products)[NT][4], const float (&sums)[NT][4], u32 scales, int row) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        // A single float whose four lowest bits are the zero point; 2^23 + z, less 2^23, is z.
        u32 both = of_lane(scales, row + 8 * half);
        float scale = as_float(both & ~15u);
        float zero = as_float((both & 15u) | 0x4b000000u) - 8388608.0f;
#pragma unroll
        for (int nt = 0; nt < NT; nt++) {
#pragma unroll
            for (int column = 0; column < 2; column++) {
                float centred = fused(-zero, sums[nt][column], products[nt][2 * half + column]);
                out[nt][2 * half + column] = fused(scale, centred, out[nt][2 * half + column]);
            }
        }
    }
}

// The products of a tile with `8 NT` token rows. `Weight::pairs` decodes 32 weights of a lane into 16 registers.
template <class T, class Weight, int NT, int SUBS, bool ENDS>
DEVICE void add_tile(float (&out)[2][NT][4], const Tile<Weight::WORDS, SUBS>& tile, const Small& a, const int (&rows)[NT], int at, int lane) {
    const int WORDS = Weight::WORDS;
    const u32 one = Mantissa<T>::ONE, ones[4] = {one, one, one, one};
    // Half of a tile, 64 along k, holds whole groups or half of one.
    const int GROUPS = SUBS < 2 ? 1 : SUBS / 2, STEPS = 4 / GROUPS;
    float products[2][NT][4], sums[GROUPS][NT][4];
#pragma unroll
    for (int kh = 0; kh < 2; kh++) {
        bool starts = SUBS > 1 || kh == 0, stops = SUBS > 1 || kh == 1;
        Words b[2][NT];
#pragma unroll
        for (int u = 0; u < 2; u++)
#pragma unroll
            for (int nt = 0; nt < NT; nt++) b[u][nt] = load_x<ENDS>(a.x, rows[nt], at + 64 * kh + 32 * u, a.k);
#pragma unroll
        for (int s = 0; s < 4; s++)
#pragma unroll
            for (int nt = 0; nt < NT; nt++) {
                if (starts && s % STEPS == 0)
#pragma unroll
                    for (int i = 0; i < 4; i++) sums[s / STEPS][nt][i] = 0.0f;
                mma(T(), sums[s / STEPS][nt], ones, b[s / 2][nt].at[2 * (s % 2)], b[s / 2][nt].at[2 * (s % 2) + 1]);
            }
#pragma unroll
        for (int mt = 0; mt < 2; mt++) {
            const int FIRST = WORDS * (2 * mt + kh);
            u32 words[WORDS], pairs[16];
#pragma unroll
            for (int i = 0; i < WORDS; i++) words[i] = tile.codes[(FIRST + i) / 4].at[(FIRST + i) % 4];
            Weight::pairs(words, pairs);
#pragma unroll
            for (int s = 0; s < 4; s++) {
                const u32 weights[4] = {pairs[4 * s], pairs[4 * s + 1], pairs[4 * s + 2], pairs[4 * s + 3]};
#pragma unroll
                for (int nt = 0; nt < NT; nt++) {
                    if (starts && s % STEPS == 0)
#pragma unroll
                        for (int i = 0; i < 4; i++) products[mt][nt][i] = 0.0f;
                    mma(T(), products[mt][nt], weights, b[s / 2][nt].at[2 * (s % 2)], b[s / 2][nt].at[2 * (s % 2) + 1]);
                }
                if (stops && s % STEPS == STEPS - 1) {
                    const int GROUP = SUBS == 1 ? 0 : GROUPS * kh + s / STEPS;
                    add_group<NT>(out[mt], products[mt], sums[s / STEPS], tile.scales[GROUP], 16 * mt + lane / 4);
                }
            }
        }
    }
}

// Sums of products of floats: what they stand for is what they are.
struct FloatSums {
    typedef float Sum;
    static DEVICE float stored(Sum sum) { return sum; }
    static DEVICE Sum loaded(float bits) { return bits; }
    DEVICE float value(Sum sum, int, int) const { return sum; }
};

// What a block has for channel `row` of its 32 and token row `column`, to `y`.
template <class T, class Sums>
DEVICE void finish(const Small& a, const Sums& kind, int tile, int row, int column, typename Sums::Sum own_sum, typename Sums::Sum up_sum) {
    int outputs = a.gated ? a.n / 2 : a.n;
    int channel = (a.gated ? 16 : 32) * tile + row;
    if (channel >= outputs || column >= a.rows) return;
    float own = kind.value(own_sum, channel, column);
    if (a.bias) own += to_float(T(), a.bias[channel]);
    if (a.gated) {
        float up = kind.value(up_sum, outputs + channel, column);
        if (a.bias) up += to_float(T(), a.bias[outputs + channel]);
        own = own * sigmoid(own) * up;
    }
    u64 place = (u64)column * a.y_stride + channel;
    if (a.residual) own += to_float(T(), a.residual[place]);
    if (a.single) {
        ((float*)a.y)[place] = own;
    } else {
        ((u16*)a.y)[place] = from_float(T(), own);
    }
}

// Bytes of shared memory: the sums of all warps, and a word.
template <int NT>
DEVICE constexpr int small_shared() {
    return WARPS * 32 * 8 * NT * 4 + 16;
}

// Where the sum of an output lies in shared memory: neither the lanes of a fragment nor 32 rows meet in a bank.
DEVICE int shared_place(int row, int column) { return 32 * column + (row ^ 8 * (column / 2 % 4)); }

// What a warp has to do: `strides` warps take the tiles `mine` to `end` of a row of tiles in turn.
struct Share {
    int strides, tile_row, mine, end;
};

DEVICE Share share_of(const Small& a, int warp) {
    int together = 1 << a.together_log, split = block_y();
    int tile_row = block_x() * together + (warp & (together - 1));
    int start = a.tiles_each * split + (split < a.tiles_left ? split : a.tiles_left);
    int end = start + a.tiles_each + (split < a.tiles_left ? 1 : 0);
    // Below the last row of tiles there is nothing.
    int mine = tile_row < (a.n + 31) / 32 ? start + (warp >> a.together_log) : a.k_tiles;
    return {WARPS >> a.together_log, tile_row, mine, end};
}

// Where the rows of x begin that a lane loads. Columns beyond the last token row compute it again.
template <int NT>
DEVICE void rows_of(const Small& a, int lane, int (&rows)[NT]) {
#pragma unroll
    for (int nt = 0; nt < NT; nt++) {
        int row = 8 * nt + lane / 4;
        rows[nt] = (row < a.rows ? row : a.rows - 1) * a.x_stride;
    }
}

// From what warps have, in the order of fragments, to y.
template <class T, int NT, class Sums>
DEVICE void finish_block(const Small& a, const Sums& kind, const typename Sums::Sum (&out)[2][NT][4], int lane, int warp) {
    typedef typename Sums::Sum Sum;
    const int COLUMNS = 8 * NT, ALL = 32 * COLUMNS;
    int together = 1 << a.together_log, row_tiles = (a.n + 31) / 32, split = block_y();
    Sum* sums = (Sum*)shared_memory();
#pragma unroll
    for (int mt = 0; mt < 2; mt++)
#pragma unroll
        for (int nt = 0; nt < NT; nt++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int row = 16 * mt + 8 * (i / 2) + lane / 4, column = 8 * nt + 2 * (lane % 4) + i % 2;
                sums[warp * ALL + shared_place(row, column)] = out[mt][nt][i];
            }
    sync();
    // A thread has NT outputs of each row of tiles; those of a warp are of one column.
    int first = block_x() * together;
#pragma unroll 1
    for (int r = 0; r < together && first + r < row_tiles; r++) {
#pragma unroll
        for (int i = 0; i < NT; i++) {
            int row = thread() % 32, column = thread() / 32 + 8 * i;
            if (column >= a.rows) continue;
            Sum own = 0;
            for (int w = r; w < WARPS; w += together) own += sums[w * ALL + shared_place(row, column)];
            // Where it is put, only this thread has read.
            sums[r * ALL + shared_place(row, column)] = own;
            if (a.splits > 1) store_partial(a.partial + ((u64)split * row_tiles + first + r) * ALL + thread() + 256 * i, Sums::stored(own));
        }
    }
    if (a.splits > 1) {
        u32* last = (u32*)(sums + WARPS * ALL);
        sync();
        if (thread() == 0) *last = arrive(a.arrived + block_x()) == (u32)a.splits - 1;
        sync();
        if (!*last) return;
        if (thread() == 0) a.arrived[block_x()] = 0;
#pragma unroll 1
        for (int r = 0; r < together && first + r < row_tiles; r++) {
#pragma unroll
            for (int i = 0; i < NT; i++) {
                int row = thread() % 32, column = thread() / 32 + 8 * i;
                if (column >= a.rows) continue;
                Sum own = 0;
#pragma unroll 4
                for (int s = 0; s < a.splits; s++)
                    own += Sums::loaded(load_partial(a.partial + ((u64)s * row_tiles + first + r) * ALL + thread() + 256 * i));
                sums[r * ALL + shared_place(row, column)] = own;
            }
        }
    }
    // The other half of a pair lies with another thread.
    if (a.gated) sync();
#pragma unroll 1
    for (int r = 0; r < together && first + r < row_tiles; r++) {
#pragma unroll
        for (int i = 0; i < NT; i++) {
            int row = thread() % 32, column = thread() / 32 + 8 * i;
            if (column >= a.rows || (a.gated && row >= 16)) continue;
            const Sum* own = sums + r * ALL;
            Sum up = a.gated ? own[shared_place(row + 16, column)] : 0;
            finish<T>(a, kind, first + r, row, column, own[shared_place(row, column)], up);
        }
    }
}

template <class T, class Weight, int NT, int SUBS>
DEVICE void small(const Small& a) {
    // Tiles that are on their way while one is multiplied, as many as registers allow.
    const bool MANY = NT == 1 ? SUBS <= 2 && 4 * Weight::WORDS + SUBS <= 17 : blocks_together(NT, SUBS, Weight::WORDS) == 1;
    const int AHEAD = MANY ? 2 : 1, SLOTS = AHEAD + 1;
    const int WORDS = Weight::WORDS, BYTES = 512 * WORDS + 128 * SUBS;
    int lane = thread() % 32, warp = thread() / 32;
    Share share = share_of(a, warp);
    // Where whole tiles end; one that k ends in comes last.
    int whole = 128 * (a.k / 128 < share.end ? a.k / 128 : share.end), step = 128 * share.strides;
    int at = 128 * share.mine + 8 * (lane % 4);
    const u8* next = a.tiles + ((u64)share.tile_row * a.k_tiles + share.mine) * BYTES;

    // Weights set out before the kernels that compute x have ended.
    Tile<WORDS, SUBS> slots[SLOTS];
#pragma unroll
    for (int i = 0; i < AHEAD; i++) {
        if (at + i * step < whole) slots[i] = load_tile<WORDS, SUBS>(next, lane);
        next += share.strides * BYTES;
    }
    let_next_start();
    wait_for_earlier();

    int rows[NT];
    rows_of<NT>(a, lane, rows);
    float out[2][NT][4];
#pragma unroll
    for (int nt = 0; nt < NT; nt++)
#pragma unroll
        for (int i = 0; i < 4; i++) out[0][nt][i] = out[1][nt][i] = 0.0f;

    while (at < whole) {
#pragma unroll
        for (int i = 0; i < SLOTS; i++) {
            if (at >= whole) break;
            if (at + AHEAD * step < whole) slots[(i + AHEAD) % SLOTS] = load_tile<WORDS, SUBS>(next, lane);
            next += share.strides * BYTES;
            add_tile<T, Weight, NT, SUBS, false>(out, slots[i], a, rows, at, lane);
            at += step;
        }
    }
    // What is known anyway is found out again, so that no register holds it through the loop.
    lane = thread() % 32, warp = thread() / 32;
    share = share_of(a, warp);
    if (at / 128 < share.end) {
        const u8* last = a.tiles + ((u64)share.tile_row * a.k_tiles + at / 128) * BYTES;
        add_tile<T, Weight, NT, SUBS, true>(out, load_tile<WORDS, SUBS>(last, lane), a, rows, at, lane);
    }

    finish_block<T, NT>(a, FloatSums(), out, lane, warp);
}

// {name}_{type}_{token rows}_g{group}: groups of 256 have their scale twice.
#define SMALL_KERNEL(name, type, T, Weight, rows, group)                                                        \
    KERNEL(name##_##type##_##rows##_g##group, 256, blocks_together(rows / 8, 128 / group, Weight<T>::WORDS))    \
    (const Small arguments) {                                                                                   \
        small<T, Weight<T>, rows / 8, 128 / group>(arguments);                                                  \
    }
#define SMALL_GROUPS(name, type, T, Weight, rows) \
    SMALL_KERNEL(name, type, T, Weight, rows, 128) \
    SMALL_KERNEL(name, type, T, Weight, rows, 64)  \
    SMALL_KERNEL(name, type, T, Weight, rows, 32)
#define SMALL_KERNELS(name, Weight)             \
    SMALL_GROUPS(name, f16, F16, Weight, 8)     \
    SMALL_GROUPS(name, f16, F16, Weight, 16)    \
    SMALL_GROUPS(name, bf16, BF16, Weight, 8)   \
    SMALL_GROUPS(name, bf16, BF16, Weight, 16)
