//! Streams: what is put into them, records of it, and times.

use std::ffi::c_void;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::sys;
use cudarc::driver::{CudaEvent, CudaGraph, CudaStream, DriverError, result};

use super::blas::Handle;
use super::{Device, Kernel, Memory, refused};
use crate::cuda::error::DeviceError;

/// The oldest driver that measures time between events as cudarc asks for it.
const TIMING: (u32, u32) = (12, 8);

/// The oldest driver that records programmatic dependent launches in graphs.
const OVERLAP: (u32, u32) = (12, 3);

impl Device {
    /// A queue of work. Work of different streams is not ordered.
    ///
    /// # Errors
    ///
    /// If the driver has no more of them.
    pub fn stream(self: &Arc<Self>) -> Result<Stream, DeviceError> {
        let stream = self.context.new_stream().map_err(refused("make a stream"))?;
        let overlap = self.about.capability.0 >= 9 && self.about.driver >= OVERLAP;
        Ok(Stream { device: self.clone(), stream, overlap, recorded: Recorded::default() })
    }
}

/// How a kernel is spread out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grid {
    pub(crate) blocks: [u32; 2],
    pub(crate) threads: u32,
    /// Bytes of dynamic shared memory of a block.
    pub(crate) shared: u32,
}

/// What a recording keeps alive.
#[derive(Default)]
struct Recording {
    memory: Vec<Memory>,
    kernels: Vec<Kernel>,
    blas: Vec<Arc<Handle>>,
    /// Graphs that were given up meanwhile: they must not be waited for before the recording has ended.
    graphs: Vec<CudaGraph>,
}

/// The recording of a stream, if there is one. Graphs share it: they have to know.
type Recorded = Arc<Mutex<Option<Recording>>>;

/// A recording that has begun, and is ended whatever happens.
struct Capture<'a>(&'a Stream);

impl Capture<'_> {
    fn end(&self) -> (Recording, Result<Option<CudaGraph>, DriverError>) {
        let end = || self.0.stream.end_capture(sys::CUgraphInstantiate_flags(0));
        // The first answer may be an error of before, which cudarc keeps for whoever comes next; then nothing has ended.
        let graph = match end() {
            Err(_) if self.0.still_recorded() => end(),
            other => other,
        };
        (self.0.recording().take().unwrap_or_default(), graph)
    }
}

impl Drop for Capture<'_> {
    fn drop(&mut self) {
        if self.0.recording().is_some() {
            drop(self.end());
        }
    }
}

/// A queue of work for a device: what is put into it happens in that order, some time later.
pub struct Stream {
    pub(super) device: Arc<Device>,
    pub(super) stream: Arc<CudaStream>,
    /// Whether a kernel may start before the one ahead of it has ended.
    overlap: bool,
    recorded: Recorded,
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
        if from.is_empty() {
            return Ok(());
        }
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
        if to.is_empty() {
            return Ok(());
        }
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
        if from.bytes == 0 {
            return Ok(());
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
        if memory.bytes == 0 {
            return Ok(());
        }
        self.device.bind()?;
        // SAFETY: the range was allocated, and stays so: freeing it waits for the device, and a recording keeps it.
        unsafe { result::memset_d8_async(memory.at(), byte, memory.bytes, self.stream.cu_stream()) }
            .map_err(refused(format!("fill {} bytes", memory.bytes)))?;
        self.keep(&[memory], None);
        Ok(())
    }

