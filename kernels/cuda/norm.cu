// Norms of token rows, and their rounding to 8 bits: h = x + residual; y = RMSNorm(h) or LayerNorm(h) or h; codes and a scale of y
// for products with 8-bit activations. A block to a row. Sums go by thread, by lanes of a warp, by warps, each in a fixed order, and
// division and root round as IEEE says, so that the bits can be computed again anywhere.
//
//   t = max(max|y|, 1e-5) / 127,   code = round(y / t), half to even       (a row that is not finite: codes 0, t not a number)
#include "arch.cuh"

// The arguments of a kernel, which is launched with a block of 256 threads for each row and 64 bytes of dynamic shared memory.
// Pointers are device memory. Rows begin at multiples of 16 bytes and are whole groups of 8 long, whatever lies behind k.
struct Norm {
    const u16* x;         // [rows, x_stride]
    const u16* residual;  // as x, or null
    u16* sum;             // as x: x + residual, rounded, or null; may be x or residual
    const u16* gain;      // [k]; null if kind is 0
    const u16* shift;     // [k], or null
    u16* y;               // [rows, y_stride], or null
    u8* codes;            // [rows, codes_stride], or null
    float* scales;        // [rows]; null if codes is
    int k;
    int x_stride;
    int y_stride;
    int codes_stride;
    int kind;  // 0: none, 1: RMSNorm, 2: LayerNorm
    float epsilon;
};

const int NORM_THREADS = 256;

// The sum of what the threads of a block have, or the largest, for all of them.
template <bool LARGEST>
DEVICE float of_block(float value) {
    float* warps = (float*)shared_memory();
    int lane = thread() % 32;
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
        float other = as_float(of_lane(as_bits(value), lane ^ distance));
        value = LARGEST ? larger(value, other) : value + other;
    }
    sync();
    if (lane == 0) warps[thread() / 32] = value;
    sync();
    value = warps[0];
#pragma unroll
    for (int warp = 1; warp < NORM_THREADS / 32; warp++) value = LARGEST ? larger(value, warps[warp]) : value + warps[warp];
    return value;
}

template <class T>
struct NormRow {
    const Norm& a;
    int row;
    float mean, inverse;

    // Numbers `at` to `at + 8` of h; the first time they are computed, then they may be read.
    DEVICE void load(float (&h)[8], int at, bool first) const {
        u64 place = (u64)row * a.x_stride + at;
        bool read = a.sum && !first;
        Words x = load_activations((read ? a.sum : a.x) + place);
        Words r = {{0, 0, 0, 0}};
        if (a.residual && !read) r = load_activations(a.residual + place);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            h[i] = to_float(T(), (u16)(x.at[i / 2] >> 16 * (i % 2)));
            if (read) continue;
            if (a.residual) h[i] = to_float(T(), from_float(T(), h[i] + to_float(T(), (u16)(r.at[i / 2] >> 16 * (i % 2)))));
            if (a.sum && at + i < a.k) a.sum[place + i] = from_float(T(), h[i]);
        }
    }

    DEVICE float normal(float h, int i) const {
        if (a.kind == 0) return h;
        float y = (h - mean) * inverse * to_float(T(), a.gain[i]);
        return a.shift ? y + to_float(T(), a.shift[i]) : y;
    }
};

template <class T>
DEVICE void norm(const Norm& a) {
    wait_for_earlier();
    let_next_start();
    NormRow<T> row = {a, block_x(), 0.0f, 1.0f};
    const int STEP = 8 * NORM_THREADS;
    int start = 8 * thread();
    float h[8];
    bool first = true;
    if (a.kind == 2) {
        float sum = 0.0f;
        for (int at = start; at < a.k; at += STEP) {
            row.load(h, at, first);
#pragma unroll
            for (int i = 0; i < 8; i++)
                if (at + i < a.k) sum = sum + h[i];
        }
        first = false;
        row.mean = divided(of_block<false>(sum), (float)a.k);
    }
    if (a.kind != 0) {
        float squares = 0.0f;
        for (int at = start; at < a.k; at += STEP) {
            row.load(h, at, first);
#pragma unroll
            for (int i = 0; i < 8; i++)
                if (at + i < a.k) squares = fused(h[i] - row.mean, h[i] - row.mean, squares);
        }
        first = false;
        row.inverse = divided(1.0f, root(divided(of_block<false>(squares), (float)a.k) + a.epsilon));
    }
    float scale = 1.0f;
    bool finite = true;
    if (a.codes) {
        float most = 0.0f;
        for (int at = start; at < a.k; at += STEP) {
            row.load(h, at, first);
#pragma unroll
            for (int i = 0; i < 8; i++)
                if (at + i < a.k) most = larger(most, magnitude(row.normal(h[i], at + i)));
        }
        first = false;
        most = of_block<true>(most);
        finite = most <= 3.4028235e38f;
        scale = divided(larger(most, 1e-5f), 127.0f);
        if (thread() == 0) a.scales[row.row] = finite ? scale : as_float(0x7fc00000u);
    }
    if (!a.codes && !a.y && !(a.sum && first)) return;
    for (int at = start; at < a.k; at += STEP) {
        row.load(h, at, first);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            if (at + i >= a.k) continue;
            float y = row.normal(h[i], at + i);
            if (a.y) a.y[(u64)row.row * a.y_stride + at + i] = from_float(T(), y);
            if (a.codes) a.codes[(u64)row.row * a.codes_stride + at + i] = finite ? (u8)nearest(divided(y, scale)) : 0;
        }
    }
}

KERNEL(norm_f16, 256, 2)(const Norm arguments) { norm<F16>(arguments); }
KERNEL(norm_bf16, 256, 2)(const Norm arguments) { norm<BF16>(arguments); }
