//! mbqc.
fn main() {}
