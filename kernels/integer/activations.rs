//! Activations as the integer kernels read them: rounded, in the order of a weight's tiles.

use super::buffer::Buffer;
use super::layout::Order;
use super::{Decode, Layout};
use crate::affine::{Levels, is_uneven, low_byte, quantize_group, quantize_rest};
use crate::pool::Pool;
use crate::tokens::Input;
use std::any::TypeId;
use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, Ordering};

/// Rows of activations from which their rounding goes to threads.
const ROWS_PER_PIECE: usize = 8;

/// Places of a sheaf that has fewer lines than the others: as many, where there is a kernel for that number.
pub(crate) fn places(lines: usize, together: usize) -> usize {
    if lines > 4 { together } else { lines }
}

/// Bytes behind a line in the order of k, so that the last run may be read in whole strides; what they are does not matter.
const MOST_STRIDE: usize = 8;

/// Lines of a row, at most: high bytes, low bytes, and what is left where groups are uneven.
pub(crate) const MOST_LIMBS: usize = 3;

/// Rows of activations as *lines* of signed bytes: one line to a row; two, the high and the low bytes of 16 bits; or three,
/// if a group of any row is uneven. The third lines of even groups are zero, so what is computed for a row does not depend on
/// the others.
///
/// A line is as long as the tiles of a weight's row, zero where those reach beyond k. Lines that are multiplied together are
/// a *sheaf*: the first register of each, then the second of each, and so on, which is the order in which they are read. The
/// buffers are kept between products, so that after the first of a size nothing is allocated.
#[derive(Default)]
pub(crate) struct Activations {
    codes: Buffer<i8>,
    scales: Buffer<f32>,
    lane_scales: Buffer<f32>,
    sums: Buffer<f32>,
    totals: Vec<i32>,
    order: Order,
    /// What `order` was made for: a decoder, a group size and a width.
    order_of: Option<(TypeId, usize, usize)>,
    lines: usize,
    limbs: usize,
    /// Lines of a sheaf, and places for lines in the last.
    together: usize,
    last: usize,
    line_bytes: usize,
    group_stride: usize,
    lane_stride: usize,
}

