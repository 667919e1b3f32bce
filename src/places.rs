//! Which files a command reads and which it writes. An output is neither an input nor another output, however the paths
//! are spelled, and can be created: both are found out before any work.

use std::fs;
use std::path::{Component, Path, PathBuf};

use crate::Error;

/// Configuration files that are read beside a model.
const CONFIGURATION: &[&str] = &["config.json", "preprocessor_config.json", "processor_config.json", "tokenizer.json"];

/// The files of a command.
#[derive(Debug, Default)]
pub struct Places {
    inputs: Vec<Claim>,
    outputs: Vec<Claim>,
}

#[derive(Debug)]
struct Claim {
    /// The argument as the user knows it, with its path.
    what: String,
    /// The path without links and detours.
    place: PathBuf,
    /// Device and number, which hard links share.
    id: Option<(u64, u64)>,
}

impl Claim {
    fn new(argument: &str, path: &Path) -> Claim {
        Claim { what: format!("{argument} {}", path.display()), place: resolved(path), id: identity(path) }
    }

    fn is(&self, other: &Claim) -> bool {
        self.place == other.place || (self.id.is_some() && self.id == other.id)
    }
}

impl Places {
    /// Nothing yet.
    pub fn new() -> Places {
        Places::default()
    }

    /// A file that is read, or a folder all files of which are.
    pub fn input(&mut self, argument: &str, path: &Path) -> Result<(), Error> {
        let claim = Claim::new(argument, path);
        if let Some(output) = self.outputs.iter().find(|output| output.is(&claim)) {
            return Err(overwritten(output, &claim));
        }
        self.inputs.push(claim);
        if path.is_dir() {
            for entry in fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path()) {
                let hidden = entry.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
                // Links to folders are not followed: they may lead round in a circle.
                if !entry.is_dir() || !(hidden || entry.is_symlink()) {
                    self.input(argument, &entry)?;
                }
            }
        }
        Ok(())
    }

    /// A model that is read: the file with the configuration beside it, or the whole folder.
    pub fn model(&mut self, argument: &str, path: &Path) -> Result<(), Error> {
        self.input(argument, path)?;
        if !path.is_dir() {
            for file in CONFIGURATION.iter().map(|name| folder_of(path).join(name)).filter(|file| file.is_file()) {
                self.input("the configuration", &file)?;
            }
        }
        Ok(())
    }

    /// A file that is written.
    pub fn output(&mut self, argument: &str, path: &Path) -> Result<(), Error> {
        let claim = Claim::new(argument, path);
        if let Some(input) = self.inputs.iter().find(|input| input.is(&claim)) {
            return Err(overwritten(&claim, input));
        }
        if let Some(other) = self.outputs.iter().find(|output| output.is(&claim)) {
            let (a, b) = (&claim.what, &other.what);
            return Err(Error::Usage(format!("{a} and {b} are the same file; give every output a name of its own")));
        }
        self.outputs.push(claim);
        Ok(())
    }

    /// A model that is written, with the data file that it may get.
    pub fn model_output(&mut self, argument: &str, path: &Path) -> Result<(), Error> {
        self.output(argument, path)?;
        self.output(&format!("{argument}'s data file"), &data_file(path))
    }

    /// A folder that is written. It may not be the folder `source` that is read, lie in it, or hold it.
    pub fn folder_output(&mut self, argument: &str, path: &Path, source: &Path) -> Result<(), Error> {
        let (to, from) = (Claim::new(argument, path), Claim::new("the model folder", source));
        let how = if to.is(&from) {
            "is"
        } else if to.place.starts_with(&from.place) {
            "lies inside of"
        } else if from.place.starts_with(&to.place) {
            "holds"
        } else {
            return Ok(());
        };
        let (to, from) = (to.what, from.what);
        Err(Error::Usage(format!("{to} {how} {from}, which is read; name a folder beside it")))
    }
}

