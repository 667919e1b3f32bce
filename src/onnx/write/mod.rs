//! From a model to files.

mod declare;
mod emit;
mod generate;
mod nodes;
mod origins;
mod place;

use std::cell::Cell;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use mbqc_passes::ir::{Lazy, Model};
use prost::Message;
use tempfile::{Builder, NamedTempFile};

use self::emit::Emitter;
pub use self::place::Placement;
use self::place::{Layout, Payload};
use crate::error::plain;
use crate::onnx::map::Rope;
use crate::onnx::read::InputFile;
use crate::onnx::{Error, Source};

/// How a model is written.
#[derive(Clone, Copy)]
pub struct WriteOptions<'a> {
    /// Where weights go.
    pub placement: Placement,
    /// Payloads with fewer bytes stay inside the model file.
    pub threshold: usize,
    /// Told now and then how many bytes are written, and of how many.
    pub progress: &'a dyn Fn(u64, u64),
}

impl Default for WriteOptions<'_> {
    fn default() -> Self {
        WriteOptions { placement: Placement::Auto, threshold: 1024, progress: &|_, _| () }
    }
}

/// What has been written of all files, and who is told.
struct Told<'a> {
    of: &'a dyn Fn(u64, u64),
    done: Cell<u64>,
    total: u64,
}

/// The files that were written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// The model.
    pub model: PathBuf,
    /// Its size in bytes.
    pub model_bytes: u64,
    /// The data file beside it, if it has one.
    pub data: Option<PathBuf>,
    /// Its size in bytes.
    pub data_bytes: u64,
}

/// Protobuf implementations refuse messages beyond this.
const MESSAGE_LIMIT: usize = i32::MAX as usize;

/// Bytes handed to the system at a time.
const CHUNK: usize = 8 << 20;

/// Writes a model to `path`, with its data file `<stem>.onnx.data` beside it if it has one.
///
/// `source` is the file the model was read from: whatever is unchanged since then is given back as it was, and a model
/// nobody touched gives the same bytes. Payloads are copied from map to file piece by piece; those made on demand are
/// made one after the other, and no more of them is held than one piece. Both files appear under their names only when they are complete.
pub fn write(
    source: Option<&Source>,
    model: &Model,
    path: &Path,
    options: &WriteOptions<'_>,
) -> Result<Written, Error> {
    let data_path = data_path(path)?;
    if let Some(source) = source {
        check_inputs(source, path, &data_path)?;
    }
    let failed =
        |doing: &'static str, file: &Path, source: io::Error| Error::Write { file: file.to_owned(), doing, source };
    let location = data_path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let origin = source.map_or((0, false), |source| (source.file_bytes(), !source.data.is_empty()));
    let layout = Layout::new(model, options.placement, options.threshold, location, origin)
        .map_err(|error| failed("laying out the payloads", path, error))?;
    let mut emitter = Emitter::new(path, source.map(|source| &source.proto), layout);
    let proto = emitter.model(model)?;
    let (layout, changed) = (emitter.layout, emitter.changed);
    let bytes = proto.encoded_len();
    if bytes > MESSAGE_LIMIT {
        return Err(Error::TooLarge { file: path.to_owned(), bytes, limit: MESSAGE_LIMIT });
    }
    let pieces = match source.filter(|_| !changed) {
        Some(source) => vec![source.file.bytes.clone()],
        None => {
            let mut rope = Rope::default();
            // A rope takes any length, so encoding cannot fail.
            let encoded = proto.encode(&mut rope);
            encoded.map_err(|error| failed("encoding", path, io::Error::other(error)))?;
            rope.into_pieces()
        }
    };
    drop(proto);

    let total = pieces.iter().map(|piece| piece.len() as u64).sum::<u64>() + layout.data_bytes();
    let told = Told { of: options.progress, done: Cell::new(0), total };
    let mut data = None;
    for blob in layout.blobs() {
        let data = match &mut data {
            Some(data) => data,
            none => none.insert(Output::begin(&data_path, Some(&told))?),
        };
        data.pad_to(blob.offset)?;
        match &blob.data {
            Payload::Ready(bytes) => data.put(bytes)?,
            Payload::Lazy(lazy) => data.make(path, &blob.tensor, lazy)?,
        }
    }
    let mut main = Output::begin(path, Some(&told))?;
    for piece in &pieces {
        match layout.filling(piece) {
            Some((tensor, lazy)) => main.make(path, tensor, lazy)?,
            None => main.put(piece)?,
        }
    }
    let (model_bytes, data_bytes) = (main.written, data.as_ref().map_or(0, |data| data.written));
    main.sync()?;
    let has_data = data.is_some();
    let data_is_new = has_data && !data_path.exists();
    if let Some(data) = data {
        data.sync()?;
        data.publish()?;
    }
    if let Err(error) = main.publish() {
        if data_is_new {
            // The error that matters is the one being reported.
            let _ = fs::remove_file(&data_path);
        }
        return Err(error);
    }
    Ok(Written { model: path.to_owned(), model_bytes, data: has_data.then_some(data_path), data_bytes })
}

/// Finds out whether [`write()`] could write to `path`, before work is spent on what is to be written. Leaves nothing.
pub fn check_output(source: Option<&Source>, path: &Path) -> Result<(), Error> {
    let data_path = data_path(path)?;
    if let Some(source) = source {
        check_inputs(source, path, &data_path)?;
    }
    Output::begin(path, None).map(drop)
}

