//! A walk over the wire format of a file, without decoding it and without touching a payload: finds the place where a
//! cut file ends, and fields the schema does not know (which a decoder drops without a word).

use std::path::Path;

use crate::onnx::Error;
use crate::onnx::fields::{MESSAGES, ROOT};

/// Messages nested deeper than this are refused by the decoder too.
const DEPTH: usize = 100;

/// A field that decoding would lose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unknown {
    /// Message that holds it.
    pub(super) message: &'static str,
    /// Its number.
    pub(super) field: u32,
    /// Where its tag stands in the file.
    pub(super) at: usize,
}

/// Fields of `bytes`, a serialized ModelProto, that the schema does not know, in file order.
pub(super) fn unknown_fields(file: &Path, bytes: &[u8]) -> Result<Vec<Unknown>, Error> {
    let mut walk = Walk { file, bytes, at: 0, unknown: Vec::new() };
    walk.message(ROOT, bytes.len(), 0)?;
    Ok(walk.unknown)
}

struct Walk<'a> {
    file: &'a Path,
    bytes: &'a [u8],
    at: usize,
    unknown: Vec<Unknown>,
}

impl Walk<'_> {
    fn message(&mut self, message: usize, end: usize, depth: usize) -> Result<(), Error> {
        let (name, fields) = MESSAGES[message];
        while self.at < end {
            let at = self.at;
            let tag = self.varint(name, end)?;
            let (number, wire) = (u32::try_from(tag >> 3).unwrap_or(0), tag & 7);
            let known = fields.iter().find(|(field, _)| *field == number);
            if known.is_none() {
                self.unknown.push(Unknown { message: name, field: number, at });
            }
            if number == 0 || (known.is_none() && depth == 0 && at == 0) {
                return Err(self.not_onnx(format!("tag {tag} at byte {at} of {name}, which is no field")));
            }
            let length = match wire {
                0 => self.varint(name, end).map(|_| 0)?,
                1 => 8,
                2 => self.varint(name, end)?,
                5 => 4,
                other => return Err(self.not_onnx(format!("wire type {other} at byte {at} of {name}"))),
            };
            let left = end - self.at;
            let Some(length) = usize::try_from(length).ok().filter(|&length| length <= left) else {
                return Err(self.past_the_end(name, at, end, length));
            };
            match known {
                Some((_, Some(inner))) if wire == 2 => {
                    if depth == DEPTH {
                        return Err(self.not_onnx(format!("messages nested more than {DEPTH} deep")));
                    }
                    self.message(*inner, self.at + length, depth + 1)?;
                }
                _ => self.at += length,
            }
        }
        Ok(())
    }

    fn varint(&mut self, name: &'static str, end: usize) -> Result<u64, Error> {
        let start = self.at;
        let mut value = 0;
        for shift in (0..70).step_by(7) {
            if self.at == end {
                return Err(self.past_the_end(name, start, end, 1));
            }
            let byte = self.bytes[self.at];
            self.at += 1;
            value |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(self.not_onnx(format!("a number of more than ten bytes at byte {start} of {name}")))
    }

    /// A field that ends after its message does: a cut file if the message is the file itself.
    fn past_the_end(&self, inside: &'static str, at: usize, end: usize, promised: u64) -> Error {
        if end == self.bytes.len() {
            return Error::Truncated { file: self.file.to_owned(), inside, at, promised, left: end - self.at };
        }
        self.not_onnx(format!("a field at byte {at} that ends outside its {inside}"))
    }

    fn not_onnx(&self, found: String) -> Error {
        let (found, hint) = looks_like(self.bytes).unwrap_or((found, ""));
        Error::NotOnnx { file: self.file.to_owned(), found, hint }
    }
}

/// What a file that is no ONNX model is, and what to do about it, where its first bytes tell.
pub(super) fn looks_like(bytes: &[u8]) -> Option<(String, &'static str)> {
    #[rustfmt::skip]
    const SIGNATURES: &[(usize, &[u8], &str, &str)] = &[
        (0, b"version https://git-lfs", "a Git LFS pointer",         "; fetch the file itself with `git lfs pull`"),
        (0, b"PK\x03\x04",              "a zip archive",             "; a PyTorch checkpoint must be exported to ONNX first"),
        (0, b"\x80\x02",                "a Python pickle",           "; a PyTorch checkpoint must be exported to ONNX first"),
        (0, b"\x1f\x8b",                "a gzip archive",            "; unpack it first"),
        (0, b"GGUF",                    "a GGUF model",              "; start from the ONNX export of the original model"),
        (0, b"\x89HDF",                 "an HDF5 file",              ""),
        (0, b"<",                       "an HTML or XML page",       "; the download went wrong"),
        (0, b"{",                       "a JSON text",               ""),
        (8, b"{\"",                     "a safetensors file",        "; give the model file that refers to it"),
        (4, b"ORTM",                    "an ONNX Runtime model in ORT format", "; start from the .onnx file it was made from"),
    ];
    let mut rows = SIGNATURES.iter();
    let row = rows.find(|(at, start, ..)| bytes.get(*at..).is_some_and(|rest| rest.starts_with(start)))?;
    Some((row.2.to_owned(), row.3))
}
