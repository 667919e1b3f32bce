// Many token rows, on sm_90a: y = x W^T for the tiles of `small.cuh`. A block makes 128 output channels of 256 token rows; two blocks, a
// cluster, have other channels of the same token rows, of which each fetches half for both, so that the second-level cache is
// asked for them once.
//
// What is multiplied lies in shared memory in rows of 128 bytes: of 64 numbers along k or of 128 bytes. Activations come by copies of
// boxes, two steps ahead of their use. Of the weights, a lane loads codes to registers, decodes them while the tensor cores are at work on
// the step before, and writes what they stand for: `s (q - z)`, rounded once, as `dequantize` does; or bytes. A warp has 16
// channels to decode, and the sums of 16 times 256 outputs.
//
//   a step: [decode weights] [wait for the products before the last] [barrier] [let the tensor cores begin] [fetch activations]
#pragma once
#include "dequantize.cuh"
#include "hopper.cuh"
#include "integer.cuh"

const int WIDE_ROWS = 256, WIDE_TILES = 4, WIDE_CHANNELS = 32 * WIDE_TILES;
// Activations have so many places in shared memory, weights so many; activations set out so many steps ahead. Those of the step that is
// multiplied and of the one before must stay: what is left over is how far a block may be behind the other of its cluster.
const int WIDE_STAGES = 5, WIDE_SLOTS = 3, WIDE_AHEAD = 2;
// So many tiles before they are loaded, weights are brought to the second-level cache.
const int WIDE_TILES_AHEAD = 4;
// Bytes of a place.
const int WIDE_X = 128 * WIDE_ROWS, WIDE_WEIGHTS = 128 * WIDE_CHANNELS;

// Bytes of dynamic shared memory, which is used from a multiple of 1024 on: that of an architecture's own order of chunks.
DEVICE constexpr int wide_shared() { return 1024 + WIDE_STAGES * WIDE_X + WIDE_SLOTS * WIDE_WEIGHTS + 8 * (WIDE_STAGES + 1); }

// The arguments of a kernel, launched with a grid of (ceil(rows / 256), an even number of 128 channels) blocks of 256 threads. Of `few`,
// `partial` to `arrived` and how units are dealt out are not used.
struct Wide {
    Map x;  // [rows, k] of 16-bit numbers, in boxes of 128 rows of 64
    Small few;
    int groups;  // of a row of a tile: 1, 2 or 4
};
struct WideIntegers {
    Map x;  // [rows, k] of bytes, in boxes of 128 rows of 128
    Integer of;
};

// Where a chunk of 16 bytes lies among rows of 128: those of eight rows in other banks.
DEVICE int wide_place(int row, int chunk) { return 128 * row + 16 * (chunk ^ row % 8); }

// Rows of 128 bytes as tensor cores are told of them: their address, 1024 bytes from eight rows to the next, chunks as in
// `wide_place` ("128-byte swizzle", 1; the field between says nothing then). All in units of 16 bytes.
DEVICE u64 described(const u8* at) { return (u64)(shared_address(at) >> 4 & 0x3fff) | 1ull << 16 | (u64)(1024 >> 4) << 32 | 1ull << 62; }

// What a lane has of 16 rows of a tile: WORDS words for each of two quarters.
template <class Weight>
struct WideCodes {
    static const int WORDS = Weight::WORDS, LOADS = (WORDS + 1) / 2;
    Words codes[LOADS];

    // Three words begin in the middle of sixteen bytes for the lower rows.
    static DEVICE int first(int mt) { return WORDS * mt / 2; }
    DEVICE void words_of(int quarter, int mt, u32 (&words)[WORDS]) const {
#pragma unroll
        for (int i = 0; i < WORDS; i++) {
            u32 upper = word(i), lower = word(WORDS + i);
            if (WORDS % 2 && mt) upper = word(i + 2), lower = word(WORDS + i + 2);
            words[i] = quarter ? lower : upper;
        }
    }
    DEVICE u32 word(int at) const { return codes[at / 4].at[at % 4]; }
};

