//! The threads of a pool: started once, asleep while there is nothing to do.

use std::any::Any;
use std::hint::spin_loop;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError};
use std::thread::{self, JoinHandle};

/// How often a thread looks for work (or for the others' end) before it sleeps: some tens of microseconds.
const LOOKS: u32 = 2000;

/// Threads that wait for calls of [`Workers::run`].
pub(super) struct Workers {
    /// Threads beside the caller.
    wanted: usize,
    /// Started by the first call.
    started: OnceLock<Started>,
}

struct Started {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

/// What the caller and the threads see.
#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// The number of calls so far, to look at without the lock.
    calls: AtomicU64,
    /// Threads that have not finished the present call.
    running: AtomicUsize,
    /// There is a call, or the pool ends.
    work: Condvar,
    /// `running` has come to 0.
    done: Condvar,
    /// Held for as long as a call takes.
    busy: Mutex<()>,
}

#[derive(Default)]
struct State {
    calls: u64,
    job: Option<Job>,
    /// Threads that take part, beside the caller.
    helpers: usize,
    panic: Option<Box<dyn Any + Send>>,
    ended: bool,
}

/// The function of a call, without the lifetime that the call gives it.
#[derive(Clone, Copy)]
struct Job(*const (dyn Fn(usize) + Sync));

#[expect(unsafe_code, reason = "the function is Sync, and a pointer to it goes to other threads")]
// SAFETY: the pointer is to a `Sync` function, which `Workers::run` keeps alive until all threads are done with it.
unsafe impl Send for Job {}

impl Workers {
    /// `wanted` threads, none of them started.
    pub(super) fn new(wanted: usize) -> Workers {
        Workers { wanted, started: OnceLock::new() }
    }

    /// Calls `f(0)` on this thread and `f(1)` to `f(parts - 1)` on others; parts for which there is no thread (because
    /// another call has them, or the system gives none) run on this one. A panic goes on here once all have stopped.
    pub(super) fn run(&self, parts: usize, f: &(dyn Fn(usize) + Sync)) {
        let started = self.started.get_or_init(|| Started::new(self.wanted));
        let shared = &*started.shared;
        let busy = match shared.busy.try_lock() {
            Ok(busy) => Some(busy),
            Err(TryLockError::Poisoned(busy)) => Some(busy.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        };
        let helpers = if busy.is_some() { started.threads.len().min(parts - 1) } else { 0 };
        if helpers > 0 {
            let mut state = shared.lock();
            #[expect(unsafe_code, reason = "the function outlives the call, which its type cannot say")]
            // SAFETY: only the lifetime changes. This function waits below, whatever happens, until no thread runs `f` any
            // more, and takes the job back before it returns.
            let f = unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), &'static (dyn Fn(usize) + Sync)>(f) };
            state.job = Some(Job(f));
            state.helpers = helpers;
            state.calls += 1;
            shared.running.store(helpers, Ordering::Relaxed);
            shared.calls.store(state.calls, Ordering::Release);
            drop(state);
            shared.work.notify_all();
        }
        let own = catch_unwind(AssertUnwindSafe(|| {
            f(0);
            (helpers + 1..parts).for_each(f);
        }));
        let panic = if helpers > 0 { shared.wait() } else { None };
        drop(busy);
        if let Err(panic) = own {
            resume_unwind(panic);
        }
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        let Some(started) = self.started.take() else { return };
        started.shared.lock().ended = true;
        started.shared.work.notify_all();
        for thread in started.threads {
            // Threads catch the panics of their jobs, and have none of their own.
            let _ = thread.join();
        }
    }
}

impl Started {
    fn new(wanted: usize) -> Started {
        let shared = Arc::<Shared>::default();
        let start = |index: usize| {
            let shared = Arc::clone(&shared);
            thread::Builder::new().name(format!("mbqc-{index}")).spawn(move || shared.work_as(index)).ok()
        };
        // Fewer threads than wanted are fewer threads, no error.
        let threads = (1..=wanted).map_while(start).collect();
        Started { shared, threads }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The life of thread `index`.
    fn work_as(&self, index: usize) {
        let mut seen = 0;
        loop {
            look(|| self.calls.load(Ordering::Acquire) != seen);
            let mut state = self.lock();
            while state.calls == seen && !state.ended {
                state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            if state.ended {
                return;
            }
            seen = state.calls;
            let job = state.job.filter(|_| index <= state.helpers);
            drop(state);
            let Some(job) = job else { continue };
            #[expect(unsafe_code, reason = "the function of the present call")]
            // SAFETY: the caller counts this thread among those it waits for, so the function is alive until `running` goes
            // down below.
            let f = unsafe { &*job.0 };
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| f(index))) {
                self.lock().panic = Some(panic);
            }
            if self.running.fetch_sub(1, Ordering::AcqRel) == 1 {
                // With the lock held, or the caller could miss it between its look and its sleep.
                let _state = self.lock();
                self.done.notify_all();
            }
        }
    }

    /// Waits for the threads of the present call, and takes the job back and what one of them panicked with.
    fn wait(&self) -> Option<Box<dyn Any + Send>> {
        let running = || self.running.load(Ordering::Acquire) != 0;
        look(|| !running());
        let mut state = self.lock();
        while running() {
            state = self.done.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.job = None;
        state.panic.take()
    }
}

/// Looks for a while whether something has happened.
fn look(happened: impl Fn() -> bool) {
    for _ in 0..LOOKS {
        if happened() {
            return;
        }
        spin_loop();
    }
}
