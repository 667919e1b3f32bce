//! Threads, as a value that is passed in.

use std::cell::Cell;
use std::panic::resume_unwind;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

thread_local! {
    /// Whether this thread is working for a pool: a nested call then runs inline instead of starting more threads.
    static WORKING: Cell<bool> = const { Cell::new(false) };
}

/// How many threads a computation may use, and how work is spread over them.
///
/// Threads are started per call (`std::thread::scope`) and the caller is one of them, so a pool holds no thread while it is
/// idle and a call costs some tens of microseconds per extra thread: give it pieces of a millisecond or more. Which worker
/// takes which piece is decided while running (a shared counter); results come back in the order of the pieces, so callers
/// that cut their work by shape alone get the same answer from any number of threads.
#[derive(Debug)]
pub struct Pool {
    threads: usize,
    workers_used: AtomicUsize,
}

impl Pool {
    /// A pool of `threads` threads, the caller included; 0 means as many as the machine offers.
    pub fn new(threads: usize) -> Pool {
        let threads = match threads {
            0 => thread::available_parallelism().map_or(1, |count| count.get()),
            wanted => wanted,
        };
        Pool { threads, workers_used: AtomicUsize::new(0) }
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

    /// `[f(0), f(1), .., f(n - 1)]`, computed by the pool's threads.
    ///
    /// A call from inside a worker (of any pool) runs inline. A panic in `f` stops the hand-out of further pieces and goes
    /// on in the caller once all workers have stopped.
    pub fn map<T: Send>(&self, n: usize, f: impl Fn(usize) -> T + Sync) -> Vec<T> {
        if WORKING.get() {
            return (0..n).map(f).collect();
        }
        let workers = self.threads.min(n);
        if workers <= 1 {
            self.workers_used.store(workers, Ordering::Relaxed);
            return (0..n).map(f).collect();
        }
        let next = AtomicUsize::new(0);
        let stop = AtomicBool::new(false);
        let work = || run_pieces(n, &next, &stop, &f);
        let parts: Vec<Vec<(usize, T)>> = thread::scope(|scope| {
            let handles: Vec<_> = (1..workers).map(|_| scope.spawn(work)).collect();
            let own = work();
            let others = handles.into_iter().map(|handle| handle.join().unwrap_or_else(|panic| resume_unwind(panic)));
            std::iter::once(own).chain(others).collect()
        });
        self.workers_used.store(parts.iter().filter(|part| !part.is_empty()).count(), Ordering::Relaxed);
        in_order(n, parts)
    }

    /// Calls `f(i, chunk)` for every chunk of `chunk` elements of `data` (the last may be shorter).
    ///
    /// # Panics
    ///
    /// If `chunk` is 0.
    pub fn for_each_chunk<T: Send>(&self, data: &mut [T], chunk: usize, f: impl Fn(usize, &mut [T]) + Sync) {
        let chunks: Vec<Mutex<&mut [T]>> = data.chunks_mut(chunk).map(Mutex::new).collect();
        self.map(chunks.len(), |i| {
            let mut chunk = chunks[i].lock().expect("a chunk is handed out once");
            f(i, &mut chunk);
        });
    }
}

/// Takes pieces until there are none left, or another worker has panicked.
fn run_pieces<T>(n: usize, next: &AtomicUsize, stop: &AtomicBool, f: &impl Fn(usize) -> T) -> Vec<(usize, T)> {
    /// Ends the worker's state, also when `f` panics.
    struct Guard<'a>(&'a AtomicBool);
    impl Drop for Guard<'_> {
        fn drop(&mut self) {
            WORKING.set(false);
            if thread::panicking() {
                self.0.store(true, Ordering::Relaxed);
            }
        }
    }
    let _guard = Guard(stop);
    WORKING.set(true);
    let mut done = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let i = next.fetch_add(1, Ordering::Relaxed);
        if i >= n {
            break;
        }
        done.push((i, f(i)));
    }
    done
}

/// The results of all workers, sorted by piece.
fn in_order<T>(n: usize, parts: Vec<Vec<(usize, T)>>) -> Vec<T> {
    let mut all: Vec<(usize, T)> = parts.into_iter().flatten().collect();
    assert_eq!(all.len(), n, "every piece is handed out once and no worker panicked");
    all.sort_unstable_by_key(|&(i, _)| i);
    all.into_iter().map(|(_, value)| value).collect()
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