// A lane's chunks of a row, the one of each half of it. Lanes that store together have two rows, whose chunks of the same half meet in the
// banks: one row begins with its other half.
DEVICE void store_chunks(u8* rows, const Words (&chunks)[2], int half, int lane) {
    int row = 8 * half + lane / 4;
    bool odd = row % 2;
    Words first, second;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        first.at[i] = odd ? chunks[1].at[i] : chunks[0].at[i];
        second.at[i] = odd ? chunks[0].at[i] : chunks[1].at[i];
    }
    store_shared(rows + wide_place(row, 4 * odd + lane % 4), first);
    store_shared(rows + wide_place(row, 4 * !odd + lane % 4), second);
}

// Weights that have groups.
template <class T, class Weight>
struct WideNumbers {
    typedef float Sum;
    static const int SIZE = 2;
    const Wide& w;

    struct Own : WideCodes<Weight> {
        u32 scales[2][4];  // of rows g and g + 8, for every 32 along k

        // Asks for what the second part takes, so that it need not be waited for when later loads are on their way: whoever waits for some
        // waits for all. `nothing` is 0, which no compiler knows.
        DEVICE void ask(u32 nothing) {
#pragma unroll
            for (int i = 0; i < WideCodes<Weight>::LOADS; i++)
#pragma unroll
                for (int j = 0; j < 4; j++) this->codes[i].at[j] ^= nothing;
#pragma unroll
            for (int half = 0; half < 2; half++)
#pragma unroll
                for (int i = 2; i < 4; i++) scales[half][i] ^= nothing;
        }
    };

    DEVICE const Small& few() const { return w.few; }
    DEVICE const Map& x() const { return w.x; }

    DEVICE Own load(int tile_row, int k_tile, int mt, int lane) const {
        const int WORDS = Weight::WORDS;
        Own own;
        const u8* tile = w.few.tiles + ((u64)tile_row * w.few.k_tiles + k_tile) * (512 * WORDS + 128 * w.groups);
#pragma unroll
        for (int i = 0; i < Own::LOADS; i++) own.codes[i] = load_weights(tile + 512 * (Own::first(mt) + i) + 16 * lane);
#pragma unroll
        for (int half = 0; half < 2; half++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                u32 word[1];
                load_words(tile + 512 * WORDS + 4 * (w.groups * (16 * mt + 8 * half + lane / 4) + i * w.groups / 4), word);
                own.scales[half][i] = word[0];
            }
        return own;
    }

    DEVICE void prefetch(int tile_row, int k_tile, int mt, int lane) const {
        const int WORDS = Weight::WORDS, LINES = 4 * Own::LOADS;
        const u8* tile = w.few.tiles + ((u64)tile_row * w.few.k_tiles + k_tile) * (512 * WORDS + 128 * w.groups);
        int line = lane < LINES ? 4 * Own::first(mt) + lane : 4 * WORDS + lane - LINES;
        if (lane < LINES + w.groups) prefetch_weights(tile + 128 * line);
    }

    // The rows of a warp, 64 along k.
    DEVICE void decode(u8* rows, const Own& own, int part, int mt, int lane) const {
        u32 words[Weight::WORDS], pairs[16];
        own.words_of(part, mt, words);
        Weight::pairs(words, pairs);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            Words chunks[2];
#pragma unroll
            for (int u = 0; u < 2; u++) chunks[u] = eight_of<T>(pairs, u, half, own.scales[half][2 * part + u]);
            store_chunks(rows, chunks, half, lane);
        }
    }

    static DEVICE void multiply(Sum (&out)[128], u64 a, u64 b) { wide_product(T(), out, a, b); }
    static DEVICE Sum whole(Sum sum) { return sum; }
    // For the token rows from one on.
    DEVICE FloatSums<T> sums(int) const { return FloatSums<T>(); }
};

// Weights whose scales belong to output channels.
template <class Weight>
struct WideBytes {
    typedef int Sum;
    static const int SIZE = 1;
    const WideIntegers& w;

    struct Own : WideCodes<Weight> {
        static DEVICE void ask(u32) {}
    };

    DEVICE const Small& few() const { return w.of.few; }
    DEVICE const Map& x() const { return w.x; }

