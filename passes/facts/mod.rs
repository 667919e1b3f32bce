//! Facts about graphs. Derived facts are computed on request and dropped at an edit; measured facts are keyed by name.

pub mod fold;
pub mod groups;
mod layout;
mod linear;
pub mod modality;
pub mod names;
mod others;
mod places;
mod reach;
mod resolve;
pub mod segments;
pub mod sites;
mod towers;
mod weight_ops;
