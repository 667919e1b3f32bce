//! Threads, as a value that is passed in.

mod workers;

use self::workers::Workers;
use crate::isa::isa;
use std::cell::Cell;
use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

thread_local! {
    /// Whether this thread is working for a pool: a nested call then runs inline instead of asking for more threads.
    static WORKING: Cell<bool> = const { Cell::new(false) };
}

/// How many threads a computation may use, and how work is spread over them.
///
/// The caller is one of the threads. The others are started by the first call that needs them; between calls they look out
/// for work for some tens of microseconds, then sleep until there is some, and end with the pool. A call allocates nothing
/// ([`Pool::map`] aside, for its results).
///
/// Callers cut their work by shape alone, or give each thread rows that nothing else depends on, and so get the same answer
/// from any number of threads.
pub struct Pool {
    threads: usize,
    workers: Workers,
    workers_used: AtomicUsize,
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("threads", &self.threads).finish_non_exhaustive()
    }
}

impl Pool {
    /// A pool of `threads` threads, the caller included; 0 means as many as the machine offers.
    pub fn new(threads: usize) -> Pool {
        let threads = match threads {
            0 => thread::available_parallelism().map_or(1, |count| count.get()),
            wanted => wanted,
        };
        Pool { threads, workers: Workers::new(threads - 1), workers_used: AtomicUsize::new(0) }
    }

    /// The calling thread alone.
    pub fn single() -> Pool {
        Pool::new(1)
    }

    /// The number of threads, the caller included.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// How many workers ran at least one piece in the last call that was not nested; 0 before the first.
    ///
    /// For tests that must know that threads really ran; nothing may be decided by it.
    pub fn workers_used(&self) -> usize {
        self.workers_used.load(Ordering::Relaxed)
    }

    /// `[f(0), f(1), .., f(n - 1)]`, computed by the pool's threads. Which thread takes which piece is decided while running.
    ///
    /// A call from inside a worker (of any pool) runs inline. A panic in `f` stops the hand-out of further pieces and goes
    /// on in the caller once all workers have stopped.
    pub fn map<T: Send>(&self, n: usize, f: impl Fn(usize) -> T + Sync) -> Vec<T> {
        let mut results: Vec<Option<T>> = Vec::new();
        results.resize_with(n, || None);
        self.for_each(results.iter_mut().enumerate(), |(i, result)| *result = Some(f(i)));
        results.into_iter().map(|result| result.expect("every piece is handed out and no worker panicked")).collect()
    }

    /// Calls `f(i, chunk)` for every chunk of `chunk` elements of `data` (the last may be shorter).
    ///
    /// # Panics
    ///
    /// If `chunk` is 0.
    pub fn for_each_chunk<T: Send>(&self, data: &mut [T], chunk: usize, f: impl Fn(usize, &mut [T]) + Sync) {
        self.for_each(data.chunks_mut(chunk).enumerate(), |(i, chunk)| f(i, chunk));
    }

