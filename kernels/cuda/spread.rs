//! How a product with few token rows is dealt to a device's multiprocessors.

/// What blocks of threads take of a weight, which is tiles of 32 output channels by 128 input channels.
///
/// A unit is a tile of each of `together` rows of tiles (a band), all at one place along k. Units follow one another along k, then from
/// band to band; each block takes as many as another, or one more. Where several have units of a band, the last one to be done adds
/// up their sums, in the order of k.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Spread {
    /// Rows of tiles of a band: 1, 2, 4 or 8. The more, the fewer activations come from the second-level cache.
    pub together: usize,
    /// Blocks, at most as many as there are units.
    pub blocks: usize,
}

/// What a tile costs.
#[derive(Clone, Copy, Debug)]
pub struct TileCost {
    /// Bytes of it.
    pub bytes: usize,
    /// Bytes of 128 activations of a token row.
    pub activations: usize,
    /// Instructions of a warp; 0 where they are known to take less time than memory.
    pub instructions: usize,
}

/// Warps of a block.
pub(super) const WARPS: usize = 8;

/// Instructions that a multiprocessor of an H200 issues in a second: four at a time.
const ISSUED: f64 = 4.0 * 1.755e9;

/// Multiprocessors of an H200, and bytes per second of its memory, as others saw in a copy.
pub(super) const MULTIPROCESSORS: f64 = 132.0;
pub(super) const BANDWIDTH: f64 = 4.3e12;

/// What the memory gives one multiprocessor, and what the second-level cache does, in bytes per second. The latter is a guess; only their
/// quotient matters here.
const MEMORY: f64 = BANDWIDTH / MULTIPROCESSORS;
pub(super) const CACHE: f64 = 5.5e12 / MULTIPROCESSORS;

/// Seconds until the first tile has come and after the last is multiplied; until the last block of a band knows that it is the last;
/// and for the second-level cache to answer: guesses, until a device was asked.
pub(super) const START: f64 = 1.0e-6;
const MEETING: f64 = 1.0e-6;
const ANSWER: f64 = 0.4e-6;

/// Sums that a thread asks for before it waits for them, of four channels each.
const ASKED: usize = 8;

/// What a spread makes of a weight.
#[derive(Clone, Copy, Debug)]
struct Dealt {
    spread: Spread,
    /// Blocks that a multiprocessor runs side by side.
    beside: usize,
    /// One after another on a multiprocessor, as far as they do not run side by side.
    waves: usize,
    /// Tiles that the busiest warp takes one after another.
    rounds: usize,
    /// Blocks that share a band, at most.
    sharers: usize,
}

impl Dealt {
    fn new(spread: Spread, row_tiles: usize, k_tiles: usize, multiprocessors: usize, beside: usize) -> Dealt {
        let Spread { together, blocks } = spread;
        let units = row_tiles.div_ceil(together) * k_tiles;
        let strides = WARPS / together;
        let first = |block: usize| units / blocks * block + block.min(units % blocks);
        let (mut rounds, mut sharers, mut before) = (0, 1, 0);
        for block in 0..blocks {
            let (mut unit, end) = (first(block), first(block + 1));
            let mut own = 0;
            while unit < end {
                let part = (k_tiles - unit % k_tiles).min(end - unit);
                // A band that another block began is shared with one more.
                before = if unit.is_multiple_of(k_tiles) { 1 } else { before + 1 };
                sharers = sharers.max(before);
                own += part.div_ceil(strides);
                unit += part;
            }
            rounds = rounds.max(own);
        }
        Dealt { spread, beside, waves: blocks.div_ceil(beside * multiprocessors.max(1)), rounds, sharers }
    }

    fn seconds(&self, cost: TileCost, rows: usize) -> f64 {
        let Spread { together, .. } = self.spread;
        // A round is one tile for every warp of a multiprocessor; it takes as long as memory needs for its weights, the second-level
        // cache for weights and activations (which a tile wants once for all rows of tiles of a band), or its instructions.
        let in_flight = (self.beside * WARPS) as f64;
        let weights = in_flight * cost.bytes as f64;
        let activations = in_flight * (cost.activations * rows) as f64 / together as f64;
        let by_memory = (weights / MEMORY).max((weights + activations) / CACHE);
        let round = by_memory.max(in_flight * cost.instructions as f64 / ISSUED);
        let own = self.waves as f64 * (START + self.rounds as f64 * round);
        if self.sharers == 1 {
            return own;
        }
        // What the last block of a band does is done by no other.
        let sums = 32 * together * rows;
        let asks = sums.div_ceil(4 * 32 * WARPS) * self.sharers.div_ceil(ASKED);
        // As many times as token rows are finished one after another, 32 at a time.
        let meetings = rows.div_ceil(32) as f64 * MEETING;
        own + meetings + (asks as f64 * ANSWER).max((4 * sums * self.sharers) as f64 / CACHE)
    }
}

