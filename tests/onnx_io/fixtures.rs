//! Small models as text, in `tests/graphs`.

use std::fs;
use std::path::{Path, PathBuf};

use mbqc::onnx::{Placement, ReadOptions, WriteOptions, read, write};
use mbqc_passes::ir::text::{DumpOptions, Subject, dump, dump_with, parse};
use mbqc_passes::ir::{DType, Model};

use super::{Outcome, same, second};

fn fixtures() -> std::io::Result<Vec<PathBuf>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/graphs");
    let mut paths: Vec<PathBuf> =
        fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "txt"));
    paths.sort();
    Ok(paths)
}

#[test]
fn fixtures_survive_dumping_and_writing() -> Outcome {
    let folder = tempfile::tempdir()?;
    let paths = fixtures()?;
    assert!(!paths.is_empty());
    for path in paths {
        let place = path.display();
        let model = parse(&fs::read_to_string(&path)?).map_err(|error| format!("{place}: {error}"))?;
        let text = dump(&model);
        let again = parse(&text).map_err(|error| format!("{place}, dumped: {error}\n{text}"))?;
        assert_eq!(same::difference(&model, &again), None, "{place}: as text\n{text}");

        for placement in [Placement::Inline, Placement::External] {
            let output = folder.path().join("model.onnx");
            write(None, &model, &output, &WriteOptions { placement, threshold: 16, ..WriteOptions::default() })?;
            let file = read(&output, &ReadOptions::default())?;
            assert_eq!(same::difference(&model, &file.model), None, "{place}: as a file, {placement:?}");
            assert!(file.source.is_canonical(), "{place}");
            let nodes = second::decode(&fs::read(&output)?)?.graph.node.len();
            assert_eq!(nodes, model.graph.node_count(), "{place}: the second decoder");
            let copy = folder.path().join("copy.onnx");
            write(Some(&file.source), &file.model, &copy, &WriteOptions::default())?;
            if placement == Placement::Inline {
                assert!(fs::read(&copy)? == fs::read(&output)?, "{place}: written without an edit");
            }
        }
    }
    Ok(())
}

fn small(body: &str) -> Result<Model, String> {
    parse(&format!("<ir_version: 10, opset_import: [\"\": 20]> g {body}")).map_err(|error| error.to_string())
}

#[test]
fn constants_in_text_have_the_bytes_they_say() -> Outcome {
    #[rustfmt::skip]
    let rows: &[(&str, DType, &[u8])] = &[
        ("float[2] c = {1, -0.5}",             DType::F32,  &[0, 0, 0x80, 0x3f, 0, 0, 0, 0xbf]),
        ("float c = {-inf}",                   DType::F32,  &[0, 0, 0x80, 0xff]),
        ("float16[2] c = {15360, 1.0}",        DType::F16,  &[0, 0x3c, 0, 0x3c]),
        ("bfloat16[1] c = {1.0}",              DType::BF16, &[0x80, 0x3f]),
        ("int8[2] c = {-1, 127}",              DType::I8,   &[255, 127]),
        ("uint64[1] c = {18446744073709551615}", DType::U64, &[255; 8]),
        ("bool[2] c = {1, 0}",                 DType::Bool, &[1, 0]),
        ("uint4[3] c = {1, 2, 15}",            DType::U4,   &[0x21, 0x0f]),
        ("int4[3] c = {-1, 2, -8}",            DType::I4,   &[0x2f, 0x08]),
        ("uint4[3] c = {33, 15}",              DType::U4,   &[0x21, 0x0f]),
        ("uint2[5] c = {0, 1, 2, 3, 1}",       DType::U2,   &[0xe4, 1]),
        ("float[0,3] c = {}",                  DType::F32,  &[]),
        ("uint8[4] c = [\"seed\": \"7\"]",     DType::U8,   &[0x63, 0x04, 0xe6, 0x95]),
    ];
    for (constant, dtype, bytes) in rows {
        let model = small(&format!("() => (y) <{constant}> {{ y = Identity(c) }}"))?;
        let id = model.graph.find("c").ok_or("no `c`")?;
        let found = model.graph.constant(id).ok_or("no constant")?;
        assert_eq!((found.dtype, found.bytes()), (*dtype, *bytes), "{constant}");
    }
    Ok(())
}

