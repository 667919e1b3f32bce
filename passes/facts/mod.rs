//! Facts about graphs. Derived facts are computed on request and dropped at an edit; measured facts are keyed by name.

pub mod fold;
pub mod groups;
mod layout;
pub mod modality;
pub mod names;
pub mod segments;
pub mod sites;
