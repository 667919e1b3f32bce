//! The commands besides the main job.

mod apply;
mod bake;
mod bench;
mod devices;
mod inspect;
pub mod list;
mod run;
mod verify;

pub use apply::apply;
pub use bake::bake;
pub use bench::{BenchRequest, DeviceChoice, bench};
pub use devices::devices;
pub use inspect::{InspectRequest, inspect};
pub use list::{explain, list};
pub use run::run;
pub use verify::{VerifyRequest, verify};
