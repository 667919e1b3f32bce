//! Activations as the integer kernels read them: rounded, in the order of a weight's tiles.

use super::buffer::Buffer;
use super::layout::Order;
use super::{Decode, Layout, SMALL};
use crate::affine::{Levels, is_uneven, low_byte, quantize_group, quantize_rest, to_bytes};
use crate::pool::Pool;
use crate::simd::MOST_BYTES;
use crate::tokens::Input;
use std::any::TypeId;
use std::cell::RefCell;
use std::ops::Range;

/// Rows of activations that a thread rounds one after the other. Their lines begin with a sheaf of their own.
const ROWS_PER_PIECE: usize = 8;

/// Lines that can be multiplied together in registers of `width` bytes: there are 32 of the widest, 16 of the others.
pub(crate) const fn most_lines(width: usize) -> usize {
    if width == MOST_BYTES { 8 } else { 4 }
}

/// Bytes behind a line in the order of k, so that the last run may be read in whole strides; what they are does not matter.
const MOST_STRIDE: usize = 8;

/// Lines whose sums share a register, if they are folded ([`Simd::fold`](crate::simd::Simd::fold)).
pub(crate) const FOLDED: usize = 4;

/// Lines of a row, at most: high bytes, low bytes, and what is left where groups are uneven.
pub(crate) const MOST_LIMBS: usize = 3;

/// Lines that are multiplied together.
#[derive(Clone, Copy)]
pub(crate) struct Sheaf {
    /// The first of its lines.
    pub(crate) first: usize,
    /// How many there are.
    pub(crate) lines: usize,
    /// Places for lines, as many or more; what lies in the others is never looked at.
    pub(crate) places: usize,
    /// Whether all of its lines are third ones.
    sparse: bool,
    /// Whether four of its lines share a register of sums: then numbers that go with lanes are those of four lines in turn.
    pub(crate) folded: bool,
    /// Which sheaf it is.
    index: usize,
    /// Places of the sheaves before.
    before: usize,
    /// Of those before that are folded, the registers of [`FOLDED`] lines.
    folded_before: usize,
}

/// Whose a line is.
#[derive(Clone, Copy)]
pub(crate) struct Line {
    /// The row. Its product is the sum of those of its lines, in their order.
    pub(crate) row: usize,
    /// Whether it is the row's first line.
    pub(crate) leads: bool,
}

/// Rows of activations as *lines* of signed bytes: one line to a row, or two, the high and the low bytes of 16 bits, and a
/// third for rows with an uneven group. What is computed for a row does not depend on the others.
///
/// A line is as long as the tiles of a weight's row, zero where those reach beyond k. Lines that are multiplied together are
/// a [`Sheaf`]: the first register of each, then the second of each, and so on, which is the order in which they are read.
/// Eight rows follow one another, then their third lines, then the next eight rows. The buffers are kept between products,
/// so that after the first of a size nothing is allocated.
#[derive(Default)]
pub(crate) struct Activations {
    codes: Buffer<i8>,
    scales: Buffer<f32>,
    lane_scales: Buffer<f32>,
    lane_sums: Buffer<f32>,
    sums: Buffer<f32>,
    totals: Vec<i32>,
    /// `[sheaves, group_stride]`: whether any line of a sheaf has something in a group.
    used: Vec<bool>,
    /// By decoder and width of a register.
    orders: Vec<(TypeId, usize, Order)>,
    /// By row: whether it has a third line.
    uneven: Vec<bool>,
    lines: Vec<Line>,
    sheaves: Vec<Sheaf>,
    line_bytes: usize,
    group_stride: usize,
    lane_stride: usize,
}

