//! The CUDA driver: devices, their memory, streams, graphs, launches. The only folder that names cudarc, which loads the driver
//! when it is first asked for; where there is none, that is an error like any other.
//!
//! What a handle needs lives as long as the handle: memory keeps its device, a graph keeps the memory and the kernels that it
//! was recorded with. Freeing memory waits for the device (`cuMemFree`), so that work which is still on its way never loses what
//! it works on. Different streams that use the same memory have to be put in order by their user.
#![expect(unsafe_code, reason = "the driver's interface is C; each call says why it may be made")]

mod compiler;

use std::collections::HashMap;
use std::ffi::{CStr, c_void};
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::sys;
use cudarc::driver::{CudaContext, CudaEvent, CudaFunction, CudaGraph, CudaModule, CudaStream, DriverError, result};
use cudarc::nvrtc::Ptx;

use super::error::DeviceError;
use super::images::{self, Image, Unit};

pub(super) use compiler::compile;

/// The oldest driver whose interface is used.
const OLDEST: (u32, u32) = (12, 0);

/// The oldest driver that measures time between events as cudarc asks for it.
const TIMING: (u32, u32) = (12, 8);

/// The oldest driver that records programmatic dependent launches in graphs.
const OVERLAP: (u32, u32) = (12, 3);

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
    /// Streaming multiprocessors.
    pub multiprocessors: usize,
    /// Bytes of memory.
    pub memory: usize,
    /// Bytes of the second-level cache.
    pub cache: usize,
    /// The version of CUDA that the driver brings.
    pub driver: (u32, u32),
}

/// Where the kernels of a unit came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// Which kernels.
    pub unit: &'static str,
    /// Which form of them: `sm_90a`, `compute_80, compiled by the driver`, `compiled for sm_87`.
    pub from: String,
}

/// A CUDA device that is in use, with the kernels that were loaded for it.
pub struct Device {
    context: Arc<CudaContext>,
    about: About,
    modules: Mutex<HashMap<&'static str, Module>>,
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
            multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            memory: context.total_mem().map_err(refused("describe a device"))?,
            cache: attribute(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?,
            driver: version,
        };
        Ok(Arc::new(Device { context, about, modules: Mutex::default() }))
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

