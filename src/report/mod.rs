//! What a compilation reports about itself.

pub mod blocks;
pub mod coverage;
pub mod metrics;
pub mod progress;

use std::io::{ErrorKind, Write};

use crate::Error;

/// Prints a result to standard output: the only place that does. A reader that has seen enough (`| head`) is no error.
pub fn print(text: &str) -> Result<(), Error> {
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(Error::file("standard output")(error)),
        _ => Ok(()),
    }
}

/// Tells something on standard error: the only place that does. Nobody listening is no error.
pub fn tell(text: &str) {
    let mut err = std::io::stderr().lock();
    let _ = writeln!(err, "{text}").and_then(|()| err.flush());
}
