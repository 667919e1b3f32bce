//! What a compilation reports about itself.

pub mod blocks;
pub mod coverage;
pub mod metrics;
pub mod progress;

/// Prints to standard output: the only place that does.
#[expect(clippy::print_stdout, reason = "results go to standard output, everything else to standard error")]
pub fn print(text: &str) {
    println!("{text}");
}
