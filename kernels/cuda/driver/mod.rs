//! The CUDA driver: devices, their memory, streams, graphs, launches. The only folder that names cudarc, which loads the driver
//! when it is first asked for; where there is none, that is an error like any other.
//!
//! What a handle needs lives as long as the handle: memory keeps its device, a graph keeps the memory and the kernels that it
//! was recorded with. Freeing memory waits for the device (`cuMemFree` does, though NVIDIA says so of the runtime's `cudaFree` alone),
//! so that work which is still on its way never loses what it works on. Different streams that use the same memory have to be put
//! in order by their user (`Stream::wait`).
#![expect(unsafe_code, reason = "the driver's interface is C; each call says why it may be made")]

mod blas;
mod compiler;
mod map;
mod stream;

use std::collections::HashMap;
use std::ffi::CStr;
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::sys;
use cudarc::driver::{CudaContext, CudaFunction, CudaModule, DriverError, result};
use cudarc::nvrtc::Ptx;

use super::error::DeviceError;
use super::images::{self, Image, Unit};

pub(super) use blas::{Blas, Multiplied, Number};
pub(super) use compiler::compile;
pub(super) use map::{BOX_BYTES, Map, MappedRows};
pub(super) use stream::Grid;
pub use stream::{Graph, Mark, Stream};

/// The oldest driver whose interface is used.
const OLDEST: (u32, u32) = (12, 0);

/// What the driver says, and what it was asked for.
fn refused(what: impl Into<String>) -> impl FnOnce(DriverError) -> DeviceError {
    let what = what.into();
    move |error| {
        let text = |text: Result<&CStr, DriverError>| {
            text.map_or_else(|_| "unknown".to_owned(), |text| text.to_string_lossy().into_owned())
        };
        DeviceError::Driver {
            what,
            name: text(error.error_name()),
            code: error.0 as u32,
            text: text(error.error_string()),
        }
    }
}

/// What a device is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct About {
    /// Its number, from 0 on.
    pub ordinal: usize,
    /// Its name.
    pub name: String,
    /// Compute capability: (9, 0) is sm_90.
    pub capability: (u32, u32),
    /// Streaming multiprocessors, as far as products are planned for them.
    pub multiprocessors: usize,
    /// Bytes of memory.
    pub memory: usize,
    /// Bytes of the second-level cache.
    pub cache: usize,
    /// The most bytes of shared memory that a block may ask for.
    pub shared: usize,
    /// The version of CUDA that the driver brings.
    pub driver: (u32, u32),
}

/// Where the kernels of a unit came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// Which kernels.
    pub unit: &'static str,
    /// Which form of them: `sm_90a`, `compiled for sm_87`, `PTX for compute_80, compiled by the driver`.
    pub from: String,
}

/// A CUDA device that is in use, with the kernels that were loaded for it.
pub struct Device {
    context: Arc<CudaContext>,
    about: About,
    modules: Mutex<HashMap<&'static str, Module>>,
    /// Units that it can do without, with the reason why the driver takes none of their forms.
    refused: Mutex<HashMap<&'static str, Arc<str>>>,
}

/// The kernels of a unit on a device.
struct Module {
    module: Arc<CudaModule>,
    from: String,
    waits: bool,
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Device").field("about", &self.about).finish_non_exhaustive()
    }
}

/// The driver's version, once it is loaded and initialised.
fn driver() -> Result<(u32, u32), DeviceError> {
    // SAFETY: this opens the driver's library and closes it; what it does at its opening is the driver's affair.
    if !unsafe { sys::is_culib_present() } {
        return Err(DeviceError::NoDriver);
    }
    let mut version = 0;
    // SAFETY: every driver has the function, and `version` is a place for its answer.
    unsafe { sys::cuDriverGetVersion(&mut version).result() }.map_err(refused("tell its version"))?;
    let found = (version as u32 / 1000, version as u32 % 1000 / 10);
    if found < OLDEST {
        return Err(DeviceError::OldDriver { what: "mbqc", found, needed: OLDEST });
    }
    match result::init() {
        Ok(()) => Ok(found),
        Err(DriverError(sys::CUresult::CUDA_ERROR_NO_DEVICE)) => Err(DeviceError::NoDevice { ordinal: 0, count: 0 }),
        Err(error) => Err(refused("start")(error)),
    }
}

impl Device {
    /// How many devices there are; 0 if there is a driver and no device.
    ///
    /// # Errors
    ///
    /// If there is no driver, or it cannot start.
    pub fn count() -> Result<usize, DeviceError> {
        match driver() {
            Err(DeviceError::NoDevice { .. }) => Ok(0),
            Err(error) => Err(error),
            Ok(_) => Ok(CudaContext::device_count().map_err(refused("count devices"))? as usize),
        }
    }

