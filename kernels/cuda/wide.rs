//! Products with many token rows by kernels of our own, on sm_90a: 128 output channels of 256 token rows at once. Nothing is made of a
//! weight, nor left in memory between.

use std::sync::Arc;

use super::driver::{BOX_BYTES, Device, Grid, Kernel, Map, MappedRows, Stream};
use super::error::DeviceError;
use super::estimate::ManyRows;
use super::prefill::Prefill;
use super::rows::ToRows;
use super::tiles::{TILE_CHANNELS, TILE_K, TileCodes};
use super::weight::{Arguments, DeviceProduct, DeviceWeight, Element, IntegerArguments, ROWS_AT_ONCE};
use super::workspace::Workspace;

/// The one compute capability that has what kernels ask for in `hopper.cuh`.
pub(crate) const WIDE_CAPABILITY: (u32, u32) = (9, 0);

/// What a block makes: output channels, token rows.
pub(super) const WIDE_CHANNELS: usize = 128;
pub(super) const WIDE_ROWS: usize = 256;

/// Blocks of a cluster, which have channels that follow one another.
const CLUSTER: usize = 2;

/// Places in shared memory for activations, and for weights, of a step.
const STAGES: usize = 5;
const SLOTS: usize = 3;

/// Bytes of shared memory: `wide_shared` in `wide.cuh`.
const SHARED: usize = 1024 + STAGES * BOX_BYTES * WIDE_ROWS + SLOTS * BOX_BYTES * WIDE_CHANNELS + 8 * (STAGES + 1);

/// Token rows from which on cuBLASLt is thought to be faster, numbers and all, than as many passes of the kernel for 64, where there are
/// no wide kernels: by what is predicted of 3584 x 18944 on an H200, as in README's table, after two passes of `w3` and of `w4a8`.
const MANY_ROWS: usize = 129;

/// The least that cuBLASLt surely takes, where it multiplies by rows of bytes as they are; fewer of them are thought to be slower.
const MANY_ROWS_AS_THEY_ARE: usize = 32;

/// By which kernels a product is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Way {
    /// [`DeviceWeight::product`]: those for few token rows, and for 64.
    Sliced,
    /// [`DeviceWeight::product_wide`].
    Wide,
    /// [`DeviceWeight::product_of_many`].
    Blas,
}

/// The kernels of a format, by element, and how many multiprocessors they are for.
#[derive(Clone, Debug)]
pub(super) struct Wide {
    kernels: [Kernel; 2],
    multiprocessors: usize,
}

/// The one parameter of a kernel: `Wide` in `wide.cuh`.
#[repr(C)]
struct WideArguments {
    x: Map,
    few: Arguments,
    groups: i32,
}

/// The one parameter of a kernel: `WideIntegers` in `wide.cuh`.
#[repr(C)]
struct WideIntegerArguments {
    x: Map,
    of: IntegerArguments,
}

impl Wide {
    /// Why there are none, where a device is another, has too little shared memory, or a driver that refuses all forms of them: products are made
    /// in other ways there.
    pub(super) fn load(
        device: &Device,
        codes: &TileCodes,
        format: &str,
        groups: usize,
    ) -> Result<Result<Wide, Arc<str>>, DeviceError> {
        let about = device.about();
        let (major, minor) = about.capability;
        if about.capability != WIDE_CAPABILITY {
            return Ok(Err(format!("it is of sm_{major}{minor}, and they are for sm_90").into()));
        }
        if about.shared < SHARED {
            return Ok(Err(
                format!("a block may have {} bytes of shared memory, and takes {SHARED}", about.shared).into()
            ));
        }
        if let Some(why) = device.refuses(codes.wide)? {
            return Ok(Err(why));
        }
        let kernel = |element| {
            let name = match groups {
                0 => format!("{format}_{WIDE_ROWS}"),
                _ => format!("{format}a16_{element}_{WIDE_ROWS}"),
            };
            device.kernel_with_shared(codes.wide, &name, SHARED)
        };
        Ok(Ok(Wide { kernels: [kernel("f16")?, kernel("bf16")?], multiprocessors: about.multiprocessors }))
    }
}

impl DeviceWeight {
    /// Whether the device has the kernels that [`DeviceWeight::product_wide`] takes: one of compute capability 9.0 has them, unless its
    /// driver refuses them.
    pub fn has_wide(&self) -> bool {
        self.wide.is_ok()
    }

