//! External data: files beside the model, mapped once each.

use std::fs;
use std::path::{Component, Path, PathBuf};

use bytes::Bytes;
use indexmap::IndexMap;

use super::InputFile;
use crate::onnx::proto::{TensorProto, tensor_proto::DataLocation};
use crate::onnx::{Error, map};

/// True for a tensor whose payload lies in another file.
pub(in crate::onnx) fn is_external(tensor: &TensorProto) -> bool {
    tensor.data_location == Some(DataLocation::External as i32)
}

/// The value of an `external_data` entry.
pub(super) fn entry<'a>(tensor: &'a TensorProto, key: &str) -> Option<&'a str> {
    tensor.external_data.iter().find(|entry| entry.key() == key).map(|entry| entry.value())
}

/// The data files of one model.
#[derive(Debug)]
pub(super) struct DataFiles {
    model: PathBuf,
    /// Folder of the model as the caller names it.
    folder: PathBuf,
    /// Real folders a data file may lie in: that of the model's name and that of the file the name leads to. They
    /// differ where a download cache keeps links to a folder of blobs.
    roots: Vec<PathBuf>,
    files: IndexMap<String, InputFile>,
}

impl DataFiles {
    pub(super) fn beside(model: &Path) -> DataFiles {
        let folder = match model.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        let real_model = fs::canonicalize(model).ok();
        let roots = [fs::canonicalize(&folder).ok(), real_model.and_then(|file| Some(file.parent()?.to_owned()))];
        DataFiles {
            model: model.to_owned(),
            folder,
            roots: roots.into_iter().flatten().collect(),
            files: IndexMap::new(),
        }
    }

    /// The files opened so far.
    pub(super) fn into_files(self) -> Vec<InputFile> {
        self.files.into_values().collect()
    }

    /// The bytes of an external tensor, a view of the map of its file.
    pub(super) fn view(&mut self, tensor: &TensorProto, needed: Option<usize>) -> Result<Bytes, Error> {
        let location = entry(tensor, "location").unwrap_or("");
        self.try_view(tensor, location, needed).map_err(|reason| Error::External {
            file: self.model.clone(),
            tensor: tensor.name().to_owned(),
            location: location.to_owned(),
            reason,
        })
    }

    fn try_view(&mut self, tensor: &TensorProto, location: &str, needed: Option<usize>) -> Result<Bytes, String> {
        let number = |key: &str| match entry(tensor, key) {
            None => Ok(None),
            Some(text) => match text.trim().parse::<usize>() {
                Ok(number) => Ok(Some(number)),
                Err(_) => Err(format!("{key} is {text:?}, expected a whole number of bytes")),
            },
        };
        let offset = number("offset")?.unwrap_or(0);
        let length = number("length")?;
        let bytes = self.file(location)?;
        let length = match (length, needed) {
            (Some(found), Some(needed)) if found != needed => {
                return Err(format!("length is {found}, but type and shape need {needed} bytes"));
            }
            (Some(length), _) | (None, Some(length)) => length,
            (None, None) => return Err("neither a length nor a type of known size is given".to_owned()),
        };
        let size = bytes.len();
        match offset.checked_add(length) {
            Some(end) if end <= size => Ok(bytes.slice(offset..end)),
            _ => Err(format!(
                "offset {offset} and length {length} end outside the file, which has {size} bytes; \
                 copy the data file again, it is cut or belongs to another model"
            )),
        }
    }

    fn file(&mut self, location: &str) -> Result<Bytes, String> {
        if let Some(file) = self.files.get(location) {
            return Ok(file.bytes.clone());
        }
        let path = self.resolve(location)?;
        let file = InputFile::open(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        let bytes = file.bytes.clone();
        self.files.insert(location.to_owned(), file);
        Ok(bytes)
    }

    /// The path of a location, which must stay in the model's folder.
    fn resolve(&self, location: &str) -> Result<PathBuf, String> {
        if location.is_empty() {
            return Err("no location is given".to_owned());
        }
        let inside = |part: Component<'_>| matches!(part, Component::Normal(_) | Component::CurDir);
        if location.contains('\0') || !Path::new(location).components().all(inside) {
            return Err("found a path that leaves the model's folder, expected one relative to it without `..`; \
                        move the data file beside the model and set its location to the bare file name"
                .to_owned());
        }
        let path = self.folder.join(location);
        let real = fs::canonicalize(&path).map_err(|error| {
            format!("{}: {error}; put the data file there, it belongs to the model", path.display())
        })?;
        if !real.is_file() {
            return Err(format!("{} is not a file", path.display()));
        }
        if !self.roots.iter().any(|root| real.starts_with(root)) {
            return Err(format!(
                "the link leads to {}, outside the model's folder; put a copy of the file there instead",
                real.display()
            ));
        }
        Ok(path)
    }
}

impl InputFile {
    /// Opens and maps a file.
    pub(super) fn open(path: &Path) -> std::io::Result<InputFile> {
        let metadata = fs::metadata(path)?;
        if !metadata.is_file() {
            return Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, "not a regular file"));
        }
        let bytes = map::map(&fs::File::open(path)?)?;
        Ok(InputFile { path: path.to_owned(), bytes, modified: metadata.modified().ok() })
    }
}