impl Spread {
    /// Those that are worth a thought for `row_tiles` by `k_tiles` tiles on a device that runs `places` blocks at once: a block for each
    /// band; parts of equal length of each band; as many blocks as there are places, or half of them.
    pub fn candidates(row_tiles: usize, k_tiles: usize, places: usize) -> Vec<Spread> {
        let mut found = Vec::new();
        for together in [1, 2, 4, 8] {
            let bands = row_tiles.div_ceil(together);
            let parts =
                (1..=k_tiles).map(|parts| parts * bands).take_while(|&blocks| blocks == bands || blocks <= places);
            let mut blocks: Vec<usize> = parts.chain([places, places / 2]).collect();
            blocks.retain(|&blocks| (1..=bands * k_tiles).contains(&blocks));
            blocks.sort_unstable();
            blocks.dedup();
            found.extend(blocks.into_iter().map(|blocks| Spread { together, blocks }));
        }
        found
    }

    /// Of the [`candidates`](Spread::candidates) the one with the least estimated time; of equals the one with
    /// fewest rows together, then with fewest blocks. For 1 to `beside.len()` token rows, with each of which a multiprocessor runs that
    /// many blocks side by side.
    pub fn best(
        row_tiles: usize,
        k_tiles: usize,
        cost: TileCost,
        multiprocessors: usize,
        beside: &[usize],
    ) -> Vec<Spread> {
        let all = |beside: usize| -> Vec<Dealt> {
            let candidates = Spread::candidates(row_tiles, k_tiles, beside * multiprocessors.max(1)).into_iter();
            candidates.map(|spread| Dealt::new(spread, row_tiles, k_tiles, multiprocessors, beside)).collect()
        };
        let dealt = [all(1), all(2)];
        let best = |(rows, &beside): (usize, &usize)| {
            let mut best = (f64::INFINITY, Spread { together: 1, blocks: 1 });
            for one in &dealt[beside.clamp(1, 2) - 1] {
                let time = one.seconds(cost, rows);
                if time < 0.999 * best.0 {
                    best = (time, one.spread);
                }
            }
            best.1
        };
        (1..).zip(beside).map(best).collect()
    }

    /// Of those with a block for a multiprocessor at most, and bands of `least_together` or more, the one with the least estimated time for that
    /// many token rows, and the time.
    pub fn best_alone(
        row_tiles: usize,
        k_tiles: usize,
        cost: TileCost,
        multiprocessors: usize,
        rows: usize,
        least_together: usize,
    ) -> (Spread, f64) {
        let candidates = Spread::candidates(row_tiles, k_tiles, multiprocessors.max(1)).into_iter();
        let dealt = candidates
            .filter(|spread| spread.together >= least_together && spread.blocks <= multiprocessors.max(1))
            .map(|spread| Dealt::new(spread, row_tiles, k_tiles, multiprocessors, 1));
        let times = dealt.map(|one| (one.spread, one.seconds(cost, rows)));
        times.min_by(|one, other| one.1.total_cmp(&other.1)).expect("a band may be of 8 rows of tiles")
    }

    /// The estimated time of a product on `multiprocessors` of an H200, each with two blocks side by side: guesses are in it.
    pub fn seconds(self, row_tiles: usize, k_tiles: usize, cost: TileCost, rows: usize, multiprocessors: usize) -> f64 {
        Dealt::new(self, row_tiles, k_tiles, multiprocessors, 2).seconds(cost, rows)
    }

