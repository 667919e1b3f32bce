//! Scales and zero points of one output channel, as floats.

use super::buffer::Buffer;
use super::{Decode, Weight};
use crate::dense::convert::{FloatType, convert};
use crate::error::Error;
use crate::format::Scales;
use crate::simd::{MOST_BYTES, Simd};

/// Bytes of packed zero points that are unpacked in one go.
const PACKED: usize = 16;

/// Zero points in [`PACKED`] bytes, at most.
const MOST_ZEROS: usize = 4 * PACKED;

/// Scales of a channel and minus their products with its zero points, with zeros after the last group.
#[derive(Default)]
pub(crate) struct Channel {
    scales: Buffer<f32>,
    offsets: Buffer<f32>,
}

impl Channel {
    /// Makes room for rows of this many groups.
    pub(crate) fn reserve(&mut self, padded_groups: usize) {
        self.scales.zeroed(padded_groups + MOST_ZEROS);
        self.offsets.zeroed(padded_groups + MOST_ZEROS);
    }

    /// `[groups]`, then zeros.
    #[inline(always)]
    pub(crate) fn scales(&self) -> &[f32] {
        self.scales.as_slice()
    }

    /// `[groups]`: minus scale times zero point, then zeros.
    #[inline(always)]
    pub(crate) fn offsets(&self) -> &[f32] {
        self.offsets.as_slice()
    }

    /// Reads channel `channel`.
    ///
    /// # Errors
    ///
    /// If a zero point is not a code.
    #[inline(always)]
    pub(crate) fn read<S: Simd, D: Decode>(&mut self, s: S, w: &Weight<'_>, channel: usize) -> Result<(), Error> {
        let groups = w.layout.groups;
        let scales = self.scales.as_mut_slice();
        let places = channel * groups..(channel + 1) * groups;
        match w.scales {
            Scales::F32(all) => scales[..groups].copy_from_slice(&all[places]),
            Scales::F16(all) => {
                for (out, scale) in scales.iter_mut().zip(&all[places]) {
                    *out = scale.to_f32();
                }
            }
            Scales::Bytes(FloatType::F16, bytes) => halves(s, &bytes[2 * places.start..], groups, scales),
            Scales::Bytes(float, bytes) => {
                convert(float, &bytes[places.start * float.size()..places.end * float.size()], &mut scales[..groups]);
            }
        }
        self.read_offsets::<D>(w, channel, groups)
    }

    /// Minus zero points times scales.
    #[inline(always)]
    fn read_offsets<D: Decode>(&mut self, w: &Weight<'_>, channel: usize, groups: usize) -> Result<(), Error> {
        let scales = self.scales.as_slice();
        let offsets = self.offsets.as_mut_slice();
        let Some(packed) = w.zero_points else {
            let zero = (1u32 << (D::BITS - 1)) as f32;
            for (offset, scale) in offsets.iter_mut().zip(scales) {
                *offset = -zero * scale;
            }
            return Ok(());
        };
        let per_byte = 8 / D::ZERO_BITS as usize;
        let bytes = groups.div_ceil(per_byte);
        let packed = &packed[channel * bytes..];
        let per_chunk = per_byte * PACKED;
        for group in (0..groups).step_by(per_chunk) {
            // Sixteen bytes, of which those behind the row belong to others: their scales are 0.
            let some = &packed[group / per_byte..];
            let chunk = some.first_chunk().copied().unwrap_or_else(|| {
                let mut chunk = [0; PACKED];
                chunk[..some.len()].copy_from_slice(some);
                chunk
            });
            let left = groups - group;
            let (scales, offsets) = (&scales[group..group + per_chunk], &mut offsets[group..group + per_chunk]);
            match D::ZERO_BITS {
                4 => {
                    if D::BITS < 4 {
                        check(&chunk, left, D::BITS).map_err(|(i, value)| Error::ZeroPoint {
                            row: channel,
                            group: group + i,
                            value,
                            bits: D::BITS,
                        })?;
                    }
                    scale_zeros::<2>(&chunk, scales, offsets);
                }
                2 => scale_zeros::<4>(&chunk, scales, offsets),
                _ => scale_zeros::<1>(&chunk, scales, offsets),
            }
        }
        Ok(())
    }
}

/// `offset = -zero * scale` for the zero points of a chunk, `PER` to a byte, the first in the lowest bits.
#[inline(always)]
fn scale_zeros<const PER: usize>(chunk: &[u8; PACKED], scales: &[f32], offsets: &mut [f32]) {
    let (scales, offsets) = (scales.as_chunks::<PER>().0, offsets.as_chunks_mut::<PER>().0);
    for ((offsets, scales), &byte) in offsets.iter_mut().zip(scales).zip(chunk) {
        for (i, (offset, scale)) in offsets.iter_mut().zip(scales).enumerate() {
            *offset = -f32::from(byte >> (i * 8 / PER) & (0xff >> (8 - 8 / PER))) * scale;
        }
    }
}

/// The first of the first `left` nibbles that is no code of `bits` bits, and its value.
#[inline(always)]
fn check(chunk: &[u8; PACKED], left: usize, bits: u32) -> Result<(), (usize, u8)> {
    let above = u128::from_le_bytes([0x11 * (0x0f << bits & 0x0f); PACKED]);
    let counted = if left < 2 * PACKED { (1 << (4 * left)) - 1 } else { u128::MAX };
    let wrong = u128::from_le_bytes(*chunk) & above & counted;
    if wrong == 0 {
        return Ok(());
    }
    let place = wrong.trailing_zeros() as usize / 4;
    Err((place, chunk[place / 2] >> (4 * (place % 2)) & 0x0f))
}

/// The first `count` IEEE half floats of `bytes`, at any address, to f32, then zeros: a register of them at least.
#[inline(always)]
#[expect(unsafe_code, reason = "registers are loaded from and stored to slices by pointer")]
fn halves<S: Simd>(s: S, bytes: &[u8], count: usize, out: &mut [f32]) {
    let lanes = S::WIDTH / 4;
    for i in (0..count).step_by(lanes) {
        let bytes = &bytes[2 * i..];
        let out = &mut out[i..i + lanes];
        if bytes.len() >= 2 * lanes {
            // SAFETY: two bytes to each lane; the slice of the output is a register long.
            unsafe { s.store_floats(s.load_halves(bytes.as_ptr()), out.as_mut_ptr()) }
        } else {
            let mut some = [0u8; MOST_BYTES];
            some[..bytes.len()].copy_from_slice(bytes);
            // SAFETY: the array holds a register of the widest set.
            unsafe { s.store_floats(s.load_halves(some.as_ptr()), out.as_mut_ptr()) }
        }
    }
    // SAFETY: the slice is a register long.
    unsafe { s.store_floats(s.floats(0.0), out[count..count + lanes].as_mut_ptr()) }
}
