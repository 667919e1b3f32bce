// How 2-bit weights lie in tiles: two words hold 32 weights of a lane as 16 pairs, eight to a word. The tiles are made by
// `TileCodes::fields`.
#pragma once
#include "decode.cuh"

template <class T>
using W2 = Fields<T, 2>;
