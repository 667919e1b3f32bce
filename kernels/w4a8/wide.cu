// 4-bit weights, activations of 8 bits, many token rows.
#include "w4a8.cuh"
#include "wide.cuh"

WIDE_INTEGER_KERNELS(w4a8, W4Bytes)