impl Activations {
    /// Rounds these rows of `x: [_, k]`, or takes what is rounded already; for the kernel for few rows, if there are up to [`SMALL`].
    pub(crate) fn set<D: Decode>(
        &mut self,
        x: Input<'_>,
        Range { start, end }: Range<usize>,
        layout: &Layout,
        levels: Levels,
        pool: &Pool,
    ) {
        let rows = end - start;
        let few = rows <= SMALL;
        let limbs = match (levels, x) {
            (Levels::Int16, Input::F32(_)) => 2,
            _ => 1,
        };
        self.uneven.clear();
        self.uneven.resize(rows, false);
        if let (2, Input::F32(x)) = (limbs, x) {
            let piece = (ROWS_PER_PIECE * layout.k).max(1);
            let x = &x[start * layout.k..end * layout.k];
            pool.for_each(x.chunks(piece).zip(self.uneven.chunks_mut(ROWS_PER_PIECE)), |(x, uneven)| {
                for (x, uneven) in x.chunks(layout.k).zip(uneven) {
                    *uneven = x.chunks(layout.group).any(is_uneven);
                }
            });
        }
        let most = most_lines(layout.width);
        let (places, folded) = self.arrange_lines(limbs, most, few, layout.folds() && !D::WHOLE_ROWS);
        self.line_bytes = layout.tiles * layout.tile_weights();
        self.group_stride = layout.padded_groups;
        // Few lines are multiplied by numbers that go with lanes.
        self.lane_stride = if few { layout.blocks * layout.lanes() } else { 0 };
        let order_of = (TypeId::of::<D>(), layout.width);
        let known = self.orders.iter().position(|&(decoder, width, _)| (decoder, width) == order_of);
        let order = known.unwrap_or_else(|| {
            self.orders.push((order_of.0, order_of.1, layout.order::<D>()));
            self.orders.len() - 1
        });
        let lines = self.lines.len();
        self.totals.clear();
        self.totals.resize(lines, 0);
        self.used.clear();
        self.used.resize(self.sheaves.len() * self.group_stride, false);
        let pieces = Pieces {
            first: 0,
            uneven: &self.uneven,
            sheaves: &self.sheaves,
            codes: self.codes.sized(places * self.line_bytes),
            scales: self.scales.zeroed(lines * self.group_stride),
            sums: self.sums.zeroed(lines * self.group_stride),
            lane_scales: self.lane_scales.zeroed(places * self.lane_stride),
            lane_sums: self.lane_sums.zeroed(folded * self.lane_stride),
            totals: &mut self.totals,
            used: &mut self.used,
            strides: Strides { limbs, line_bytes: self.line_bytes, groups: self.group_stride, lanes: self.lane_stride },
        };
        if layout.k == 0 {
            return;
        }
        let (.., order) = &self.orders[order];
        pool.for_each(pieces, |mut piece| {
            let mut row = ROW.take();
            let mut third = piece.uneven.len() * limbs;
            for (i, &uneven) in piece.uneven.iter().enumerate() {
                let place = start + piece.first + i;
                let at = place * layout.k..(place + 1) * layout.k;
                match x {
                    Input::F32(x) => row.round(&x[at], layout, levels, limbs + usize::from(uneven)),
                    Input::Tokens(tokens) => row.copy(&tokens.codes()[at], tokens.scales()[place], layout),
                }
                for limb in 0..limbs {
                    piece.put::<D>(&row, limb, i * limbs + limb, layout, order);
                }
                if uneven {
                    piece.put::<D>(&row, limbs, third, layout, order);
                    third += 1;
                }
            }
            ROW.set(row);
        });
    }

