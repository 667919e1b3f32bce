// 2-bit weights with activations of 16 bits.
#include "dequantize.cuh"
#include "middle.cuh"
#include "repack.cuh"
#include "w2.cuh"

SMALL_KERNELS(w2a16, W2)
MIDDLE_KERNELS(w2a16, W2)
REPACK_KERNEL(w2, PlainCodes<2>)
DEQUANTIZE_KERNELS(w2, W2)
