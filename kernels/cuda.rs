//! CUDA: how weights lie on the device. Nothing here runs on a device yet: the kernels (`*.cu`, `cuda/*.cuh`) compile for
//! every architecture and are tested on the host, emulated.

mod tiles;

pub use tiles::{Quarter, TILE_CHANNELS, TILE_K, TileCodes, Tiles};
