// 8-bit weights and activations, many token rows.
#include "w8a8.cuh"
#include "wide.cuh"

WIDE_INTEGER_KERNELS(w8a8, W8Bytes)
