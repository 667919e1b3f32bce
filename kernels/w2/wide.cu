// 2-bit weights with activations of 16 bits, many token rows.
#include "w2.cuh"
#include "wide.cuh"

WIDE_KERNELS(w2a16, W2)