/// The data file of a model written to `path`.
fn data_path(path: &Path) -> Result<PathBuf, Error> {
    let device = fs::metadata(path).is_ok_and(|found| !found.is_file() && !found.is_dir());
    match path.file_stem().and_then(|stem| stem.to_str()) {
        _ if device => Err(Error::Output {
            file: path.to_owned(),
            reason: "found a device or pipe, expected a file: the result is renamed into place".to_owned(),
        }),
        Some(stem) if !path.is_dir() => Ok(path.with_file_name(format!("{stem}.onnx.data"))),
        _ => Err(Error::Output {
            file: path.to_owned(),
            reason: "found a folder or a name that is not text, expected the name of a model file".to_owned(),
        }),
    }
}

/// Refuses to write over a file that the model is read from, and to read from files that changed.
fn check_inputs(source: &Source, path: &Path, data_path: &Path) -> Result<(), Error> {
    let refuse = |file: &Path, reason: &str| Err(Error::Output { file: file.to_owned(), reason: reason.to_owned() });
    for input in std::iter::once(&source.file).chain(&source.data) {
        for output in [path, data_path] {
            if is_same(&input.path, output) {
                return refuse(output, "is an input of this run and would be overwritten; choose another output name");
            }
        }
        if input.is_changed() {
            return refuse(&input.path, "changed on disk since it was read; read the model again");
        }
    }
    Ok(())
}

fn is_same(a: &Path, b: &Path) -> bool {
    match (fs::canonicalize(a), fs::canonicalize(b)) {
        (Ok(a), Ok(b)) => a == b,
        _ => false,
    }
}

impl InputFile {
    fn is_changed(&self) -> bool {
        let Some(then) = self.modified else { return false };
        fs::metadata(&self.path).is_ok_and(|now| {
            now.len() != self.bytes.len() as u64 || now.modified().is_ok_and(|modified| modified != then)
        })
    }
}

/// A file on its way: under a temporary name until it is complete. Dropped before that, it is gone.
struct Output<'a> {
    path: &'a Path,
    file: NamedTempFile,
    written: u64,
    told: Option<&'a Told<'a>>,
}

impl<'a> Output<'a> {
    fn begin(path: &'a Path, told: Option<&'a Told<'a>>) -> Result<Output<'a>, Error> {
        let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut builder = Builder::new();
        builder.prefix(".mbqc-").suffix(".part");
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        let file = builder.tempfile_in(folder);
        let file = file.map_err(|source| {
            if folder.is_dir() {
                return Error::Write { file: path.to_owned(), doing: "creating it", source: plain(source) };
            }
            let reason = format!("its folder {} does not exist; create it first", folder.display());
            Error::Output { file: path.to_owned(), reason }
        })?;
        Ok(Output { path, file, written: 0, told })
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), Error> {
        for chunk in bytes.chunks(CHUNK) {
            self.file.as_file_mut().write_all(chunk).map_err(|source| self.error("writing", source))?;
        }
        self.written += bytes.len() as u64;
        if let Some(told) = self.told {
            told.done.set(told.done.get() + bytes.len() as u64);
            (told.of)(told.done.get(), told.total);
        }
        Ok(())
    }

    /// Makes a payload, writing its pieces as they come. `model` is the model that `tensor` belongs to, for messages.
    fn make(&mut self, model: &Path, tensor: &str, lazy: &Lazy) -> Result<(), Error> {
        let mut unwritten = None;
        let made = lazy.produce_into(&mut |piece| {
            self.put(piece).map_err(|error| {
                let reason = error.to_string();
                unwritten = Some(error);
                reason
            })
        });
        match (unwritten, made) {
            (Some(error), _) => Err(error),
            (None, Ok(())) => Ok(()),
            (None, Err(reason)) => Err(Error::Payload { file: model.to_owned(), tensor: tensor.to_owned(), reason }),
        }
    }

    fn pad_to(&mut self, offset: u64) -> Result<(), Error> {
        while self.written < offset {
            let gap = usize::try_from(offset - self.written).unwrap_or(usize::MAX).min(ZEROS.len());
            self.put(&ZEROS[..gap])?;
        }
        Ok(())
    }

    fn sync(&self) -> Result<(), Error> {
        self.file.as_file().sync_all().map_err(|source| self.error("flushing it to disk", source))
    }

    /// Gives the file its name.
    fn publish(self) -> Result<(), Error> {
        let folder = self.path.parent().map(Path::to_owned);
        let path = self.path;
        let renamed = self.file.persist(path);
        let fail = |source| Error::Write { file: path.to_owned(), doing: "giving it its name", source };
        renamed.map_err(|error| fail(error.error))?;
        if let Some(folder) = folder.filter(|folder| !folder.as_os_str().is_empty()) {
            // Some file systems cannot flush a folder; the data itself is on disk.
            let _ = fs::File::open(folder).and_then(|folder| folder.sync_all());
        }
        Ok(())
    }

    fn error(&self, doing: &'static str, source: io::Error) -> Error {
        Error::Write { file: self.path.to_owned(), doing, source: plain(source) }
    }
}

const ZEROS: [u8; 4096] = [0; 4096];
