//! Calibration and evaluation data on disk.
//!
//! A [`Set`] is a `.npz` file or a folder of them; a [`Sample`] is one token sequence with its masks; [`bind()`] gives
//! every input of a graph its array. The [`loss`] is the cross-entropy of the answer tokens.

use std::path::{Path, PathBuf};

pub mod bind;
pub mod classes;
pub mod loss;
pub mod npy;
pub mod npz;
pub mod processor;
pub mod sample;
pub mod set;

pub use bind::{Extras, InputSpec, bind, other_name};
pub use classes::{Class, MaskShift, classes};
pub use loss::Loss;
pub use processor::Processor;
pub use sample::Sample;
pub use set::Set;

/// Why data could not be read or used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// What it said.
        source: std::io::Error,
    },
    /// The container is broken or not one.
    #[error("{}: not a readable .npz (zip) file: {reason}", path.display())]
    Container {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// One array of a file is broken or of a type that is not carried.
    #[error("{}: array `{array}`: {source}", path.display())]
    Array {
        /// Which file.
        path: PathBuf,
        /// Which array.
        array: String,
        /// What is wrong.
        source: npy::NpyError,
    },
    /// The arrays of a set do not belong together, or there are none.
    #[error("{}: {reason}", path.display())]
    Set {
        /// Which file or folder.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The arrays of one sample contradict each other.
    #[error("sample {sample}: {reason}")]
    Sample {
        /// File or index of the sample.
        sample: String,
        /// What is wrong.
        reason: String,
    },
    /// A graph input could not be given an array.
    #[error("sample {sample}: graph input `{input}` ({declared}): {reason}; the sample holds {holds}")]
    Input {
        /// File or index of the sample.
        sample: String,
        /// Name of the input.
        input: String,
        /// Its declared type and shape.
        declared: String,
        /// What is wrong, and the way out.
        reason: String,
        /// Names, types and shapes of the arrays there are.
        holds: String,
    },
    /// An image processor's configuration cannot be used.
    #[error("image processor configuration: {0}")]
    Processor(String),
    /// Images do not fit the processor.
    #[error("images: {0}")]
    Images(String),
    /// Masks that contradict each other.
    #[error("masks: {0}")]
    Masks(String),
    /// Logits that cannot be judged.
    #[error("logits: {0}")]
    Logits(String),
}

impl Error {
    /// The same about one sample of a set.
    pub(crate) fn in_sample(self, sample: &str) -> Error {
        Error::Sample { sample: sample.to_owned(), reason: self.to_string() }
    }

    /// The same for a file that was to become `path`.
    pub(crate) fn elsewhere(mut self, path: &Path) -> Error {
        if let Error::Io { path: at, .. } | Error::Array { path: at, .. } | Error::Container { path: at, .. } =
            &mut self
        {
            path.clone_into(at);
        }
        self
    }

    fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Error + '_ {
        move |source| Error::Io { path: path.to_owned(), source: crate::error::plain(source) }
    }
}
