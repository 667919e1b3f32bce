//! Up to 16 rows: every weight is decoded in registers and multiplied at once, so the weight is read from memory once.
//!
//! Channels are taken four at a time, k in pieces whose activations stay in the first-level cache. With one or two lines,
//! several channels share each load of activations and their sums do not wait for one another; with more, lines do that.

use super::activations::{Activations, MOST_LIMBS};
use super::channel::Channel;
use super::epilogue::Output;
use super::{Decode, SMALL, Weight};
use crate::error::Error;
use crate::simd::{Job, MOST_BYTES, Simd};
use std::cell::RefCell;
use std::marker::PhantomData;
use std::ops::Range;
use std::ptr;

/// Channels that are worked on together.
pub(super) const CHANNELS: usize = 4;

/// Lines that are multiplied in one pass over a channel.
const MOST_LINES: usize = 8;

/// All lines of [`SMALL`] rows.
const ALL_LINES: usize = MOST_LIMBS * SMALL;

/// Bytes of activations of a pass: half of a first-level cache, the other half is for weights.
const CACHED: usize = 16 << 10;

/// Bytes of the longest tile, three registers.
const MOST_TILE: usize = 3 * MOST_BYTES;

/// The products of some output channels with all lines.
pub(super) struct Small<'a, D> {
    w: &'a Weight<'a>,
    x: &'a Activations,
    y: &'a Output<'a>,
    channels: Range<usize>,
    decode: PhantomData<D>,
}

impl<'a, D: Decode> Small<'a, D> {
    /// Columns `channels` of `y`, which nobody else writes.
    pub(super) fn new(w: &'a Weight<'a>, x: &'a Activations, y: &'a Output<'a>, channels: Range<usize>) -> Self {
        Small { w, x, y, channels, decode: PhantomData }
    }
}

/// Four channels: their stored bytes, scales, and the last tile where it does not lie within the row.
struct Four<'a> {
    rows: [&'a [u8]; CHANNELS],
    scales: &'a [Channel; CHANNELS],
    tails: &'a [[u8; MOST_TILE]; CHANNELS],
}

/// Some lines of activations: which, and where their codes and the scales of their lanes begin.
struct Lines<const R: usize> {
    numbers: [usize; R],
    codes: [*const i8; R],
    scales: [*const f32; R],
}

/// What a thread keeps between calls; nothing is cleared that will be written.
struct Scratch {
    channels: [Channel; CHANNELS],
    /// The last tile of each channel, followed by zeros, where it does not lie within the row.
    tails: [[u8; MOST_TILE]; CHANNELS],
    /// Of four channels and of their partners.
    products: [Products; 2],
}

/// The products of four channels with all lines.
type Products = [[f32; ALL_LINES]; CHANNELS];

impl Default for Scratch {
    fn default() -> Scratch {
        Scratch {
            channels: Default::default(),
            tails: [[0; MOST_TILE]; CHANNELS],
            products: [[[0.0; ALL_LINES]; CHANNELS]; 2],
        }
    }
}

thread_local! {
    static SCRATCH: RefCell<Option<Box<Scratch>>> = const { RefCell::new(None) };
}

impl<D: Decode> Job for Small<'_, D> {
    type Output = Result<(), Error>;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Result<(), Error> {
        // Taken out of its cell: a closure would not be compiled for the instruction set.
        let mut scratch = SCRATCH.take().unwrap_or_default();
        for channel in &mut scratch.channels {
            channel.reserve(self.w.layout.padded_groups);
        }
        scratch.tails = [[0; MOST_TILE]; CHANNELS];
        let done = self.multiply(s, &mut scratch);
        SCRATCH.set(Some(scratch));
        done
    }
}