    DEVICE Own load(int tile_row, int k_tile, int mt, int lane) const {
        int k_tiles = w.of.few.k_tiles;
        Own own;
        const u8* tile = w.of.few.tiles + ((u64)tile_row * k_tiles * (512 * Weight::WORDS) + k_tile * Weight::STEP + Weight::own(lane, k_tiles));
#pragma unroll
        for (int i = 0; i < Own::LOADS; i++) own.codes[i] = load_weights(Weight::part(tile, Own::first(mt) + i, k_tiles));
        return own;
    }

    // Of each half of the rows, a line of each of eight rows, or 64 bytes of each of eight groups of lanes.
    DEVICE void prefetch(int tile_row, int k_tile, int mt, int lane) const {
        int k_tiles = w.of.few.k_tiles, from = lane % 8 * 4;
        const u8* tile = w.of.few.tiles + ((u64)tile_row * k_tiles * (512 * Weight::WORDS) + k_tile * Weight::STEP + Weight::own(from, k_tiles));
        // In rows, the other half of a row is in the same line.
        if (lane < 16) prefetch_weights(Weight::part(tile, Own::first(mt) + lane / 8, k_tiles));
    }

    // The rows of a warp, 128 along k.
    DEVICE void decode(u8* rows, const Own& own, int, int mt, int lane) const {
        Words chunks[2][2];
#pragma unroll
        for (int c = 0; c < 2; c++) {
            u32 words[Weight::WORDS], bytes[8];
            own.words_of(c, mt, words);
            Weight::bytes(words, bytes);
#pragma unroll
            for (int half = 0; half < 2; half++) chunks[half][c] = {{bytes[half], bytes[2 + half], bytes[4 + half], bytes[6 + half]}};
        }
        store_chunks(rows, chunks[0], 0, lane);
        store_chunks(rows, chunks[1], 1, lane);
    }

    static DEVICE void multiply(Sum (&out)[128], u64 a, u64 b) { wide_product(u8(), out, a, b); }
    static DEVICE Sum whole(Sum sum) { return Weight::whole(sum); }
    DEVICE IntegerSums sums(int row) const { return w.of.sums(row); }
};

// Shared memory.
struct WideMemory {
    u8* start;

    DEVICE WideMemory() {
        u8* memory = shared_memory();
        start = memory + (-shared_address(memory) & 1023);
    }
    DEVICE u8* x(int stage) const { return start + WIDE_X * stage; }
    DEVICE u8* weights(int slot) const { return start + (WIDE_STAGES * WIDE_X + WIDE_WEIGHTS * slot); }
    // Of a stage: its activations are there. Behind those, one at which both blocks arrive with every step.
    DEVICE u8* barrier(int stage) const { return start + (WIDE_STAGES * WIDE_X + WIDE_SLOTS * WIDE_WEIGHTS + 8 * stage); }
    DEVICE u8* arrived() const { return barrier(WIDE_STAGES); }
};

// The activations of a step, half of which this block fetches for both.
template <class Kind>
DEVICE void fetch_wide(const Kind& kind, const WideMemory& memory, int step) {
    int stage = step % WIDE_STAGES, half = cluster_rank();
    u8* barrier = memory.barrier(stage);
    expect_bytes(barrier, WIDE_X);
    copy_box(memory.x(stage) + WIDE_X / 2 * half, kind.x(), 128 / Kind::SIZE * step, WIDE_ROWS * block_x() + WIDE_ROWS / 2 * half, barrier);
}

// Where the sum of an output lies in shared memory, as in `shared_place`; rows of tiles that follow one another do not meet in a bank, either,
// half of whose channels are read together where there is a gate.
DEVICE int wide_sum_place(int row, int column) { return WIDE_CHANNELS * column + (row ^ 8 * (column / 2 % 4) ^ 16 * (row / 32 % 2)); }

// Two sums of channels that follow one another.
struct alignas(8) TwoSums {
    u32 at[2];
};

