//! ONNX files: reading them into the IR and writing the IR back. The only code that knows protobuf.
//!
//! [`read`] maps the file and decodes its structure; weights stay views of the map. [`write()`] gives back the original
//! bytes of whatever no pass changed and streams payloads from map to file.

mod error;
#[rustfmt::skip]
mod fields;
mod map;
#[allow(clippy::all, clippy::pedantic, missing_docs, unreachable_pub, dead_code, reason = "generated")]
#[rustfmt::skip]
mod proto;
mod read;
mod write;

pub use error::Error;
pub use read::{File, ReadOptions, Source, read, read_bytes};
pub use write::{Placement, WriteOptions, Written, check_output, write};
