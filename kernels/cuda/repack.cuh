// Stored weights to tiles, at load: what `cuda/tiles.rs` does on the host, bit for bit. A thread makes the words of a lane for a quarter
// of a tile.
#pragma once
#include "arch.cuh"

// The arguments of a kernel, which is launched with a grid of (k_tiles, ceil(n / 32)) blocks of 128 threads and `repack_shared` bytes of
// dynamic shared memory (none where there are no groups, nor scales and zero points here). Pointers are device memory; zero points were looked at, each is a code.
struct Repack {
    const u8* codes;        // [n, groups, group * bits / 8]
    const void* scales;     // [n, groups], of `scale_type`
    const u8* zero_points;  // [n, zero_bytes], or null: 2^(bits - 1) everywhere
    u8* tiles;              // [ceil(n / 32), k_tiles, TILE]
    int n;
    int k;
    int group;       // 32, 64, 128 or 256
    int groups;      // ceil(k / group)
    int zero_bytes;  // of a channel
    int k_tiles;
    int scale_type;  // 0: f32, 1: half precision, 2: bfloat16
    int gated;       // channels 0 to n / 2 go above those behind them, 16 to a tile
};

// Codes of BITS bits, lowest first, in bytes; and their tiles: pairs one after the other from the lowest bits of both halves on.
template <int BITS>
struct PlainCodes {
    static const int WORDS = BITS, WIDTH = BITS, ZERO_BITS = BITS;

    static DEVICE u32 code(const u8* block, int, int at) {
        return block[at * BITS / 8] >> at * BITS % 8 & ((1u << BITS) - 1);
    }

    static DEVICE void put(u32 (&words)[WORDS], int pair, int half, u32 code) {
        const int TO_A_WORD = 16 / BITS;
        words[pair / TO_A_WORD] |= code << (BITS * (pair % TO_A_WORD) + 16 * half);
    }
};

DEVICE float stored_scale(const Repack& a, u64 place) {
    if (a.scale_type == 0) return ((const float*)a.scales)[place];
    u16 bits = ((const u16*)a.scales)[place];
    return a.scale_type == 1 ? to_float(F16(), bits) : to_float(BF16(), bits);
}

// A scale, rounded to 20 bits, whose four lowest bits are the zero point.
DEVICE u32 scale_word(float scale, u32 zero_point) {
    u32 bits = as_bits(scale), up = (bits + 8) & ~15u;
    // Not to infinity.
    bool finite = (up & 0x7f800000u) != 0x7f800000u;
    return (finite ? up : bits & ~15u) | zero_point;
}

template <class Stored>
DEVICE constexpr int repack_shared() {
    return 128 * 4 * Stored::WORDS;
}

template <class Stored>
DEVICE void repack(const Repack& a) {
    let_next_start();
    wait_for_earlier();
    const int WORDS = Stored::WORDS;
    int lane = thread() % 32, quarter = thread() / 32;
    int k_tile = block_x(), tile_row = block_y();
    int subs = a.group >= 128 ? 1 : 128 / a.group;
    u8* tile = a.tiles + ((u64)tile_row * a.k_tiles + k_tile) * (512 * WORDS + 128 * subs);
    int channels = a.gated ? a.n / 2 : a.n;
    // The channel of a row of the tile, or -1.
    int first = (a.gated ? 16 : 32) * tile_row, block_bytes = a.group / 8 * Stored::WIDTH;
    // Groups are powers of two: 2^5 to 2^8.
    int log = a.group >= 128 ? 7 + a.group / 256 : a.group / 32 + 4;
    // A thread's own: in shared memory, as registers are not numbered.
    u32(&words)[WORDS] = ((u32(*)[WORDS])shared_memory())[thread()];
#pragma unroll
    for (int i = 0; i < WORDS; i++) words[i] = 0;
#pragma unroll 1
    for (int pair = 0; pair < 16; pair++) {
#pragma unroll 1
        for (int half = 0; half < 2; half++) {
            int row = 16 * (quarter / 2) + 8 * (pair % 2) + lane / 4;
            int e = 4 * (pair / 4 % 2) + 2 * (pair % 4 / 2) + half;
            int k = 128 * k_tile + 64 * (quarter % 2) + 32 * (pair / 8) + 8 * (lane % 4) + e;
            int own = first + (a.gated ? row % 16 : row);
            if (own >= channels || k >= a.k) continue;
            u64 channel = own + (a.gated && row >= 16 ? channels : 0);
            const u8* block = a.codes + (channel * a.groups + (k >> log)) * block_bytes;
            Stored::put(words, pair, half, Stored::code(block, log, k & (a.group - 1)));
        }
    }
#pragma unroll
    for (int i = 0; i < WORDS; i++) {
        int word = WORDS * quarter + i;
        *(u32*)(tile + 512 * (word / 4) + 16 * lane + 4 * (word % 4)) = words[i];
    }
    if (quarter >= subs) return;
    // Of row `lane`, the scale of group `quarter`.
    int k = 128 * k_tile + 128 / subs * quarter;
    int own = first + (a.gated ? lane % 16 : lane);
    u32 word = 0;
    if (own < channels && k < a.k) {
        u64 channel = own + (a.gated && lane >= 16 ? channels : 0);
        int group = k >> log, bit = group * Stored::ZERO_BITS;
        u32 zero_point = 1u << (Stored::WIDTH - 1);
        if (a.zero_points) {
            zero_point = a.zero_points[channel * a.zero_bytes + bit / 8] >> bit % 8 & ((1u << Stored::ZERO_BITS) - 1);
        }
        word = scale_word(stored_scale(a, channel * a.groups + group), zero_point);
    }
    *(u32*)(tile + 512 * WORDS + 4 * (subs * lane + quarter)) = word;
}

#define REPACK_KERNEL(name, Stored) \
    KERNEL(name##_repack, 128, 1)(const Repack arguments) { repack<Stored>(arguments); }
