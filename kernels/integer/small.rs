//! Up to 16 rows: every weight is decoded in registers and multiplied at once, so the weight is read from memory once.
//!
//! Channels are taken a bundle at a time, k in pieces whose activations stay in the first-level cache. Lines of a sheaf share what
//! is decoded, and where there are registers enough two channels share what is loaded of a sheaf.

use super::activations::{Activations, FOLDED, Line, MOST_LIMBS, Sheaf, most_lines};
use super::channel::Channel;
use super::decode::for_registers;
use super::epilogue::Output;
use super::{Decode, SMALL, Weight};
use crate::error::Error;
use crate::simd::{Abreast, Job, MOST_BYTES, Simd};
use std::cell::RefCell;
use std::marker::PhantomData;
use std::ops::Range;

/// Output channels that one line is multiplied by at a time. Bundles, and what threads are given, are multiples of it.
pub(super) const CHANNELS: usize = 4;

/// Channels of a bundle, at most: what a piece of many lines is brought to the first-level cache for.
const BUNDLED: usize = 16;

/// Lines that take little of that cache. If there are no more, a bundle is [`CHANNELS`], which is the faster.
const FEW_LINES: usize = 3;

/// All lines of [`SMALL`] rows.
const ALL_LINES: usize = MOST_LIMBS * SMALL;

/// Bytes of activations of a pass: half of a first-level cache, the other half is for sums and weights.
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

/// A bundle of channels: their stored bytes, scales, and the last tile where it does not lie within the row.
struct Bundle<'a> {
    /// How many there are, a multiple of [`CHANNELS`].
    channels: usize,
    rows: [&'a [u8]; BUNDLED],
    scales: &'a [Channel; BUNDLED],
    tails: &'a [[u8; MOST_TILE]; BUNDLED],
}

/// Up to `M` channels of a bundle.
struct Part<'a, const M: usize> {
    /// How many there are, a multiple of [`CHANNELS`].
    channels: usize,
    rows: &'a [&'a [u8]; M],
    scales: &'a [Channel; M],
    tails: &'a [[u8; MOST_TILE]; M],
    /// Bytes from a row to the one in the next bundle.
    ahead: usize,
}

impl Bundle<'_> {
    /// The channels from `first` on.
    #[inline(always)]
    fn part<const M: usize>(&self, first: usize, row_bytes: usize) -> Part<'_, M> {
        Part {
            // Where they are always all there, the compiler is to see it.
            channels: if M == CHANNELS { M } else { self.channels - first },
            rows: self.rows[first..].first_chunk().expect("room for M channels"),
            scales: self.scales[first..].first_chunk().expect("room for M channels"),
            tails: self.tails[first..].first_chunk().expect("room for M channels"),
            ahead: self.channels * row_bytes,
        }
    }
}

/// A sheaf of `R` places: where its codes, and the scales and sums of its lanes begin.
struct Places<const R: usize> {
    codes: *const i8,
    scales: *const f32,
    sums: *const f32,
}

/// The products of a bundle with a sheaf of `R` places.
struct Work<'a, D, const R: usize> {
    small: &'a Small<'a, D>,
    bundle: &'a Bundle<'a>,
    sheaf: Sheaf,
    out: &'a mut Products,
}

/// For each number of places: the channels of a part (where they are [`CHANNELS`], the compiler knows that they are all there), and how
/// many of them share what is loaded of a sheaf.
macro_rules! work {
    ($($places:literal: $channels:ident, |$s:ident, $work:ident| $run:expr;)+) => {$(
        impl<D: Decode> Abreast for Work<'_, D, $places> {
            #[inline(always)]
            fn run<S: Simd, const C: usize>(self, s: S) {
                for first in (0..self.bundle.channels).step_by($channels) {
                    let part = self.bundle.part::<$channels>(first, self.small.w.layout.row_bytes);
                    self.small.sheaf::<S, C, $places, $channels>(s, &part, self.sheaf, &mut self.out[first..]);
                }
            }
        }

        impl<D: Decode> Job for Work<'_, D, $places> {
            type Output = ();

            #[inline(always)]
            fn run<S: Simd>(self, $s: S) {
                let $work = self;
                $run
            }
        }
    )+};
}
work! {
    1: CHANNELS, |s, work| Abreast::run::<S, CHANNELS>(work, s);
    2: CHANNELS, |s, work| Abreast::run::<S, 2>(work, s);
    3: CHANNELS, |s, work| s.abreast(work);
    4: BUNDLED, |s, work| s.abreast(work);
    8: BUNDLED, |s, work| s.abreast(work);
}

