//! Memory in which the blocks of a product meet.

use std::sync::Arc;

use super::driver::{Device, Memory, Stream};
use super::error::DeviceError;
use super::spread::Spread;
use super::weight::{DeviceWeight, ROWS_AT_ONCE, memory};

/// Memory in which the blocks of a product meet. It serves one product after another on one stream.
#[derive(Debug)]
pub struct Workspace {
    stream: usize,
    partial: Memory,
    arrived: Memory,
}

impl Workspace {
    /// For the products of these weights with any number of token rows, in `spread` or as is thought best, on one stream.
    ///
    /// # Errors
    ///
    /// If memory is short, or one of the weights' products cannot be dealt out in `spread`.
    pub fn new(stream: &Stream, weights: &[&DeviceWeight], spread: Option<Spread>) -> Result<Workspace, DeviceError> {
        let device: &Arc<Device> = stream.device();
        if let Some(spread) = spread {
            weights.iter().try_for_each(|weight| weight.checked(spread).map(|_| ()))?;
        }
        let sizes = weights.iter().flat_map(|weight| {
            let spreads = (1..=ROWS_AT_ONCE).map(|rows| spread.unwrap_or_else(|| weight.spread(rows)));
            let many = if spread.is_none() { weight.middle_workspace() } else { (0, 0) };
            spreads.map(|spread| weight.workspace(spread)).chain([many])
        });
        let (partial, arrived) = sizes.fold((0, 0), |most, size| (most.0.max(size.0), most.1.max(size.1)));
        let workspace =
            Workspace { stream: stream.id(), partial: device.memory(partial)?, arrived: device.memory(arrived)? };
        // Every product leaves the counts at zero, as it found them.
        stream.fill(&workspace.arrived, 0)?;
        stream.synchronize()?;
        Ok(workspace)
    }

    /// `Ok` if it is the stream's and has so many bytes of partial sums and of counts.
    pub(super) fn check(&self, stream: &Stream, partial: usize, arrived: usize) -> Result<(), DeviceError> {
        if self.stream != stream.id() {
            return Err(DeviceError::Foreign { what: "the workspace", whose: "stream" });
        }
        memory(stream, "the workspace's partial sums", &self.partial, partial, 4)?;
        memory(stream, "the workspace's counts", &self.arrived, arrived, 4)
    }

    /// Partial sums, and counts.
    pub(super) fn memory(&self) -> [&Memory; 2] {
        [&self.partial, &self.arrived]
    }

    /// Bytes that it takes.
    pub fn bytes(&self) -> usize {
        self.partial.bytes() + self.arrived.bytes()
    }
}
