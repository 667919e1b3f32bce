//! Outputs on their way: put together in a folder of their own beside the output, and named when they are complete.
//!
//! Whatever ends a run before that removes the folder: an error, or a signal. A signal knows no parameters, so that the
//! list of such folders is the one global of the program.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use mbqc_passes::ir::Model;
use tempfile::TempDir;

use crate::Error;
use crate::onnx::{self, Source, WriteOptions, Written};
use crate::places::{data_file, folder_of, resolved};
use crate::report::progress::Progress;

/// Folders that are there and must not stay.
static UNFINISHED: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

fn unfinished() -> MutexGuard<'static, Vec<PathBuf>> {
    UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A folder in which outputs are put together.
pub struct Staging {
    folder: Option<TempDir>,
    path: PathBuf,
}

impl Staging {
    /// A folder beside `output`, on the same file system.
    pub fn beside(output: &Path) -> Result<Staging, Error> {
        signals::watch();
        let mut builder = tempfile::Builder::new();
        builder.prefix(".mbqc-");
        // It may become the output folder: open to whom the user's mask allows.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o777));
        let mut list = unfinished();
        let folder = builder.tempdir_in(folder_of(output)).map_err(Error::file(output))?;
        let path = folder.path().to_owned();
        list.push(path.clone());
        Ok(Staging { folder: Some(folder), path })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Gives files their names: pairs of what lies in this folder and what it becomes. Folders are made where they are
    /// missing. A signal arrives before all of it or after.
    pub fn publish(self, files: &[(PathBuf, PathBuf)]) -> Result<(), Error> {
        let list = unfinished();
        let mut fresh = Vec::new();
        let result = files.iter().try_for_each(|(from, to)| {
            let is_fresh = !to.exists();
            fs::create_dir_all(folder_of(to)).and_then(|()| fs::rename(from, to)).map_err(Error::file(to))?;
            fresh.extend(is_fresh.then_some(to));
            flush(folder_of(to));
            Ok(())
        });
        if result.is_err() {
            // The error that matters is the one being reported.
            fresh.iter().for_each(|path| drop(fs::remove_file(path)));
        }
        drop(list);
        result
    }

    /// Makes this folder the output.
    pub fn publish_folder(mut self, to: &Path) -> Result<(), Error> {
        let mut list = unfinished();
        fs::rename(&self.path, to).map_err(Error::file(to))?;
        list.retain(|path| *path != self.path);
        if let Some(folder) = self.folder.take() {
            // It has another name now.
            let _ = folder.keep();
        }
        flush(folder_of(to));
        Ok(())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        let mut list = unfinished();
        drop(self.folder.take());
        list.retain(|path| *path != self.path);
    }
}

/// Some file systems cannot flush a folder; the data itself is on disk.
fn flush(folder: &Path) {
    let _ = fs::File::open(folder).and_then(|folder| folder.sync_all());
}

/// What an output that is a link leads to: the link stays one.
fn behind_link(output: &Path) -> PathBuf {
    if output.is_symlink() { resolved(output) } else { output.to_owned() }
}

/// Writes a file that appears when it is complete.
pub fn write_file(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let path = &*behind_link(path);
    let staging = Staging::beside(path)?;
    let staged = staging.path().join("file");
    let written = fs::File::create(&staged).and_then(|mut file| {
        std::io::Write::write_all(&mut file, bytes)?;
        file.sync_all()
    });
    written.map_err(Error::file(path))?;
    staging.publish(&[(staged, path.to_owned())])
}

/// A model that was written, and what became of an older data file at its place.
#[derive(Debug)]
pub struct Published {
    /// The files.
    pub written: Written,
    /// What a user should know about a data file that the new model does not use.
    pub note: Option<String>,
}

/// Writes a model; its files appear when they are complete. `source` is the file it was read from.
pub fn write_model(
    source: Option<&Source>,
    model: &Model,
    output: &Path,
    progress: &Progress,
) -> Result<Published, Error> {
    let output = &behind_link(output);
    let staging = Staging::beside(output)?;
    let staged = staging.path().join(output.file_name().unwrap_or_default());
    let written = write_staged(source, model, &staged, output, progress)?;
    let data = data_file(output);
    let mut note = None;
    let mut ours = false;
    if written.data.is_none() && data.exists() {
        ours = is_ours(output, &data);
        let name = data.display();
        note = Some(if ours {
            format!("removed {name}: the data file of the model that was here before")
        } else {
            format!("warning: {name} does not belong to the model that was written; it was left as it is")
        });
    }
    let mut files = Vec::new();
    files.extend(written.data.is_some().then(|| (data_file(&staged), data.clone())));
    files.push((staged, output.to_owned()));
    staging.publish(&files)?;
    if ours {
        fs::remove_file(&data).map_err(Error::file(&data))?;
    }
    Ok(Published { written, note })
}

/// Writes a model into a staging folder; the answer and errors name the place it will have.
pub fn write_staged(
    source: Option<&Source>,
    model: &Model,
    staged: &Path,
    to: &Path,
    progress: &Progress,
) -> Result<Written, Error> {
    if let Some(folder) = staged.parent() {
        fs::create_dir_all(folder).map_err(Error::file(to))?;
    }
    progress.busy(&format!("writing {}", to.display()));
    let megabytes = |bytes: u64| usize::try_from(bytes / 1_000_000).unwrap_or(usize::MAX);
    // A small model is written before anybody could read that it is.
    let told = |done: u64, total: u64| {
        if total > 64_000_000 {
            progress.step("writing, MB", megabytes(done), megabytes(total));
        }
    };
    let written = match onnx::write(source, model, staged, &WriteOptions { progress: &told, ..Default::default() }) {
        Ok(written) => written,
        Err(onnx::Error::Payload { reason, .. }) => return Err(Error::Weight { reason }),
        Err(mut error) => {
            match &mut error {
                onnx::Error::Write { file, .. }
                | onnx::Error::Output { file, .. }
                | onnx::Error::TooLarge { file, .. }
                    if file.starts_with(folder_of(staged)) =>
                {
                    *file = to.with_file_name(file.file_name().unwrap_or_default());
                }
                _ => {}
            }
            return Err(Error::Onnx(error));
        }
    };
    let data = written.data.as_ref().map(|_| data_file(to));
    Ok(Written { model: to.to_owned(), data, ..written })
}

/// Whether the model at `path` is one that mbqc has written with this data file.
fn is_ours(path: &Path, data: &Path) -> bool {
    let Ok(old) = onnx::read(path, &onnx::ReadOptions { allow_lossy: true }) else { return false };
    let used = old.source.data_files().any(|(file, _)| file.file_name() == data.file_name());
    used && crate::stamp::is_marked(&old.model)
}

#[cfg(unix)]
mod signals {
    //! What ends a run in the middle: unfinished folders are removed, then the signal does what it always does.

