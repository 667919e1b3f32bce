//! mbqc.

pub mod data;

