//! Many rows: a panel of output channels is decoded once, with its channels side by side, and multiplied by all lines.

use super::activations::{Activations, most_lines};
use super::buffer::Buffer;
use super::channel::Channel;
use super::decode::for_registers;
use super::epilogue::Output;
use super::{Decode, Weight};
use crate::error::Error;
use crate::simd::{Job, MOST_BYTES, Simd};
use std::cell::RefCell;
use std::marker::PhantomData;
use std::ops::Range;

/// Registers of channels of a panel.
const ACROSS: usize = 2;

/// Channels of the widest panel: what threads' ranges are multiples of.
pub(super) const CHANNELS: usize = ACROSS * MOST_BYTES / 4;

/// The products of some output channels with all lines.
pub(super) struct Tall<'a, D> {
    w: &'a Weight<'a>,
    x: &'a Activations,
    y: &'a Output<'a>,
    channels: Range<usize>,
    decode: PhantomData<D>,
}

impl<'a, D: Decode> Tall<'a, D> {
    /// Columns `channels` of `y`, which nobody else writes.
    pub(super) fn new(w: &'a Weight<'a>, x: &'a Activations, y: &'a Output<'a>, channels: Range<usize>) -> Self {
        Tall { w, x, y, channels, decode: PhantomData }
    }
}

/// A panel, and what becomes of it.
#[derive(Default)]
struct Scratch {
    channel: Channel,
    /// `[tiles * registers * lanes, channels, 4]`: four codes of a channel, then the same four of the next.
    codes: Buffer<u8>,
    /// `[groups, channels]`.
    scales: Buffer<f32>,
    /// `[groups, channels]`: minus scale times zero point.
    offsets: Buffer<f32>,
    /// `[rows, channels]`, of the panel itself and of its partner.
    products: [Buffer<f32>; 2],
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

impl<D: Decode> Job for Tall<'_, D> {
    type Output = Result<(), Error>;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Result<(), Error> {
        // What pointers below rely on.
        assert_eq!(self.w.layout.width, S::WIDTH, "the layout is that of the instruction set");
        let mut scratch = SCRATCH.take();
        let done = self.multiply(s, &mut scratch);
        SCRATCH.set(scratch);
        done
    }
}

