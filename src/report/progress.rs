//! Progress on standard error: a line that is rewritten on a terminal, a line per stage otherwise.

use std::cell::RefCell;
use std::io::{IsTerminal, Write};
use std::time::Instant;

/// Stages that take longer than this tell an estimate of the rest where no line can be rewritten.
const PATIENCE: f64 = 5.0;

/// Tells a user how far a stage is, with an estimate of the rest and the memory in use.
pub struct Progress {
    quiet: bool,
    terminal: bool,
    state: RefCell<State>,
}

#[derive(Default)]
struct State {
    stage: Option<Stage>,
    /// A line that will be rewritten stands on the terminal.
    open: bool,
}

struct Stage {
    name: String,
    started: Instant,
    estimated: bool,
    finished: bool,
}

impl Progress {
    /// Progress of a command; `quiet` says nothing but warnings.
    pub fn new(quiet: bool) -> Progress {
        Progress { quiet, terminal: std::io::stderr().is_terminal(), state: RefCell::default() }
    }

    /// `done` of `total` of `stage` is done. A stage begins with its first call, or again with nothing done.
    pub fn step(&self, stage: &str, done: usize, total: usize) {
        if self.quiet || total == 0 {
            return;
        }
        let mut state = self.state.borrow_mut();
        let same = state.stage.as_ref().is_some_and(|current| current.name == stage);
        if !same || done == 0 {
            let name = stage.to_owned();
            state.stage = Some(Stage { name, started: Instant::now(), estimated: false, finished: false });
        }
        let Some(current) = state.stage.as_mut().filter(|current| !current.finished) else { return };
        let elapsed = current.started.elapsed().as_secs_f64();
        let rest = (done > 0).then(|| elapsed / done as f64 * (total - done.min(total)) as f64);
        current.finished = done >= total;
        let finished = current.finished;
        let tells = rest.is_some() && elapsed >= PATIENCE && !current.estimated;
        current.estimated |= tells;
        let memory = anonymous_memory().map_or(String::new(), |bytes| format!(", {} MB", bytes / 1_000_000));
        let mut err = std::io::stderr().lock();
        // Nobody listening is no error.
        let _ = match (self.terminal, finished) {
            (true, false) => {
                let rest = rest.map_or(String::new(), |rest| format!(", about {rest:.0} s left"));
                write!(err, "\r\x1b[K{stage}: {done}/{total}{rest}{memory}")
            }
            (true, true) => writeln!(err, "\r\x1b[K{stage}: {total} in {elapsed:.1} s{memory}"),
            (false, true) => writeln!(err, "{stage}: {total} in {elapsed:.1} s"),
            (false, false) if tells => {
                let rest = rest.unwrap_or_default();
                writeln!(err, "{stage}: {done} of {total} after {elapsed:.0} s, about {rest:.0} s left")
            }
            (false, false) => Ok(()),
        };
        let _ = err.flush();
        state.open = self.terminal && !finished;
    }

    /// What is being done, where nothing is counted; seen on a terminal only, until the next line.
    pub fn busy(&self, text: &str) {
        if !self.quiet && self.terminal {
            let mut err = std::io::stderr().lock();
            let _ = write!(err, "\r\x1b[K{text} ...").and_then(|()| err.flush());
            self.state.borrow_mut().open = true;
        }
    }

    /// A line of its own.
    pub fn say(&self, text: &str) {
        if !self.quiet {
            self.clear();
            super::tell(text);
        }
    }

    /// A warning: seen also by those who asked for quiet.
    pub fn warn(&self, text: &str) {
        self.clear();
        super::tell(&format!("warning: {text}"));
    }

    /// Takes back a line that would be rewritten.
    fn clear(&self) {
        if std::mem::take(&mut self.state.borrow_mut().open) {
            let mut err = std::io::stderr().lock();
            let _ = write!(err, "\r\x1b[K").and_then(|()| err.flush());
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Anonymous memory of this process in bytes, where the system tells (mapped files are not counted).
pub fn anonymous_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("RssAnon:"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kb| kb * 1024)
}