    /// The way that is thought to be fastest for that many token rows, with cuBLASLt or without: by estimates for an H200, where there are
    /// kernels for 256 rows. No device was asked: `gpu_check --only bench` tells all times.
    pub fn way(&self, rows: usize, with_blas: bool) -> Way {
        let as_it_is = matches!(self.to_rows, ToRows::AsTheyAre);
        let least = if as_it_is { MANY_ROWS_AS_THEY_ARE } else { ROWS_AT_ONCE + 1 };
        let Ok(wide) = &self.wide else {
            let least = if as_it_is { least } else { MANY_ROWS };
            return if with_blas && rows >= least { Way::Blas } else { Way::Sliced };
        };
        let many = ManyRows {
            multiprocessors: wide.multiprocessors,
            n: self.n(),
            k: self.k(),
            rows,
            tile: self.bytes() / (self.row_tiles() * self.k_tiles()),
            number: if self.of_integers() { 1 } else { 2 },
            as_it_is,
        };
        let mut best = (Way::Sliced, many.sliced(self.middle.seconds));
        let others =
            [(Way::Wide, rows > ROWS_AT_ONCE, many.wide()), (Way::Blas, with_blas && rows >= least, many.by_blas())];
        for (way, is_one, seconds) in others {
            if is_one && seconds < best.1 {
                best = (way, seconds);
            }
        }
        best.0
    }

    /// Puts `y = x W^T` into the stream in the way that is thought to be fastest for that many token rows; without `prefill` by our
    /// own kernels; as [`DeviceWeight::product`] does if a spread is given. The ways round differently: for the same bits whatever the
    /// number of token rows, give a spread, or take [`DeviceWeight::product_wide`]. A `prefill` that was made for fewer rows is an error.
    ///
    /// # Errors
    ///
    /// As for [`DeviceWeight::product`], [`DeviceWeight::product_wide`] or [`DeviceWeight::product_of_many`].
    pub fn product_of_any(
        &self,
        stream: &Stream,
        product: &DeviceProduct<'_>,
        workspace: &mut Workspace,
        prefill: Option<&mut Prefill>,
    ) -> Result<(), DeviceError> {
        let way = match product.spread {
            Some(_) => Way::Sliced,
            None => self.way(product.rows, prefill.is_some()),
        };
        match (way, prefill) {
            (Way::Blas, Some(prefill)) => self.product_of_many(stream, product, prefill),
            (Way::Wide, _) => self.product_wide(stream, product),
            _ => self.product(stream, product, workspace),
        }
    }

    /// Puts `y = x W^T` into the stream, as [`DeviceWeight::product`] does (a spread means nothing here), in time that many token rows
    /// are worth, without other memory. Weights are rounded to the element of the product; where activations are bytes, sums
    /// are exact. A token row is the same bits alone and among others.
    ///
    /// # Errors
    ///
    /// As for [`DeviceWeight::product`]; if the device has no such kernels ([`DeviceWeight::has_wide`]).
    pub fn product_wide(&self, stream: &Stream, product: &DeviceProduct<'_>) -> Result<(), DeviceError> {
        let &DeviceProduct { x, rows, element, .. } = product;
        if rows == 0 {
            return Ok(());
        }
        self.check(stream, product)?;
        let Wide { kernels, .. } = self.wide.as_ref().map_err(|why| {
            let device = stream.device().about().name.clone();
            DeviceError::NoWide { device, why: why.to_string() }
        })?;
        let (rows_of_x, number, _) = x.parts();
        // Two blocks fetch half of the token rows each.
        let map = MappedRows {
            memory: rows_of_x.memory,
            size: number,
            columns: self.k(),
            rows,
            stride: rows_of_x.stride,
            of_box: WIDE_ROWS / CLUSTER,
        };
        let x = map.map()?;
        let channels = self.row_tiles().div_ceil(WIDE_CHANNELS / TILE_CHANNELS).next_multiple_of(CLUSTER);
        let grid =
            Grid { blocks: [rows.div_ceil(WIDE_ROWS) as u32, channels as u32], threads: 256, shared: SHARED as u32 };
        let kernel = &kernels[usize::from(element == Element::Bf16)];
        let few = self.arguments(product);
        // SAFETY: the arguments are the parameters of these kernels, field by field; `check` has seen that all memory is as large as
        // they expect, and all of it is in `uses`.
        #[expect(unsafe_code, reason = "kernels trust their arguments")]
        unsafe {
            match self.integers(few, product) {
                Some(of) => stream.launch(kernel, grid, &WideIntegerArguments { x, of }, &self.uses(product)),
                None => {
                    let groups = i32::try_from(self.groups()).expect("four at most");
                    stream.launch(kernel, grid, &WideArguments { x, few, groups }, &self.uses(product))
                }
            }
        }
    }
}

const _: () = assert!(BOX_BYTES == 128 && TILE_K == 128, "a step of `wide.cuh`");
const _: () =
    assert!(size_of::<WideArguments>() == 256 && size_of::<WideIntegerArguments>() == 384, "as kernels have it");