impl<D: Decode> Tall<'_, D> {
    #[inline(always)]
    fn multiply<S: Simd>(&self, s: S, scratch: &mut Scratch) -> Result<(), Error> {
        let across = ACROSS * S::WIDTH / 4;
        let rows = self.x.rows();
        let layout = &self.w.layout;
        scratch.channel.reserve(layout.padded_groups);
        scratch.codes.sized(layout.tiles * layout.tile_weights() * across);
        scratch.scales.sized(layout.groups * across);
        scratch.offsets.sized(layout.groups * across);
        for products in &mut scratch.products {
            products.sized(rows * across);
        }
        let Range { start, end } = self.channels;
        for first in (start..end).step_by(across) {
            let count = across.min(end - first);
            let partner = self.y.partner(first);
            for (which, first) in [Some(first), partner].into_iter().flatten().enumerate() {
                self.unpack(s, scratch, first, count)?;
                self.panel(s, scratch, which);
            }
            let [own, others] = scratch.products.each_ref().map(Buffer::as_slice);
            for row in 0..rows {
                let part = row * across..row * across + count;
                #[expect(unsafe_code, reason = "threads write disjoint columns")]
                // SAFETY: `channels` of this job are disjoint from those of others.
                unsafe {
                    self.y.set_columns(row, first, &own[part.clone()], &others[part]);
                }
            }
        }
        Ok(())
    }

    /// Decodes `count` channels from `first` on. Columns beyond keep what they held: nobody reads their products.
    #[inline(always)]
    #[expect(unsafe_code, reason = "registers are loaded from and stored to slices by pointer")]
    fn unpack<S: Simd>(&self, s: S, scratch: &mut Scratch, first: usize, count: usize) -> Result<(), Error> {
        let across = ACROSS * S::WIDTH / 4;
        let layout = &self.w.layout;
        let words = D::REGISTERS * S::WIDTH / 4;
        for j in 0..count {
            scratch.channel.read::<S, D>(s, self.w, first + j)?;
            let (scales, offsets) = (scratch.scales.as_mut_slice(), scratch.offsets.as_mut_slice());
            for group in 0..layout.groups {
                scales[group * across + j] = scratch.channel.scales()[group];
                offsets[group * across + j] = scratch.channel.offsets()[group];
            }
            let row = self.w.row(first + j);
            let mut tail = [0u8; 3 * MOST_BYTES];
            let rest = (layout.whole_tiles * layout.tile_bytes).min(row.len());
            tail[..row.len() - rest].copy_from_slice(&row[rest..]);
            let panel = scratch.codes.as_mut_slice();
            for tile in 0..layout.tiles {
                let mut codes = [[0u8; 4]; 8 * MOST_BYTES / 4];
                // SAFETY: a tile below `whole_tiles` lies within the row, and `tail` holds one more; `codes` has room for
                // eight registers of the widest set, and no tile has more.
                unsafe {
                    let of_tile = if tile < layout.whole_tiles {
                        D::load(s, row.as_ptr(), tile)
                    } else {
                        D::load(s, tail.as_ptr(), 0)
                    };
                    for_registers!(D, |I| {
                        let register = D::codes::<S, I>(s, of_tile, false);
                        s.store(register, codes.as_mut_ptr().cast::<u8>().add(I * S::WIDTH));
                    });
                }
                let columns = panel[tile * words * across * 4..].as_chunks_mut::<4>().0;
                for (column, codes) in columns[j..].iter_mut().step_by(across).zip(&codes[..words]) {
                    *column = *codes;
                }
            }
        }
        Ok(())
    }

    /// The products of the panel with all lines.
    #[inline(always)]
    fn panel<S: Simd>(&self, s: S, scratch: &mut Scratch, which: usize) {
        if most_lines(S::WIDTH) == 8 {
            self.lines::<S, 8>(s, scratch, which);
        } else {
            self.lines::<S, 4>(s, scratch, which);
        }
    }

    #[inline(always)]
    #[expect(unsafe_code, reason = "registers are loaded from slices by pointer")]
    fn lines<S: Simd, const R: usize>(&self, s: S, scratch: &mut Scratch, which: usize) {
        let layout = &self.w.layout;
        let (lanes, across) = (S::WIDTH / 4, ACROSS * S::WIDTH / 4);
        let tile_weights = D::REGISTERS * S::WIDTH;
        // Registers of a block, and the lanes of each that belong to one group.
        let (registers, of_group) = (layout.block_tiles * D::REGISTERS, lanes / layout.block_groups);
        let codes = &scratch.codes.as_slice()[..layout.tiles * tile_weights * across];
        let scales = &scratch.scales.as_slice()[..layout.groups * across];
        let offsets = &scratch.offsets.as_slice()[..layout.groups * across];
        let out = scratch.products[which].as_mut_slice();

        for &sheaf in self.x.sheaves() {
            let x = self.x.codes(sheaf)[..R * layout.tiles * tile_weights].as_ptr();
            let mut line = [0; R];
            for (r, line) in line.iter_mut().enumerate() {
                *line = sheaf.first + r.min(sheaf.lines - 1);
            }
            let mut sums = [[s.floats(0.0); ACROSS]; R];
            let used = self.x.used(sheaf);
            for group in 0..layout.groups {
                if used.is_some_and(|used| !used[group]) {
                    continue;
                }
                let (block, within) = (group / layout.block_groups, group % layout.block_groups);
                let mut exact = [[s.ints(0); ACROSS]; R];
                if D::WHOLE_ROWS {
                    for r in 0..R {
                        let zero = self.x.total(line[r]).wrapping_mul(1 << (D::BITS - 1));
                        exact[r] = [s.ints(zero.wrapping_neg()); ACROSS];
                    }
                }
                for register in block * registers..(block + 1) * registers {
                    for word in within * of_group..(within + 1) * of_group {
                        // SAFETY: a word of four bytes in a register of a tile: `codes` holds `across` of them at each place,
                        // and every line of the sheaf holds one.
                        unsafe {
                            let at = codes.as_ptr().add(4 * (register * lanes + word) * across);
                            let codes = [s.load(at), s.load(at.add(S::WIDTH))];
                            let x = x.add(register * R * S::WIDTH + 4 * word);
                            for (r, exact) in exact.iter_mut().enumerate() {
                                let x = x.add(r * S::WIDTH);
                                for (exact, &codes) in exact.iter_mut().zip(&codes) {
                                    *exact = s.dot_same(*exact, D::BITS, codes, x);
                                }
                            }
                        }
                    }
                }
                for i in 0..ACROSS {
                    let place = group * across + i * lanes;
                    // SAFETY: both slices hold `across` floats for every group.
                    let (scale, offset) = unsafe {
                        (s.load_floats(scales.as_ptr().add(place)), s.load_floats(offsets.as_ptr().add(place)))
                    };
                    for ((sums, exact), &line) in sums.iter_mut().zip(&exact).zip(&line) {
                        let scale = s.mul(scale, s.floats(self.x.scales(line)[group]));
                        sums[i] = s.mul_add(s.to_floats(exact[i]), scale, sums[i]);
                        if !D::WHOLE_ROWS {
                            sums[i] = s.mul_add(offset, s.floats(self.x.sums(line)[group]), sums[i]);
                        }
                    }
                }
            }
            for (&line, sums) in self.x.lines()[sheaf.first..][..sheaf.lines].iter().zip(&sums) {
                for (i, &sum) in sums.iter().enumerate() {
                    let place = line.row * across + i * lanes;
                    let place = &mut out[place..place + lanes];
                    // SAFETY: a register of the row's products.
                    unsafe {
                        let sum = if line.leads { sum } else { s.add(s.load_floats(place.as_ptr()), sum) };
                        s.store_floats(sum, place.as_mut_ptr());
                    }
                }
            }
        }
    }
}
