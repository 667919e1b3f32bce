//! Rewrites of graphs.

pub mod tape;
