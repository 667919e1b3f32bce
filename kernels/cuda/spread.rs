//! How a product with few token rows is dealt to a device's multiprocessors.

/// What a block of threads takes of a weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Spread {
    /// Rows of tiles, of 32 output channels each: 1, 2, 4 or 8. The more, the fewer activations come from the second-level cache.
    pub together: usize,
    /// Parts that k is cut into, each for another block.
    pub splits: usize,
}

/// Warps of a block, and blocks that a multiprocessor runs side by side.
const WARPS: usize = 8;
const BLOCKS: usize = 2;

/// What the memory of an H200 gives one multiprocessor, and what its second-level cache does, in bytes per second. The first was
/// seen in a copy of memory, the second is a guess; only their quotient matters here.
const MEMORY: f64 = 4.3e12 / 132.0;
const CACHE: f64 = 5.5e12 / 132.0;

/// Seconds until the first tile has come and after the last is multiplied, and what it costs to add up parts of k: guesses, until
/// a device was asked.
const START: f64 = 1.0e-6;
const MEETING: f64 = 1.5e-6;

impl Spread {
    /// The one with the least estimated time, for `row_tiles` by `k_tiles` tiles of `tile` bytes; of equals the one with fewest
    /// parts, then with fewest rows together.
    pub fn new(row_tiles: usize, k_tiles: usize, tile: usize, rows: usize, multiprocessors: usize) -> Spread {
        let mut best = (f64::INFINITY, Spread { together: 1, splits: 1 });
        for splits in 1..=k_tiles.clamp(1, 32) {
            for together in [1, 2, 4, 8] {
                let spread = Spread { together, splits };
                let time = spread.seconds(row_tiles, k_tiles, tile, rows, multiprocessors);
                if time < 0.999 * best.0 {
                    best = (time, spread);
                }
            }
        }
        best.1
    }

    /// The estimated time of a product by what memory and the second-level cache of an H200 deliver, of `multiprocessors` of its
    /// kind: guesses are in it, and instructions are not.
    ///
    /// A round is one tile for every warp of a multiprocessor; it takes as long as memory needs for its weights, or the
    /// second-level cache for weights and activations: a tile wants 256 bytes of each token row, once for all rows of tiles of a
    /// block.
    pub fn seconds(self, row_tiles: usize, k_tiles: usize, tile: usize, rows: usize, multiprocessors: usize) -> f64 {
        let Spread { together, splits } = self;
        let places = BLOCKS * multiprocessors.max(1);
        let blocks = row_tiles.div_ceil(together) * splits;
        let rounds = k_tiles.div_ceil(splits).div_ceil(WARPS / together);
        let in_flight = (BLOCKS * WARPS) as f64;
        let weights = in_flight * tile as f64;
        let activations = in_flight * (256 * rows) as f64 / together as f64;
        let round = (weights / MEMORY).max((weights + activations) / CACHE);
        // Partial sums go to the second-level cache and come back.
        let sums = (2 * splits * row_tiles * 32 * rows * 4) as f64 / (CACHE * multiprocessors.max(1) as f64);
        let meeting = if splits > 1 { MEETING + sums } else { 0.0 };
        blocks.div_ceil(places) as f64 * (START + rounds as f64 * round) + meeting
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tiles that the busiest warp has, and tiles for every warp if they could be dealt evenly.
    fn busiest(row_tiles: usize, k_tiles: usize, spread: Spread) -> (usize, f64) {
        let places = BLOCKS * 132;
        let blocks = row_tiles.div_ceil(spread.together) * spread.splits;
        let rounds = k_tiles.div_ceil(spread.splits).div_ceil(WARPS / spread.together);
        (blocks.div_ceil(places) * rounds, (row_tiles * k_tiles) as f64 / (places * WARPS) as f64)
    }

    #[test]
    fn no_tile_is_left_out_and_few_warps_are_idle() {
        for (k, n) in [(3584, 3584), (3584, 10752), (3584, 18944), (18944, 3584), (8192, 8192), (4304, 1152), (64, 32)]
        {
            for rows in [1, 8, 16] {
                let (row_tiles, k_tiles) = (usize::div_ceil(n, 32), usize::div_ceil(k, 128));
                let spread = Spread::new(row_tiles, k_tiles, 1664, rows, 132);
                assert!(spread.splits <= k_tiles && spread.together.is_power_of_two(), "{spread:?}");
                let (rounds, even) = busiest(row_tiles, k_tiles, spread);
                assert!(
                    rounds as f64 <= 1.6 * even + 1.0,
                    "{k} x {n}, {rows} rows: {spread:?}, {rounds} for {even:.1}"
                );
            }
        }
        // One row is not worth waiting for one another where there are channels enough.
        assert_eq!(Spread::new(256, 64, 1664, 1, 132), Spread { together: 1, splits: 1 });
        // Sixteen are.
        assert!(Spread::new(256, 64, 1664, 16, 132).together > 1);
    }
}
