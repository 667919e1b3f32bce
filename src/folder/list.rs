//! Which files of a folder belong to the compiled unit.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use indexmap::IndexMap;

use crate::Error;
use crate::onnx::File;
use crate::places::resolved;

/// Weights and data sets, by the end of the name.
const DATA: &[&str] = &[
    ".npz",
    ".npy",
    ".safetensors",
    ".bin",
    ".pt",
    ".pth",
    ".ckpt",
    ".gguf",
    ".h5",
    ".msgpack",
    ".tflite",
    ".parquet",
    ".arrow",
];

/// The files of a folder, by their way from it, sorted.
#[derive(Debug, Default)]
pub(super) struct Listing {
    /// Those that are copied.
    pub(super) copied: Vec<PathBuf>,
    /// Those that are not, by reason.
    pub(super) left: IndexMap<&'static str, Vec<PathBuf>>,
}

struct Walk<'a> {
    root: &'a Path,
    output: PathBuf,
    graphs: HashSet<PathBuf>,
    compiled: &'a dyn Fn(&Path) -> bool,
    seen: HashSet<PathBuf>,
    found: Listing,
}

/// Lists `root`. `graphs` are copied with their data; `compiled` tells what is written anew. Configurations, processors,
/// tokenizers, templates and licences are copied; other graphs, weights, data sets and hidden files are not.
pub(super) fn list(
    root: &Path,
    output: &Path,
    graphs: &[Option<&File>],
    compiled: impl Fn(&Path) -> bool,
) -> Result<Listing, Error> {
    let parts = graphs.iter().flatten().flat_map(|file| {
        std::iter::once(file.source.path()).chain(file.source.data_files().map(|(data, _)| data)).map(resolved)
    });
    let mut walk = Walk {
        root,
        output: resolved(output),
        graphs: parts.collect(),
        compiled: &compiled,
        seen: HashSet::new(),
        found: Listing::default(),
    };
    walk.folder(root)?;
    Ok(walk.found)
}

impl Walk<'_> {
    fn folder(&mut self, folder: &Path) -> Result<(), Error> {
        let entries = fs::read_dir(folder).map_err(Error::file(folder))?;
        let mut entries: Vec<PathBuf> =
            entries.map(|entry| entry.map(|e| e.path())).collect::<Result<_, _>>().map_err(Error::file(folder))?;
        entries.sort();
        for entry in entries {
            let place = resolved(&entry);
            let name = entry.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
            let why = if self.graphs.contains(&place) {
                None
            } else if name.starts_with('.') {
                Some("hidden")
            } else if entry.is_dir() {
                // Links may lead round in a circle.
                if place != self.output && self.seen.insert(place) {
                    self.folder(&entry)?;
                }
                continue;
            } else if (self.compiled)(&entry) {
                continue;
            } else if name.contains(".onnx") {
                Some("graphs that are not part of the unit, and their data")
            } else if DATA.iter().any(|end| name.ends_with(end)) {
                Some("weights and data sets")
            } else {
                None
            };
            let way = entry.strip_prefix(self.root).unwrap_or(&entry).to_owned();
            match why {
                None => self.found.copied.push(way),
                Some(why) => self.found.left.entry(why).or_default().push(way),
            }
        }
        Ok(())
    }
}