    /// Whether any band is shared by blocks.
    pub(super) fn meets(self, row_tiles: usize, k_tiles: usize) -> bool {
        let units = row_tiles.div_ceil(self.together) * k_tiles;
        // Every block ends where a band does.
        let whole = units.is_multiple_of(self.blocks) && (units / self.blocks).is_multiple_of(k_tiles);
        k_tiles > 1 && !whole
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZES: [(usize, usize); 8] = [
        (3584, 3584),
        (3584, 10752),
        (3584, 18944),
        (18944, 3584),
        (8192, 8192),
        (4304, 1152),
        (64, 32),
        (3584, 152_064),
    ];

    const W3: TileCost = TileCost { bytes: 1664, activations: 256, instructions: 0 };

    fn tiles((k, n): (usize, usize)) -> (usize, usize) {
        (n.div_ceil(32), k.div_ceil(128))
    }

    #[test]
    fn no_tile_is_left_out_and_few_warps_are_idle() {
        for size in SIZES {
            let (row_tiles, k_tiles) = tiles(size);
            for beside in [1, 2] {
                for (rows, spread) in (1..).zip(Spread::best(row_tiles, k_tiles, W3, 132, &[beside; 16])) {
                    let dealt = Dealt::new(spread, row_tiles, k_tiles, 132, beside);
                    let even = (row_tiles * k_tiles) as f64 / (beside * 132 * WARPS) as f64;
                    let rounds = (dealt.waves * dealt.rounds) as f64;
                    // Rounds of one block are half as long, so that more of them are better than waiting for one another.
                    let more = if beside == 1 { 3.0 } else { 1.0 };
                    assert!(
                        rounds <= 1.2 * even.ceil() + more,
                        "{size:?}, {rows} rows: {dealt:?}, {rounds} rounds for {even:.1}"
                    );
                }
            }
        }
        // One row is not worth waiting for one another where there are channels enough.
        assert_eq!(Spread::best(256, 64, W3, 132, &[2]), [Spread { together: 1, blocks: 256 }]);
        // Sixteen are.
        assert!(Spread::best(256, 64, W3, 132, &[2; 16])[15].together > 1);
    }

    #[test]
    fn blocks_of_many_rows_do_not_meet_in_crowds() {
        let cost = TileCost { instructions: 1000, ..W3 };
        for size in SIZES {
            let (row_tiles, k_tiles) = tiles(size);
            for (least, most) in [(4, 8), (8, 10)] {
                let (spread, _) = Spread::best_alone(row_tiles, k_tiles, cost, 132, 64, least);
                let dealt = Dealt::new(spread, row_tiles, k_tiles, 132, 1);
                assert!(spread.together >= least && dealt.waves == 1 && dealt.sharers <= most, "{size:?}: {dealt:?}");
            }
        }
    }

    /// What the program that checks devices relies on: with 64 rows, blocks of some small products share a band, and blocks of one with
    /// more bands of eight rows of tiles than there are multiprocessors have several.
    #[test]
    fn every_device_deals_out_in_both_ways() {
        for multiprocessors in [3, 48, 78, 108, 114, 128, 132, 142, 148, 170] {
            for (bytes, activations, instructions) in
                [(1664, 256, 1050), (2176, 256, 1050), (2048, 128, 400), (4096, 128, 400)]
            {
                let cost = TileCost { bytes, activations, instructions };
                for least in [1, 4, 8] {
                    let dealt = |(row_tiles, k_tiles)| {
                        let (spread, _) = Spread::best_alone(row_tiles, k_tiles, cost, multiprocessors, 64, least);
                        Dealt::new(spread, row_tiles, k_tiles, multiprocessors, 1)
                    };
                    let several = dealt((8 * (multiprocessors + 1), 1));
                    assert!(
                        several.spread.blocks < (8 * (multiprocessors + 1)).div_ceil(several.spread.together),
                        "{several:?}"
                    );
                    let shared = dealt((2, 21)).sharers > 1;
                    assert!(shared || multiprocessors == 3, "{multiprocessors} multiprocessors, {cost:?}");
                }
            }
        }
    }

    #[test]
    fn bands_are_shared_where_a_block_ends_within_one() {
        for size in SIZES {
            let (row_tiles, k_tiles) = tiles(size);
            for spread in Spread::candidates(row_tiles, k_tiles, 264) {
                let dealt = Dealt::new(spread, row_tiles, k_tiles, 132, 2);
                assert_eq!(spread.meets(row_tiles, k_tiles), dealt.sharers > 1, "{dealt:?} of {row_tiles} x {k_tiles}");
            }
        }
    }
}
