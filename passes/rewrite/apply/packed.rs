//! Packed weights, made when the writer asks for them.

use std::sync::{Arc, Mutex, MutexGuard};

use mbqc_kernels::affine::{Codes, ScaleType};
use mbqc_kernels::{Format, Pool, Spec};

use crate::facts::sites::Site;
use crate::ir::{DType, GraphPath, Lazy, Sink, Tensor};
use crate::plan::RangeRule;
use crate::weights::{Matrix, Scaling};

/// Everything that the packed bytes of a layer depend on: layers for which it is equal share them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Packing {
    owner: GraphPath,
    weight: String,
    rows_are_outputs: bool,
    read_as: DType,
    spec: String,
    container: &'static str,
    range: RangeRule,
    scale: ScaleType,
    columns: Vec<u32>,
    rows: Vec<u32>,
    all: Option<u32>,
}

impl Packing {
    pub(super) fn of(site: &Site, source: &PackedSource) -> Packing {
        let bits = |values: &Option<Vec<f32>>| values.iter().flatten().map(|v| v.to_bits()).collect();
        Packing {
            owner: site.weight.owner.clone(),
            weight: site.weight.name.clone(),
            rows_are_outputs: site.weight.rows_are_outputs,
            read_as: site.weight.read_as,
            spec: source.spec.to_string(),
            container: source.container.name,
            range: source.range,
            scale: source.scale,
            columns: bits(&source.scaling.columns),
            rows: bits(&source.scaling.rows),
            all: source.scaling.all.map(f32::to_bits),
        }
    }
}

/// Quantizes a weight when the writer asks, block by block. Each of the three parts comes out of the same pass over the
/// weight: scales and zero points, the small ones, wait from then on until they are asked for, which is soon, since they
/// follow the codes in the file. A part that is asked for again is made anew.
pub(super) struct PackedSource {
    pub(super) matrix: Matrix,
    pub(super) scaling: Scaling,
    pub(super) spec: Spec,
    /// The format whose bytes are stored: another one than the codes' where 3-bit codes go into 4-bit containers.
    pub(super) container: &'static Format,
    pub(super) range: RangeRule,
    pub(super) scale: ScaleType,
    pub(super) pool: Arc<Pool>,
    pub(super) waiting: Mutex<Waiting>,
}

/// Parts that were made and not yet asked for.
#[derive(Default)]
pub(super) struct Waiting {
    scales: Option<Vec<u8>>,
    zero_points: Option<Vec<u8>>,
}

impl PackedSource {
    /// Hands the packed codes to `sink`.
    pub(super) fn codes(&self, sink: &mut Sink<'_>) -> Result<(), String> {
        let dtype = self.matrix.weight.read_as;
        let (mut scales, mut zero_points) = (Vec::new(), Vec::new());
        let pack = |codes| (self.container.pack)(&Codes { bits: self.container.bits, ..codes });
        let Self { matrix, scaling, spec, range, scale, pool, .. } = self;
        for packed in matrix.quantize_blocks(scaling, *spec, *range, *scale, pool, pack) {
            let packed = packed.map_err(|error| error.to_string())?;
            let stored = Tensor::floats(dtype, packed.shapes.scales, &packed.scales);
            let stored = stored.ok_or_else(|| format!("scales cannot be stored as {dtype}"))?;
            scales.extend_from_slice(stored.bytes());
            zero_points.extend_from_slice(&packed.zero_points);
            sink(&packed.b)?;
        }
        let mut waiting = self.waiting()?;
        *waiting = Waiting { scales: Some(scales), zero_points: Some(zero_points) };
        Ok(())
    }

    pub(super) fn scales(&self, sink: &mut Sink<'_>) -> Result<(), String> {
        sink(&self.small(|waiting| waiting.scales.take())?)
    }

    pub(super) fn zero_points(&self, sink: &mut Sink<'_>) -> Result<(), String> {
        sink(&self.small(|waiting| waiting.zero_points.take())?)
    }

    fn small(&self, take: fn(&mut Waiting) -> Option<Vec<u8>>) -> Result<Vec<u8>, String> {
        let found = take(&mut *self.waiting()?);
        if let Some(found) = found {
            return Ok(found);
        }
        self.codes(&mut |_| Ok(()))?;
        let made = take(&mut *self.waiting()?);
        made.ok_or_else(|| "another thread took the part that was just made".to_owned())
    }

    fn waiting(&self) -> Result<MutexGuard<'_, Waiting>, String> {
        self.waiting.lock().map_err(|_| "a worker panicked".to_owned())
    }
}

pub(super) fn lazy(
    dtype: DType,
    dims: Vec<usize>,
    source: &Arc<PackedSource>,
    part: fn(&PackedSource, &mut Sink<'_>) -> Result<(), String>,
) -> Tensor {
    let source = Arc::clone(source);
    let len = dtype.bytes_for(dims.iter().product()).unwrap_or(0);
    Tensor::lazy(dtype, dims, Lazy::in_pieces(len, move |sink| part(&source, sink)))
}