    /// Numbers the lines of all rows and binds them into sheaves; answers the places of all, and of those that are folded the
    /// registers of four lines. For `few` rows there is a kernel for any number of lines up to 4.
    ///
    /// Four lines and more are folded, if they may be; third lines never. What is computed for a row does not depend on what the others
    /// hold; the last bits may depend on how many there are, and on its place among them.
    fn arrange_lines(&mut self, limbs: usize, most: usize, few: bool, may_fold: bool) -> (usize, usize) {
        self.lines.clear();
        self.sheaves.clear();
        let (mut before, mut folded_before) = (0, 0);
        for (piece, uneven) in self.uneven.chunks(ROWS_PER_PIECE).enumerate() {
            let (start, first_row) = (self.lines.len(), piece * ROWS_PER_PIECE);
            for row in first_row..first_row + uneven.len() {
                self.lines.extend((0..limbs).map(|limb| Line { row, leads: limb == 0 }));
            }
            let thirds = self.lines.len();
            let with_third = uneven.iter().enumerate().filter(|(_, uneven)| **uneven);
            self.lines.extend(with_third.map(|(i, _)| Line { row: first_row + i, leads: false }));
            let end = self.lines.len();
            // Where lines are folded, third ones have sheaves of their own: how many there are must not change the others'.
            let apart = few && may_fold && thirds - start >= FOLDED;
            let cut = if apart { thirds } else { end };
            for (start, end) in [(start, cut), (cut, end)] {
                for first in (start..end).step_by(most) {
                    let lines = (end - first).min(most);
                    let places = if few && lines <= 4 { lines } else { most };
                    let sparse = first >= thirds;
                    let folded = apart && !sparse && lines >= FOLDED;
                    let index = self.sheaves.len();
                    self.sheaves.push(Sheaf { first, lines, places, sparse, folded, index, before, folded_before });
                    before += places;
                    folded_before += if folded { places / FOLDED } else { 0 };
                }
            }
        }
        (before, folded_before)
    }

    /// Rows.
    pub(crate) fn rows(&self) -> usize {
        self.uneven.len()
    }

    /// Whose the lines are.
    pub(crate) fn lines(&self) -> &[Line] {
        &self.lines
    }

    /// The sheaves, in the order of their lines.
    pub(crate) fn sheaves(&self) -> &[Sheaf] {
        &self.sheaves
    }

    /// `[registers, places, width]`: the codes of a sheaf.
    pub(crate) fn codes(&self, sheaf: Sheaf) -> &[i8] {
        &self.codes.as_slice()[sheaf.before * self.line_bytes..][..sheaf.places * self.line_bytes]
    }

    /// `[blocks, places, lanes]`: for each line of a sheaf, the scale of the group that each lane of 32 bits belongs to; if it is
    /// folded, `[blocks, places / 4, lanes]`, lanes being those of four lines in turn. Of up to [`SMALL`] rows.
    pub(crate) fn lane_scales(&self, sheaf: Sheaf) -> &[f32] {
        let places = if sheaf.folded { sheaf.places / FOLDED } else { sheaf.places };
        &self.lane_scales.as_slice()[sheaf.before * self.lane_stride..][..places * self.lane_stride]
    }

    /// Of a sheaf that is folded, in the order of its scales: in the first four lanes of a group its [`Activations::sums`], zero in
    /// its others.
    pub(crate) fn lane_sums(&self, sheaf: Sheaf) -> &[f32] {
        let registers = if sheaf.folded { sheaf.places / FOLDED } else { 0 };
        &self.lane_sums.as_slice()[sheaf.folded_before * self.lane_stride..][..registers * self.lane_stride]
    }

    /// `[groups]`: whether a sheaf of third lines, which are mostly zero, has to be multiplied by a group. None if the sheaf
    /// has others.
    #[inline(always)]
    pub(crate) fn used(&self, sheaf: Sheaf) -> Option<&[bool]> {
        sheaf.sparse.then(|| &self.used[sheaf.index * self.group_stride..][..self.group_stride])
    }

    /// The scale of each group of a line, then zeros.
    pub(crate) fn scales(&self, line: usize) -> &[f32] {
        &self.scales.as_slice()[line * self.group_stride..][..self.group_stride]
    }

    /// Scale times the sum of the integers of each group of a line, then zeros.
    pub(crate) fn sums(&self, line: usize) -> &[f32] {
        &self.sums.as_slice()[line * self.group_stride..][..self.group_stride]
    }