    /// Records what `work` puts into the stream, which it is given, instead of doing it.
    ///
    /// # Errors
    ///
    /// If `work` fails, or the driver cannot make a graph of it.
    pub fn record(&mut self, work: impl FnOnce(&Stream) -> Result<(), DeviceError>) -> Result<Graph, DeviceError> {
        self.device.bind()?;
        *self.recording() = Some(Recording::default());
        // Relaxed: memory may be allocated and freed meanwhile, which is none of the graph's business.
        let begun = self.stream.begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED);
        if let Err(error) = begun {
            self.recording().take();
            return Err(refused("record a stream")(error));
        }
        let capture = Capture(self);
        let done = work(self);
        let (kept, graph) = capture.end();
        done?;
        let graph = graph.map_err(refused("make a graph of what was recorded"))?;
        Ok(Graph { graph, kept, stream: self.stream.clone(), recorded: self.recorded.clone() })
    }

    /// Whether the driver still records.
    fn still_recorded(&self) -> bool {
        let status = self.stream.capture_status();
        !matches!(status, Ok(sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE))
    }

    /// Marks this place in the stream.
    ///
    /// # Errors
    ///
    /// If the driver is older than 12.8.
    pub fn mark(&self) -> Result<Mark, DeviceError> {
        self.not_recording("a mark")?;
        if self.device.about.driver < TIMING {
            let found = self.device.about.driver;
            return Err(DeviceError::OldDriver { what: "measuring time on the device", found, needed: TIMING });
        }
        let event = self.stream.record_event(Some(sys::CUevent_flags::CU_EVENT_DEFAULT));
        Ok(Mark(event.map_err(refused("mark a place in a stream"))?))
    }

    /// Launches a graph that often, each time while the one ahead of it runs, and waits: the seconds of each.
    ///
    /// # Errors
    ///
    /// If the graph was recorded from another stream, and as for [`Stream::mark`] and [`Graph::launch`].
    pub fn seconds(&self, graph: &Graph, launches: usize) -> Result<Vec<f64>, DeviceError> {
        if !Arc::ptr_eq(&graph.stream, &self.stream) {
            return Err(DeviceError::Foreign { what: "the graph", whose: "stream" });
        }
        let mut marks = vec![self.mark()?];
        for _ in 0..launches {
            graph.launch()?;
            marks.push(self.mark()?);
        }
        marks.windows(2).map(|pair| pair[0].seconds_to(&pair[1])).collect()
    }

    /// Lets what comes after wait for what is ahead of a mark in another stream of the device.
    ///
    /// # Errors
    ///
    /// If the stream is being recorded, or the mark is another device's.
    pub fn wait(&self, mark: &Mark) -> Result<(), DeviceError> {
        self.not_recording("waiting for a mark")?;
        if !Arc::ptr_eq(mark.0.context(), &self.device.context) {
            return Err(DeviceError::Foreign { what: "the mark", whose: "device" });
        }
        self.stream.wait(&mark.0).map_err(refused("wait for a mark"))
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
    pub(in crate::cuda) unsafe fn launch<A>(
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
    pub(crate) fn own(&self, what: &'static str, memory: &Memory) -> Result<(), DeviceError> {
        if memory.is_of(&self.device) { Ok(()) } else { Err(DeviceError::Foreign { what, whose: "device" }) }
    }

    /// A number that no other stream has while this one lives.
    pub(crate) fn id(&self) -> usize {
        self.stream.cu_stream().addr()
    }

    fn recording(&self) -> std::sync::MutexGuard<'_, Option<Recording>> {
        self.recorded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn keep(&self, memory: &[&Memory], kernel: Option<&Kernel>) {
        if let Some(recording) = &mut *self.recording() {
            recording.memory.extend(memory.iter().copied().cloned());
            recording.kernels.extend(kernel.cloned());
        }
    }

    pub(super) fn keep_blas(&self, handle: &Arc<Handle>) {
        if let Some(recording) = &mut *self.recording()
            && !recording.blas.iter().any(|kept| Arc::ptr_eq(kept, handle))
        {
            recording.blas.push(handle.clone());
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
    recorded: Recorded,
}

// SAFETY: the driver lets any thread use a graph, one at a time; it is not `Sync`.
unsafe impl Send for Graph {}

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
    /// If that stream is being recorded, the driver refuses it, or something that was recorded cannot be done.
    pub fn launch(&self) -> Result<(), DeviceError> {
        // Held until it is launched: another thread may be about to record the stream.
        let recorded = self.recorded.lock().unwrap_or_else(PoisonError::into_inner);
        if recorded.is_some() {
            return Err(DeviceError::Recording { what: "a graph" });
        }
        self.graph.as_ref().map_or(Ok(()), |graph| graph.launch().map_err(refused("launch a graph")))
    }

    /// How many kernels it runs.
    pub fn kernels(&self) -> usize {
        self.kept.kernels.len()
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // What the graph uses is given back only when the device is done with it. A stream that is being recorded must not be
        // waited for, so that the recording takes all of it over; and none may begin meanwhile.
        let mut recorded = self.recorded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(recording) = &mut *recorded {
            recording.memory.append(&mut self.kept.memory);
            recording.blas.append(&mut self.kept.blas);
            recording.graphs.append(&mut self.kept.graphs);
            recording.graphs.extend(self.graph.take());
            return;
        }
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