    use std::sync::Once;

    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
    use signal_hook::iterator::Signals;
    use signal_hook::low_level::emulate_default_handler;

    /// From the first output on; before that there is nothing to remove.
    pub(super) fn watch() {
        static ONCE: Once = Once::new();
        ONCE.call_once(|| {
            // SIGXFSZ is taken so that a write past a limit answers an error.
            let wanted = [SIGINT, SIGTERM, SIGHUP, SIGXFSZ].into_iter().filter(|&signal| !is_ignored(signal));
            let Ok(mut signals) = Signals::new(wanted) else { return };
            std::thread::spawn(move || {
                for signal in signals.forever().filter(|&signal| signal != SIGXFSZ) {
                    // Held to the end: whoever works on a folder now does not go on.
                    let list = super::unfinished();
                    for folder in list.iter() {
                        // A file may still appear while the rest is removed.
                        let gone = || std::fs::remove_dir_all(folder).is_ok() || !folder.exists();
                        let _ = (0..10).any(|_| gone());
                    }
                    let _ = emulate_default_handler(signal);
                }
            });
        });
    }

    /// Whether the starter of this process wants a signal ignored, as `nohup` does. Only Linux tells.
    fn is_ignored(signal: i32) -> bool {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
        let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
        mask >> (signal - 1) & 1 == 1
    }
}

#[cfg(not(unix))]
mod signals {
    pub(super) fn watch() {}
}
