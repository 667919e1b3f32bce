// How 4-bit weights lie in tiles: four words hold 32 weights of a lane as 16 pairs, four to a word. The tiles are made by
// `TileCodes::fields`.
#pragma once
#include "decode.cuh"

template <class T>
using W4 = Fields<T, 4>;
