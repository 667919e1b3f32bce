//! ONNX files: reading them into the IR and writing the IR back. The only code that knows protobuf.
//!
//! [`read`] maps the file and decodes its structure; weights stay views of the map. [`write`] gives back the original
//! bytes of whatever no pass changed and streams payloads from map to file.

mod convert;
mod emit;
mod error;
mod external;
#[rustfmt::skip]
mod fields;
mod generate;
mod map;
mod origins;
mod payload;
mod place;
#[allow(clippy::all, clippy::pedantic, missing_docs, unreachable_pub, dead_code, reason = "generated")]
#[rustfmt::skip]
mod proto;
mod read;
mod sparse;
mod wire;
mod write;

pub use error::Error;
pub use place::Placement;
pub use read::{File, ReadOptions, Source, read, read_bytes};
pub use write::{WriteOptions, Written, write};
