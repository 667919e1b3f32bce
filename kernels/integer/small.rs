//! Up to 16 rows: every weight is decoded in registers and multiplied at once, so the weight is read from memory once.
//!
//! Channels are taken four at a time, k in pieces whose activations stay in the first-level cache. Lines of a sheaf share what
//! is decoded, and where there are registers enough two channels share what is loaded of a sheaf.

use super::activations::{Activations, Line, MOST_LIMBS, Sheaf, most_lines};
use super::channel::Channel;
use super::decode::for_registers;
use super::epilogue::Output;
use super::{Decode, SMALL, Weight};
use crate::error::Error;
use crate::simd::{Abreast, Job, MOST_BYTES, Simd};
use std::cell::RefCell;
use std::marker::PhantomData;
use std::ops::Range;

/// Channels that are worked on together.
pub(super) const CHANNELS: usize = 4;

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

/// A sheaf of `R` places: where its codes and the scales of its lanes begin.
struct Places<const R: usize> {
    codes: *const i8,
    scales: *const f32,
}

/// The products of four channels with a sheaf of `R` places.
struct Work<'a, D, const R: usize> {
    small: &'a Small<'a, D>,
    four: &'a Four<'a>,
    sheaf: Sheaf,
    out: &'a mut Products,
}

impl<D: Decode, const R: usize> Abreast for Work<'_, D, R> {
    #[inline(always)]
    fn run<S: Simd, const C: usize>(self, s: S) {
        self.small.sheaf::<S, C, R>(s, self.four, self.sheaf, self.out);
    }
}

/// Turns the products of lines into those of rows. No row comes after its lines.
#[inline(always)]
fn add_lines(lines: &[Line], products: &mut [f32; ALL_LINES]) {
    for (i, line) in lines.iter().enumerate() {
        products[line.row] = if line.leads { products[i] } else { products[line.row] + products[i] };
    }
}

impl<D: Decode> Job for Work<'_, D, 1> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        Abreast::run::<S, CHANNELS>(self, s);
    }
}

impl<D: Decode> Job for Work<'_, D, 2> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        Abreast::run::<S, 2>(self, s);
    }
}

