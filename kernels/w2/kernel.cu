// 2-bit weights with activations of 16 bits: two words hold 32 weights of a lane as 16 pairs, eight to a word. The tiles are made
// by `TileCodes::fields`.
#include "dequantize.cuh"
#include "middle.cuh"
#include "repack.cuh"

template <class T>
using W2 = Fields<T, 2>;

SMALL_KERNELS(w2a16, W2)
MIDDLE_KERNELS(w2a16, W2)
REPACK_KERNEL(w2, PlainCodes<2>)
DEQUANTIZE_KERNELS(w2, W2)
