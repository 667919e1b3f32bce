// What follows the sums of many token rows, which another kernel left as f32: bias, gate, residual, and the type of y, as in
// `small.cuh`. A block has a row of tiles and eight token rows.
#include "small.cuh"

// The arguments of a kernel, which is launched with a grid of (rows of tiles, ceil(rows / 8)) blocks of 256 threads. Of `few`, y and
// what is added to it, the shape and the flags are used.
struct Finish {
    Small few;
    const float* sums;  // [rows, stride]: the channels of the rows of tiles from `first` on, in their order
    int first;
    int stride;
};

template <class T>
DEVICE void finish_rows(const Finish& a) {
    wait_for_earlier();
    let_next_start();
    int row = thread() % 32, column = 8 * block_y() + thread() / 32;
    if (column >= a.few.rows || (a.few.gated && row >= 16)) return;
    const float* sums = a.sums + ((u64)column * a.stride + 32 * block_x() + row);
    float own = sums[0], up = a.few.gated ? sums[16] : 0.0f;
    finish<T>(a.few, FloatSums(), a.first + block_x(), row, column, own, up);
}

KERNEL(finish_f16, 256, 4)(const Finish arguments) { finish_rows<F16>(arguments); }
KERNEL(finish_bf16, 256, 4)(const Finish arguments) { finish_rows<BF16>(arguments); }
