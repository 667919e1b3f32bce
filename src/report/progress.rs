//! Progress on standard error: a line that is rewritten on a terminal, a line per stage otherwise.

use std::cell::RefCell;
use std::io::{IsTerminal, Write};
use std::time::Instant;

/// Tells a user how far a stage is, with an estimate of the rest and the memory in use.
pub struct Progress {
    quiet: bool,
    terminal: bool,
    state: RefCell<Option<(String, Instant)>>,
}

impl Progress {
    /// Progress of a command; `quiet` says nothing.
    pub fn new(quiet: bool) -> Progress {
        Progress { quiet, terminal: std::io::stderr().is_terminal(), state: RefCell::new(None) }
    }

    /// `done` of `total` of `stage` is done.
    pub fn step(&self, stage: &str, done: usize, total: usize) {
        if self.quiet {
            return;
        }
        let mut state = self.state.borrow_mut();
        let started = match state.as_ref() {
            Some((name, started)) if name == stage => *started,
            _ => {
                let now = Instant::now();
                *state = Some((stage.to_owned(), now));
                now
            }
        };
        let elapsed = started.elapsed().as_secs_f64();
        let mut err = std::io::stderr().lock();
        if self.terminal {
            let rest = if done > 0 { elapsed / done as f64 * (total - done.min(total)) as f64 } else { 0.0 };
            let memory = anonymous_memory().map_or(String::new(), |bytes| format!(", {} MB", bytes / 1_000_000));
            let _ = write!(err, "\r\x1b[K{stage}: {done}/{total}, {rest:.0} s left{memory}");
            if done >= total {
                let _ = writeln!(err, "\r\x1b[K{stage}: {total} in {elapsed:.1} s{memory}");
            }
            let _ = err.flush();
        } else if done >= total {
            let _ = writeln!(err, "{stage}: {total} in {elapsed:.1} s");
        }
    }

    /// A line of its own.
    pub fn say(&self, text: &str) {
        if !self.quiet {
            eprintln!("{text}");
        }
    }
}

/// Anonymous memory of this process in bytes, where the system tells (mapped files are not counted).
pub fn anonymous_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("RssAnon:"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kb| kb * 1024)
}