    /// A queue of work. Work of different streams is not ordered.
    ///
    /// # Errors
    ///
    /// If the driver has no more of them.
    pub fn stream(self: &Arc<Self>) -> Result<Stream, DeviceError> {
        let stream = self.context.new_stream().map_err(refused("make a stream"))?;
        let overlap = self.about.capability.0 >= 9 && self.about.driver >= OVERLAP;
        Ok(Stream { device: self.clone(), stream, overlap, recorded: Mutex::default() })
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

    /// A kernel, loaded with the others of its unit if it is the first.
    pub(super) fn kernel(&self, unit: &'static Unit, name: &str) -> Result<Kernel, DeviceError> {
        self.with(unit, |Module { module, waits, .. }| {
            let function = module.load_function(name).map_err(refused(format!("find the kernel {name}")))?;
            Ok(Kernel { function, waits: *waits })
        })
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
        for form in images::forms(self.about.capability) {
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
        if self.device.bind().is_ok() {
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

/// How a kernel is spread out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Grid {
    pub(super) blocks: [u32; 2],
    pub(super) threads: u32,
    /// Bytes of dynamic shared memory of a block.
    pub(super) shared: u32,
}

/// What a recording keeps alive.
#[derive(Default)]
struct Recording {
    memory: Vec<Memory>,
    kernels: Vec<Kernel>,
}

/// A queue of work for a device: what is put into it happens in that order, some time later.
pub struct Stream {
    device: Arc<Device>,
    stream: Arc<CudaStream>,
    /// Whether a kernel may start before the one ahead of it has ended.
    overlap: bool,
    recorded: Mutex<Option<Recording>>,
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream").field("device", &self.device).finish_non_exhaustive()
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // Kernels are unloaded only when the device is done with them.
        let _ = self.stream.synchronize();
    }
}

impl Stream {
    /// Whose it is.
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// Whether kernels may start, and load weights, while the one ahead of them is still at work (programmatic dependent
    /// launch). From sm_90 on they may unless they are told not to. Weights must not be written by work of the stream then.
    pub fn set_overlap(&mut self, overlap: bool) {
        self.overlap = overlap && self.device.about.capability.0 >= 9 && self.device.about.driver >= OVERLAP;
    }

    /// Waits until everything in the stream is done.
    ///
    /// # Errors
    ///
    /// If any of it failed.
    pub fn synchronize(&self) -> Result<(), DeviceError> {
        self.not_recording("waiting for a stream")?;
        self.stream.synchronize().map_err(refused("finish the work of a stream"))
    }

    /// Copies to the device, and waits for it.
    ///
    /// # Errors
    ///
    /// If the lengths differ, the memory is another device's, or the stream is being recorded.
    pub fn write(&self, to: &Memory, from: &[u8]) -> Result<(), DeviceError> {
        self.not_recording("a copy from the host")?;
        self.own("the memory", to)?;
        same_length(to, from.len())?;
        self.device.bind()?;
        // SAFETY: both are `from.len()` bytes, and both live until the stream has been waited for.
        unsafe { result::memcpy_htod_async(to.at(), from, self.stream.cu_stream()) }
            .map_err(refused(format!("copy {} bytes to the device", from.len())))?;
        self.synchronize()
    }

    /// Copies from the device, once what is ahead in the stream is done.
    ///
    /// # Errors
    ///
    /// As for [`Stream::write`].
    pub fn read(&self, from: &Memory, to: &mut [u8]) -> Result<(), DeviceError> {
        self.not_recording("a copy to the host")?;
        self.own("the memory", from)?;
        same_length(from, to.len())?;
        self.device.bind()?;
        let bytes = to.len();
        // SAFETY: both are `bytes` long, and both live until the stream has been waited for.
        unsafe { result::memcpy_dtoh_async(to, from.at(), self.stream.cu_stream()) }
            .map_err(refused(format!("copy {bytes} bytes from the device")))?;
        self.synchronize()
    }

    /// Copies within the device.
    ///
    /// # Errors
    ///
    /// If the lengths differ, both share a byte, or either is another device's.
    pub fn copy(&self, from: &Memory, to: &Memory) -> Result<(), DeviceError> {
        self.own("the memory", from)?;
        self.own("the memory", to)?;
        same_length(to, from.bytes)?;
        if from.overlaps(to) {
            let expected = "memory that is not copied from".to_owned();
            return Err(DeviceError::Shape { what: "the first byte of a copy", found: to.start, expected });
        }
        self.device.bind()?;
        // SAFETY: both ranges were allocated, and stay so: freeing them waits for the device, and a recording keeps them.
        unsafe { result::memcpy_dtod_async(to.at(), from.at(), from.bytes, self.stream.cu_stream()) }
            .map_err(refused(format!("copy {} bytes", from.bytes)))?;
        self.keep(&[from, to], None);
        Ok(())
    }

    /// Sets all bytes.
    ///
    /// # Errors
    ///
    /// If the memory is another device's.
    pub fn fill(&self, memory: &Memory, byte: u8) -> Result<(), DeviceError> {
        self.own("the memory", memory)?;
        self.device.bind()?;
        // SAFETY: the range was allocated, and stays so: freeing it waits for the device, and a recording keeps it.
        unsafe { result::memset_d8_async(memory.at(), byte, memory.bytes, self.stream.cu_stream()) }
            .map_err(refused(format!("fill {} bytes", memory.bytes)))?;
        self.keep(&[memory], None);
        Ok(())
    }

    /// Records what `work` puts into the stream, instead of doing it.
    ///
    /// # Errors
    ///
    /// If `work` fails, the stream is being recorded already, or the driver cannot make a graph of it.
    pub fn record(&self, work: impl FnOnce() -> Result<(), DeviceError>) -> Result<Graph, DeviceError> {
        self.not_recording("a recording")?;
        self.device.bind()?;
        // Relaxed: memory may be allocated and freed meanwhile, which is none of the graph's business.
        self.stream
            .begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED)
            .map_err(refused("record a stream"))?;
        *self.recording() = Some(Recording::default());
        let done = work();
        let kept = self.recording().take().unwrap_or_default();
        let graph = self.stream.end_capture(sys::CUgraphInstantiate_flags(0));
        done?;
        let graph = graph.map_err(refused("make a graph of what was recorded"))?;
        Ok(Graph { graph, kept, stream: self.stream.clone() })
    }

    /// Marks this place in the stream.
    ///
    /// # Errors
    ///
    /// If the driver is older than 12.8.
    pub fn mark(&self) -> Result<Mark, DeviceError> {
        if self.device.about.driver < TIMING {
            let found = self.device.about.driver;
            return Err(DeviceError::OldDriver { what: "measuring time on the device", found, needed: TIMING });
        }
        let event = self.stream.record_event(Some(sys::CUevent_flags::CU_EVENT_DEFAULT));
        Ok(Mark(event.map_err(refused("mark a place in a stream"))?))
    }

    /// Puts a kernel into the stream.
    ///
    /// # Errors
    ///
    /// If the driver refuses it.
    ///
    /// # Safety
    ///
    /// `A` has to be the one parameter of the kernel, what it points to has to be as large as the kernel expects, and all of that
    /// memory has to be among `uses`.
    pub(super) unsafe fn launch<A>(
        &self,
        kernel: &Kernel,
        grid: Grid,
        arguments: &A,
        uses: &[&Memory],
    ) -> Result<(), DeviceError> {
        self.device.bind()?;
        let mut overlap = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
        };
        let config = sys::CUlaunchConfig {
            gridDimX: grid.blocks[0],
            gridDimY: grid.blocks[1],
            gridDimZ: 1,
            blockDimX: grid.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: grid.shared,
            hStream: self.stream.cu_stream(),
            attrs: &raw mut overlap,
            numAttrs: u32::from(self.overlap && kernel.waits),
        };
        let mut parameters = [std::ptr::from_ref(arguments).cast_mut().cast::<c_void>()];
        // SAFETY: the kernel has one parameter, which is `arguments` by this function's contract; the driver copies it before
        // it returns. What it points to lives on: memory is freed only when the device has nothing left to do, and
        // a recording keeps it.
        unsafe {
            sys::cuLaunchKernelEx(
                &raw const config,
                kernel.function.cu_function(),
                parameters.as_mut_ptr(),
                std::ptr::null_mut(),
            )
            .result()
        }
        .map_err(refused("launch a kernel"))?;
        self.keep(uses, Some(kernel));
        Ok(())
    }

    /// `Ok` if the memory is on the stream's device.
    pub(super) fn own(&self, what: &'static str, memory: &Memory) -> Result<(), DeviceError> {
        if memory.is_of(&self.device) { Ok(()) } else { Err(DeviceError::Foreign { what, whose: "device" }) }
    }

    /// A number that no other stream has while this one lives.
    pub(super) fn id(&self) -> usize {
        self.stream.cu_stream().addr()
    }

    fn recording(&self) -> std::sync::MutexGuard<'_, Option<Recording>> {
        self.recorded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep(&self, memory: &[&Memory], kernel: Option<&Kernel>) {
        if let Some(recording) = &mut *self.recording() {
            recording.memory.extend(memory.iter().copied().cloned());
            recording.kernels.extend(kernel.cloned());
        }
    }

    fn not_recording(&self, what: &'static str) -> Result<(), DeviceError> {
        if self.recording().is_some() { Err(DeviceError::Recording { what }) } else { Ok(()) }
    }
}

fn same_length(memory: &Memory, bytes: usize) -> Result<(), DeviceError> {
    if memory.bytes == bytes {
        return Ok(());
    }
    let expected = format!("{bytes} bytes, as many as are copied");
    Err(DeviceError::Shape { what: "the memory", found: memory.bytes, expected })
}

/// Work that was recorded, to be done as often as it is asked for.
pub struct Graph {
    /// `None` if nothing was recorded.
    graph: Option<CudaGraph>,
    kept: Recording,
    stream: Arc<CudaStream>,
}

impl fmt::Debug for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Graph").field("kernels", &self.kernels()).finish_non_exhaustive()
    }
}

impl Graph {
    /// Puts all of it into the stream that it was recorded from.
    ///
    /// # Errors
    ///
    /// If the driver refuses it, or something that was recorded cannot be done.
    pub fn launch(&self) -> Result<(), DeviceError> {
        self.graph.as_ref().map_or(Ok(()), |graph| graph.launch().map_err(refused("launch a graph")))
    }

    /// How many kernels it runs.
    pub fn kernels(&self) -> usize {
        self.kept.kernels.len()
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // What the graph uses is given back only when the device is done with it.
        let _ = self.stream.synchronize();
    }
}

/// A place in a stream whose time is taken.
#[derive(Debug)]
pub struct Mark(CudaEvent);

impl Mark {
    /// Seconds from this mark to a later one, which are waited for.
    ///
    /// # Errors
    ///
    /// If the work between them failed.
    pub fn seconds_to(&self, later: &Mark) -> Result<f64, DeviceError> {
        let ms = self.0.elapsed_ms(&later.0).map_err(refused("measure time"))?;
        Ok(f64::from(ms) / 1e3)
    }
}