/// Work with more places takes as many channels as registers allow.
macro_rules! wide {
    ($($places:literal)+) => {$(
        impl<D: Decode> Job for Work<'_, D, $places> {
            type Output = ();

            #[inline(always)]
            fn run<S: Simd>(self, s: S) {
                s.abreast(self);
            }
        }
    )+};
}
wide!(3 4 8);

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
        // What pointers below rely on.
        assert_eq!(self.w.layout.width, S::WIDTH, "the layout is that of the instruction set");
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
        let lines = self.x.lines();
        let rows = self.x.rows();
        let Range { start, end } = self.channels;
        for first in (start..end).step_by(CHANNELS) {
            let count = (end - first).min(CHANNELS);
            self.four(s, scratch, first, count, 0)?;
            let partner = self.y.partner(first);
            if let Some(partner) = partner {
                self.four(s, scratch, partner, count, 1)?;
            }
            for j in 0..count {
                let [own, up] = scratch.products.each_mut().map(|products| &mut products[j]);
                if lines.len() != rows {
                    add_lines(lines, own);
                    add_lines(lines, up);
                }
                for row in 0..rows {
                    #[expect(unsafe_code, reason = "threads write disjoint columns")]
                    // SAFETY: `channels` of this job are disjoint from those of others.
                    unsafe {
                        self.y.set(row, first + j, own[row], up[row]);
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
        for &sheaf in self.x.sheaves() {
            match sheaf.places {
                8 if most_lines(S::WIDTH) == 8 => s.apart(Work::<D, 8> { small: self, four: &four, sheaf, out }),
                4 => s.apart(Work::<D, 4> { small: self, four: &four, sheaf, out }),
                3 => s.apart(Work::<D, 3> { small: self, four: &four, sheaf, out }),
                2 => s.apart(Work::<D, 2> { small: self, four: &four, sheaf, out }),
                _ => s.apart(Work::<D, 1> { small: self, four: &four, sheaf, out }),
            }
        }
        Ok(())
    }

    /// The products of a sheaf of `R` places, `C` channels at a time.
    #[inline(always)]
    fn sheaf<S: Simd, const C: usize, const R: usize>(&self, s: S, four: &Four<'_>, sheaf: Sheaf, out: &mut Products) {
        let layout = &self.w.layout;
        let x = Places {
            codes: self.x.codes(sheaf)[..R * layout.tiles * D::REGISTERS * S::WIDTH].as_ptr(),
            scales: self.x.lane_scales(sheaf)[..R * layout.blocks * layout.lanes()].as_ptr(),
        };
        let lines = sheaf.first..sheaf.first + R.min(sheaf.lines);
        let mut sums = [[s.floats(0.0); R]; CHANNELS];
        if D::WHOLE_ROWS {
            for c in (0..CHANNELS).step_by(C) {
                let exact = self.block::<S, C, R>(s, four, c, &x, 0);
                for (i, exact) in exact.iter().enumerate() {
                    for (line, exact) in lines.clone().zip(exact) {
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
        let mut end = 0;
        while end < layout.blocks {
            let start = end;
            end = (start + blocks).min(layout.blocks);
            if let Some(used) = self.x.used(sheaf) {
                // A run of blocks that are needed, or of others.
                let groups = |block: usize| &used[block * layout.block_groups..(block + 1) * layout.block_groups];
                let needed = groups(start).contains(&true);
                end = (start..end).find(|&block| groups(block).contains(&true) != needed).unwrap_or(end);
                if !needed {
                    continue;
                }
            }
            for c in (0..CHANNELS).step_by(C) {
                let sums: &mut [_; C] = (&mut sums[c..c + C]).try_into().expect("C divides the number of channels");
                self.blocks(s, four, c, &x, start..end, sums);
            }
        }
        for (c, sums) in sums.iter().enumerate() {
            for (line, sum) in lines.clone().zip(sums) {
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
        x: &Places<R>,
        blocks: Range<usize>,
        sums: &mut [[S::Floats; R]; C],
    ) {
        let layout = &self.w.layout;
        let places = s.spreading(layout.block_groups);
        let mut own = *sums;
        for block in blocks {
            let exact = self.block::<S, C, R>(s, four, c, x, block);
            for i in 0..C {
                // SAFETY: rows of scales are a register longer than the groups of all blocks; a sheaf has a register of scales
                // for every block and place, as `sheaf` has seen.
                unsafe {
                    let scales = four.scales[c + i].scales().as_ptr().add(block * layout.block_groups);
                    let scales = s.spread(s.load_floats(scales), places);
                    for r in 0..R {
                        let scale = s.mul(scales, s.load_floats(x.scales.add((block * R + r) * S::WIDTH / 4)));
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
        x: &Places<R>,
        block: usize,
    ) -> [[S::Ints; R]; C] {
        let layout = &self.w.layout;
        let raised = S::RAISES && D::NIBBLES && R <= 2;
        let mut exact = [[s.ints(0); R]; C];
        for tile in block * layout.block_tiles..(block + 1) * layout.block_tiles {
            // SAFETY: a sheaf is as long as all tiles together, as `sheaf` has seen.
            unsafe {
                let at = x.codes.add(tile * D::REGISTERS * R * S::WIDTH);
                if let (true, [one, other]) = (R > 2, &mut exact[..]) {
                    let tiles = [self.tile(s, four, c, tile), self.tile(s, four, c + 1, tile)];
                    [*one, *other] = self.add_tiles(s, [*one, *other], tiles, at, raised);
                } else {
                    for (i, exact) in exact.iter_mut().enumerate() {
                        [*exact] = self.add_tiles(s, [*exact], [self.tile(s, four, c + i, tile)], at, raised);
                    }
                }
            }
        }
        exact
    }

    /// A tile of channel `c` of four.
    #[inline(always)]
    #[expect(unsafe_code, reason = "registers are loaded from slices by pointer")]
    fn tile<S: Simd>(&self, s: S, four: &Four<'_>, c: usize, tile: usize) -> D::Tile<S> {
        let layout = &self.w.layout;
        if tile >= layout.whole_tiles {
            // SAFETY: a tail holds one tile.
            return unsafe { D::load(s, four.tails[c].as_ptr(), 0) };
        }
        let row = four.rows[c].as_ptr();
        // The same place of the channel that comes four channels later.
        let next = row.wrapping_add(CHANNELS * layout.row_bytes + tile * layout.tile_bytes);
        for byte in (0..D::BITS as usize * D::REGISTERS * S::WIDTH / 8).step_by(64) {
            s.prefetch(next.wrapping_add(byte));
        }
        // SAFETY: a tile below `whole_tiles` lies within the row.
        unsafe { D::load(s, row, tile) }
    }

    /// Adds the products of tiles of some channels with a sheaf, whose part for the tile is at `x`.
    ///
    /// # Safety
    ///
    /// As many registers as the tile has must be readable there, for each place of the sheaf.
    #[inline(always)]
    #[expect(unsafe_code, reason = "registers are loaded by pointer")]
    unsafe fn add_tiles<S: Simd, const C: usize, const R: usize>(
        &self,
        s: S,
        mut exact: [[S::Ints; R]; C],
        tiles: [D::Tile<S>; C],
        x: *const i8,
        raised: bool,
    ) -> [[S::Ints; R]; C] {
        let mut parts = [[s.ints(0); R]; C];
        for_registers!(D, |I| {
            // Sums of few lines would wait for one another.
            let apart = (raised || R <= 2) && I % 2 == 1;
            let mut codes = [s.bytes(0); C];
            for c in 0..C {
                codes[c] = D::codes::<S, I>(s, tiles[c], raised);
            }
            for r in 0..R {
                for c in 0..C {
                    // SAFETY: the caller vouches for the register.
                    unsafe {
                        let x = x.add((I * R + r) * S::WIDTH);
                        s.dot(&mut exact[c][r], &mut parts[c][r], D::BITS, apart, codes[c], x);
                    }
                }
            }
        });
        for c in 0..C {
            for r in 0..R {
                exact[c][r] = s.settle(exact[c][r], parts[c][r], D::BITS, raised);
            }
        }
        exact
    }

    /// Adds what zero points take away, `-sum_g s_g z_g * t_g sum_k p`, to the lanes of a sum.
    #[inline(always)]
    #[expect(unsafe_code, reason = "registers are loaded from slices by pointer")]
    fn offset<S: Simd>(&self, s: S, channel: &Channel, line: usize, mut sum: S::Floats) -> S::Floats {
        let groups = self.w.layout.groups.next_multiple_of(S::WIDTH / 4);
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
