//! What can go wrong between a file and a model.

use std::io;
use std::path::PathBuf;

use mbqc_passes::ir;

/// Why a model could not be read or written. Every message names the file, what was found, what was expected, and a
/// way out where there is one.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be opened or mapped.
    #[error("{}: cannot be opened", file.display())]
    Open {
        /// The file.
        file: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The bytes are not an ONNX model.
    #[error("{}: not an ONNX model: found {found}; expected a serialized ONNX ModelProto{hint}", file.display())]
    NotOnnx {
        /// The file.
        file: PathBuf,
        /// What the bytes look like.
        found: String,
        /// A way out, with its punctuation, or nothing.
        hint: &'static str,
    },
    /// The file ends early.
    #[error(
        "{}: truncated: {inside} at byte {at} promises {promised} bytes, but the file has {left} left; \
         copy or download the file again", file.display()
    )]
    Truncated {
        /// The file.
        file: PathBuf,
        /// The message that is cut.
        inside: &'static str,
        /// Where in the file.
        at: usize,
        /// Bytes a length prefix promises.
        promised: u64,
        /// Bytes that are there.
        left: usize,
    },
    /// The file holds fields that the schema does not know.
    #[error(
        "{}: {message} at byte {at} has field {field}, which this version does not know and would lose; \
         pass --allow-lossy to go on without it ({count} such fields in the file)", file.display()
    )]
    Unknown {
        /// The file.
        file: PathBuf,
        /// The ONNX message with the field.
        message: &'static str,
        /// The field's number.
        field: u32,
        /// Where in the file.
        at: usize,
        /// How many unknown fields the file has.
        count: usize,
    },
    /// An IR version this reader does not do.
    #[error("{}: found ONNX IR version {found}, expected 3 or later; export the model again with a newer exporter", file.display())]
    Version {
        /// The file.
        file: PathBuf,
        /// The version in the file.
        found: i64,
    },
    /// A graph that breaks a law.
    #[error("{}: {place}: {source}", file.display())]
    Graph {
        /// The file.
        file: PathBuf,
        /// The graph, function or node.
        place: String,
        /// The law.
        source: ir::Error,
    },
    /// Something in the file that does not have the form it must have.
    #[error("{}: {place}: {reason}", file.display())]
    Malformed {
        /// The file.
        file: PathBuf,
        /// The graph, node or tensor.
        place: String,
        /// What was found and what was expected.
        reason: String,
    },
    /// External data that cannot be used.
    #[error("{}: tensor `{tensor}`: external data at `{location}`: {reason}", file.display())]
    External {
        /// The model file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// The location as the model gives it.
        location: String,
        /// What is wrong and what to do.
        reason: String,
    },
    /// The output would destroy an input, or cannot be a file.
    #[error("{}: {reason}", file.display())]
    Output {
        /// The file that was to be written.
        file: PathBuf,
        /// What is wrong and what to do.
        reason: String,
    },
    /// Writing failed; nothing was left behind.
    #[error("{}: cannot be written ({doing}); nothing was left behind", file.display())]
    Write {
        /// The file that was to be written.
        file: PathBuf,
        /// The step that failed.
        doing: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The payload of a constant could not be made.
    #[error("{}: the payload of tensor `{tensor}` could not be made: {reason}", file.display())]
    Payload {
        /// The file that was to be written.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// What the producer said.
        reason: String,
    },
    /// The message would pass the limit of protobuf.
    #[error(
        "{}: the model would take {bytes} bytes in one file, and a protobuf message holds {limit} at most; \
         write the weights as external data", file.display()
    )]
    TooLarge {
        /// The file that was to be written.
        file: PathBuf,
        /// Size of the message.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
}
