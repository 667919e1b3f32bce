// Up to 16 token rows: y = x W^T for a weight whose tiles lie in the order of tensor-core fragments.
//
// Work is counted in units: a tile of each of `together` rows of tiles (1, 2, 4 or 8, of 32 output channels each: a band), all at one
// place along k. Units follow one another along k, then from band to band, and every block has as many as another, or one more, so
// that blocks end together whatever the shape (Stream-K; Osama et al., 2023). A block goes through its units band by band. Its warps
// are dealt to the rows of tiles; those of a row take its tiles in turn and add up what they have in a fixed order. Warps at the same
// place along k want the same activations, which the first-level cache then holds: the more rows together, the fewer activations come
// from afar. Where several blocks have units of a band, the last one to arrive adds up what all have written, in the order of k. So no
// result depends on who came when. A column of x is never mixed with another: with the same `together` and number of blocks, an
// output is the same bits for any number of token rows.
//
//   tile: 32 channels x 128 along k, [WORDS x 512 bytes of codes] [32 rows, SUBS] words of scale and zero point
//   a lane (g = lane / 4, t = lane % 4) has rows g, g + 8, g + 16, g + 24 and, of every 32 along k, the eight from 8 t on
//
// Group sums of x come from the tensor cores, too: a fragment of ones gives every lane the sums of its columns.
#pragma once
#include "decode.cuh"

