// 4-bit weights with activations of 16 bits: four words hold 32 weights of a lane as 16 pairs, four to a word. The tiles are made
// by `TileCodes::fields`.
#include "dequantize.cuh"
#include "middle.cuh"
#include "repack.cuh"

template <class T>
using W4 = Fields<T, 4>;

SMALL_KERNELS(w4a16, W4)
MIDDLE_KERNELS(w4a16, W4)
REPACK_KERNEL(w4, PlainCodes<4>)
DEQUANTIZE_KERNELS(w4, W4)
