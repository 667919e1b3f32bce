// 4-bit weights with activations of 16 bits, many token rows.
#include "w4.cuh"
#include "wide.cuh"

WIDE_KERNELS(w4a16, W4)