    /// The sum of a line's integers.
    pub(crate) fn total(&self, line: usize) -> i32 {
        self.totals[line]
    }
}

/// What the parts of [`Activations`] are cut by.
#[derive(Clone, Copy)]
struct Strides {
    limbs: usize,
    line_bytes: usize,
    groups: usize,
    lanes: usize,
}

/// The parts of [`Activations`] that belong to [`ROWS_PER_PIECE`] rows, from row `first` on; or all of them, cut into such
/// parts by the iterator.
struct Pieces<'a> {
    first: usize,
    uneven: &'a [bool],
    sheaves: &'a [Sheaf],
    codes: &'a mut [i8],
    scales: &'a mut [f32],
    sums: &'a mut [f32],
    lane_scales: &'a mut [f32],
    lane_sums: &'a mut [f32],
    totals: &'a mut [i32],
    used: &'a mut [bool],
    strides: Strides,
}

impl<'a> Iterator for Pieces<'a> {
    type Item = Pieces<'a>;

    fn next(&mut self) -> Option<Pieces<'a>> {
        /// Takes the first `n` away.
        fn cut<'a, T>(all: &mut &'a mut [T], n: usize) -> &'a mut [T] {
            all.split_off_mut(..n).expect("the parts are as long as their pieces together")
        }
        let strides = self.strides;
        let (uneven, others) = self.uneven.split_at(self.uneven.len().min(ROWS_PER_PIECE));
        let lines = uneven.len() * strides.limbs + uneven.iter().filter(|uneven| **uneven).count();
        let first_line = self.sheaves.first().map_or(0, |sheaf| sheaf.first);
        let of_piece = self.sheaves.iter().take_while(|sheaf| sheaf.first < first_line + lines).count();
        let (sheaves, other_sheaves) = self.sheaves.split_at(of_piece);
        let places: usize = sheaves.iter().map(|sheaf| sheaf.places).sum();
        let folded: usize = sheaves.iter().filter(|sheaf| sheaf.folded).map(|sheaf| sheaf.places / FOLDED).sum();
        let piece = Pieces {
            first: self.first,
            uneven,
            sheaves,
            codes: cut(&mut self.codes, places * strides.line_bytes),
            scales: cut(&mut self.scales, lines * strides.groups),
            sums: cut(&mut self.sums, lines * strides.groups),
            lane_scales: cut(&mut self.lane_scales, places * strides.lanes),
            lane_sums: cut(&mut self.lane_sums, folded * strides.lanes),
            totals: cut(&mut self.totals, lines),
            used: cut(&mut self.used, sheaves.len() * strides.groups),
            strides,
        };
        (self.uneven, self.sheaves) = (others, other_sheaves);
        self.first += uneven.len();
        (!uneven.is_empty()).then_some(piece)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let pieces = self.uneven.len().div_ceil(ROWS_PER_PIECE);
        (pieces, Some(pieces))
    }
}

impl ExactSizeIterator for Pieces<'_> {}

