//! Numbers only.

pub mod pool;
