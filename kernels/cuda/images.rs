//! The kernels as a device loads them: machine code for the architectures that are shipped, compiled by `tests/gpu/compile.py`
//! and kept in `kernels.zip`; else compiled on the spot, if the CUDA toolkit is there; else PTX, which the driver compiles.

use std::fmt;
use std::io::{Cursor, Read};

use zip::ZipArchive;

use super::driver;

/// Entries `<architecture>.zip` with `<unit>.<architecture>.cubin`, not compressed by themselves; `compute_80.zip` with
/// `<unit>.compute_80.ptx`; and `SOURCES`:
/// `options <the compiler's>`, then `<unit> <SHA-256 of its sources and the options>`.
const ARCHIVE: &[u8] = include_bytes!("kernels.zip");

/// A source file with kernels.
#[derive(Debug)]
pub struct Unit {
    /// Its name: that of its folder.
    pub name: &'static str,
    /// The text.
    pub source: &'static str,
    /// The one compute capability that it is for, if it is not for all.
    pub only: Option<(u32, u32)>,
}

/// What sources include.
const HEADERS: &[(&str, &str)] = &[
    ("small.cuh", include_str!("small.cuh")),
    ("integer.cuh", include_str!("integer.cuh")),
    ("middle.cuh", include_str!("middle.cuh")),
    ("wide.cuh", include_str!("wide.cuh")),
    ("repack.cuh", include_str!("repack.cuh")),
    ("dequantize.cuh", include_str!("dequantize.cuh")),
    ("decode.cuh", include_str!("decode.cuh")),
    ("arch.cuh", include_str!("device/arch.cuh")),
    ("hopper.cuh", include_str!("device/hopper.cuh")),
    ("w2.cuh", include_str!("../w2/w2.cuh")),
    ("w3.cuh", include_str!("../w3/w3.cuh")),
    ("w4.cuh", include_str!("../w4/w4.cuh")),
    ("w4a8.cuh", include_str!("../w4a8/w4a8.cuh")),
    ("w8a8.cuh", include_str!("../w8a8/w8a8.cuh")),
];

/// Machine code or PTX.
pub(super) enum Image {
    Binary(Vec<u8>),
    Ptx(String),
}

/// A form in which kernels may be loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// Machine code that is shipped.
    Shipped { architecture: &'static str, waits: bool },
    /// Machine code that is compiled now.
    Compiled((u32, u32)),
    /// PTX that is shipped.
    Ptx,
}

/// The architectures that machine code is shipped for, by the compute capabilities that run it.
fn shipped((major, minor): (u32, u32)) -> Option<Form> {
    let (architecture, waits) = match (major, minor) {
        (8, 9) => ("sm_89", false),
        (8, _) => ("sm_80", false),
        // Architecture-specific code runs on this one alone.
        (9, 0) => ("sm_90a", true),
        (10, _) => ("sm_100", true),
        (12, _) => ("sm_120", true),
        _ => return None,
    };
    Some(Form::Shipped { architecture, waits })
}

/// The forms of a unit for a compute capability, the best first; none before 8.0, and where it is for another.
pub(super) fn forms(unit: &Unit, capability: (u32, u32)) -> Vec<Form> {
    if capability < (8, 0) || unit.only.is_some_and(|only| only != capability) {
        return Vec::new();
    }
    let ptx = if unit.only.is_some() { None } else { Some(Form::Ptx) };
    shipped(capability).into_iter().chain([Form::Compiled(capability)]).chain(ptx).collect()
}

impl Form {
    /// Whether kernels wait for those ahead of them by themselves. PTX for 8.0 does not: it knows nothing of that.
    pub(super) fn waits(self) -> bool {
        match self {
            Form::Shipped { waits, .. } => waits,
            Form::Compiled(capability) => capability >= (9, 0),
            Form::Ptx => false,
        }
    }