    /// Starts using a device.
    ///
    /// # Errors
    ///
    /// If there is no driver, it is too old, or there is no such device.
    pub fn open(ordinal: usize) -> Result<Arc<Device>, DeviceError> {
        Device::open_for(ordinal, usize::MAX)
    }

    /// The same, with products dealt out as if it had no more than so many multiprocessors (1 or more), as where others use the device,
    /// too. Nothing keeps them from running on others.
    ///
    /// # Errors
    ///
    /// As for [`Device::open`].
    pub fn open_for(ordinal: usize, multiprocessors: usize) -> Result<Arc<Device>, DeviceError> {
        let version = match driver() {
            Err(DeviceError::NoDevice { .. }) => return Err(DeviceError::NoDevice { ordinal, count: 0 }),
            other => other?,
        };
        let count = Device::count()?;
        if ordinal >= count {
            return Err(DeviceError::NoDevice { ordinal, count });
        }
        let context = CudaContext::new(ordinal).map_err(refused(format!("use device {ordinal}")))?;
        let attribute =
            |which| context.attribute(which).map(|value| value as usize).map_err(refused("describe a device"));
        use sys::CUdevice_attribute_enum as Attribute;
        let capability = context.compute_capability().map_err(refused("describe a device"))?;
        let about = About {
            ordinal,
            name: context.name().map_err(refused("name a device"))?,
            capability: (capability.0 as u32, capability.1 as u32),
            multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?
                .min(multiprocessors.max(1)),
            memory: context.total_mem().map_err(refused("describe a device"))?,
            cache: attribute(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?,
            shared: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
            driver: version,
        };
        Ok(Arc::new(Device { context, about, modules: Mutex::default(), refused: Mutex::default() }))
    }

    /// What it is.
    pub fn about(&self) -> &About {
        &self.about
    }

    /// Memory of the device, with whatever is in it, at a multiple of 256 bytes.
    ///
    /// # Errors
    ///
    /// If there is not so much.
    pub fn memory(self: &Arc<Self>, bytes: usize) -> Result<Memory, DeviceError> {
        self.bind()?;
        // SAFETY: the context is current. Nothing reads the memory on the host before it was copied to.
        let at = match unsafe { result::malloc_sync(bytes.max(1)) } {
            Ok(at) => at,
            Err(DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => {
                let (free, total) = self.context.mem_get_info().map_err(refused("tell how much memory is free"))?;
                return Err(DeviceError::OutOfMemory { device: self.about.name.clone(), bytes, free, total });
            }
            Err(error) => return Err(refused(format!("allocate {bytes} bytes"))(error)),
        };
        Ok(Memory { owner: Arc::new(Allocation { device: self.clone(), at }), start: 0, bytes })
    }

    /// The kernels that were loaded, and in which form.
    pub fn loaded(&self) -> Vec<Loaded> {
        let modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        let mut loaded: Vec<Loaded> =
            modules.iter().map(|(unit, module)| Loaded { unit, from: module.from.clone() }).collect();
        loaded.sort_by_key(|one| one.unit);
        loaded
    }

    /// Loads a unit, unless it is loaded; the form that the driver took.
    ///
    /// # Errors
    ///
    /// If it takes none.
    pub fn load(&self, unit: &'static Unit) -> Result<String, DeviceError> {
        self.with(unit, |module| Ok(module.from.clone()))
    }

    /// Why the driver takes no form of a unit that a device can do without; `None` if it takes one. It is asked once.
    ///
    /// # Errors
    ///
    /// Those that say nothing of the unit.
    pub(super) fn refuses(&self, unit: &'static Unit) -> Result<Option<Arc<str>>, DeviceError> {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(why) = refused.get(unit.name) {
            return Ok(Some(why.clone()));
        }
        match self.load(unit) {
            Err(DeviceError::Image { tried, .. }) => {
                let why: Arc<str> = tried.into();
                refused.insert(unit.name, why.clone());
                Ok(Some(why))
            }
            other => other.map(|_| None),
        }
    }

    /// A kernel, loaded with the others of its unit if it is the first.
    pub(super) fn kernel(&self, unit: &'static Unit, name: &str) -> Result<Kernel, DeviceError> {
        self.with(unit, |Module { module, waits, .. }| {
            let function = module.load_function(name).map_err(refused(format!("find the kernel {name}")))?;
            Ok(Kernel { function, waits: *waits })
        })
    }

    /// The same for one that takes so many bytes of shared memory: more than 48 KiB have to be asked for.
    pub(super) fn kernel_with_shared(
        &self,
        unit: &'static Unit,
        name: &str,
        bytes: usize,
    ) -> Result<Kernel, DeviceError> {
        let kernel = self.kernel(unit, name)?;
        let attribute = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        let set = kernel.function.set_attribute(attribute, bytes as i32);
        set.map_err(refused(format!("give {name} {bytes} bytes of shared memory"))).map(|()| kernel)
    }

    fn with<A>(
        &self,
        unit: &'static Unit,
        f: impl FnOnce(&Module) -> Result<A, DeviceError>,
    ) -> Result<A, DeviceError> {
        let mut modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        if !modules.contains_key(unit.name) {
            modules.insert(unit.name, self.first_form(unit)?);
        }
        f(&modules[unit.name])
    }

    /// The first form of a unit that the driver takes.
    fn first_form(&self, unit: &'static Unit) -> Result<Module, DeviceError> {
        self.bind()?;
        let mut tried = Vec::new();
        for form in images::forms(unit, self.about.capability) {
            let taken = form.image(unit).and_then(|image| {
                let image = match image {
                    Image::Binary(bytes) => Ptx::from_binary(bytes),
                    Image::Ptx(text) => Ptx::from_src(text),
                };
                self.context.load_module(image).map_err(|error| refused("load it")(error).to_string())
            });
            match taken {
                Ok(module) => return Ok(Module { module, from: form.to_string(), waits: form.waits() }),
                Err(why) => tried.push(format!("{form}: {why}")),
            }
        }
        Err(DeviceError::Image {
            unit: unit.name,
            device: self.about.name.clone(),
            capability: self.about.capability,
            tried: tried.join("; "),
        })
    }

    /// Makes the device that of this thread.
    fn bind(&self) -> Result<(), DeviceError> {
        self.context.bind_to_thread().map_err(refused("use the device in this thread"))
    }
}

struct Allocation {
    device: Arc<Device>,
    at: sys::CUdeviceptr,
}

impl Drop for Allocation {
    fn drop(&mut self) {
        // A device that cannot be used any more has no memory to give back.
        // The first answer may be an error of before, which cudarc keeps for whoever comes next.
        if self.device.bind().is_ok() || self.device.bind().is_ok() {
            // SAFETY: allocated by `Device::memory`, and nobody else has it. The call waits for what still uses it.
            let _ = unsafe { result::free_sync(self.at) };
        }
    }
}

/// Memory of a device, or a part of it. Clones are the same memory.
#[derive(Clone)]
pub struct Memory {
    owner: Arc<Allocation>,
    start: usize,
    bytes: usize,
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes of {}", self.bytes, self.owner.device.about.name)
    }
}