// What a block has, to y, where two outputs of 16 bits are written at once: a thread has two channels, of every fourth token row or, with
// partners, of every eighth.
template <bool GATED, class Sums>
DEVICE void put_pairs(const Small& a, const Sums& kind, const typename Sums::Sum* sums) {
    typedef typename Sums::Sum Sum;
    const int PAIRS = (GATED ? 16 : 32) * WIDE_TILES / 2, ROWS = 256 / PAIRS, AT_ONCE = 4, PARTNERS = GATED ? 2 : 1;
    int pair = thread() % PAIRS, outputs = a.n / PARTNERS;
    int row = GATED ? 32 * (pair / 8) + 2 * (pair % 8) : 2 * pair;
    int channel = (GATED ? 16 : 32) * (WIDE_TILES * block_y() + row / 32) + row % 32;
    if (channel >= outputs) return;
    float scales[PARTNERS][2], biases[PARTNERS][2];
#pragma unroll
    for (int partner = 0; partner < PARTNERS; partner++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
            int own = partner * outputs + channel + i;
            scales[partner][i] = kind.of_channel(own);
            // Whatever is added to that stays the same.
            biases[partner][i] = a.bias ? kind.number(a.bias[own]) : -0.0f;
        }
    int first = thread() / PAIRS, end = a.rows < WIDE_ROWS ? a.rows : WIDE_ROWS;
    // From one of its token rows to the next, sums lie in the same order again after two.
    const Sum* from[2][PARTNERS];
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
        for (int partner = 0; partner < PARTNERS; partner++) from[i][partner] = sums + wide_sum_place(row + 16 * partner, first + ROWS * i) - WIDE_CHANNELS * ROWS * i;
    u64 stride = (u64)ROWS * a.y_stride, at = (u64)first * a.y_stride + channel;
#pragma unroll 1
    for (int column = first; column < end; column += ROWS * AT_ONCE) {
        // What is read comes before what is written, so that much is on its way at once.
        u32 others[AT_ONCE];
        float of_rows[AT_ONCE];
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            others[i] = 0;
            of_rows[i] = 0.0f;
            if (column + ROWS * i >= end) continue;
            of_rows[i] = kind.of_row(column + ROWS * i);
            if (a.residual) others[i] = *(const u32*)(a.residual + (at + i * stride));
        }
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            float values[PARTNERS][2];
#pragma unroll
            for (int partner = 0; partner < PARTNERS; partner++) {
                TwoSums two = *(const TwoSums*)(from[i % 2][partner] + WIDE_CHANNELS * ROWS * i);
#pragma unroll
                for (int j = 0; j < 2; j++)
                    values[partner][j] = kind.scaled(Sums::loaded(as_float(two.at[j])), scales[partner][j], of_rows[i]) + biases[partner][j];
            }
            u32 both = 0;
#pragma unroll
            for (int j = 0; j < 2; j++) {
                float value = values[0][j];
                if (GATED) value = value * sigmoid(value) * values[PARTNERS - 1][j];
                if (a.residual) value += kind.number((u16)(others[i] >> 16 * j));
                both |= (u32)kind.rounded(value) << 16 * j;
            }
            if (column + ROWS * i < end) *(u32*)((u16*)a.y + (at + i * stride)) = both;
        }
        at += AT_ONCE * stride;
#pragma unroll
        for (int i = 0; i < 2 * PARTNERS; i++) from[i / PARTNERS][i % PARTNERS] += WIDE_CHANNELS * ROWS * AT_ONCE;
    }
}

template <class Sums>
DEVICE void put_all_pairs(const Small& a, const Sums& kind, const typename Sums::Sum* sums) {
    if (a.gated) {
        put_pairs<true>(a, kind, sums);
    } else {
        put_pairs<false>(a, kind, sums);
    }
}

// Which element it is, no loop has to ask.
DEVICE void put_all_pairs(const Small& a, const IntegerSums& kind, const int* sums) {
    IntegerSums own = kind;
    if (kind.brain) {
        own.brain = 1;
        put_all_pairs<IntegerSums>(a, own, sums);
    } else {
        own.brain = 0;
        put_all_pairs<IntegerSums>(a, own, sums);
    }
}