impl Activations {
    /// Rounds `x: [rows, k]`, or takes what is rounded already.
    ///
    /// `most` is the number of lines that can be multiplied together; a sheaf has whole rows. If `filled`, all sheaves have as
    /// many places, else the last has as many as [`places`] says.
    pub(crate) fn set<D: Decode>(
        &mut self,
        x: Input<'_>,
        rows: usize,
        layout: &Layout,
        levels: Levels,
        (most, filled): (usize, bool),
        pool: &Pool,
    ) {
        let uneven = |x: &[f32]| x.chunks(layout.k.max(1)).flat_map(|x| x.chunks(layout.group.max(1))).any(is_uneven);
        let limbs = match (levels, x) {
            (Levels::Int8 | Levels::Token, _) | (_, Input::Tokens(_)) => 1,
            (Levels::Int16, Input::F32(x)) => {
                let any = AtomicBool::new(false);
                pool.for_each(x.chunks((ROWS_PER_PIECE * layout.k).max(1)), |x| {
                    if !any.load(Ordering::Relaxed) && uneven(x) {
                        any.store(true, Ordering::Relaxed);
                    }
                });
                2 + usize::from(any.into_inner())
            }
        };
        self.lines = rows * limbs;
        self.limbs = limbs;
        self.together = most - most % limbs;
        let over = self.lines % self.together;
        self.last = if over == 0 || filled { self.together } else { places(over, self.together) };
        self.line_bytes = layout.tiles * layout.tile_weights();
        let places = self.lines - over + if over == 0 { 0 } else { self.last };
        self.group_stride = layout.padded_groups;
        let order_of = Some((TypeId::of::<D>(), layout.group, layout.width));
        if self.order_of != order_of {
            self.order = layout.order::<D>();
            self.order_of = order_of;
        }
        // What lies in places without a line is never looked at.
        let codes = self.codes.sized(places * self.line_bytes);
        let scales = self.scales.zeroed(self.lines * self.group_stride);
        let sums = self.sums.zeroed(self.lines * self.group_stride);
        self.lane_stride = layout.blocks * layout.lanes();
        let lane_scales = self.lane_scales.zeroed(places * self.lane_stride);
        self.totals.clear();
        self.totals.resize(self.lines, 0);
        if layout.k == 0 {
            return;
        }
        // Whole sheaves.
        let piece = ROWS_PER_PIECE * limbs;
        debug_assert!(piece.is_multiple_of(self.together), "{piece} lines in sheaves of {}", self.together);
        let order = &self.order;
        let pieces = (0..rows)
            .step_by(ROWS_PER_PIECE)
            .zip(codes.chunks_mut(piece * self.line_bytes))
            .zip(scales.chunks_mut(piece * self.group_stride))
            .zip(sums.chunks_mut(piece * self.group_stride))
            .zip(lane_scales.chunks_mut(piece * self.lane_stride))
            .zip(self.totals.chunks_mut(piece));
        pool.for_each(pieces, |(((((first, codes), scales), sums), lane_scales), totals)| {
            let mut row = ROW.take();
            for i in 0..ROWS_PER_PIECE.min(rows - first) {
                let line = i * limbs;
                let places = (first + i) * layout.k..(first + i + 1) * layout.k;
                match x {
                    Input::F32(x) => row.round(&x[places], layout, levels, limbs),
                    Input::Tokens(tokens) => row.copy(&tokens.codes()[places], tokens.scales()[first + i], layout),
                }
                for limb in 0..limbs {
                    let line = line + limb;
                    let (sheaf, place) = (line - line % self.together, line % self.together);
                    let places =
                        if first * limbs + sheaf + self.together > self.lines { self.last } else { self.together };
                    let sheaf_codes = &mut codes[sheaf * self.line_bytes..];
                    arrange(&row.limbs[limb], order, layout.width, sheaf_codes, place, places);
                    let groups = line * self.group_stride..line * self.group_stride + layout.groups;
                    scales[groups.clone()].copy_from_slice(&row.scales[limb]);
                    sums[groups].copy_from_slice(&row.sums[limb]);
                    let scales = &scales[line * self.group_stride..];
                    let lane_scales = lane_scales[sheaf * self.lane_stride..].chunks_mut(layout.lanes());
                    for (block, lanes) in lane_scales.skip(place).step_by(places).take(layout.blocks).enumerate() {
                        let scales = &scales[block * layout.block_groups..][..layout.block_groups];
                        for (lanes, &scale) in lanes.chunks_mut(layout.lanes() / layout.block_groups).zip(scales) {
                            lanes.fill(scale);
                        }
                    }
                    if D::WHOLE_ROWS {
                        totals[line] = total(&row.limbs[limb][..layout.k]);
                    }
                }
            }
            ROW.set(row);
        });
    }

    /// Lines: rows times limbs.
    pub(crate) fn lines(&self) -> usize {
        self.lines
    }

    /// Lines of a row, 1 to [`MOST_LIMBS`]. The product of a row is the sum of those of its lines.
    pub(crate) fn limbs(&self) -> usize {
        self.limbs
    }

    /// Lines of a sheaf.
    pub(crate) fn together(&self) -> usize {
        self.together
    }

    /// `[registers, places, width]`: the codes of the sheaf that begins with a line.
    pub(crate) fn codes(&self, line: usize) -> &[i8] {
        &self.codes.as_slice()[line * self.line_bytes..]
    }

    /// `[lines, group_stride]`: the scale of each group, then zeros.
    pub(crate) fn scales(&self, line: usize) -> &[f32] {
        &self.scales.as_slice()[line * self.group_stride..]
    }

    /// `[blocks, places, lanes]`: for the sheaf that begins with a line, the scale of the group that each lane of 32 bits
    /// belongs to.
    pub(crate) fn lane_scales(&self, line: usize) -> &[f32] {
        &self.lane_scales.as_slice()[line * self.lane_stride..]
    }

    /// `[lines, group_stride]`: scale times the sum of the integers of each group, then zeros.
    pub(crate) fn sums(&self, line: usize) -> &[f32] {
        &self.sums.as_slice()[line * self.group_stride..]
    }

    /// The sum of a line's integers.
    pub(crate) fn total(&self, line: usize) -> i32 {
        self.totals[line]
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
    /// Integers of at most 127, held as f32, as bytes.
    fn to_bytes(rounded: &[f32], out: &mut [i8]) {
        for (out, &q) in out.iter_mut().zip(rounded) {
            *out = low_byte(q);
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
