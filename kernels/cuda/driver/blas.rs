//! cuBLASLt, NVIDIA's library of matrix products, for many token rows. Loaded when it is first asked for.

use std::ffi::c_void;
use std::sync::Arc;

use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys;

use super::{Device, Memory, Stream};
use crate::cuda::error::DeviceError;

/// What the library may use besides, as NVIDIA recommends for Hopper.
const WORKSPACE: usize = 32 << 20;

/// The library, in use on a device.
pub(crate) struct Blas {
    // Freeing it waits for work on its way: first of all.
    workspace: Memory,
    handle: Arc<Handle>,
}

/// What the library has on the device, which graphs that were recorded with it need as long as they live.
pub(super) struct Handle(sys::cublasLtHandle_t);

// SAFETY: NVIDIA says that a handle may be used by several threads at once.
unsafe impl Send for Handle {}
// SAFETY: as above.
unsafe impl Sync for Handle {}

impl std::fmt::Debug for Blas {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Blas").finish_non_exhaustive()
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: made by `cublasLtCreate`, and nobody else has it. Work on its way was waited for.
        let _ = unsafe { result::destroy_handle(self.0) };
    }
}

/// What is multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Number {
    /// Half precision; sums are f32.
    F16,
    /// bfloat16; sums are f32.
    Bf16,
    /// Signed bytes; sums are 32-bit integers. All of `n`, `k` and strides are multiples of 16.
    I8,
}

/// A product `y = x w^T + bias + residual`, all in a device's memory: `x: [rows, k]`, `w: [n, k]`, of one kind of number; `y: [rows, n]`,
/// of sums, or of them rounded to that kind of number, once.
#[derive(Clone, Copy)]
pub(crate) struct Multiplied<'a> {
    pub(crate) number: Number,
    pub(crate) rows: usize,
    pub(crate) n: usize,
    pub(crate) k: usize,
    pub(crate) x: &'a Memory,
    pub(crate) x_stride: usize,
    pub(crate) w: &'a Memory,
    pub(crate) w_stride: usize,
    pub(crate) y: &'a Memory,
    pub(crate) y_stride: usize,
    /// Not of bytes.
    pub(crate) rounded: bool,
    /// `[n]`, for what is rounded.
    pub(crate) bias: Option<&'a Memory>,
    /// `[rows, n]`, spaced as y, which it may be; for what is rounded.
    pub(crate) residual: Option<&'a Memory>,
}

/// What the library says, and what it was asked for.
fn refused(what: &'static str) -> impl FnOnce(CublasError) -> DeviceError {
    move |error| DeviceError::Driver {
        what: what.to_owned(),
        name: format!("{:?}", error.0),
        code: error.0 as u32,
        text: "as cuBLASLt says".to_owned(),
    }
}

/// A description of the library's, which goes when it is not needed any more.
struct Owned<H: Copy>(H, unsafe fn(H) -> Result<(), CublasError>);

impl<H: Copy> Drop for Owned<H> {
    fn drop(&mut self) {
        // SAFETY: made by the function that goes with this one, and nobody else has it.
        let _ = unsafe { (self.1)(self.0) };
    }
}

impl Blas {
    /// Starts using the library.
    ///
    /// # Errors
    ///
    /// If it is not there, or cannot start.
    pub(crate) fn new(device: &Arc<Device>) -> Result<Blas, DeviceError> {
        // SAFETY: this opens the library and closes it.
        if !unsafe { sys::is_culib_present() } {
            return Err(DeviceError::NoBlas);
        }
        device.bind()?;
        let workspace = device.memory(WORKSPACE)?;
        let handle = result::create_handle().map_err(refused("start cuBLASLt"))?;
        Ok(Blas { workspace, handle: Arc::new(Handle(handle)) })
    }

