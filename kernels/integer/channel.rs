//! Scales and zero points of one output channel, as floats.

use super::buffer::Buffer;
use super::{Decode, Weight};
use crate::dense::convert::{FloatType, convert};
use crate::error::Error;
use crate::format::Scales;
use crate::simd::{MOST_BYTES, Simd};

/// Whether stored floats are floats as they lie.
const LITTLE_ENDIAN: bool = cfg!(target_endian = "little");

/// How many channels ahead scales are asked for.
const PREFETCHED: usize = 8;

/// How many channels ahead zero points are asked for.
const FAR: usize = 64;

/// Scales of a channel and minus their products with its zero points, with zeros after the last group.
#[derive(Default)]
pub(crate) struct Channel {
    scales: Buffer<f32>,
    offsets: Buffer<f32>,
    /// What is stored for a channel, where whole registers would reach beyond the end of the tensor.
    stored: Buffer<u8>,
}

impl Channel {
    /// Makes room for rows of this many groups.
    pub(crate) fn reserve(&mut self, padded_groups: usize) {
        let groups = padded_groups + MOST_BYTES / 4;
        self.scales.zeroed(groups);
        self.offsets.zeroed(groups);
        self.stored.sized(groups * size_of::<f32>());
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
                let bytes = whole::<S>(&bytes[2 * places.start..], groups, 16, &mut self.stored);
                widen::<S, true>(s, bytes, groups, scales);
            }
            Scales::Bytes(FloatType::F32, bytes) if LITTLE_ENDIAN => {
                let bytes = whole::<S>(&bytes[4 * places.start..], groups, 32, &mut self.stored);
                widen::<S, false>(s, bytes, groups, scales);
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
        let bytes = groups.div_ceil(8 / D::ZERO_BITS as usize);
        s.prefetch(packed.as_ptr().wrapping_add((channel + FAR) * bytes));
        let packed = &packed[channel * bytes..];
        let own = whole::<S>(packed, groups, D::ZERO_BITS as usize, &mut self.stored);
        if D::ZERO_BITS > D::BITS && !are_codes(own, D::BITS) {
            check(&packed[..bytes], groups, D::BITS).map_err(|(group, value)| Error::ZeroPoint {
                row: channel,
                group,
                value,
                bits: D::BITS,
            })?;
        }
        match D::ZERO_BITS {
            2 => scale_zeros::<S, 2>(s, own, groups, scales, offsets),
            4 => scale_zeros::<S, 4>(s, own, groups, scales, offsets),
            _ => scale_zeros::<S, 8>(s, own, groups, scales, offsets),
        }
        Ok(())
    }
}

/// `count` numbers of `bits` bits and as many more as fill a register of floats: `bytes`, or a copy where they end before.
#[inline(always)]
fn whole<'a, S: Simd>(bytes: &'a [u8], count: usize, bits: usize, copy: &'a mut Buffer<u8>) -> &'a [u8] {
    let needed = count.next_multiple_of(S::WIDTH / 4) * bits / 8;
    if bytes.len() >= needed {
        return &bytes[..needed];
    }
    let copy = &mut copy.as_mut_slice()[..needed];
    copy[..bytes.len()].copy_from_slice(bytes);
    copy
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

/// `offset = -zero * scale` for `count` zero points of `BITS` bits; what is behind has scales of zero.
#[inline(always)]
#[expect(unsafe_code, reason = "registers are loaded from and stored to slices by pointer")]
fn scale_zeros<S: Simd, const BITS: u32>(s: S, zeros: &[u8], count: usize, scales: &[f32], offsets: &mut [f32]) {
    let lanes = S::WIDTH / 4;
    let end = count.next_multiple_of(lanes);
    assert!(scales.len() >= end && offsets.len() >= end && zeros.len() >= end * BITS as usize / 8);
    for i in (0..end).step_by(lanes) {
        // SAFETY: `i + lanes` is no more than `end`, and as much was seen to be there.
        unsafe {
            let scale = s.mul(s.load_floats(scales.as_ptr().add(i)), s.floats(-1.0));
            let zeros = s.load_small::<BITS>(zeros.as_ptr().add(i * BITS as usize / 8));
            s.store_floats(s.mul(zeros, scale), offsets.as_mut_ptr().add(i));
        }
    }
}

/// Whether all nibbles, a multiple of four, are codes of `bits` bits.
#[inline(always)]
fn are_codes(packed: &[u8], bits: u32) -> bool {
    let above = [0x11 * (0x0f << bits & 0x0f); 2];
    let seen = packed.as_chunks().0.iter().fold(0, |seen, pair| seen | u16::from_ne_bytes(*pair));
    seen & u16::from_ne_bytes(above) == 0
}

/// The first of `count` nibbles that is no code of `bits` bits, and its value.
#[cold]
#[inline(never)]
fn check(packed: &[u8], count: usize, bits: u32) -> Result<(), (usize, u8)> {
    let nibbles = packed.iter().flat_map(|byte| [byte & 0x0f, byte >> 4]);
    let wrong = nibbles.take(count).enumerate().find(|(_, nibble)| nibble >> bits != 0);
    wrong.map_or(Ok(()), Err)
}

/// `count` floats of `bytes`, in half precision or single, at any address, then a register of zeros at least.
#[inline(always)]
#[expect(unsafe_code, reason = "registers are loaded from and stored to slices by pointer")]
fn widen<S: Simd, const HALF: bool>(s: S, bytes: &[u8], count: usize, out: &mut [f32]) {
    let (lanes, size) = (S::WIDTH / 4, if HALF { 2 } else { 4 });
    let end = count.next_multiple_of(lanes);
    assert!(bytes.len() >= size * end && out.len() >= count + lanes && out.len() >= end);
    // SAFETY: `i + lanes` is no more than `end`, and as much was seen to be there; so was a register behind `count`.
    unsafe {
        for i in (0..end).step_by(lanes) {
            let at = bytes.as_ptr().add(size * i);
            let floats = if HALF { s.load_halves(at) } else { s.load_floats(at.cast()) };
            s.store_floats(floats, out.as_mut_ptr().add(i));
        }
        s.store_floats(s.floats(0.0), out.as_mut_ptr().add(count));
    }
}
