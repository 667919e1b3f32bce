// 4-bit weights, activations of 8 bits.
#include "w4a8.cuh"

INTEGER_KERNELS(w4a8, W4Bytes)
CODES_KERNEL(w4a8, W4Bytes)
REPACK_CODES_KERNEL(w4a8, W4Bytes)
