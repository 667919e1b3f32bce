// 8-bit weights and activations.
#include "w8a8.cuh"

INTEGER_KERNELS(w8a8, W8Bytes)
REPACK_CODES_KERNEL(w8a8, W8Bytes)
