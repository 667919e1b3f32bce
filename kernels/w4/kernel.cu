// 4-bit weights with activations of 16 bits.
#include "dequantize.cuh"
#include "middle.cuh"
#include "repack.cuh"
#include "w4.cuh"

SMALL_KERNELS(w4a16, W4)
MIDDLE_KERNELS(w4a16, W4)
REPACK_KERNEL(w4, PlainCodes<4>)
DEQUANTIZE_KERNELS(w4, W4)