/// The first draws of SplitMix64 from the seed 1234567, as its authors' reference program prints them.
#[test]
fn seeded_floats_are_uniform_and_the_documented_ones() -> Outcome {
    let model = small(
        "() => (y) <float[3] c = [\"seed\": \"1234567\"], float[1000] d = [\"seed\": \"1\", \"scale\": \"2\"]> { y = Add(c, d) }",
    )?;
    let values = |name: &str| model.graph.find(name).and_then(|id| model.graph.constant(id)?.to_f64());
    let draws = [6_457_827_717_110_365_317u64, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423];
    let expected = draws.map(|draw| (2 * (draw >> 41) + 1) as f64 / f64::from(1 << 23) - 1.0);
    assert_eq!(values("c"), Some(expected.to_vec()));
    let wide = values("d").ok_or("no `d`")?;
    let mean = wide.iter().sum::<f64>() / 1000.0;
    assert!(wide.iter().all(|v| v.abs() < 2.0) && wide.iter().any(|v| v.abs() > 1.9) && mean.abs() < 0.15);
    Ok(())
}

#[test]
fn errors_in_text_name_the_place() {
    #[rustfmt::skip]
    let rows = [
        ("(float[2] x) => (y)\n{ y = Relu(x }",   "line 2, column 14: found `}`, expected `)`"),
        ("() => (y) { y = Relu(x) }",             "value `x` is read but nothing defines it"),
        ("(x) => (y) { y = Relu(x) y = Relu(x) }", "value `y` is defined twice"),
        ("() => (y) <float[2] c = {1}> {}",       "shape [2] needs 2 elements, found 1"),
        ("() => (y) <float[N] c = {1}> {}",       "every dimension of a constant must be a number"),
        ("() => (y) <uint8[1] c = {256}> {}",     "`256` is not a value of uint8"),
        ("(x) => (y) { y = Op <a: ints = 3> (x) }", "found a value of another type, expected ints"),
        ("(x) => (y) { y = Op <a = []> (x) }",    "an empty list needs a type"),
        ("(x) => (y) { y = Op <a = [1, 2.0]> (x) }", "must be of one type"),
        ("(x) => (y) { y = Op <a = \"b> (x) }",   "this string has no end"),
        ("() => (y) <float[99999999999] c = [\"seed\": \"1\"]> {}", "too large for \"seed\""),
    ];
    for (body, expected) in rows {
        let found = small(body).err().unwrap_or_else(|| "no error".to_owned());
        assert!(found.contains(expected), "{body}\n  says {found}\n  should say {expected}");
    }
}

#[test]
fn notes_stand_behind_what_they_are_about() -> Outcome {
    let model = small("(float[2] x) => (float[2] y) <float[2] c = {1, 2}> { y = Add(x, c) }")?;
    let note = |subject: Subject<'_>| match subject {
        Subject::Value(graph, id) => Some(format!("about {}", graph.name(id))),
        Subject::Node(graph, id) => Some(format!("about\n{}", graph.node(id).op)),
    };
    let text = dump_with(&model, &DumpOptions { note: &note, ..DumpOptions::default() });
    let expected = "<ir_version: 10, opset_import: [\"\": 20]>\n\
                    g (float[2] x) => (float[2] y)\n\
                    <\n  float[2] c = {1.0, 2.0}  # about c\n>\n\
                    {\n  y = Add (x, c)  # about Add\n}\n";
    assert_eq!(text, expected);
    assert_eq!(same::difference(&model, &parse(&text)?), None);
    Ok(())
}