impl Pieces<'_> {
    /// Stores a limb of a rounded row as line `line` of the piece.
    fn put<D: Decode>(&mut self, row: &Row, limb: usize, line: usize, layout: &Layout, order: &Order) {
        let strides = self.strides;
        let of_line = line + self.sheaves[0].first;
        let index = self.sheaves.partition_point(|sheaf| sheaf.first + sheaf.lines <= of_line);
        let Sheaf { first, before, folded_before, places, folded, .. } = self.sheaves[index];
        let (place, before) = (of_line - first, before - self.sheaves[0].before);
        let folded_before = folded_before - self.sheaves[0].folded_before;
        let codes = &mut self.codes[before * strides.line_bytes..][..places * strides.line_bytes];
        arrange(&row.limbs[limb], order, layout.width, codes, place, places);

        let groups = line * strides.groups..line * strides.groups + layout.groups;
        self.scales[groups.clone()].copy_from_slice(&row.scales[limb]);
        self.sums[groups].copy_from_slice(&row.sums[limb]);
        for (used, &scale) in self.used[index * strides.groups..].iter_mut().zip(&row.scales[limb]) {
            *used |= scale != 0.0;
        }
        if strides.lanes != 0 {
            let lane_scales = &mut self.lane_scales[before * strides.lanes..];
            let lanes = layout.lanes();
            let of_group = lanes / layout.block_groups;
            for group in 0..layout.groups {
                let (scale, sum) = (row.scales[limb][group], row.sums[limb][group]);
                let (block, within) = (group / layout.block_groups, group % layout.block_groups * of_group);
                if folded {
                    let first = (block * (places / FOLDED) + place / FOLDED) * lanes + within + place % FOLDED;
                    lane_scales[first..][..of_group - place % FOLDED]
                        .iter_mut()
                        .step_by(FOLDED)
                        .for_each(|lane| *lane = scale);
                    self.lane_sums[folded_before * strides.lanes + first] = sum;
                } else {
                    lane_scales[(block * places + place) * lanes + within..][..of_group].fill(scale);
                }
            }
        }
        if D::WHOLE_ROWS {
            self.totals[line] = total(&row.limbs[limb][..layout.k]);
        }
    }
}

thread_local! {
    /// What a thread needs to round a row.
    static ROW: RefCell<Row> = RefCell::default();
}

/// One row on its way from floats to lines.
#[derive(Default)]
struct Row {
    /// The integers of the groups, and of what they leave.
    rounded: Vec<f32>,
    rest: Vec<f32>,
    /// By limb, in the order of k, with [`MOST_STRIDE`] bytes behind.
    limbs: [Vec<i8>; MOST_LIMBS],
    /// By limb and group: what an integer of it stands for, and the sum of what they stand for. The sums of both bytes go with
    /// the first.
    scales: [Vec<f32>; MOST_LIMBS],
    sums: [Vec<f32>; MOST_LIMBS],
}

impl Row {
    /// Rounds group by group and cuts integers into bytes.
    fn round(&mut self, x: &[f32], layout: &Layout, levels: Levels, limbs: usize) {
        let length = layout.tiles * layout.tile_weights();
        for rounded in [&mut self.rounded, &mut self.rest] {
            rounded.clear();
            rounded.resize(length, 0.0);
        }
        for limb in 0..limbs {
            self.limbs[limb].resize(length + MOST_STRIDE, 0);
            for of_groups in [&mut self.scales[limb], &mut self.sums[limb]] {
                of_groups.clear();
                of_groups.resize(layout.groups, 0.0);
            }
        }
        for (group, x) in x.chunks(layout.group).enumerate() {
            let places = group * layout.group..group * layout.group + x.len();
            let q = &mut self.rounded[places.clone()];
            let scale = quantize_group(x, levels, q);
            self.sums[0][group] = scale * exact_sum(q);
            if limbs == 1 {
                self.scales[0][group] = scale;
                continue;
            }
            self.scales[0][group] = scale * 256.0;
            self.scales[1][group] = scale;
            if limbs == MOST_LIMBS && is_uneven(x) {
                let rest = &mut self.rest[places];
                let step = quantize_rest(x, scale, q, rest);
                self.scales[2][group] = step;
                self.sums[2][group] = step * exact_sum(rest);
            }
        }
        let [high, low, rest] = &mut self.limbs;
        match limbs {
            1 => to_bytes(&self.rounded, high),
            _ => to_limbs(&self.rounded, high, low),
        }
        if limbs == MOST_LIMBS {
            to_bytes(&self.rest, rest);
        }
    }

