//! The corpus of real exports: `../shared/corpus` beside the checkout, or where `MBQC_CORPUS` points.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use mbqc::onnx::{Placement, ReadOptions, WriteOptions, read, write};
use mbqc_passes::ir::{text, verify};

use super::{Outcome, same, second};

/// Every `.onnx` file of the corpus; nothing when there is none.
fn models() -> io::Result<(PathBuf, Vec<PathBuf>)> {
    fn visit(folder: &Path, found: &mut Vec<PathBuf>) -> io::Result<()> {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if path.is_dir() {
                visit(&path, found)?;
            } else if path.extension().is_some_and(|extension| extension == "onnx") {
                found.push(path);
            }
        }
        Ok(())
    }
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/corpus");
    let folder = std::env::var_os("MBQC_CORPUS").map_or(beside, PathBuf::from);
    let mut found = Vec::new();
    if folder.is_dir() {
        visit(&folder, &mut found)?;
    }
    found.sort();
    Ok((folder, found))
}

#[test]
#[expect(clippy::print_stdout, reason = "says how much of the corpus was there")]
fn real_exports_survive_reading_dumping_and_writing() -> Outcome {
    let (folder, paths) = models()?;
    let out = tempfile::tempdir()?;
    let mut cases = BTreeSet::new();
    let (mut identical, mut external) = (0, 0);
    for path in &paths {
        let place = path.strip_prefix(&folder)?;
        cases.extend(place.components().next());
        let place = place.display();
        let file = read(path, &ReadOptions::default())?;
        verify::verify(&file.model)?;
        assert!(file.source.is_canonical(), "{place}: encoding again gives other bytes");

        let dump = text::dump(&file.model);
        let parsed = text::parse(&dump).map_err(|error| format!("{place}: {error}"))?;
        assert_eq!(same::difference(&file.model, &parsed), None, "{place}: as text");

        let original = fs::read(path)?;
        let output = out.path().join("model.onnx");
        let written = write(Some(&file.source), &file.model, &output, &WriteOptions::default())?;
        if written.data.is_none() {
            assert!(fs::read(&output)? == original, "{place}: written without an edit, the bytes differ");
            identical += 1;
        } else {
            let again = read(&output, &ReadOptions::default())?;
            assert_eq!(same::difference(&file.model, &again.model), None, "{place}: with external data");
            assert!(again.source.is_canonical(), "{place}");
            external += 1;
        }

        // One note more makes the writer build the whole message anew; without it, another decoder must see no
        // difference.
        let mut noted = file.model.clone();
        noted.set_metadata("mbqc.test", "1");
        write(Some(&file.source), &noted, &output, &WriteOptions { placement: Placement::Inline, threshold: 1024 })?;
        let (before, mut after) = (second::decode(&original)?, second::decode(&fs::read(&output)?)?);
        assert!(after.metadata_props.pop().is_some_and(|note| note.key == "mbqc.test"), "{place}");
        if written.data.is_none() {
            assert!(before == after, "{place}: the second decoder sees a difference");
            assert_eq!(second::summary(&before), second::summary(&after), "{place}");
        } else {
            let again = read(&output, &ReadOptions::default())?;
            assert_eq!(same::difference(&noted, &again.model), None, "{place}: moved inside");
        }

        // And everything made from the IR alone.
        let output = out.path().join("new.onnx");
        write(None, &file.model, &output, &WriteOptions { placement: Placement::External, threshold: 64 })?;
        let again = read(&output, &ReadOptions::default())?;
        assert_eq!(same::difference(&file.model, &again.model), None, "{place}: written without its source");
    }
    println!(
        "corpus: {} cases, {} graphs read, {identical} byte-identical, {external} with external data tensor-identical",
        cases.len(),
        paths.len()
    );
    Ok(())
}
