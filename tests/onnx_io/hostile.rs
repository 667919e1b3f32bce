//! Bytes and texts that are no models: an error each time, never a panic.

use std::path::Path;
use std::sync::LazyLock;

use bytes::Bytes;
use mbqc::onnx::{File, ReadOptions, WriteOptions, read_bytes, write};
use mbqc_passes::ir::text;
use proptest::prelude::{any, prop, proptest};
use proptest::test_runner::Config;

use super::Outcome;

/// A small model with a subgraph, a function, initializers and attributes of every kind.
static MODEL: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let made = || -> Result<Vec<u8>, Box<dyn std::error::Error>> {
        let model = text::parse(include_str!("../graphs/everything.txt"))?;
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("everything.onnx");
        write(None, &model, &path, &WriteOptions::default())?;
        Ok(std::fs::read(path)?)
    };
    made().unwrap_or_default()
});

fn open(bytes: impl Into<Bytes>) -> Result<File, String> {
    read_bytes(bytes.into(), Path::new("hostile.onnx"), &ReadOptions::default()).map_err(|error| error.to_string())
}

#[test]
fn a_model_cut_anywhere_is_refused() -> Outcome {
    let whole = open(MODEL.clone())?;
    let functions = whole.model.functions.len();
    for length in 0..MODEL.len() {
        let cut = open(MODEL[..length].to_vec());
        // Whole fields may be missing from the end of a message without a trace; only functions come that late.
        let only_functions_lost = cut.as_ref().is_ok_and(|file| file.model.functions.len() < functions);
        assert!(cut.is_err() || only_functions_lost, "cut at {length} of {}", MODEL.len());
    }
    Ok(())
}

#[test]
fn files_of_other_kinds_are_named() {
    #[rustfmt::skip]
    let rows: &[(&[u8], &str)] = &[
        (b"", "found an empty file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "found a Git LFS pointer"),
        (b"PK\x03\x04rest", "found a zip archive"),
        (b"<!DOCTYPE html>", "found an HTML or XML page"),
        (b"GGUF\x03\0\0\0", "found a GGUF model"),
        (b"\x08\x0a\x42\x02\x10\x14", "found a message without a graph"),
        (b"\x08\x0a\x3a\x7f\x12", "truncated: ModelProto at byte 2 promises 127 bytes, but the file has 1 left"),
        (b"\x08\x02\x3a\x00\x42\x02\x10\x08", "found ONNX IR version 2, expected 3 or later"),
        (b"\x08\x0a\x3a\x00", "found no opset_import"),
    ];
    for (bytes, expected) in rows {
        let found = open(Bytes::from_static(bytes)).err().unwrap_or_else(|| "no error".to_owned());
        assert!(found.starts_with("hostile.onnx: ") && found.contains(expected), "{found}\n  should say: {expected}");
    }
}

#[test]
fn fields_the_schema_does_not_know_are_not_lost_in_silence() -> Outcome {
    let mut bytes = MODEL.clone();
    bytes.extend([0x98, 0x06, 0x07]); // field 99, a number
    let found = open(bytes.clone()).err().unwrap_or_default();
    let expected = format!("ModelProto at byte {} has field 99, which this version does not know", MODEL.len());
    assert!(found.contains(&expected), "{found}");
    let file = read_bytes(Bytes::from(bytes), Path::new("x.onnx"), &ReadOptions { allow_lossy: true })?;
    assert_eq!(file.warnings.len(), 1);
    assert!(!file.source.is_canonical());
    Ok(())
}

proptest! {
    #![proptest_config(Config { cases: 2000, failure_persistence: None, ..Config::default() })]

    #[test]
    fn flipped_bytes_never_panic(flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let mut bytes = MODEL.clone();
        for (at, value) in flips {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Ok(file) = open(bytes) {
            let _ = text::parse(&text::dump(&file.model));
        }
    }

    #[test]
    fn noise_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = open(bytes);
    }

    #[test]
    fn changed_text_never_panics(
        at in any::<prop::sample::Index>(),
        cut in 0usize..20,
        insert in "[ -~]{0,6}",
    ) {
        let mut text = include_str!("../graphs/everything.txt").to_owned();
        let at = at.index(text.len());
        let end = (at + cut).min(text.len());
        if text.is_char_boundary(at) && text.is_char_boundary(end) {
            text.replace_range(at..end, &insert);
        }
        if let Ok(model) = text::parse(&text) {
            let _ = text::dump(&model);
        }
    }
}

#[test]
fn deep_nesting_is_refused() {
    let mut bytes = Vec::new();
    for _ in 0..2000 {
        let mut outer = vec![0x3a]; // a graph field around what is there; inside it means nothing, but nests
        let mut len = bytes.len();
        while len >= 0x80 {
            outer.push((len as u8 & 0x7f) | 0x80);
            len >>= 7;
        }
        outer.push(len as u8);
        outer.extend(&bytes);
        bytes = outer;
    }
    assert!(open(bytes).is_err());
    let graphs = "g () => () { = If <then_branch = ".repeat(5000);
    assert!(text::parse(&graphs).is_err_and(|error| error.message.contains("nested more than")));
}
