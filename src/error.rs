//! What a user meets when something cannot be done.

use std::io;
use std::path::PathBuf;

use mbqc_passes::method::driver;
use mbqc_passes::rewrite::apply::ApplyError;
use mbqc_passes::run::RunError;

/// An error of the program. The message names the file, node, operator or value, what was found, what was expected and a
/// way out.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A model file.
    #[error(transparent)]
    Onnx(#[from] crate::onnx::Error),
    /// Calibration or evaluation data.
    #[error(transparent)]
    Data(#[from] crate::data::Error),
    /// Deciding.
    #[error(transparent)]
    Decide(#[from] driver::Error),
    /// Calibration, which runs the model.
    #[error("{reason}; calibration runs the model, `--method range` quantizes it without")]
    Calibration {
        /// What cannot be run.
        reason: RunError,
    },
    /// A graph of a folder that runs before the decoder.
    #[error("{part}: {reason}")]
    Part {
        /// Which graph.
        part: &'static str,
        /// What was found, and the way out.
        reason: String,
    },
    /// A weight that has no quantized value.
    #[error("{reason}; repair the weight, or keep the layer as it is with --exclude")]
    Weight {
        /// Which weight, where in it, and what was found.
        reason: String,
    },
    /// Applying a plan.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// Evaluating a graph.
    #[error(transparent)]
    Run(#[from] RunError),
    /// A law of the IR, after a pass.
    #[error("after {pass} the graph breaks a law: {source}; please report this")]
    Law {
        /// The pass that ran.
        pass: &'static str,
        /// What is broken.
        source: mbqc_passes::ir::Error,
    },
    /// A file of ours that cannot be read or written.
    #[error("{}: {source}", file.display())]
    File {
        /// The file.
        file: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file whose content does not fit.
    #[error("{}: {reason}", file.display())]
    Content {
        /// The file.
        file: PathBuf,
        /// What is wrong, and the way out.
        reason: String,
    },
    /// A CUDA device, or the lack of one.
    #[error(transparent)]
    Device(#[from] mbqc_kernels::cuda::DeviceError),
    /// A combination of options that makes no sense.
    #[error("{0}")]
    Usage(String),
    /// Nothing was quantized.
    #[error("nothing was quantized: {0}")]
    Nothing(String),
    /// Something was skipped although `--strict` was given.
    #[error("--strict: {0} linear layers cannot be quantized (listed above); nothing was written")]
    Strict(usize),
}

impl Error {
    /// The exit code that belongs to the error.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Usage(_) => 2,
            Error::Nothing(_) | Error::Strict(_) => 3,
            _ => 1,
        }
    }

    /// For `map_err` on file operations.
    pub fn file(file: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Error {
        let file = file.into();
        move |source| Error::File { file, source: plain(source) }
    }
}

/// What the system said, without the name of a temporary file, which means nothing to a user.
pub(crate) fn plain(error: io::Error) -> io::Error {
    match error.get_ref().map(ToString::to_string) {
        Some(text) => match text.split_once(" at path ") {
            Some((said, _)) => io::Error::new(error.kind(), said),
            None => error,
        },
        None => error,
    }
}