// The same, an output at a time.
template <class Sums>
DEVICE void put_each(const Small& a, const Sums& kind, const typename Sums::Sum* sums) {
    int end = a.rows < WIDE_ROWS ? a.rows : WIDE_ROWS;
#pragma unroll 1
    for (int o = thread(); o < WIDE_CHANNELS * end; o += 256) {
        int row = o % WIDE_CHANNELS, column = o / WIDE_CHANNELS;
        if (a.gated && row % 32 >= 16) continue;
        typename Sums::Sum up = a.gated ? sums[wide_sum_place(row + 16, column)] : 0;
        finish(a, kind, WIDE_TILES * block_y() + row / 32, row % 32, column, sums[wide_sum_place(row, column)], up);
    }
}

// What a block has, to y.
template <class Kind>
DEVICE void finish_wide(const Kind& kind, const WideMemory& memory, const typename Kind::Sum (&out)[128], int lane, int warp) {
    typedef typename Kind::Sum Sum;
    Sum* sums = (Sum*)memory.start;
    // All have multiplied what is in shared memory.
    sync();
    // Eight columns further on, and in the next of two, a row is found as far from the beginning of its column.
    Sum* own[2];
#pragma unroll
    for (int half = 0; half < 2; half++) own[half] = sums + wide_sum_place(16 * warp + 8 * half + lane / 4, 2 * (lane % 4));
#pragma unroll
    for (int i = 0; i < 128; i++) own[i / 2 % 2][WIDE_CHANNELS * (8 * (i / 4) + i % 2)] = Kind::whole(out[i]);
    sync();
    Small some = kind.few();
    int first = WIDE_ROWS * block_x(), outputs = some.gated ? some.n / 2 : some.n;
    u64 before = (u64)first * some.y_stride;
    some.rows -= first;
    some.y = (u8*)some.y + before * (some.single ? 4 : 2);
    if (some.residual) some.residual += before;
    // Pairs of outputs lie in a word each.
    bool pairs = !some.single && outputs % 2 == 0 && (((u64)some.y | (u64)some.residual) & 3) == 0 && some.y_stride % 2 == 0;
    if (!pairs) return put_each(some, kind.sums(first), sums);
    put_all_pairs(some, kind.sums(first), sums);
}

// Where a block is on its way along k.
struct WideStep {
    int step, stage, phase, slot;
    DEVICE void next() {
        step++;
        slot = slot + 1 < WIDE_SLOTS ? slot + 1 : 0;
        stage++;
        if (stage == WIDE_STAGES) stage = 0, phase ^= 1;
    }
};

// What a thread knows of its part all the way.
template <class Kind>
struct WideThread {
    typedef typename Kind::Own Own;
    typedef typename Kind::Sum Sum;
    const Kind& kind;
    WideMemory memory;
    int lane, mt, tile_row, k_tiles, steps;
    u8 *rows, *group;  // where the weights of its warp begin, and of its four warps

    DEVICE void load(Own& own, int k_tile) const {
        if (k_tile < k_tiles) own = kind.load(tile_row, k_tile, mt, lane);
        if (k_tile + WIDE_TILES_AHEAD < k_tiles) kind.prefetch(tile_row, k_tile + WIDE_TILES_AHEAD, mt, lane);
    }

    // Lets the tensor cores begin with a step, whose weights this thread has written.
    DEVICE void begin(Sum (&out)[128], const WideStep& at) const {
        // All have written their weights of this step, and nobody multiplies those, or activations, of two steps ago any more.
        fence_for_products();
        sync();
        wait_at(memory.barrier(at.stage), at.phase);
        u64 weights = described(group + WIDE_WEIGHTS * at.slot), x = described(memory.x(at.stage));
        start_products();
#pragma unroll
        for (int i = 0; i < 4; i++) kind.multiply(out, weights + 2 * i, x + 2 * i);
        close_products();
        if (thread() == 0) {
            // Nor does the other block multiply activations of three steps ago.
            if (at.step > 0) wait_at(memory.arrived(), (at.step - 1) % 2);
            if (at.step + WIDE_AHEAD < steps) fetch_wide(kind, memory, at.step + WIDE_AHEAD);
            arrive_at(memory.arrived(), 0);
            arrive_at(memory.arrived(), 1);
        }
        sync_warp();
    }