    /// Takes what is rounded already.
    fn copy(&mut self, codes: &[i8], scale: f32, layout: &Layout) {
        let [own, ..] = &mut self.limbs;
        own.clear();
        own.extend_from_slice(codes);
        own.resize(layout.tiles * layout.tile_weights() + MOST_STRIDE, 0);
        self.scales[0].clear();
        self.scales[0].resize(layout.groups, scale);
        self.sums[0].clear();
        self.sums[0].extend(codes.chunks(layout.group).map(|codes| scale * total(codes) as f32));
    }
}

multiversion! {
    /// Brings a line from the order of k into that of the tiles, at its place of a sheaf.
    fn arrange(natural: &[i8], order: &Order, width: usize, sheaf: &mut [i8], place: usize, places: usize) {
        let registers = sheaf.chunks_mut(width).skip(place).step_by(places);
        let of_register = width / order.run;
        let mut runs = order.starts.chunks(of_register).cycle();
        let (mut begin, of_period) = (0, order.starts.len() * order.run);
        for (i, out) in registers.enumerate() {
            let Some(starts) = runs.next() else { return };
            if i != 0 && (i * width).is_multiple_of(of_period) {
                begin += of_period;
            }
            if begin + of_period > natural.len() {
                return;
            }
            let natural = &natural[begin..];
            match (order.stride, order.run) {
                (1, 64) => copy_runs::<1, 64>(natural, starts, out),
                (1, 32) => copy_runs::<1, 32>(natural, starts, out),
                (2, 64) => copy_runs::<2, 64>(natural, starts, out),
                (2, 32) => copy_runs::<2, 32>(natural, starts, out),
                (2, 16) => copy_runs::<2, 16>(natural, starts, out),
                (2, 8) => copy_runs::<2, 8>(natural, starts, out),
                (2, 4) => copy_runs::<2, 4>(natural, starts, out),
                (4, 64) => copy_runs::<4, 64>(natural, starts, out),
                (4, 32) => copy_runs::<4, 32>(natural, starts, out),
                (stride, run) => {
                    for (out, &start) in out.chunks_mut(run).zip(starts) {
                        for (out, &q) in out.iter_mut().zip(natural[start as usize..].iter().step_by(stride)) {
                            *out = q;
                        }
                    }
                }
            }
        }
    }
}

/// Runs of `RUN` bytes, every `STRIDE`th from a start on.
#[inline(always)]
fn copy_runs<const STRIDE: usize, const RUN: usize>(natural: &[i8], starts: &[u32], out: &mut [i8]) {
    for (out, &start) in out.as_chunks_mut::<RUN>().0.iter_mut().zip(starts) {
        let strides = natural[start as usize..][..STRIDE * RUN].as_chunks::<STRIDE>().0;
        for (out, stride) in out.iter_mut().zip(strides) {
            *out = stride[0];
        }
    }
}

multiversion! {
    /// Integers of at most 32639, held as f32, as `256 high + low`.
    fn to_limbs(rounded: &[f32], high: &mut [i8], low: &mut [i8]) {
        for ((high, low), &q) in high.iter_mut().zip(low).zip(rounded) {
            // The nearest multiple of 256, ties upwards: what is left is in -128..128.
            let upper = ((q + 128.0) * (1.0 / 256.0)).floor();
            *high = low_byte(upper);
            *low = low_byte(q - 256.0 * upper);
        }
    }
}

multiversion! {
    /// The sum of integers that add up to less than 2^24, held as f32: exact, whatever the order.
    fn exact_sum(rounded: &[f32]) -> f32 {
        let (whole, rest) = rounded.as_chunks::<16>();
        let mut sums = [0.0; 16];
        for chunk in whole {
            for (sum, &q) in sums.iter_mut().zip(chunk) {
                *sum += q;
            }
        }
        sums.iter().chain(rest).sum()
    }
}

multiversion! {
    /// The sum of bytes.
    fn total(codes: &[i8]) -> i32 {
        codes.iter().map(|&q| i32::from(q)).sum()
    }
}
