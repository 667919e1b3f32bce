// 3-bit weights with activations of 16 bits, many token rows.
#include "w3.cuh"
#include "wide.cuh"

WIDE_KERNELS(w3a16, W3)
