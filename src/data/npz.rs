//! `.npz` files: zip archives of `.npy` arrays, stored or deflated.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::Path;

use indexmap::IndexMap;
use mbqc_passes::array::Array;
use tempfile::NamedTempFile;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

use super::Error;
use super::npy::Npy;

/// Whether arrays are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// As they are.
    Stored,
    /// Deflated.
    Deflated,
}

/// Reads every array of a file, in the file's order, as stored.
pub fn read(path: &Path) -> Result<IndexMap<String, Npy>, Error> {
    let container = |reason: String| Error::Container { path: path.to_owned(), reason };
    if path.is_dir() {
        return Err(container("found a folder, expected a .npz file".to_owned()));
    }
    let file = File::open(path).map_err(Error::io(path))?;
    let no_archive = |e| container(format!("{e}; expected a .npz file, as numpy.savez writes it"));
    let mut archive = ZipArchive::new(BufReader::new(file)).map_err(no_archive)?;
    let mut arrays = IndexMap::with_capacity(archive.len());
    for index in 0..archive.len() {
        let mut entry = archive.by_index(index).map_err(|e| container(e.to_string()))?;
        let name = entry.name().map_err(|e| container(e.to_string()))?;
        let Some(name) = name.strip_suffix(".npy").map(str::to_owned) else { continue };
        let mut bytes = Vec::new();
        let size = usize::try_from(entry.size()).ok().filter(|&size| bytes.try_reserve_exact(size).is_ok());
        let size = size.ok_or_else(|| container(format!("array `{name}` does not fit into memory")))?;
        let limit = size as u64 + 1;
        let read = (&mut entry).take(limit).read_to_end(&mut bytes);
        read.map_err(|e| container(format!("array `{name}`: {e}")))?;
        if bytes.len() > size {
            return Err(container(format!("array `{name}` is longer than its entry says")));
        }
        let npy = Npy::parse(&bytes.into());
        let npy = npy.map_err(|source| Error::Array { path: path.to_owned(), array: name.clone(), source })?;
        if arrays.insert(name.clone(), npy).is_some() {
            return Err(container(format!("array `{name}` occurs twice")));
        }
    }
    Ok(arrays)
}

/// Reads every array of a file as the evaluator carries it; text arrays are an error.
pub fn read_arrays(path: &Path) -> Result<IndexMap<String, Array>, Error> {
    let each = read(path)?.into_iter().map(|(name, npy)| match npy.to_array() {
        Ok(array) => Ok((name, array)),
        Err(source) => Err(Error::Array { path: path.to_owned(), array: name, source }),
    });
    each.collect()
}

/// Writes arrays under their names. The same arrays give the same bytes; the file appears when it is complete.
pub fn write<'a>(path: &Path, arrays: impl IntoIterator<Item = (&'a str, Npy)>, packing: Packing) -> Result<(), Error> {
    let container = |e: zip::result::ZipError| Error::Io { path: path.to_owned(), source: e.into() };
    let method = match packing {
        Packing::Stored => CompressionMethod::Stored,
        Packing::Deflated => CompressionMethod::Deflated,
    };
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let file = builder.prefix(".mbqc-").suffix(".part").tempfile_in(folder).map_err(Error::io(path))?;
    let mut archive = ZipWriter::new(BufWriter::new(Kept { file, failure: None }));
    for (name, npy) in arrays {
        let bytes = npy.encode();
        let bytes = bytes.map_err(|source| Error::Array { path: path.to_owned(), array: name.to_owned(), source })?;
        let options = SimpleFileOptions::default()
            .compression_method(method)
            .last_modified_time(zip::DateTime::default())
            .large_file(u32::try_from(bytes.len()).is_err());
        archive.start_file(format!("{name}.npy"), options).map_err(container)?;
        archive.write_all(&bytes).map_err(Error::io(path))?;
    }
    let kept = archive.finish().map_err(container)?.into_inner().map_err(|e| Error::io(path)(e.into_error()))?;
    if let Some(failure) = kept.failure {
        return Err(Error::io(path)(failure));
    }
    kept.file.persist(path).map_err(|e| Error::io(path)(e.error))?;
    Ok(())
}

/// A file that remembers the first failure of writing and swallows what comes after it: an archive that is dropped
/// after a failure tries to finish itself and prints that it cannot.
struct Kept {
    file: NamedTempFile,
    failure: Option<std::io::Error>,
}

impl Write for Kept {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.failure.is_none() {
            self.failure = self.file.as_file_mut().write_all(bytes).err();
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Seek for Kept {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        self.file.as_file_mut().seek(to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips_stored_and_deflated() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("set.npz");
        let ids = Npy::from_array(&Array::i64([2, 3], vec![1, 2, 3, 4, 5, 6])).unwrap();
        let kind = Npy::from_strings(&["cap", "ocr"]);
        for packing in [Packing::Stored, Packing::Deflated] {
            write(&path, [("input_ids", ids.clone()), ("kind", kind.clone())], packing).unwrap();
            let first = std::fs::read(&path).unwrap();
            let read = read(&path).unwrap();
            assert_eq!(read.keys().collect::<Vec<_>>(), ["input_ids", "kind"]);
            assert_eq!((&read["input_ids"], &read["kind"]), (&ids, &kind));
            write(&path, [("input_ids", ids.clone()), ("kind", kind.clone())], packing).unwrap();
            assert_eq!(first, std::fs::read(&path).unwrap());
        }
        assert!(read_arrays(&path).unwrap_err().to_string().contains("`kind`: expected numbers"));
    }

    #[test]
    fn broken_files_are_errors() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("set.npz");
        std::fs::write(&path, b"{}").unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("not a readable .npz"));
        write(&path, [("a", Npy::from_strings(&["abc"]))], Packing::Deflated).unwrap();
        let good = std::fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x55;
            std::fs::write(&path, &bad).unwrap();
            let _ = read(&path);
            std::fs::write(&path, &good[..at]).unwrap();
            assert!(read(&path).is_err(), "cut at {at}");
        }
        assert!(read(&folder.path().join("none.npz")).unwrap_err().to_string().contains("none.npz"));
    }
}