    /// Calls `f` for every item of `pieces`. Threads take the next item whenever they have done one; nesting and panics are
    /// as in [`Pool::map`].
    pub fn for_each<I>(&self, pieces: I, f: impl Fn(I::Item) + Sync)
    where
        I: ExactSizeIterator + Send,
        I::Item: Send,
    {
        let parts = self.threads.min(pieces.len());
        let pieces = Mutex::new(pieces);
        let stop = AtomicBool::new(false);
        self.in_parts(parts, |_| {
            /// Stops the others when `f` panics.
            struct Guard<'a>(&'a AtomicBool);
            impl Drop for Guard<'_> {
                fn drop(&mut self) {
                    if thread::panicking() {
                        self.0.store(true, Ordering::Relaxed);
                    }
                }
            }
            let _guard = Guard(&stop);
            let next = || pieces.lock().unwrap_or_else(PoisonError::into_inner).next();
            let mut any = false;
            while !stop.load(Ordering::Relaxed) {
                let Some(piece) = next() else { break };
                any = true;
                f(piece);
            }
            any
        });
    }

    /// Cuts `0..n` into one range per thread, the same ones at every call, and calls `f` for each: static partition, for
    /// many short products by the same weights. Ranges but the last are multiples of `step` long, and at least `least`.
    ///
    /// Nesting and panics are as in [`Pool::map`].
    ///
    /// # Panics
    ///
    /// If `step` is 0.
    pub fn split(&self, n: usize, step: usize, least: usize, f: impl Fn(Range<usize>) + Sync) {
        let parts = self.threads.min(n / least.max(1)).max(1);
        let length = n.div_ceil(parts).next_multiple_of(step);
        self.in_parts(parts, |part| {
            let range = (part * length).min(n)..((part + 1) * length).min(n);
            let any = !range.is_empty();
            if any {
                f(range);
            }
            any
        });
    }

    /// Calls `f(0)` to `f(parts - 1)`, each on a thread of its own if there are that many and this is not a nested call. `f`
    /// answers whether it did something.
    fn in_parts(&self, parts: usize, f: impl Fn(usize) -> bool + Sync) {
        if WORKING.get() {
            (0..parts).for_each(|part| {
                f(part);
            });
            return;
        }
        let used = AtomicUsize::new(0);
        // The threads of a pool have no choice of their own.
        let chosen = isa();
        let work = |part: usize| {
            /// Ends the thread's state, also when `f` panics.
            struct Guard;
            impl Drop for Guard {
                fn drop(&mut self) {
                    WORKING.set(false);
                }
            }
            WORKING.set(true);
            let _guard = Guard;
            if chosen.with(|| f(part)).expect("the caller uses this set") {
                used.fetch_add(1, Ordering::Relaxed);
            }
        };
        match parts {
            0 => {}
            1 => work(0),
            _ => self.workers.run(parts, &work),
        }
        self.workers_used.store(used.into_inner(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::Barrier;

    #[test]
    fn results_are_in_order_whatever_the_number_of_threads() {
        for threads in [1, 2, 3, 8] {
            for n in [0, 1, 2, 7, 100] {
                let found = Pool::new(threads).map(n, |i| i * i);
                assert_eq!(found, (0..n).map(|i| i * i).collect::<Vec<_>>(), "{threads} threads, {n} pieces");
            }
        }
    }

    #[test]
    fn two_workers_really_run() {
        let pool = Pool::new(2);
        let both = Barrier::new(2);
        let threads = pool.map(2, |_| {
            both.wait();
            thread::current().id()
        });
        assert_ne!(threads[0], threads[1]);
        assert_eq!(pool.workers_used(), 2);
    }

    #[test]
    fn a_single_pool_stays_on_the_calling_thread() {
        let pool = Pool::single();
        let threads = pool.map(5, |_| thread::current().id());
        assert!(threads.iter().all(|&id| id == thread::current().id()));
        assert_eq!((pool.threads(), pool.workers_used()), (1, 1));
    }

    #[test]
    fn a_nested_call_runs_inline() {
        let pool = Pool::new(2);
        let both = Barrier::new(2);
        pool.map(2, |_| {
            both.wait();
            let outer = thread::current().id();
            let inner = pool.map(4, |_| thread::current().id());
            assert!(inner.iter().all(|&id| id == outer));
        });
        // The caller is a worker no longer: its next call uses threads again.
        pool.map(2, |_| both.wait());
        assert_eq!(pool.workers_used(), 2);
    }

    #[test]
    fn a_panic_reaches_the_caller_with_its_message() {
        for piece in 0..8 {
            let pool = Pool::new(3);
            let caught =
                catch_unwind(AssertUnwindSafe(|| pool.map(8, |i| if i == piece { panic!("piece {i}") } else { i })));
            let panic = caught.expect_err("the piece panicked");
            assert_eq!(panic.downcast_ref::<String>(), Some(&format!("piece {piece}")));
            assert_eq!(pool.map(3, |i| i), [0, 1, 2], "the pool still works");
        }
    }

    #[test]
    fn ranges_are_the_same_at_every_call_and_cover_everything() {
        for threads in [1, 2, 3, 8] {
            let pool = Pool::new(threads);
            for (n, step, least) in [(0, 4, 1), (1, 4, 1), (7, 1, 1), (100, 16, 1), (100, 16, 40), (1000, 3, 0)] {
                let ranges = || {
                    let ranges = Mutex::new(Vec::new());
                    pool.split(n, step, least, |range| ranges.lock().expect("no panic").push(range));
                    let mut ranges = ranges.into_inner().expect("no panic");
                    ranges.sort_by_key(|range| range.start);
                    ranges
                };
                let first = ranges();
                assert_eq!(first.iter().flat_map(Clone::clone).collect::<Vec<_>>(), (0..n).collect::<Vec<_>>());
                assert!(first.iter().rev().skip(1).all(|range| range.len() % step == 0 && range.len() >= least));
                assert_eq!(ranges(), first);
            }
        }
    }

    #[test]
    fn a_pool_serves_several_callers_and_many_calls() {
        let pool = Pool::new(3);
        thread::scope(|scope| {
            for caller in 0..4 {
                let pool = &pool;
                scope.spawn(move || {
                    for call in 0..200 {
                        let n = (caller + call) % 7;
                        assert_eq!(pool.map(n, |i| i + call), (call..call + n).collect::<Vec<_>>());
                    }
                });
            }
        });
    }

    #[test]
    fn workers_wake_up_again() {
        let pool = Pool::new(2);
        for pause in [0, 1, 20] {
            thread::sleep(std::time::Duration::from_millis(pause));
            let both = Barrier::new(2);
            pool.map(2, |_| both.wait());
            assert_eq!(pool.workers_used(), 2);
        }
    }

    #[test]
    fn chunks_are_disjoint_and_complete() {
        for threads in [1, 2, 5] {
            let mut data = vec![0usize; 103];
            Pool::new(threads).for_each_chunk(&mut data, 10, |i, chunk| {
                for value in chunk.iter_mut() {
                    *value += i + 1;
                }
            });
            assert!(data.iter().enumerate().all(|(place, &value)| value == place / 10 + 1));
        }
    }
}
