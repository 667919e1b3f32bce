//! Rewrites of graphs.

pub mod reverse;
pub mod tape;