    /// Puts a product into the stream.
    ///
    /// # Errors
    ///
    /// If the library refuses it.
    ///
    /// # Safety
    ///
    /// The memory has to be as large as the shapes say. Rows of x and w begin at multiples of 16 bytes, as does y.
    pub(crate) unsafe fn multiply(&self, stream: &Stream, product: &Multiplied<'_>) -> Result<(), DeviceError> {
        stream.device.bind()?;
        let &Multiplied { number, rows, n, k, x, x_stride, w, w_stride, y, y_stride, rounded, bias, residual } =
            product;
        use sys::{cublasComputeType_t as Compute, cudaDataType_t as Type};
        let (kind, sum, compute) = match number {
            Number::F16 => (Type::CUDA_R_16F, Type::CUDA_R_32F, Compute::CUBLAS_COMPUTE_32F),
            Number::Bf16 => (Type::CUDA_R_16BF, Type::CUDA_R_32F, Compute::CUBLAS_COMPUTE_32F),
            Number::I8 => (Type::CUDA_R_8I, Type::CUDA_R_32I, Compute::CUBLAS_COMPUTE_32I),
        };
        // Columns first, as the library counts: y^T [n, rows] = w [n, k] x^T [k, rows].
        let layout = |kind, rows: usize, columns: usize, stride: usize| {
            let layout = result::create_matrix_layout(kind, rows as u64, columns as u64, stride as i64);
            layout.map(|layout| Owned(layout, result::destroy_matrix_layout)).map_err(refused("describe a matrix"))
        };
        let a = layout(kind, k, n, w_stride)?;
        let b = layout(kind, k, rows, x_stride)?;
        let d = layout(if rounded { kind } else { sum }, n, rows, y_stride)?;
        let product = result::create_matmul_desc(compute, sum);
        let product = Owned(product.map_err(refused("describe a product"))?, result::destroy_matmul_desc);
        let transposed = 1i32;
        let attribute = sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA;
        // SAFETY: the description lives, and the attribute is 32 bits.
        unsafe { result::set_matmul_desc_attribute(product.0, attribute, (&raw const transposed).cast(), 4) }
            .map_err(refused("transpose a matrix"))?;
        if let Some(bias) = bias {
            use sys::cublasLtMatmulDescAttributes_t as Attribute;
            let (what, at) = (sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS as u32, bias.at());
            let (what, at) = ((&raw const what).cast(), (&raw const at).cast());
            // SAFETY: the description lives; one attribute is 32 bits, the other an address.
            unsafe {
                result::set_matmul_desc_attribute(product.0, Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, what, 4)
                    .and(result::set_matmul_desc_attribute(
                        product.0,
                        Attribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER,
                        at,
                        8,
                    ))
                    .map_err(refused("add a bias"))?;
            }
        }
        let preference = result::create_matmul_pref().map_err(refused("describe what is preferred"))?;
        let preference = Owned(preference, result::destroy_matmul_pref);
        use sys::cublasLtMatmulPreferenceAttributes_t as Preference;
        let set = |attribute, value: *const c_void, bytes| {
            // SAFETY: the description lives, and `value` is as large as the attribute.
            unsafe { result::set_matmul_pref_attribute(preference.0, attribute, value, bytes) }
                .map_err(refused("say what is preferred"))
        };
        let most = WORKSPACE as u64;
        set(Preference::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, (&raw const most).cast(), 8)?;
        // Parts of a sum are added up in the type of the sum: in that of y they would be rounded on the way.
        let schemes = sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32;
        set(Preference::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, (&raw const schemes).cast(), 4)?;
        let alignment = 16u32;
        for attribute in [
            Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
            Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
            Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
            Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
        ] {
            set(attribute, (&raw const alignment).cast(), 4)?;
        }
        // SAFETY: all descriptions live.
        let chosen =
            unsafe { result::get_matmul_algo_heuristic(self.handle.0, product.0, a.0, b.0, d.0, d.0, preference.0) };
        let chosen = chosen.map_err(refused("find a way to multiply"))?;
        // Of the type of the sums.
        let one = if number == Number::I8 { 1u32 } else { 1f32.to_bits() };
        let beta = if residual.is_some() { one } else { 0 };
        let y_at = y.at() as *mut c_void;
        let residual_at = residual.map_or(y_at.cast_const(), |residual| residual.at() as *const c_void);
        // SAFETY: the memory is as large as the descriptions say by this function's contract, and lives on: freeing it waits for
        // the device, and a recording keeps it.
        unsafe {
            result::matmul(
                self.handle.0,
                product.0,
                (&raw const one).cast(),
                (&raw const beta).cast(),
                w.at() as *const c_void,
                a.0,
                x.at() as *const c_void,
                b.0,
                residual_at,
                d.0,
                y_at,
                d.0,
                &raw const chosen.algo,
                self.workspace.at() as *mut c_void,
                WORKSPACE,
                stream.stream.cu_stream().cast(),
            )
        }
        .map_err(refused("multiply"))?;
        let also = [bias, residual].into_iter().flatten();
        stream.keep(&[x, w, y, &self.workspace].into_iter().chain(also).collect::<Vec<_>>(), None);
        stream.keep_blas(&self.handle);
        Ok(())
    }
}
