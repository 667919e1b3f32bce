//! What a compilation reports about itself.

pub mod blocks;
pub mod metrics;
