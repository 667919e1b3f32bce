//! What executes emitted graphs, or a layer of one, beside the evaluator: other engines, each a feature of the crate and none on by
//! default, and devices.

pub mod layers;
#[cfg(feature = "tract")]
pub mod tract;