fn overwritten(output: &Claim, input: &Claim) -> Error {
    let (output, input) = (&output.what, &input.what);
    Error::Usage(format!("{output} would overwrite {input}, which is read; choose another output name"))
}

/// The folder that a path lies in.
pub fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// The data file that a model written to `path` gets when its weights lie outside of it.
pub fn data_file(path: &Path) -> PathBuf {
    path.with_file_name(format!("{}.onnx.data", path.file_stem().unwrap_or_default().to_string_lossy()))
}

/// Finds out whether a file could be created at `path`. Leaves nothing.
pub fn probe_file(argument: &str, path: &Path) -> Result<(), Error> {
    let refuse = |reason: &str| Err(Error::Content { file: path.to_owned(), reason: reason.to_owned() });
    match fs::metadata(path) {
        Ok(found) if found.is_dir() => {
            return refuse(&format!("{argument} takes the name of a file, found a folder; name a file in it"));
        }
        Ok(found) if !found.is_file() => {
            return refuse("found a device or pipe, expected a file: the result is renamed into place");
        }
        _ if path.file_name().is_none_or(|name| name.to_str().is_none()) => {
            return refuse(&format!("{argument} takes the name of a file, found a name that is not text"));
        }
        _ => {}
    }
    let folder = folder_of(path);
    if !folder.is_dir() {
        return refuse(&format!("its folder {} does not exist; create it first", folder.display()));
    }
    tempfile::tempfile_in(folder).map(drop).map_err(Error::file(path))
}

/// Finds out whether a folder is there or could be created at `path`. Leaves nothing.
pub fn probe_folder(argument: &str, path: &Path) -> Result<(), Error> {
    let place = resolved(path);
    let found = place.ancestors().find(|place| place.exists()).unwrap_or(Path::new("/"));
    if !found.is_dir() {
        let what = if found == place { String::new() } else { format!(" at {}", found.display()) };
        let reason =
            format!("found a file{what}, expected a folder: a folder is compiled into the folder of {argument}");
        return Err(Error::Content { file: path.to_owned(), reason });
    }
    tempfile::tempfile_in(found).map(drop).map_err(Error::file(path))
}

/// A path without links, `.` and `..`; what does not exist is taken as it is written.
pub fn resolved(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let mut existing = absolute.clone();
    let mut rest = Vec::new();
    loop {
        if let Ok(found) = fs::canonicalize(&existing) {
            let join = |mut place: PathBuf, part: &std::ffi::OsString| {
                if part == ".." {
                    place.pop();
                } else {
                    place.push(part);
                }
                place
            };
            return rest.iter().rev().fold(found, join);
        }
        match existing.components().next_back() {
            Some(part @ (Component::Normal(_) | Component::ParentDir)) => rest.push(part.as_os_str().to_owned()),
            _ => return absolute,
        }
        if !existing.pop() {
            return absolute;
        }
    }
}

#[cfg(unix)]
fn identity(path: &Path) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    fs::metadata(path).ok().map(|found| (found.dev(), found.ino()))
}

#[cfg(not(unix))]
fn identity(_: &Path) -> Option<(u64, u64)> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_without_detours() {
        let folder = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(folder.path()).unwrap();
        fs::create_dir(root.join("a")).unwrap();
        for (path, expected) in [("a/../b", "b"), ("a/./new/file", "a/new/file"), ("a/new/../file", "a/file")] {
            assert_eq!(resolved(&folder.path().join(path)), root.join(expected), "{path}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn links_are_what_they_lead_to() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("m"), "").unwrap();
        fs::hard_link(at("m"), at("hard")).unwrap();
        std::os::unix::fs::symlink(at("m"), at("soft")).unwrap();
        for name in ["m", "hard", "soft"] {
            let mut places = Places::new();
            places.input("MODEL", &at("m")).unwrap();
            assert!(places.output("-o", &at(name)).is_err(), "{name}");
            assert!(places.output("-o", &at("other")).is_ok());
        }
    }
}
