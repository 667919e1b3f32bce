//! Scales and zero points of one output channel, as floats.

use super::buffer::Buffer;
use super::{Decode, Weight};
use crate::dense::convert::{FloatType, convert};
use crate::error::Error;
use crate::format::Scales;
use crate::simd::{MOST_BYTES, Simd};

/// Bytes of packed zero points that are unpacked in one go.
const PACKED: usize = 16;

/// Whether stored floats are floats as they lie.
const LITTLE_ENDIAN: bool = cfg!(target_endian = "little");

/// How many channels ahead scales are asked for.
const PREFETCHED: usize = 8;

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
        prefetch(s, w.scales, places.start + PREFETCHED * groups, groups);
        match w.scales {
            Scales::F32(all) => scales[..groups].copy_from_slice(&all[places]),
            Scales::F16(all) => {
                for (out, scale) in scales.iter_mut().zip(&all[places]) {
                    *out = scale.to_f32();
                }
            }
            Scales::Bytes(FloatType::F16, bytes) if LITTLE_ENDIAN => {
                widen::<S, true>(s, &bytes[2 * places.start..], groups, scales)
            }
            Scales::Bytes(FloatType::F32, bytes) if LITTLE_ENDIAN => {
                widen::<S, false>(s, &bytes[4 * places.start..], groups, scales)
            }
            Scales::Bytes(float, bytes) => {
                convert(float, &bytes[places.start * float.size()..places.end * float.size()], &mut scales[..groups]);
            }
        }
        // Where sums are exact, the sum of the activations is taken away from them.
        if D::WHOLE_ROWS { Ok(()) } else { self.read_offsets::<S, D>(s, w, channel, groups) }
    }

    /// Minus zero points times scales.
    #[inline(always)]
    fn read_offsets<S: Simd, D: Decode>(
        &mut self,
        s: S,
        w: &Weight<'_>,
        channel: usize,
        groups: usize,
    ) -> Result<(), Error> {
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
            let mut padded = [0; PACKED];
            let chunk = some.first_chunk().unwrap_or_else(|| {
                padded[..some.len()].copy_from_slice(some);
                &padded
            });
            let left = groups - group;
            if D::ZERO_BITS > D::BITS {
                check(chunk, left, D::BITS).map_err(|(i, value)| Error::ZeroPoint {
                    row: channel,
                    group: group + i,
                    value,
                    bits: D::BITS,
                })?;
            }
            let (scales, offsets) = (&scales[group..group + per_chunk], &mut offsets[group..group + per_chunk]);
            let upto = left.next_multiple_of(S::WIDTH / 4).min(per_chunk);
            match D::ZERO_BITS {
                2 => scale_zeros::<S, 2>(s, chunk, &scales[..upto], &mut offsets[..upto]),
                4 => scale_zeros::<S, 4>(s, chunk, &scales[..upto], &mut offsets[..upto]),
                _ => scale_zeros::<S, 8>(s, chunk, &scales[..upto], &mut offsets[..upto]),
            }
        }
        Ok(())
    }
}

/// Asks for `count` scales from `first` on. They lie apart from the codes, too few at a time for the processor to see that they
/// are read one after the other.
#[inline(always)]
fn prefetch<S: Simd>(s: S, scales: Scales<'_>, first: usize, count: usize) {
    let (start, size) = match scales {
        Scales::F32(all) => (all.as_ptr().cast::<u8>(), 4),
        Scales::F16(all) => (all.as_ptr().cast::<u8>(), 2),
        Scales::Bytes(float, bytes) => (bytes.as_ptr(), float.size()),
    };
    for byte in (0..count * size).step_by(64) {
        s.prefetch(start.wrapping_add(first * size + byte));
    }
}

/// `offset = -zero * scale` for the first zero points of a chunk, of `BITS` bits: as many as there are scales, whole registers
/// of them.
#[inline(always)]
#[expect(unsafe_code, reason = "registers are loaded from and stored to slices by pointer")]
fn scale_zeros<S: Simd, const BITS: u32>(s: S, zeros: &[u8; PACKED], scales: &[f32], offsets: &mut [f32]) {
    let lanes = S::WIDTH / 4;
    assert!(scales.len() == offsets.len() && scales.len() * BITS as usize <= 8 * PACKED);
    for i in (0..scales.len() / lanes * lanes).step_by(lanes) {
        // SAFETY: `i + lanes` is no more than both lengths, nor than the zero points in a chunk.
        unsafe {
            let scale = s.mul(s.load_floats(scales.as_ptr().add(i)), s.floats(-1.0));
            let zeros = s.load_small::<BITS>(zeros.as_ptr().add(i * BITS as usize / 8));
            s.store_floats(s.mul(zeros, scale), offsets.as_mut_ptr().add(i));
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

/// The first `count` floats of `bytes`, in half precision or single, at any address, then a register of zeros at least.
#[inline(always)]
#[expect(unsafe_code, reason = "registers are loaded from and stored to slices by pointer")]
fn widen<S: Simd, const HALF: bool>(s: S, bytes: &[u8], count: usize, out: &mut [f32]) {
    let (lanes, size) = (S::WIDTH / 4, if HALF { 2 } else { 4 });
    for i in (0..count).step_by(lanes) {
        let bytes = &bytes[size * i..];
        let out = &mut out[i..i + lanes];
        let mut some = [0u8; MOST_BYTES];
        let at = if bytes.len() >= size * lanes {
            bytes.as_ptr()
        } else {
            some[..bytes.len()].copy_from_slice(bytes);
            some.as_ptr()
        };
        // SAFETY: at least a register's floats lie in the slice or in the array, which holds those of the widest set; the
        // slice of the output is a register long.
        unsafe {
            let floats = if HALF { s.load_halves(at) } else { s.load_floats(at.cast()) };
            s.store_floats(floats, out.as_mut_ptr());
        }
    }
    // SAFETY: the slice is a register long.
    unsafe { s.store_floats(s.floats(0.0), out[count..count + lanes].as_mut_ptr()) }
}
