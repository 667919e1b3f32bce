//! mbqc.
