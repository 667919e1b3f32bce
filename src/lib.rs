//! mbqc.

pub mod data;
pub mod report;