    // The next step, if there is one: a part of a tile. Codes of a later tile set out once the first of two parts is multiplied, or as soon as all of
    // a tile is decoded.
    DEVICE bool next(Sum (&out)[128], WideStep& at, Own& own, int part, Own& later, int k_tile) const {
        at.next();
        if (at.step >= steps) return false;
        if (part == 0) own.ask((u32)kind.few().k >> 31);
        kind.decode(rows + WIDE_WEIGHTS * at.slot, own, part, mt, lane);
        if (Kind::SIZE == 1) load(later, k_tile);
        // Those of the step before last, so that their place is free once all have come so far.
        wait_for_products<1>();
        begin(out, at);
        if (Kind::SIZE == 2 && part == 0) load(later, k_tile);
        return true;
    }
};

template <class Kind>
DEVICE void wide(const Kind& kind) {
    const int PARTS = Kind::SIZE;
    const Small& a = kind.few();
    const WideMemory memory;
    // The same number for all lanes, which the compiler then knows.
    int lane = thread() % 32, warp = of_lane(thread() / 32, 0);
    int tile_row = WIDE_TILES * block_y() + warp / 2;
    // Below the last row of tiles there is nothing; the cluster may want what the block fetches.
    int k_tiles = tile_row < (a.n + 31) / 32 ? a.k_tiles : 0, steps = (a.k * Kind::SIZE + 127) / 128;
    u8 *rows = memory.weights(0) + 16 * 128 * warp, *group = memory.weights(0) + WIDE_WEIGHTS / 2 * (warp / 4);
    const WideThread<Kind> own = {kind, memory, lane, warp % 2, tile_row, k_tiles, steps, rows, group};
    // Codes of two tiles, in turns.
    typename Kind::Own even = typename Kind::Own(), odd = even;
    own.load(even, 0);
    if (PARTS == 1) own.load(odd, 1);
    if (thread() == 0) {
        prefetch_map(kind.x());
#pragma unroll
        for (int i = 0; i < WIDE_STAGES; i++) make_barrier(memory.barrier(i), 1);
        make_barrier(memory.arrived(), 2);
        publish_barriers();
    }
    sync_warp();
    cluster_begin();
    cluster_wait();
    // Weights have set out before the kernels that compute x have ended.
    let_next_start();
    wait_for_earlier();
    if (thread() == 0)
        for (int i = 0; i < WIDE_AHEAD && i < steps; i++) fetch_wide(kind, memory, i);
    sync_warp();
    typename Kind::Sum out[128];
#pragma unroll
    for (int i = 0; i < 128; i++) out[i] = 0;
    WideStep at = {0, 0, 0, 0};
    kind.decode(rows, even, 0, own.mt, lane);
    own.begin(out, at);
    if (PARTS == 2) own.load(odd, 1);
    // While one step is multiplied, weights of the next are decoded.
#pragma unroll 1
    for (int k_tile = 1;; k_tile += 2) {
        if (PARTS == 2 && !own.next(out, at, even, 1, even, 0)) break;
        if (!own.next(out, at, odd, 0, even, k_tile + 1)) break;
        if (PARTS == 2 && !own.next(out, at, odd, 1, odd, 0)) break;
        if (!own.next(out, at, even, 0, odd, k_tile + 2)) break;
    }
    wait_for_products<0>();
#pragma unroll
    for (int i = 0; i < 128; i++) settled(out[i]);
    cluster_arrive();
    finish_wide(kind, memory, out, lane, warp);
    // The other block has arrived here for the last time: only then may the memory go.
    sync_warp();
    cluster_wait();
}

// {name}_{type}_256
#define WIDE_KERNEL(name, type, T, Weight) \
    CLUSTER_KERNEL(name##_##type##_256, 256)(const CONSTANT Wide arguments) { wide(WideNumbers<T, Weight<T>>{arguments}); }
#define WIDE_KERNELS(name, Weight)       \
    WIDE_KERNEL(name, f16, F16, Weight)  \
    WIDE_KERNEL(name, bf16, BF16, Weight)
#define WIDE_INTEGER_KERNELS(name, Weight) \
    CLUSTER_KERNEL(name##_256, 256)(const CONSTANT WideIntegers arguments) { wide(WideBytes<Weight>{arguments}); }
