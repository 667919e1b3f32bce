//! How rows lie in memory, as the driver encodes it for kernels that copy boxes of it (tensor maps, from sm_90 on).

use cudarc::driver::sys;

use super::{Memory, refused};
use crate::cuda::error::DeviceError;

/// Bytes of a row of a box. Its chunks of 16 bytes come in another order in each of eight rows (the "128-byte swizzle").
pub(in crate::cuda) const BOX_BYTES: usize = 128;

/// `Map` in `hopper.cuh`.
#[derive(Clone, Copy)]
#[repr(C, align(128))]
pub(in crate::cuda) struct Map(sys::CUtensorMap);

const _: () = assert!(size_of::<Map>() == 128 && align_of::<Map>() == 128, "as kernels have it");

/// Rows of numbers of one byte or two.
#[derive(Clone, Copy)]
pub(in crate::cuda) struct MappedRows<'a> {
    /// At a multiple of 16 bytes.
    pub(in crate::cuda) memory: &'a Memory,
    /// Bytes of a number: 1 or 2.
    pub(in crate::cuda) size: usize,
    /// Numbers of a row; behind them, zeros are copied.
    pub(in crate::cuda) columns: usize,
    pub(in crate::cuda) rows: usize,
    /// From one row to the next, in numbers; a multiple of 16 bytes.
    pub(in crate::cuda) stride: usize,
    /// Rows of a box, up to 256.
    pub(in crate::cuda) of_box: usize,
}

impl MappedRows<'_> {
    /// For boxes of so many rows.
    ///
    /// # Errors
    ///
    /// If the driver refuses it.
    pub(in crate::cuda) fn map(self) -> Result<Map, DeviceError> {
        let MappedRows { memory, size, columns, rows, stride, of_box } = self;
        memory.owner.device.bind()?;
        let number = match size {
            1 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_UINT8,
            _ => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_UINT16,
        };
        let mut map = Map(sys::CUtensorMap { opaque: [0; 16] });
        let (sizes, strides) = ([columns as u64, rows as u64], [(size * stride) as u64]);
        let (of_box, steps) = ([(BOX_BYTES / size) as u32, of_box as u32], [1, 1]);
        // SAFETY: the lists have as many entries as there are directions, or one less; the driver writes to the map alone.
        unsafe {
            sys::cuTensorMapEncodeTiled(
                &raw mut map.0,
                number,
                2,
                memory.at() as *mut _,
                sizes.as_ptr(),
                strides.as_ptr(),
                of_box.as_ptr(),
                steps.as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
                sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
            .result()
        }
        .map_err(refused("describe rows of memory"))?;
        Ok(map)
    }
}
