//! Reading, dumping, parsing and writing the corpus of real exports.

use std::collections::BTreeSet;
use std::fs;

use mbqc::onnx::{Placement, ReadOptions, WriteOptions, read, write};
use mbqc_passes::ir::{text, verify};

use super::support::{Export, corpus, tell};
use super::{Outcome, same, second};

#[test]
fn real_exports_survive_reading_dumping_and_writing() -> Outcome {
    let Some(exports) = corpus()? else { return Ok(()) };
    let out = tempfile::tempdir()?;
    let mut cases = BTreeSet::new();
    let (mut identical, mut external) = (0, 0);
    for Export { name: place, path, .. } in &exports {
        cases.extend(place.split('/').next());
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
        write(
            Some(&file.source),
            &noted,
            &output,
            &WriteOptions { placement: Placement::Inline, threshold: 1024, ..WriteOptions::default() },
        )?;
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
        write(
            None,
            &file.model,
            &output,
            &WriteOptions { placement: Placement::External, threshold: 64, ..WriteOptions::default() },
        )?;
        let again = read(&output, &ReadOptions::default())?;
        assert_eq!(same::difference(&file.model, &again.model), None, "{place}: written without its source");
    }
    tell(&format!(
        "corpus: {} cases, {} graphs read, {identical} byte-identical, {external} with external data tensor-identical",
        cases.len(),
        exports.len()
    ));
    Ok(())
}