/// Turns the products of lines into those of rows. No row comes after its lines.
#[inline(always)]
fn add_lines(lines: &[Line], products: &mut [f32; ALL_LINES]) {
    for (i, line) in lines.iter().enumerate() {
        products[line.row] = if line.leads { products[i] } else { products[line.row] + products[i] };
    }
}

/// What a thread keeps between calls; nothing is cleared that will be written.
struct Scratch {
    channels: [Channel; BUNDLED],
    /// The last tile of each channel, followed by zeros, where it does not lie within the row.
    tails: [[u8; MOST_TILE]; BUNDLED],
    /// Of a bundle and of its partners.
    products: [Products; 2],
}

/// The products of a bundle with all lines.
type Products = [[f32; ALL_LINES]; BUNDLED];

impl Default for Scratch {
    fn default() -> Scratch {
        Scratch {
            channels: Default::default(),
            tails: [[0; MOST_TILE]; BUNDLED],
            products: [[[0.0; ALL_LINES]; BUNDLED]; 2],
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
        let bundled = if self.x.lines().len() <= FEW_LINES { CHANNELS } else { BUNDLED };
        for channel in &mut scratch.channels[..bundled] {
            channel.reserve(self.w.layout.padded_groups);
        }
        scratch.tails = [[0; MOST_TILE]; BUNDLED];
        let done = self.multiply(s, &mut scratch, bundled);
        SCRATCH.set(Some(scratch));
        done
    }
}

impl<D: Decode> Small<'_, D> {
    #[inline(always)]
    fn multiply<S: Simd>(&self, s: S, scratch: &mut Scratch, bundled: usize) -> Result<(), Error> {
        let lines = self.x.lines();
        let rows = self.x.rows();
        let Range { start, end } = self.channels;
        for first in (start..end).step_by(bundled) {
            let count = (end - first).min(bundled);
            self.bundle(s, scratch, first, count, 0)?;
            let partner = self.y.partner(first);
            if let Some(partner) = partner {
                self.bundle(s, scratch, partner, count, 1)?;
            }
            if lines.len() != rows {
                for products in &mut scratch.products[..1 + usize::from(partner.is_some())] {
                    products[..count].iter_mut().for_each(|of_channel| add_lines(lines, of_channel));
                }
            }
            for row in 0..rows {
                let [mut own, mut up] = [[0.0; BUNDLED]; 2];
                for c in 0..count {
                    own[c] = scratch.products[0][c][row];
                    if partner.is_some() {
                        up[c] = scratch.products[1][c][row];
                    }
                }
                #[expect(unsafe_code, reason = "threads write disjoint columns")]
                // SAFETY: `channels` of this job are disjoint from those of others.
                unsafe {
                    self.y.set_columns(row, first, &own[..count], &up[..count]);
                }
            }
        }
        Ok(())
    }

    /// The products of `count` channels from `first` on with every line; the last is taken again where there are too few.
    #[inline(always)]
    fn bundle<S: Simd>(
        &self,
        s: S,
        scratch: &mut Scratch,
        first: usize,
        count: usize,
        which: usize,
    ) -> Result<(), Error> {
        let layout = &self.w.layout;
        let channels = count.next_multiple_of(CHANNELS);
        // Rows that are there, whatever is read.
        let mut rows = [self.w.row(first + count - 1); BUNDLED];
        let whole = (layout.whole_tiles * layout.tile_bytes).min(layout.row_bytes);
        for (c, row) in rows[..channels].iter_mut().enumerate() {
            let channel = first + c.min(count - 1);
            scratch.channels[c].read::<S, D>(s, self.w, channel)?;
            *row = self.w.row(channel);
            if whole < layout.row_bytes {
                scratch.tails[c][..layout.row_bytes - whole].copy_from_slice(&row[whole..]);
            }
        }
        let bundle = Bundle { channels, rows, scales: &scratch.channels, tails: &scratch.tails };
        let out = &mut scratch.products[which];
        for &sheaf in self.x.sheaves() {
            match sheaf.places {
                8 if most_lines(S::WIDTH) == 8 => s.apart(Work::<D, 8> { small: self, bundle: &bundle, sheaf, out }),
                4 => s.apart(Work::<D, 4> { small: self, bundle: &bundle, sheaf, out }),
                3 => s.apart(Work::<D, 3> { small: self, bundle: &bundle, sheaf, out }),
                2 => s.apart(Work::<D, 2> { small: self, bundle: &bundle, sheaf, out }),
                _ => s.apart(Work::<D, 1> { small: self, bundle: &bundle, sheaf, out }),
            }
        }
        Ok(())
    }