impl<D: Decode> Small<'_, D> {
    #[inline(always)]
    fn multiply<S: Simd>(&self, s: S, scratch: &mut Scratch) -> Result<(), Error> {
        let (lines, limbs) = (self.x.lines(), self.x.limbs());
        let Range { start, end } = self.channels;
        for first in (start..end).step_by(CHANNELS) {
            let count = (end - first).min(CHANNELS);
            self.four(s, scratch, first, count, lines, 0)?;
            let partner = self.y.partner(first);
            if let Some(partner) = partner {
                self.four(s, scratch, partner, count, lines, 1)?;
            }
            for j in 0..count {
                for row in 0..lines / limbs {
                    let sum = |of: usize| scratch.products[of][j][row * limbs..(row + 1) * limbs].iter().sum();
                    let up = if partner.is_some() { sum(1) } else { 0.0 };
                    #[expect(unsafe_code, reason = "threads write disjoint columns")]
                    // SAFETY: `channels` of this job are disjoint from those of others.
                    unsafe {
                        self.y.set(row, first + j, sum(0), up);
                    }
                }
            }
        }
        Ok(())
    }

    /// The products of four channels from `first` on with every line; where there are fewer, the last is taken again.
    #[inline(always)]
    fn four<S: Simd>(
        &self,
        s: S,
        scratch: &mut Scratch,
        first: usize,
        count: usize,
        lines: usize,
        which: usize,
    ) -> Result<(), Error> {
        let layout = &self.w.layout;
        let mut rows: [&[u8]; CHANNELS] = [&[]; CHANNELS];
        let whole = (layout.whole_tiles * layout.tile_bytes).min(layout.row_bytes);
        for (c, row) in rows.iter_mut().enumerate() {
            let channel = first + c.min(count - 1);
            scratch.channels[c].read::<S, D>(s, self.w, channel)?;
            *row = self.w.row(channel);
            if whole < layout.row_bytes {
                scratch.tails[c][..layout.row_bytes - whole].copy_from_slice(&row[whole..]);
            }
        }
        let four = Four { rows, scales: &scratch.channels, tails: &scratch.tails };
        let out = &mut scratch.products[which];
        let mut line = 0;
        while line < lines {
            let left = lines - line;
            match left {
                5.. => self.lines::<S, 1, MOST_LINES>(s, &four, line, lines, out),
                4 => self.lines::<S, 1, 4>(s, &four, line, lines, out),
                3 => self.lines::<S, 1, 3>(s, &four, line, lines, out),
                2 => self.lines::<S, 2, 2>(s, &four, line, lines, out),
                _ => self.lines::<S, CHANNELS, 1>(s, &four, line, lines, out),
            }
            line += left.min(MOST_LINES);
        }
        Ok(())
    }

    /// The products of `R` lines from `first` on, `C` channels at a time; the last line is taken again where there are fewer.
    #[inline(always)]
    fn lines<S: Simd, const C: usize, const R: usize>(
        &self,
        s: S,
        four: &Four<'_>,
        first: usize,
        lines: usize,
        out: &mut Products,
    ) {
        let layout = &self.w.layout;
        let mut x = Lines { numbers: [0; R], codes: [ptr::null(); R], scales: [ptr::null(); R] };
        for r in 0..R {
            let line = (first + r).min(lines - 1);
            x.numbers[r] = line;
            x.codes[r] = self.x.codes(line)[..layout.tiles * D::REGISTERS * S::WIDTH].as_ptr();
            x.scales[r] = self.x.lane_scales(line)[..layout.blocks * layout.lanes()].as_ptr();
        }
        let mut sums = [[s.floats(0.0); R]; CHANNELS];
        if D::WHOLE_ROWS {
            for c in (0..CHANNELS).step_by(C) {
                let exact = self.block::<S, C, R>(s, four, c, &x, 0);
                for (i, exact) in exact.iter().enumerate() {
                    for (exact, &line) in exact.iter().zip(&x.numbers) {
                        // One block, one scale: exact to the end.
                        let zero = self.x.total(line).wrapping_mul(1 << (D::BITS - 1));
                        let exact = s.sum_ints(*exact).wrapping_sub(zero);
                        out[c + i][line] = exact as f32 * (four.scales[c + i].scales()[0] * self.x.scales(line)[0]);
                    }
                }
            }
            return;
        }
        let blocks = (CACHED / R / (layout.block_tiles * D::REGISTERS * S::WIDTH)).max(1);
        for start in (0..layout.blocks).step_by(blocks) {
            for c in (0..CHANNELS).step_by(C) {
                let sums: &mut [_; C] = (&mut sums[c..c + C]).try_into().expect("C divides the number of channels");
                self.blocks(s, four, c, &x, start..(start + blocks).min(layout.blocks), sums);
            }
        }
        for (c, sums) in sums.iter().enumerate() {
            for (sum, &line) in sums.iter().zip(&x.numbers) {
                out[c][line] = s.sum(self.offset(s, &four.scales[c], line, *sum));
            }
        }
    }

    /// Adds some blocks of `C` channels, from `c` on, to their sums.
    #[inline(always)]
    #[expect(unsafe_code, reason = "registers are loaded from slices by pointer")]
    fn blocks<S: Simd, const C: usize, const R: usize>(
        &self,
        s: S,
        four: &Four<'_>,
        c: usize,
        x: &Lines<R>,
        blocks: Range<usize>,
        sums: &mut [[S::Floats; R]; C],
    ) {
        let layout = &self.w.layout;
        let places = s.spreading(layout.block_groups);
        let mut own = *sums;
        for block in blocks {
            let exact = self.block::<S, C, R>(s, four, c, x, block);
            for i in 0..C {
                // SAFETY: rows of scales are a register longer than the groups of all blocks; lines have a register of scales
                // for every block, as `lines` has seen.
                unsafe {
                    let scales = four.scales[c + i].scales().as_ptr().add(block * layout.block_groups);
                    let scales = s.spread(s.load_floats(scales), places);
                    for r in 0..R {
                        let scale = s.mul(scales, s.load_floats(x.scales[r].add(block * S::WIDTH / 4)));
                        own[i][r] = s.mul_add(s.to_floats(exact[i][r]), scale, own[i][r]);
                    }
                }
            }
        }
        *sums = own;
    }

    /// The exact sums of a block of `C` channels, from `c` on.
    #[inline(always)]
    #[expect(unsafe_code, reason = "registers are loaded from slices by pointer")]
    fn block<S: Simd, const C: usize, const R: usize>(
        &self,
        s: S,
        four: &Four<'_>,
        c: usize,
        x: &Lines<R>,
        block: usize,
    ) -> [[S::Ints; R]; C] {
        let layout = &self.w.layout;
        let tile_weights = D::REGISTERS * S::WIDTH;
        let raised = S::RAISES && D::NIBBLES && R <= 2;
        let mut exact = [[s.ints(0); R]; C];
        for tile in block * layout.block_tiles..(block + 1) * layout.block_tiles {
            let mut at = x.codes;
            for at in &mut at {
                *at = at.wrapping_add(tile * tile_weights);
            }
            for (i, exact) in exact.iter_mut().enumerate() {
                // SAFETY: a tile below `whole_tiles` lies within the row; a tail holds one more. The lines are as long as all
                // tiles together, as `lines` has seen.
                unsafe {
                    let row = four.rows[c + i].as_ptr();
                    let codes = if tile < layout.whole_tiles {
                        // The same place of the channel that comes four channels later.
                        let next = row.wrapping_add(CHANNELS * layout.row_bytes + tile * layout.tile_bytes);
                        for byte in (0..D::BITS as usize * D::REGISTERS * S::WIDTH / 8).step_by(64) {
                            s.prefetch(next.wrapping_add(byte));
                        }
                        D::tile(s, row, tile, raised)
                    } else {
                        D::tile(s, four.tails[c + i].as_ptr(), 0, raised)
                    };
                    *exact = s.dot(*exact, D::BITS, raised, codes.as_ref(), at);
                }
            }
        }
        exact
    }

    /// Adds what zero points take away, `-sum_g s_g z_g * t_g sum_k p`, to the lanes of a sum.
    #[inline(always)]
    #[expect(unsafe_code, reason = "registers are loaded from slices by pointer")]
    fn offset<S: Simd>(&self, s: S, channel: &Channel, line: usize, mut sum: S::Floats) -> S::Floats {
        let groups = self.w.layout.padded_groups;
        let (zeros, sums) = (&channel.offsets()[..groups], &self.x.sums(line)[..groups]);
        for group in (0..groups).step_by(S::WIDTH / 4) {
            // SAFETY: both are a whole number of registers long.
            unsafe {
                let (zeros, sums) = (s.load_floats(zeros.as_ptr().add(group)), s.load_floats(sums.as_ptr().add(group)));
                sum = s.mul_add(zeros, sums, sum);
            }
        }
        sum
    }
}
