//! The time that products with many token rows are thought to take on an H200. Guesses are in it: no device was asked.

use super::middle::MIDDLE_ROWS;
use super::prefill::SLAB;
use super::spread::{BANDWIDTH, CACHE, MULTIPROCESSORS, START};
use super::tiles::{TILE_CHANNELS, TILE_K};
use super::wide::{WIDE_CHANNELS, WIDE_ROWS};

/// Operations per second on half precision (on bytes: twice as many): what others saw in a product of large matrices.
const OPERATIONS: f64 = 0.79e15;

/// Seconds from one kernel to the next; before and after the loop of a kernel, but for what [`START`] says; and both of these: guesses.
const NEXT: f64 = 1e-6;
const LAUNCH: f64 = 1.25e-6;
const ONCE: f64 = START + LAUNCH;

/// Seconds that a block takes for what follows its loop, with sums of numbers or of integers: guesses, from about as many instructions as
/// its machine code has there.
const FINISH: [f64; 2] = [2e-6, 3e-6];

/// A product with many token rows.
#[derive(Clone, Copy, Debug)]
pub struct ManyRows {
    /// Of the device: 132 of an H200; what memory delivers is that of an H200 anyway.
    pub multiprocessors: usize,
    /// Output channels: those of a gate, and those that it multiplies.
    pub n: usize,
    /// Input channels.
    pub k: usize,
    /// Token rows.
    pub rows: usize,
    /// Bytes of a tile of the weight.
    pub tile: usize,
    /// Bytes of an activation: 1 or 2.
    pub number: usize,
    /// Whether cuBLASLt multiplies by the weight as it is.
    pub as_it_is: bool,
}

impl ManyRows {
    /// Seconds for the tensor cores to multiply, with numbers of so many bytes.
    fn multiplied(self, number: usize) -> f64 {
        let operations = OPERATIONS / MULTIPROCESSORS * self.multiprocessors as f64 * 2.0 / number as f64;
        2.0 * (self.rows * self.k) as f64 * self.n as f64 / operations
    }

    /// Seconds by cuBLASLt with a weight in half precision, which nothing has to be made of.
    pub fn dense(self) -> f64 {
        let ManyRows { n, k, rows, .. } = self;
        ONCE + self.multiplied(2).max(2.0 * (n * k + rows * (k + n)) as f64 / BANDWIDTH)
    }

    /// Seconds of [`DeviceWeight::product_of_many`](super::DeviceWeight::product_of_many): numbers are made of the weight, and of sums
    /// of integers what they stand for.
    pub fn by_blas(self) -> f64 {
        let ManyRows { n, k, rows, tile, number, as_it_is, .. } = self;
        let weight = n.div_ceil(TILE_CHANNELS) * k.div_ceil(TILE_K) * tile;
        let numbers = if as_it_is { 0.0 } else { NEXT + (weight + number * n * k) as f64 / BANDWIDTH };
        // Sums of integers are written, and read again.
        let (sums, finished) = match number {
            1 => {
                let pieces = (4 * rows * n).div_ceil(SLAB) as f64;
                (4 * rows * n, (2.0 * pieces - 1.0) * NEXT + (6 * rows * n) as f64 / BANDWIDTH)
            }
            _ => (2 * rows * n, 0.0),
        };
        let read = number * (n * k + rows * k);
        ONCE + numbers + self.multiplied(number).max((read + sums) as f64 / BANDWIDTH) + finished
    }

    /// Seconds of [`DeviceWeight::product`](super::DeviceWeight::product), 64 token rows at a time, each of which takes so many
    /// ([`Spread::best_alone`](super::Spread::best_alone)).
    pub fn sliced(self, slice: f64) -> f64 {
        self.rows.div_ceil(MIDDLE_ROWS) as f64 * (slice + LAUNCH)
    }

    /// Seconds of [`DeviceWeight::product_wide`](super::DeviceWeight::product_wide).
    pub fn wide(self) -> f64 {
        let ManyRows { multiprocessors, n, k, rows, tile, number, .. } = self;
        let blocks = n.div_ceil(WIDE_CHANNELS).next_multiple_of(2) * rows.div_ceil(WIDE_ROWS);
        let waves = blocks.div_ceil(multiprocessors.max(1)) as f64;
        // Of 128 bytes along k: half of the activations come for the other block of the cluster.
        let step = TILE_K as f64 / number as f64;
        let weights = (tile * WIDE_CHANNELS / TILE_CHANNELS) as f64 * step / TILE_K as f64;
        let by_cache = (weights + (TILE_K * WIDE_ROWS / 2) as f64) / CACHE;
        // No faster than cuBLASLt on all multiprocessors.
        let rate = OPERATIONS / MULTIPROCESSORS * 2.0 / number as f64;
        let multiplied = 2.0 * step * (WIDE_CHANNELS * WIDE_ROWS) as f64 / rate;
        LAUNCH
            + waves * (START + (k as f64 / step).ceil() * by_cache.max(multiplied) + FINISH[usize::from(number == 1)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_larger_takes_longer() {
        let base =
            ManyRows { multiprocessors: 132, n: 3584, k: 3584, rows: 512, tile: 1664, number: 2, as_it_is: false };
        let ways: [fn(ManyRows) -> f64; 3] = [ManyRows::dense, ManyRows::by_blas, ManyRows::wide];
        for way in ways {
            for larger in [
                ManyRows { n: 18944, ..base },
                ManyRows { k: 18944, ..base },
                ManyRows { rows: 4096, ..base },
                ManyRows { n: 18944, number: 1, ..base },
            ] {
                assert!(way(larger) > way(base), "{larger:?}");
            }
            assert!((1e-6..1e-3).contains(&way(base)));
        }
        assert!(base.by_blas() > base.dense() && ManyRows { number: 1, ..base }.wide() < base.wide());
        // 56 blocks: at once, or 19 times three.
        let times = ManyRows { multiprocessors: 3, ..base }.wide() / base.wide();
        assert!((17.0..19.0).contains(&times), "{times}");
    }
}