impl Memory {
    /// How much it is, in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Where it begins in what was allocated, in bytes.
    pub fn start(&self) -> usize {
        self.start
    }

    /// A part of it.
    ///
    /// # Errors
    ///
    /// If `bytes` does not lie within it.
    pub fn part(&self, bytes: Range<usize>) -> Result<Memory, DeviceError> {
        if bytes.start > bytes.end || bytes.end > self.bytes {
            let expected = format!("up to {}, the bytes of the memory", self.bytes);
            return Err(DeviceError::Shape { what: "the end of a part of memory", found: bytes.end, expected });
        }
        Ok(Memory { owner: self.owner.clone(), start: self.start + bytes.start, bytes: bytes.len() })
    }

    /// Whether both share a byte.
    pub fn overlaps(&self, other: &Memory) -> bool {
        Arc::ptr_eq(&self.owner, &other.owner)
            && self.start < other.start + other.bytes
            && other.start < self.start + self.bytes
    }

    /// The address on the device.
    pub(super) fn at(&self) -> u64 {
        self.owner.at + self.start as u64
    }

    pub(super) fn is_of(&self, device: &Arc<Device>) -> bool {
        Arc::ptr_eq(&self.owner.device, device)
    }
}

/// A kernel that is loaded on a device.
#[derive(Clone, Debug)]
pub(super) struct Kernel {
    function: CudaFunction,
    /// Whether it waits for the kernels ahead of it, so that it may be started before they have ended.
    waits: bool,
}

impl Kernel {
    /// Blocks of so many threads, with so many bytes of shared memory each, that a multiprocessor runs side by side.
    pub(super) fn side_by_side(&self, threads: u32, shared: usize) -> Result<usize, DeviceError> {
        let blocks = self.function.occupancy_max_active_blocks_per_multiprocessor(threads, shared, None);
        Ok(blocks.map_err(refused("tell how many blocks of a kernel run side by side"))? as usize)
    }
}