// The arguments of a kernel, which is launched with one row of blocks of 256 threads, no more than there are units, and
// `small_shared<NT>()` bytes of dynamic shared memory. Pointers are device memory; what may be null says so. `x` overlaps nothing
// that is written; `residual` may be `y`. `partial` and `arrived` are one stream's.
struct Small {
    const u8* tiles;      // [ceil(n / 32), k_tiles, TILE], 16-byte aligned
    const u16* x;         // [rows, x_stride], 16-byte aligned rows
    const u16* bias;      // [n], or null
    const u16* residual;  // [rows, y_stride], or null
    void* y;              // [rows, y_stride]: 16 bits, or f32 if `single`
    float* partial;       // [blocks + bands, 8 * NT, together, 32], 16-byte aligned; or null if every band is one block's
    u32* arrived;         // [bands], zero before and after; or null likewise
    int rows;             // 1 to 8 * NT
    int k;
    int n;  // output channels of the weight; for a gate, y has half as many
    int x_stride;  // rows * x_stride is below 2^31
    int y_stride;  // outputs or more
    int k_tiles;   // ceil(k / 128)
    int together_log;  // of the rows of tiles of a band: 0 to 3
    int units_each;  // ceil(n / 32 / together) * k_tiles / blocks, 1 or more
    int units_left;  // what is left of that, one more for each of the first blocks
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

// Sums of products of floats, which are what they stand for, and how numbers of 16 bits are read and written.
template <class T>
struct FloatSums {
    typedef float Sum;
    static DEVICE float stored(Sum sum) { return sum; }
    static DEVICE Sum loaded(float bits) { return bits; }
    DEVICE float value(Sum sum, int, int) const { return sum; }
    // The same with what belongs to the channel and to the token row, read before.
    static DEVICE float of_channel(int) { return 1.0f; }
    static DEVICE float of_row(int) { return 1.0f; }
    static DEVICE float scaled(Sum sum, float, float) { return sum; }
    static DEVICE float number(u16 bits) { return to_float(T(), bits); }
    static DEVICE u16 rounded(float value) { return from_float(T(), value); }
};

// What becomes of the sums of an output channel and, with a gate, of its partner, for a token row.
template <class Sums>
DEVICE float finished(const Small& a, const Sums& kind, int channel, int column, typename Sums::Sum own_sum, typename Sums::Sum up_sum) {
    float own = kind.value(own_sum, channel, column);
    if (a.bias) own += kind.number(a.bias[channel]);
    if (a.gated) {
        int outputs = a.n / 2;
        float up = kind.value(up_sum, outputs + channel, column);
        if (a.bias) up += kind.number(a.bias[outputs + channel]);
        own = own * sigmoid(own) * up;
    }
    if (a.residual) own += kind.number(a.residual[(u64)column * a.y_stride + channel]);
    return own;
}

// To `y`.
template <class Sums>
DEVICE void put(const Small& a, const Sums& kind, int channel, int column, float value) {
    u64 place = (u64)column * a.y_stride + channel;
    if (a.single) {
        ((float*)a.y)[place] = value;
    } else {
        ((u16*)a.y)[place] = kind.rounded(value);
    }
}

// What a block has for channel `row` of its 32 and token row `column`, to `y`.
template <class Sums>
DEVICE void finish(const Small& a, const Sums& kind, int tile, int row, int column, typename Sums::Sum own_sum, typename Sums::Sum up_sum) {
    int outputs = a.gated ? a.n / 2 : a.n;
    int channel = (a.gated ? 16 : 32) * tile + row;
    if (channel >= outputs || column >= a.rows) return;
    put(a, kind, channel, column, finished(a, kind, channel, column, own_sum, up_sum));
}

// Bytes of shared memory: the sums of all warps, and a word.
template <int NT>
DEVICE constexpr int small_shared() {
    return WARPS * 32 * 8 * NT * 4 + 16;
}

// Where the sum of an output lies in shared memory: neither the lanes of a fragment nor 32 rows meet in a bank.
DEVICE int shared_place(int row, int column) { return 32 * column + (row ^ 8 * (column / 2 % 4)); }

// All of this is found out again for every band: through the loop that multiplies, no register holds what follows from it.
DEVICE int first_unit(const Small& a, int block) {
    int each = again(a.units_each), left = again(a.units_left);
    return each * block + (block < left ? block : left);
}

DEVICE int block_of(const Small& a, int unit) {
    int each = again(a.units_each), left = again(a.units_left), longer = left * (each + 1);
    return unit < longer ? unit / (each + 1) : left + (unit - longer) / each;
}

// What a warp has to do of a band: `strides` warps take the tiles `mine` to `end` of a row of tiles in turn.
struct Share {
    int strides, tile_row, mine, end;
};

// From a unit to the end of its band or of what is the block's.
DEVICE Share share_of(const Small& a, int unit, int warp) {
    int log = again(a.together_log), k_tiles = again(a.k_tiles), band = unit / k_tiles;
    int tile_row = (band << log) + (warp & ((1 << log) - 1)), start = unit - band * k_tiles;
    int end = first_unit(a, block_x() + 1) - band * k_tiles;
    end = end < k_tiles ? end : k_tiles;
    // Below the last row of tiles there is nothing.
    int mine = tile_row < (again(a.n) + 31) / 32 ? start + (warp >> log) : k_tiles;
    return {WARPS >> log, tile_row, mine, end};
}

// The first unit of the next band, if the block has units of it; else 0.
DEVICE int next_band(const Small& a, int unit) {
    int k_tiles = again(a.k_tiles), next = (unit / k_tiles + 1) * k_tiles;
    return next < first_unit(a, block_x() + 1) ? next : 0;
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

// From what warps have of the band of a unit, in the order of fragments, to y. Where a band is finished in several pieces, one by one,
// this is `piece` of `pieces`, each of which has sums and a count of its own.
template <int NT, class Sums>
DEVICE void finish_band(const Small& a, const Sums& kind, const typename Sums::Sum (&out)[2][NT][4], int unit, int lane, int warp, int pieces = 1, int piece = 0) {
    typedef typename Sums::Sum Sum;
    const int ALL = 32 * 8 * NT;
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
    // Outputs in the order of y: 32 channels of each row of tiles, for one token row after another.
    int log = again(a.together_log), together = 1 << log, k_tiles = again(a.k_tiles), band = unit / k_tiles, outputs = 32 * a.rows << log;
    int first_block = block_of(a, band * k_tiles), last_block = block_of(a, (band + 1) * k_tiles - 1);
    bool shared = first_block != last_block;
    // What blocks have of bands lies in the order of units: of two that follow one another, the block or the band is the next.
    u64 of_block = pieces * together * ALL;
    float* partial = a.partial + band * of_block + piece * together * ALL;
    u32* arrived = a.arrived + band * pieces + piece;
#pragma unroll 1
    for (int o = thread(); o < outputs; o += 256) {
        int row = o % 32, r = o / 32 & (together - 1), column = o / 32 >> log;
        Sum own = 0;
#pragma unroll 1
        for (int w = r; w < WARPS; w += together) own += sums[w * ALL + shared_place(row, column)];
        // Where it is put, only this thread has read.
        sums[r * ALL + shared_place(row, column)] = own;
        if (shared) store_partial(partial + block_x() * of_block + o, Sums::stored(own));
    }
    if (shared) {
        u32* last = (u32*)(sums + WARPS * ALL);
        sync();
        if (thread() == 0) *last = arrive(arrived) == (u32)(last_block - first_block);
        sync();
        if (!*last) return;
        if (thread() == 0) *arrived = 0;
        // Four channels at a time, of as many blocks as may be on their way at once: this is time that nothing else fills.
#pragma unroll 1
        for (int o = 4 * thread(); o < outputs; o += 4 * 256) {
            Sum own[4] = {0, 0, 0, 0};
#pragma unroll 1
            for (int block = first_block; block <= last_block; block += 8) {
                Words some[8];
#pragma unroll
                for (int b = 0; b < 8; b++) {
                    some[b] = {{0, 0, 0, 0}};
                    if (block + b <= last_block) some[b] = load_partials(partial + (block + b) * of_block + o);
                }
#pragma unroll
                for (int b = 0; b < 8; b++)
#pragma unroll
                    for (int i = 0; i < 4; i++) own[i] += Sums::loaded(as_float(some[b].at[i]));
            }
            int row = o % 32, r = o / 32 & (together - 1), column = o / 32 >> log;
#pragma unroll
            for (int i = 0; i < 4; i++) sums[r * ALL + shared_place(row + i, column)] = own[i];
        }
    }
    // The other half of a pair, and what was added up, lie with another thread.
    if (a.gated || shared) sync();
#pragma unroll 1
    for (int o = thread(); o < outputs; o += 256) {
        int row = o % 32, r = o / 32 & (together - 1), column = o / 32 >> log;
        if (a.gated && row >= 16) continue;
        const Sum* own = sums + r * ALL;
        Sum up = a.gated ? own[shared_place(row + 16, column)] : 0;
        finish(a, kind, band * together + r, row, column, own[shared_place(row, column)], up);
    }
}

// How many tiles are on their way while one is multiplied: as many as registers allow.
template <class Weight, int NT, int SUBS>
struct Ahead {
    static const bool MANY = NT == 1 ? SUBS <= 2 && 4 * Weight::WORDS + SUBS <= 17 : blocks_together(NT, SUBS, Weight::WORDS) == 1;
    static const bool EARLY = NT == 1 ? SUBS <= 2 : blocks_together(NT, SUBS, Weight::WORDS) == 1;
    static const int TILES = MANY ? 2 : 1, SLOTS = TILES + 1, BYTES = 512 * Weight::WORDS + 128 * SUBS;
    typedef Tile<Weight::WORDS, SUBS> Slots[SLOTS];
};

// A warp's place in its share of a band.
template <int BYTES>
struct Walk {
    // Along k, with the lane's part of it; where whole tiles end: one that k ends in comes last.
    int at, step, whole;
    // Where the row of tiles begins, less what the lane's part of k comes to.
    const u8* row;

    DEVICE Walk(const Small& a, const Share& share, int lane)
        : at(128 * share.mine + 8 * (lane % 4)), step(128 * share.strides), whole(128 * (a.k / 128 < share.end ? a.k / 128 : share.end)),
          row(a.tiles + (u64)share.tile_row * a.k_tiles * BYTES - 8 * (lane % 4) * (BYTES / 128)) {}

    // The tile that is some steps ahead.
    DEVICE const u8* tile(int ahead) const { return row + (at + ahead * step) * (BYTES / 128); }

    // Found out again from where the row begins, so that no register holds it through the loop.
    DEVICE int band(const Small& a) const {
        u64 bytes = row + 8 * (thread() % 4) * (BYTES / 128) - a.tiles;
        return (int)((u32)(bytes / 128) / (BYTES / 128) / again(a.k_tiles)) >> a.together_log;
    }
};

// The first tiles of a band set out.
template <class Weight, int NT, int SUBS>
DEVICE void set_out(typename Ahead<Weight, NT, SUBS>::Slots& slots, const Small& a, int unit) {
    typedef Ahead<Weight, NT, SUBS> Ahead;
    int lane = thread() % 32;
    Walk<Ahead::BYTES> walk(a, share_of(a, unit, thread() / 32), lane);
#pragma unroll
    for (int i = 0; i < Ahead::TILES; i++) {
        // Without this, what was there before would be kept while the band before is finished.
        if (!Ahead::EARLY) slots[i] = Tile<Weight::WORDS, SUBS>();
        if (walk.at + i * walk.step < walk.whole) slots[i] = load_tile<Weight::WORDS, SUBS>(walk.tile(i), lane);
    }
}

// What a warp has of a band from a unit on, whose first tiles have set out.
template <class T, class Weight, int NT, int SUBS>
DEVICE void add_band(float (&out)[2][NT][4], typename Ahead<Weight, NT, SUBS>::Slots& slots, const Small& a, int& unit) {
    typedef Ahead<Weight, NT, SUBS> Ahead;
    int lane = thread() % 32, rows[NT];
    rows_of<NT>(a, lane, rows);
    Walk<Ahead::BYTES> walk(a, share_of(a, unit, thread() / 32), lane);
#pragma unroll
    for (int nt = 0; nt < NT; nt++)
#pragma unroll
        for (int i = 0; i < 4; i++) out[0][nt][i] = out[1][nt][i] = 0.0f;
    while (walk.at < walk.whole) {
#pragma unroll
        for (int i = 0; i < Ahead::SLOTS; i++) {
            if (walk.at >= walk.whole) break;
            if (walk.at + Ahead::TILES * walk.step < walk.whole)
                slots[(i + Ahead::TILES) % Ahead::SLOTS] = load_tile<Weight::WORDS, SUBS>(walk.tile(Ahead::TILES), lane);
            add_tile<T, Weight, NT, SUBS, false>(out, slots[i], a, rows, walk.at, lane);
            walk.at += walk.step;
        }
    }
    // What is known anyway is found out again, so that no register holds it through the loop.
    lane = thread() % 32;
    unit = walk.band(a) * a.k_tiles;
    Share share = share_of(a, unit, thread() / 32);
    if (walk.at / 128 < share.end)
        add_tile<T, Weight, NT, SUBS, true>(out, load_tile<Weight::WORDS, SUBS>(walk.tile(0), lane), a, rows, walk.at, lane);
}

template <class T, class Weight, int NT, int SUBS>
DEVICE void small(const Small& a) {
    typename Ahead<Weight, NT, SUBS>::Slots slots;
    int unit = first_unit(a, block_x());
    // Weights set out before the kernels that compute x have ended.
    set_out<Weight, NT, SUBS>(slots, a, unit);
    let_next_start();
    wait_for_earlier();
    for (;;) {
        float out[2][NT][4];
        add_band<T, Weight, NT, SUBS>(out, slots, a, unit);
        // Those of the next band set out before this one is finished, where registers allow that.
        int next = next_band(a, unit);
        if (Ahead<Weight, NT, SUBS>::EARLY && next) set_out<Weight, NT, SUBS>(slots, a, next);
        finish_band<NT>(a, FloatSums<T>(), out, unit, thread() % 32, thread() / 32);
        if (!next) return;
        // All have read what is in shared memory.
        sync();
        if (!Ahead<Weight, NT, SUBS>::EARLY) set_out<Weight, NT, SUBS>(slots, a, next);
        unit = next;
    }
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
