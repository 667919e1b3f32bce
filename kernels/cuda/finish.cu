// What follows the sums of many token rows, which another kernel left as f32 or as integers: scales of integers, bias, gate, residual,
// and the type of y, as in `small.cuh`. A block has a row of tiles and eight token rows.
#include "integer.cuh"

// The arguments of a kernel, which is launched with a grid of (rows of tiles, ceil(rows / 8)) blocks of 256 threads. Of `few`, y and
// what is added to it, the shape and the flags are used.
struct Finish {
    Small few;
    const float* sums;  // [rows, stride]: the channels of the rows of tiles from `first` on, in their order
    int first;
    int stride;
};

// Of `of`, codes are not used.
struct FinishIntegers {
    Integer of;
    const int* sums;  // [rows, stride], times `times`
    int first;
    int stride;
    int times;
};

// Where a thread's output is: its token row, the row of its tile, and its first sum; or null, if it has none.
template <class Number>
DEVICE const Number* sums_of(const Small& a, const Number* sums, int stride, int& row, int& column) {
    row = thread() % 32, column = 8 * block_y() + thread() / 32;
    if (column >= a.rows || (a.gated && row >= 16)) return 0;
    return sums + ((u64)column * stride + 32 * block_x() + row);
}

template <class T>
DEVICE void finish_rows(const Finish& a) {
    wait_for_earlier();
    let_next_start();
    int row, column;
    const float* sums = sums_of(a.few, a.sums, a.stride, row, column);
    if (sums) finish(a.few, FloatSums<T>(), a.first + block_x(), row, column, sums[0], a.few.gated ? sums[16] : 0.0f);
}

DEVICE void finish_sums(const FinishIntegers& a) {
    wait_for_earlier();
    let_next_start();
    int row, column;
    const int* sums = sums_of(a.of.few, a.sums, a.stride, row, column);
    if (!sums) return;
    int own = sums[0] / a.times, up = a.of.few.gated ? sums[16] / a.times : 0;
    finish(a.of.few, a.of.sums(0), a.first + block_x(), row, column, own, up);
}

KERNEL(finish_f16, 256, 4)(const Finish arguments) { finish_rows<F16>(arguments); }
KERNEL(finish_bf16, 256, 4)(const Finish arguments) { finish_rows<BF16>(arguments); }
KERNEL(finish_integers, 256, 4)(const FinishIntegers arguments) { finish_sums(arguments); }
