//! What a child process takes, read from Linux's `/proc` while it runs.

use std::fs;
use std::io;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// What a child took.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    /// Most anonymous memory seen, in bytes. Pages of mapped files are not in it: the system drops them when it must.
    pub(crate) anonymous: usize,
    /// Processor time of all threads, in seconds.
    pub(crate) processor: f64,
    /// Time that passed, in seconds.
    pub(crate) elapsed: f64,
}

/// Ticks per second of the times in `/proc`, on every machine.
const TICKS: f64 = 100.0;

/// Runs a command to its end. An error if it fails.
pub(crate) fn watch(command: &mut Command) -> io::Result<Usage> {
    let start = Instant::now();
    let mut child = command.spawn()?;
    let mut usage = Usage::default();
    loop {
        // A child that has ended keeps its times until it is waited for.
        usage.anonymous = usage.anonymous.max(anonymous(child.id()).unwrap_or(0));
        usage.processor = processor(child.id()).unwrap_or(usage.processor);
        if let Some(ended) = child.try_wait()? {
            usage.elapsed = start.elapsed().as_secs_f64();
            return if ended.success() { Ok(usage) } else { Err(io::Error::other(format!("it ended with {ended}"))) };
        }
        sleep(Duration::from_millis(1));
    }
}

fn anonymous(id: u32) -> Option<usize> {
    let text = fs::read_to_string(format!("/proc/{id}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    line.trim().strip_suffix(" kB")?.parse::<usize>().ok().map(|kilobytes| kilobytes * 1024)
}

fn processor(id: u32) -> Option<f64> {
    let text = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    // The name in parentheses may hold spaces; behind it, user and system time are the 12th and 13th entry.
    let mut times = text.rsplit_once(')')?.1.split_whitespace().skip(11);
    let mut next = || times.next()?.parse::<f64>().ok();
    Some((next()? + next()?) / TICKS)
}