    /// The products of a part of a bundle with a sheaf of `R` places, `C` channels at a time.
    #[inline(always)]
    fn sheaf<S: Simd, const C: usize, const R: usize, const M: usize>(
        &self,
        s: S,
        part: &Part<'_, M>,
        sheaf: Sheaf,
        out: &mut [[f32; ALL_LINES]],
    ) {
        let layout = &self.w.layout;
        let (of_place, folded) = (layout.blocks * layout.lanes(), if sheaf.folded { R / FOLDED } else { 0 });
        let x = Places {
            codes: self.x.codes(sheaf)[..R * layout.tiles * D::REGISTERS * S::WIDTH].as_ptr(),
            scales: self.x.lane_scales(sheaf)[..if sheaf.folded { folded } else { R } * of_place].as_ptr(),
            sums: self.x.lane_sums(sheaf)[..folded * of_place].as_ptr(),
        };
        let lines = sheaf.first..sheaf.first + R.min(sheaf.lines);
        if D::WHOLE_ROWS {
            // One block, one scale: exact to the end.
            let mut exact = [[s.ints(0); R]; M];
            let most = (CACHED / R / (D::REGISTERS * S::WIDTH)).max(1);
            for start in (0..layout.tiles).step_by(most) {
                let tiles = start..(start + most).min(layout.tiles);
                for c in (0..part.channels).step_by(C) {
                    let exact: &mut [_; C] =
                        (&mut exact[c..c + C]).try_into().expect("C divides the number of channels");
                    *exact = self.tiles(s, part, c, &x, tiles.clone(), *exact);
                }
            }
            for (c, exact) in exact[..part.channels].iter().enumerate() {
                for (line, exact) in lines.clone().zip(exact) {
                    let zero = self.x.total(line).wrapping_mul(1 << (D::BITS - 1));
                    let exact = s.sum_ints(*exact).wrapping_sub(zero);
                    out[c][line] = exact as f32 * (part.scales[c].scales()[0] * self.x.scales(line)[0]);
                }
            }
            return;
        }
        let most = (CACHED / R / (layout.block_tiles * D::REGISTERS * S::WIDTH)).max(1);
        let mut sums = [[s.floats(0.0); R]; M];
        let mut next = 0;
        while let Some(blocks) = self.pass(sheaf, next, most) {
            next = blocks.end;
            for c in (0..part.channels).step_by(C) {
                let sums: &mut [_; C] = (&mut sums[c..c + C]).try_into().expect("C divides the number of channels");
                if R >= FOLDED && sheaf.folded {
                    self.blocks::<S, C, R, M, true>(s, part, c, &x, blocks.clone(), sums);
                } else {
                    self.blocks::<S, C, R, M, false>(s, part, c, &x, blocks.clone(), sums);
                }
            }
        }
        if R >= FOLDED && sheaf.folded {
            for (out, sums) in out[..part.channels].iter_mut().zip(&sums) {
                for i in 0..R / FOLDED {
                    let sums = s.sum_fourths(sums[i]);
                    for (line, sum) in (lines.start + FOLDED * i..lines.end).zip(sums) {
                        out[line] = sum;
                    }
                }
            }
            return;
        }
        for (c, sums) in sums[..part.channels].iter().enumerate() {
            for (line, sum) in lines.clone().zip(sums) {
                out[c][line] = s.sum(self.offset(s, &part.scales[c], line, *sum));
            }
        }
    }

    /// The next blocks, from `start` on and no more than `most`, that a sheaf has to be multiplied by.
    fn pass(&self, sheaf: Sheaf, start: usize, most: usize) -> Option<Range<usize>> {
        let layout = &self.w.layout;
        let Some(used) = self.x.used(sheaf) else {
            return (start < layout.blocks).then(|| start..(start + most).min(layout.blocks));
        };
        let used = |block: usize| used[block * layout.block_groups..(block + 1) * layout.block_groups].contains(&true);
        let start = (start..layout.blocks).find(|&block| used(block))?;
        let end = (start + most).min(layout.blocks);
        Some(start..(start..end).find(|&block| !used(block)).unwrap_or(end))
    }

