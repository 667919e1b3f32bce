//! From a file to a model.

pub(super) mod convert;
pub(super) mod external;
mod payload;
mod sparse;
mod wire;

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use bytes::Bytes;
use mbqc_passes::ir::{self, Model};
use prost::Message;

use crate::onnx::Error;
use crate::onnx::map::Rope;
use crate::onnx::proto::ModelProto;
use convert::Converter;
use external::DataFiles;

/// How a file is read.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReadOptions {
    /// Go on when the file has fields this version does not know; they are lost when the model is written.
    pub allow_lossy: bool,
}

/// A model that was read, and what the writer needs to give back the bytes nobody changed.
#[derive(Debug)]
pub struct File {
    /// The model.
    pub model: Model,
    /// Where it came from.
    pub source: Source,
    /// Things a user should know that do not keep the model from being compiled.
    pub warnings: Vec<String>,
}

/// The file a model was read from: its decoded message, in which payloads are views of the memory map, and the maps.
#[derive(Debug)]
pub struct Source {
    pub(in crate::onnx) proto: ModelProto,
    pub(in crate::onnx) file: InputFile,
    pub(in crate::onnx) data: Vec<InputFile>,
}

/// A mapped input file.
#[derive(Debug)]
pub(in crate::onnx) struct InputFile {
    pub(in crate::onnx) path: PathBuf,
    pub(in crate::onnx) bytes: Bytes,
    pub(in crate::onnx) modified: Option<SystemTime>,
}

impl Source {
    /// Path of the model file.
    pub fn path(&self) -> &Path {
        &self.file.path
    }

    /// Size of the model file in bytes.
    pub fn file_bytes(&self) -> usize {
        self.file.bytes.len()
    }

    /// Paths and sizes of the external data files the model uses.
    pub fn data_files(&self) -> impl Iterator<Item = (&Path, usize)> {
        self.data.iter().map(|file| (file.path.as_path(), file.bytes.len()))
    }

    /// True when encoding the decoded message again gives the bytes of the file. Known exporters write such files;
    /// where it is false, an edited model keeps its meaning but bytes of untouched parts may differ.
    pub fn is_canonical(&self) -> bool {
        let mut rope = Rope::default();
        if self.proto.encode(&mut rope).is_err() || rope.len() != self.file.bytes.len() {
            return false;
        }
        let mut rest = self.file.bytes.as_ref();
        rope.into_pieces().iter().all(|piece| match rest.split_at_checked(piece.len()) {
            Some((start, end)) => {
                rest = end;
                start == piece
            }
            None => false,
        })
    }
}

/// Reads the model in a file. Weights become views of memory maps; nothing but the structure is read from disk.
pub fn read(path: &Path, options: &ReadOptions) -> Result<File, Error> {
    let file = InputFile::open(path).map_err(|source| Error::Open { file: path.to_owned(), source })?;
    read_mapped(file, options)
}

/// Reads a model from bytes, as if they were the contents of `path`; external data is looked for beside it.
pub fn read_bytes(bytes: Bytes, path: &Path, options: &ReadOptions) -> Result<File, Error> {
    read_mapped(InputFile { path: path.to_owned(), bytes, modified: None }, options)
}

fn read_mapped(input: InputFile, options: &ReadOptions) -> Result<File, Error> {
    let path = input.path.as_path();
    let not_onnx = |found: String| {
        let (found, hint) = wire::looks_like(&input.bytes).unwrap_or((found, ""));
        Error::NotOnnx { file: path.to_owned(), found, hint }
    };
    if input.bytes.is_empty() {
        return Err(not_onnx("an empty file".to_owned()));
    }
    let unknown = wire::unknown_fields(path, &input.bytes)?;
    let proto = ModelProto::decode(input.bytes.clone()).map_err(|error| not_onnx(format!("bytes with {error}")))?;
    if proto.graph.is_none() {
        return Err(not_onnx("a message without a graph".to_owned()));
    }
    let mut warnings = Vec::new();
    if let Some(first) = unknown.first() {
        let (message, field, at, count) = (first.message, first.field, first.at, unknown.len());
        if !options.allow_lossy {
            return Err(Error::Unknown { file: path.to_owned(), message, field, at, count });
        }
        warnings.push(format!("{count} unknown fields are lost; the first is field {field} of {message} at byte {at}"));
    }
    let newest = crate::onnx::proto::Version::IrVersion as i64;
    match proto.ir_version() {
        found if found < 3 => return Err(Error::Version { file: path.to_owned(), found }),
        found if found > newest => {
            warnings
                .push(format!("ONNX IR version {found} is newer than {newest}, the newest this version was made for"));
        }
        _ => {}
    }
    let mut data = DataFiles::beside(path);
    let model = Converter::new(path, &mut data).model(&proto)?;
    ir::verify::verify(&model).map_err(|source| explain(path, &model, source))?;
    let data = data.into_files();
    Ok(File { model, source: Source { proto, file: input, data }, warnings })
}

/// A broken law, with the node that breaks it where that can be told.
fn explain(file: &Path, model: &Model, source: ir::Error) -> Error {
    let place = match &source {
        ir::Error::Undefined(name) => reader_of(model, name).unwrap_or_else(|| "an output of the graph".to_owned()),
        _ => "the graph".to_owned(),
    };
    Error::Graph { file: file.to_owned(), place, source }
}

fn reader_of(model: &Model, name: &str) -> Option<String> {
    fn search(graph: &ir::Graph, name: &str) -> Option<String> {
        graph.nodes().find_map(|(id, node)| {
            let slot = node.inputs.iter().position(|input| input.is_some_and(|value| graph.name(value) == name));
            let inner = || node.attrs.iter().flat_map(|(_, attr)| attr.graphs()).find_map(|g| search(g, name));
            slot.map(|slot| format!("input {slot} of node `{}` ({})", graph.label(id), node.qualified_op()))
                .or_else(inner)
        })
    }
    let bodies = model.functions.iter().map(|function| &function.body);
    std::iter::once(&model.graph).chain(bodies).find_map(|graph| search(graph, name))
}
