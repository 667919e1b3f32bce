//! What can be wrong with a device, its memory, or what it is asked for.

use crate::error::Error;

/// The error of everything that touches a CUDA device.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// The driver's library is not there.
    #[error(
        "there is no CUDA driver on this machine (its library, libcuda, cannot be loaded); install NVIDIA's driver, or use the CPU"
    )]
    NoDriver,
    /// NVIDIA's library of matrix products is not there.
    #[error("cuBLASLt, which multiplies by many token rows, cannot be loaded; install the CUDA toolkit's libraries")]
    NoBlas,
    /// The driver is older than what is asked of it.
    #[error(
        "the CUDA driver is of version {}.{}, but {what} takes {}.{}; update NVIDIA's driver",
        found.0, found.1, needed.0, needed.1
    )]
    OldDriver {
        /// What needs a newer one.
        what: &'static str,
        /// Major and minor version of CUDA that it brings.
        found: (u32, u32),
        /// The least that will do.
        needed: (u32, u32),
    },
    /// There is no device of that number.
    #[error("there is no CUDA device {ordinal}: this machine has {count}")]
    NoDevice {
        /// Which was asked for, from 0 on.
        ordinal: usize,
        /// How many there are.
        count: usize,
    },
    /// The driver refused a call.
    #[error("the CUDA driver cannot {what}: {name} ({code}), {text}")]
    Driver {
        /// What it was asked to do.
        what: String,
        /// Name of the error.
        name: String,
        /// Its number.
        code: u32,
        /// What the driver says of it.
        text: String,
    },
    /// The device's memory is full.
    #[error("{device} has no room for {bytes} bytes: {free} of {total} are free")]
    OutOfMemory {
        /// Name of the device.
        device: String,
        /// What was asked for.
        bytes: usize,
        /// What is free.
        free: usize,
        /// All there is.
        total: usize,
    },
    /// No form of a kernel runs on a device.
    #[error("the kernels of {unit} cannot be loaded on {device} (sm_{}{}): {tried}; what is shipped takes sm_80 or newer and a driver for CUDA 13.0 (580) or newer", capability.0, capability.1)]
    Image {
        /// Which kernels.
        unit: &'static str,
        /// Name of the device.
        device: String,
        /// Its compute capability.
        capability: (u32, u32),
        /// Each form with the reason why it was refused.
        tried: String,
    },
    /// An argument is smaller than the shapes say, or a size is none that there is a kernel for.
    #[error("{what} is {found}, expected {expected}")]
    Shape {
        /// Which argument or size.
        what: &'static str,
        /// Its size.
        found: usize,
        /// What would do.
        expected: String,
    },
    /// Device memory at an address that a kernel cannot use.
    #[error("{what} begins at byte {start} of its memory, which is no multiple of {alignment}")]
    Unaligned {
        /// Which argument.
        what: &'static str,
        /// Where it begins in its allocation.
        start: usize,
        /// What it has to be a multiple of, in bytes.
        alignment: usize,
    },
    /// An argument belongs to another device or stream.
    #[error("{what} belongs to another {whose} than the stream that is to use it")]
    Foreign {
        /// Which argument.
        what: &'static str,
        /// `device` or `stream`.
        whose: &'static str,
    },
    /// Something that has to happen now, on a stream whose work is being recorded for later.
    #[error("{what} cannot be recorded in a graph; do it before or after")]
    Recording {
        /// What was asked for.
        what: &'static str,
    },
    /// A weight that is multiplied in integers was to become 16-bit numbers.
    #[error("{format} is multiplied in integers and has no 16-bit numbers on a device; products take it as it is")]
    NoGroups {
        /// Name of the format.
        format: &'static str,
    },
    /// A device without the kernels for 256 token rows at once.
    #[error("{device} has no kernels for 256 token rows at once: {why}; other products take any device")]
    NoWide {
        /// Name of the device.
        device: String,
        /// What it lacks, or how each form of the kernels was refused.
        why: String,
    },
    /// What is wrong with a stored weight.
    #[error(transparent)]
    Weight(#[from] Error),
}
