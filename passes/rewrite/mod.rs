//! Rewrites of graphs.

pub mod apply;
pub mod fallback;
pub mod reverse;
pub mod tape;
