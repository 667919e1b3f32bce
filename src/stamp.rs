//! Hashes of what went into a result, and the notes that carry them.

use std::io::Read;
use std::path::Path;

use mbqc_passes::ir::Model;
use mbqc_passes::plan::Plan;
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::Error;
use crate::onnx::Source;
use crate::stage::write_file;

/// SHA-256 of a file, lower-case hex.
pub fn file_hash(path: &Path) -> Result<String, Error> {
    let mut file = std::fs::File::open(path).map_err(Error::file(path))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0u8; 1 << 20];
    loop {
        let read = file.read(&mut buffer).map_err(Error::file(path))?;
        if read == 0 {
            return Ok(hex(&hasher.finalize()));
        }
        hasher.update(&buffer[..read]);
    }
}

/// SHA-256 of a model: of its file, or, where weights lie in data files, of the names and hashes of all of them.
pub fn model_hash(source: &Source) -> Result<String, Error> {
    let own = file_hash(source.path())?;
    let mut files: Vec<&Path> = source.data_files().map(|(path, _)| path).collect();
    if files.is_empty() {
        return Ok(own);
    }
    files.sort();
    let mut hasher = Sha256::new();
    hasher.update(own);
    for file in files {
        hasher.update(file.file_name().unwrap_or_default().as_encoded_bytes());
        hasher.update(file_hash(file)?);
    }
    Ok(hex(&hasher.finalize()))
}

/// SHA-256 of a data set: of the file, or of the sorted names and hashes of a folder's `.npz` files.
pub fn data_hash(path: &Path) -> Result<String, Error> {
    if path.is_file() {
        return file_hash(path);
    }
    let entries = std::fs::read_dir(path).map_err(Error::file(path))?;
    let mut files: Vec<_> = entries.filter_map(Result::ok).map(|e| e.path()).filter(|p| p.is_file()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "npz"));
    files.sort();
    let mut hasher = Sha256::new();
    for file in files {
        hasher.update(file.file_name().unwrap_or_default().as_encoded_bytes());
        hasher.update(file_hash(&file)?);
    }
    Ok(hex(&hasher.finalize()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Notes in the model: who made it, from what, by which plan.
pub fn mark(model: &mut Model, plan: &Plan) -> Result<(), Error> {
    let text = serde_json::to_string(plan).map_err(|e| Error::Usage(e.to_string()))?;
    model.set_metadata("mbqc.version", env!("CARGO_PKG_VERSION"));
    model.set_metadata("mbqc.method", plan.method.clone());
    model.set_metadata("mbqc.source.sha256", plan.source.clone());
    model.set_metadata("mbqc.plan.sha256", hex(&Sha256::digest(text.as_bytes())));
    if let Some(calibration) = &plan.calibration {
        model.set_metadata("mbqc.calibration.sha256", calibration.clone());
    }
    Ok(())
}

/// Whether a model carries the notes of [`mark`].
pub fn is_marked(model: &Model) -> bool {
    model.metadata.iter().any(|(key, _)| key == "mbqc.version")
}

/// Writes a JSON document that appears when it is complete.
pub fn write_json(path: &Path, document: &impl Serialize) -> Result<(), Error> {
    let text = serde_json::to_string_pretty(document).map_err(|e| Error::Usage(e.to_string()))?;
    write_file(path, text.as_bytes())
}