    /// A unit in this form.
    pub(super) fn image(self, unit: &Unit) -> Result<Image, String> {
        match self {
            Form::Shipped { architecture, .. } => image(unit, architecture, "cubin").map(Image::Binary),
            Form::Compiled(capability) => {
                driver::compile(unit.source, HEADERS, &told("options")?, capability).map(Image::Binary)
            }
            Form::Ptx => {
                let bytes = image(unit, "compute_80", "ptx")?;
                String::from_utf8(bytes).map(Image::Ptx).map_err(|error| error.to_string())
            }
        }
    }
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Form::Shipped { architecture, .. } => f.write_str(architecture),
            Form::Compiled((major, minor)) => write!(f, "compiled for sm_{major}{minor}"),
            Form::Ptx => f.write_str("PTX for compute_80, compiled by the driver"),
        }
    }
}

fn image(unit: &Unit, architecture: &str, kind: &str) -> Result<Vec<u8>, String> {
    let all = entry(ARCHIVE, &format!("{architecture}.zip"))?;
    entry(&all, &format!("{}.{architecture}.{kind}", unit.name))
}

/// A file of an archive.
fn entry(archive: &[u8], name: &str) -> Result<Vec<u8>, String> {
    let read = || -> Result<Vec<u8>, zip::result::ZipError> {
        let mut archive = ZipArchive::new(Cursor::new(archive))?;
        let mut file = archive.by_name(name)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    read().map_err(|error| format!("{name}: {error}"))
}

/// SHA-256 of the sources of a unit, from which the shipped kernels were made, in hexadecimal. Receipts of devices name it.
///
/// # Errors
///
/// If there is no such unit.
pub fn source_hash(unit: &str) -> Result<String, String> {
    told(unit)
}

/// What `SOURCES` says under a name.
fn told(name: &str) -> Result<String, String> {
    let sources = String::from_utf8(entry(ARCHIVE, "SOURCES")?).map_err(|error| error.to_string())?;
    let mut lines = sources.lines().filter_map(|line| line.split_once(' '));
    let found = lines.find(|(found, _)| *found == name);
    found.map(|(_, hash)| hash.to_owned()).ok_or_else(|| format!("SOURCES says nothing of {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda;

    #[test]
    fn every_unit_is_shipped_for_every_architecture() {
        let capabilities = [(8, 0), (8, 6), (8, 7), (8, 9), (9, 0), (10, 0), (10, 3), (12, 0), (12, 1)];
        let mut kernels = 0;
        for unit in cuda::units() {
            if let Some(only) = unit.only {
                assert!(capabilities.iter().all(|&other| other == only || forms(unit, other).is_empty()));
                assert!(forms(unit, only).len() == 2 && Form::Ptx.image(unit).is_err(), "{}", unit.name);
            }
            for &capability in capabilities.iter().filter(|&&one| unit.only.is_none_or(|only| only == one)) {
                let form = forms(unit, capability)[0];
                let Ok(Image::Binary(bytes)) = form.image(unit) else { panic!("{} has no {form}", unit.name) };
                assert!(bytes.starts_with(b"\x7fELF"), "{} {form}", unit.name);
                assert_eq!(form.waits(), capability >= (9, 0));
                kernels += 1;
            }
            if unit.only.is_none() {
                let Ok(Image::Ptx(text)) = Form::Ptx.image(unit) else { panic!("{} has no PTX", unit.name) };
                assert!(text.contains(".target sm_80"), "{}", unit.name);
            }
            let hash = source_hash(unit.name).unwrap_or_else(|error| panic!("{error}"));
            assert!(hash.len() == 64 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()), "{hash}");
        }
        assert!(kernels > 0);
        assert!(ARCHIVE.len() < 2_000_000, "{} bytes", ARCHIVE.len());
    }

    #[test]
    fn forms_that_nothing_is_shipped_for_are_compiled() {
        let unit = cuda::units().next().expect("there are some");
        assert_eq!(forms(unit, (7, 5)), []);
        assert_eq!(forms(unit, (11, 0)), [Form::Compiled((11, 0)), Form::Ptx]);
        assert!(source_hash("w9").is_err());
    }
}