    /// Adds some blocks of `C` channels, from `c` on, to their sums: a line to a register; or, if they are `FOLDED_LINES`, four lines
    /// to a register, lanes being theirs in turn, and with what zero points take away. Every four lanes then hold a group, or a part
    /// of one.
    #[inline(always)]
    #[expect(unsafe_code, reason = "registers are loaded from slices by pointer")]
    fn blocks<S: Simd, const C: usize, const R: usize, const M: usize, const FOLDED_LINES: bool>(
        &self,
        s: S,
        part: &Part<'_, M>,
        c: usize,
        x: &Places<R>,
        blocks: Range<usize>,
        sums: &mut [[S::Floats; R]; C],
    ) {
        let layout = &self.w.layout;
        let places = s.spreading(layout.block_groups);
        let registers = if FOLDED_LINES { R / FOLDED } else { R };
        let mut own = *sums;
        for block in blocks {
            let exact = self.block::<S, C, R, M>(s, part, c, x, block);
            let group = block * layout.block_groups;
            for i in 0..C {
                // SAFETY: rows of scales and of offsets are a register longer than the groups of all blocks; a sheaf has as many
                // registers of scales for every block, and of sums if it is folded, as `sheaf` has seen.
                unsafe {
                    let scales = s.spread(s.load_floats(part.scales[c + i].scales().as_ptr().add(group)), places);
                    for j in 0..registers {
                        let at = (block * registers + j) * S::WIDTH / 4;
                        let scale = s.mul(scales, s.load_floats(x.scales.add(at)));
                        let exact = if FOLDED_LINES {
                            s.fold([exact[i][4 * j], exact[i][4 * j + 1], exact[i][4 * j + 2], exact[i][4 * j + 3]])
                        } else {
                            exact[i][j]
                        };
                        own[i][j] = s.mul_add(s.to_floats(exact), scale, own[i][j]);
                        if FOLDED_LINES {
                            let offsets = s.load_floats(part.scales[c + i].offsets().as_ptr().add(group));
                            let sums = s.load_floats(x.sums.add(at));
                            own[i][j] = s.mul_add(s.spread(offsets, places), sums, own[i][j]);
                        }
                    }
                }
            }
        }
        *sums = own;
    }

    /// The exact sums of a block of `C` channels, from `c` on.
    #[inline(always)]
    fn block<S: Simd, const C: usize, const R: usize, const M: usize>(
        &self,
        s: S,
        part: &Part<'_, M>,
        c: usize,
        x: &Places<R>,
        block: usize,
    ) -> [[S::Ints; R]; C] {
        let of_block = self.w.layout.block_tiles;
        self.tiles(s, part, c, x, block * of_block..(block + 1) * of_block, [[s.ints(0); R]; C])
    }

    /// Adds some tiles of `C` channels, from `c` on, to exact sums.
    #[inline(always)]
    #[expect(unsafe_code, reason = "registers are loaded from slices by pointer")]
    fn tiles<S: Simd, const C: usize, const R: usize, const M: usize>(
        &self,
        s: S,
        part: &Part<'_, M>,
        c: usize,
        x: &Places<R>,
        tiles: Range<usize>,
        mut exact: [[S::Ints; R]; C],
    ) -> [[S::Ints; R]; C] {
        let raised = S::RAISES && D::NIBBLES && R <= 2;
        for tile in tiles {
            // SAFETY: a sheaf is as long as all tiles together, as `sheaf` has seen.
            unsafe {
                let at = x.codes.add(tile * D::REGISTERS * R * S::WIDTH);
                if let (true, [one, other]) = (R > 2, &mut exact[..]) {
                    let tiles = [self.tile(s, part, c, tile), self.tile(s, part, c + 1, tile)];
                    [*one, *other] = self.add_tiles(s, [*one, *other], tiles, at, raised);
                } else {
                    for (i, exact) in exact.iter_mut().enumerate() {
                        [*exact] = self.add_tiles(s, [*exact], [self.tile(s, part, c + i, tile)], at, raised);
                    }
                }
            }
        }
        exact
    }

    /// A tile of channel `c` of a bundle.
    #[inline(always)]
    #[expect(unsafe_code, reason = "registers are loaded from slices by pointer")]
    fn tile<S: Simd, const M: usize>(&self, s: S, part: &Part<'_, M>, c: usize, tile: usize) -> D::Tile<S> {
        let layout = &self.w.layout;
        if tile >= layout.whole_tiles {
            // SAFETY: a tail holds one tile.
            return unsafe { D::load(s, part.tails[c].as_ptr(), 0) };
        }
        let row = part.rows[c].as_ptr();
        // The same place of the channel that comes a bundle later.
        let next = row.wrapping_add(part.ahead + tile * layout.tile_bytes);
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
