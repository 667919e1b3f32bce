//! What lies on disk: external data, payloads made on demand, edits, and outputs that fail.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use mbqc::onnx::{Error, File, Placement, ReadOptions, WriteOptions, read, write};
use mbqc_passes::ir::{DType, Edit, Lazy, Model, NewNode, Place, Tensor, text};
use onnx_protobuf::{TensorProto, tensor_proto};

use super::tensors::{entry, model as file_of, tensor};
use super::{Outcome, same, second};

fn parse(body: &str) -> Result<Model, text::ParseError> {
    text::parse(&format!("<ir_version: 10, opset_import: [\"\": 20]> g {body}"))
}

fn open(path: &Path) -> Result<File, Error> {
    read(path, &ReadOptions::default())
}

fn options(placement: Placement) -> WriteOptions<'static> {
    WriteOptions { placement, ..WriteOptions::default() }
}

fn names_in(folder: &Path) -> std::io::Result<Vec<String>> {
    let mut names: Vec<String> = fs::read_dir(folder)?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<std::io::Result<_>>()?;
    names.sort();
    Ok(names)
}

fn message<T>(result: Result<T, Error>) -> String {
    let Err(error) = result else { return "no error".to_owned() };
    let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}"));
    format!("{error}{}", cause.unwrap_or_default())
}

/// A tensor of `count` floats at `offset` of `location`.
fn external(name: &str, location: &str, offset: usize, count: i64) -> TensorProto {
    let (offset, length) = (offset.to_string(), (4 * count).to_string());
    TensorProto {
        name: name.to_owned(),
        data_location: tensor_proto::DataLocation::EXTERNAL.into(),
        external_data: vec![entry("location", location), entry("offset", &offset), entry("length", &length)],
        ..tensor(1, &[count])
    }
}

#[test]
fn external_data_is_one_aligned_file_without_holes_or_copies() -> Outcome {
    let folder = tempfile::tempdir()?;
    let input = folder.path().join("in.onnx");
    let bytes: Vec<u8> = (0..40_000u32).flat_map(|v| v.to_le_bytes()).collect();
    fs::write(folder.path().join("shard_0"), &bytes)?;
    fs::create_dir(folder.path().join("sub"))?;
    fs::write(folder.path().join("sub/shard_1"), &bytes[..8000])?;
    // `a` and `tied` are the same bytes; bytes from 80000 on belong to nobody; `small` is under the threshold.
    let tensors = vec![
        external("a", "shard_0", 16, 1500),
        external("tied", "shard_0", 16, 1500),
        external("b", "./sub/shard_1", 0, 2000),
        external("c", "shard_0", 40_000, 10_000),
        external("small", "shard_0", 4, 3),
    ];
    fs::write(&input, file_of(tensors, Vec::new()))?;
    let file = open(&input)?;
    let output = folder.path().join("out.onnx");
    let written = write(Some(&file.source), &file.model, &output, &WriteOptions::default())?;
    assert_eq!(names_in(folder.path())?, ["in.onnx", "out.onnx", "out.onnx.data", "shard_0", "sub"]);
    assert_eq!(written.data_bytes, 2 * 4096 + 8000_u64.next_multiple_of(4096) + 40_000);
    let again = open(&output)?;
    assert_eq!(same::difference(&file.model, &again.model), None);
    let place = |name: &str| -> Option<(String, String)> {
        let proto = second::decode(&fs::read(&output).ok()?).ok()?;
        let tensor = proto.graph.initializer.iter().find(|t| t.name == name)?.clone();
        let get = |key: &str| tensor.external_data.iter().find(|e| e.key == key).map(|e| e.value.clone());
        Some((get("location")?, get("offset")?))
    };
    let at = |offset: &str| Some(("out.onnx.data".to_owned(), offset.to_owned()));
    assert_eq!(
        [place("a"), place("tied"), place("b"), place("c"), place("small")],
        [at("0"), at("0"), at("8192"), at("16384"), None]
    );
    let inline = folder.path().join("inline.onnx");
    let written = write(Some(&file.source), &file.model, &inline, &options(Placement::Inline))?;
    assert_eq!(written.data, None);
    assert_eq!(same::difference(&file.model, &open(&inline)?.model), None);
    Ok(())
}

#[test]
fn external_data_that_cannot_be_used_is_refused() -> Outcome {
    let folder = tempfile::tempdir()?;
    let home = folder.path().join("model");
    fs::create_dir(&home)?;
    fs::write(folder.path().join("outside"), [0; 64])?;
    fs::write(home.join("short"), [0; 10])?;
    std::os::unix::fs::symlink("../outside", home.join("link"))?;
    let wrong_length = TensorProto { dims: vec![3], ..external("t", "short", 0, 2) };
    let rows = [
        (external("t", "short", 4, 2), "offset 4 and length 8 end outside the file, which has 10 bytes"),
        (external("t", "short", usize::MAX, 2), "end outside the file"),
        (external("t", "link", 0, 2), "outside the model's folder; put a copy of the file there instead"),
        (external("t", ".", 0, 2), "is not a file"),
        (wrong_length, "length is 8, but type and shape need 12 bytes"),
    ];
    for (tensor, expected) in rows {
        let path = home.join("m.onnx");
        fs::write(&path, file_of(vec![tensor], Vec::new()))?;
        let found = message(open(&path));
        assert!(found.contains("tensor `t`: external data at ") && found.contains(expected), "{found}");
    }
    Ok(())
}

/// Download caches keep a folder of links into a folder of blobs.
#[test]
fn a_model_and_its_data_may_be_links_into_one_folder() -> Outcome {
    let folder = tempfile::tempdir()?;
    let (blobs, snapshot) = (folder.path().join("blobs"), folder.path().join("snapshots/abc"));
    fs::create_dir(&blobs)?;
    fs::create_dir_all(&snapshot)?;
    fs::write(blobs.join("0f"), [1; 8])?;
    fs::write(blobs.join("a7"), file_of(vec![external("t", "m.onnx_data", 0, 2)], Vec::new()))?;
    std::os::unix::fs::symlink("../../blobs/0f", snapshot.join("m.onnx_data"))?;
    std::os::unix::fs::symlink("../../blobs/a7", snapshot.join("m.onnx"))?;
    assert_eq!(open(&snapshot.join("m.onnx"))?.source.data_files().count(), 1);
    Ok(())
}

#[test]
fn payloads_made_on_demand_are_made_once_per_place_and_only_when_written() -> Outcome {
    let folder = tempfile::tempdir()?;
    let calls = Arc::new(AtomicUsize::new(0));
    for (placement, len) in [(Placement::Inline, 40_000), (Placement::Inline, 12), (Placement::External, 40_000)] {
        calls.store(0, Ordering::Relaxed);
        let counter = Arc::clone(&calls);
        let lazy = Lazy::new(len, move || {
            counter.fetch_add(1, Ordering::Relaxed);
            Ok(Bytes::from(vec![7; len]))
        });
        let mut model = parse("(float[2] x) => (y, z) <float[2] w = {1, 2}> { y = Add(x, w) z = Identity(w) }")?;
        let tensor = Tensor::lazy(DType::U8, [len], lazy);
        let edits = ["p", "q"].map(|name| Edit::AddConst(name.to_owned(), tensor.clone()));
        model.graph.apply(edits)?;
        model.graph.apply([Edit::AddNode(NewNode::new("Concat", &["p", "q"], &["pq"]), Place::End)])?;
        assert_eq!(calls.load(Ordering::Relaxed), 0);
        let output = folder.path().join("lazy.onnx");
        write(None, &model, &output, &options(placement))?;
        assert_eq!(calls.load(Ordering::Relaxed), if placement == Placement::External { 1 } else { 2 });
        let again = open(&output)?.model;
        let stored = again.graph.find("q").and_then(|id| again.graph.constant(id));
        assert_eq!(stored, Some(&Tensor::raw(DType::U8, [len], vec![7; len])));
    }
    Ok(())
}

#[test]
fn an_output_that_fails_leaves_what_was_there() -> Outcome {
    let folder = tempfile::tempdir()?;
    let output = folder.path().join("m.onnx");
    let good = parse("(float[2] x) => (y) <float[2000] w = [\"seed\": \"1\"]> { y = Add(x, w) }")?;
    write(None, &good, &output, &options(Placement::External))?;
    let before = (fs::read(&output)?, fs::read(folder.path().join("m.onnx.data"))?);
    let fails = |text: &'static str| Lazy::new(40_000, move || Err(text.to_owned()));
    let shrinks = Lazy::new(40_000, || Ok(Bytes::from_static(b"short")));
    for (lazy, expected) in [
        (fails("the sky fell"), "the payload of tensor `w` could not be made: the sky fell"),
        (shrinks, "a payload of 40000 bytes was promised, 5 were produced"),
    ] {
        let mut bad = good.clone();
        let id = bad.graph.find("w").ok_or("no `w`")?;
        bad.graph.apply([Edit::SetConst(id, Tensor::lazy(DType::F32, [10_000], lazy))])?;
        for placement in [Placement::External, Placement::Inline] {
            let found = message(write(None, &bad, &output, &options(placement)));
            assert!(found.contains(expected), "{found}");
            assert_eq!(names_in(folder.path())?, ["m.onnx", "m.onnx.data"]);
            assert!(before == (fs::read(&output)?, fs::read(folder.path().join("m.onnx.data"))?));
        }
    }
    Ok(())
}

#[test]
fn outputs_that_would_destroy_an_input_or_cannot_be_are_refused() -> Outcome {
    let folder = tempfile::tempdir()?;
    let at = |name: &str| folder.path().join(name);
    let model = parse("(float[2] x) => (y) <float[2000] w = [\"seed\": \"1\"]> { y = Add(x, w) }")?;
    write(None, &model, &at("m.onnx"), &options(Placement::External))?;
    let file = open(&at("m.onnx"))?;
    std::os::unix::fs::symlink(at("m.onnx"), at("link.onnx"))?;
    fs::create_dir(at("folder.onnx"))?;
    for (output, expected) in [
        (at("m.onnx"), "would be overwritten; choose another output name"),
        (at("link.onnx"), "would be overwritten; choose another output name"),
        (at("m.bin"), "m.onnx.data: is an input of this run and would be overwritten"),
        (at("folder.onnx"), "found a folder"),
        (at("no/such/folder/m.onnx"), "no/such/folder does not exist; create it first"),
    ] {
        let found = message(write(Some(&file.source), &file.model, &output, &options(Placement::External)));
        assert!(found.contains(expected), "{found}");
    }
    let found = message(open(&at("none.onnx")));
    assert!(found.contains("none.onnx: cannot be opened: "), "{found}");
    let found = message(open(&at("folder.onnx")));
    assert!(found.contains("folder.onnx: cannot be opened: not a regular file"), "{found}");

    fs::OpenOptions::new().append(true).open(at("m.onnx"))?.set_len(fs::metadata(at("m.onnx"))?.len() + 1)?;
    let found = message(write(Some(&file.source), &file.model, &at("new.onnx"), &options(Placement::Inline)));
    assert!(found.contains("changed on disk since it was read"), "{found}");
    Ok(())
}

/// Changes a file that came from elsewhere: what is not touched stays, notes and all.
#[test]
fn an_edit_changes_what_it_touches_and_no_more() -> Outcome {
    let folder = tempfile::tempdir()?;
    let input = folder.path().join("in.onnx");
    let body = "(float[2] x, bool c) => (float[2] y, z)
        <float[2] w = {1, 2}, float[2] v = {3, 4}, float[2] a, float[2] dead>
        { [one] a = Add <note = \"kept\"> (x, w) [two] y = Mul (a, v) [three] dead = Neg (y)
          [four] z = If <then_branch = t () => (r) <float k = {1}> { r = Mul (x, k) }, else_branch = e () => (s) { s = Neg (x) }> (c) }";
    write(None, &parse(body)?, &input, &WriteOptions::default())?;
    let mut bytes = fs::read(&input)?;
    let mut proto = second::decode(&bytes)?;
    if let Some(graph) = proto.graph.as_mut() {
        graph.node.iter_mut().for_each(|node| node.doc_string = format!("doc of {}", node.name));
        graph.initializer.iter_mut().for_each(|tensor| tensor.doc_string = format!("doc of {}", tensor.name));
        bytes = onnx_protobuf::Message::write_to_bytes(&proto)?;
    }
    fs::write(&input, bytes)?;

    let mut file = open(&input)?;
    let graph = &mut file.model.graph;
    let id = |graph: &mbqc_passes::ir::Graph, name: &str| graph.find(name).ok_or("no such value");
    let node = graph.nodes().find(|(_, node)| node.name == "one").map(|(id, _)| id).ok_or("no such node")?;
    let v = id(graph, "v")?;
    graph.apply([
        Edit::SetConst(v, Tensor::f32s([2], &[5.0, 6.0])),
        Edit::SetInput(node, 1, "x".to_owned()),
        Edit::Prune,
    ])?;
    let path = file.model.graph_paths().into_iter().nth(1).ok_or("no subgraph")?;
    let inner = file.model.graph_at_mut(&path).ok_or("no subgraph")?;
    let k = id(inner, "k")?;
    inner.apply([Edit::SetConst(k, Tensor::f32s([], &[9.0]))])?;

    let output = folder.path().join("out.onnx");
    write(Some(&file.source), &file.model, &output, &WriteOptions::default())?;
    assert_eq!(same::difference(&file.model, &open(&output)?.model), None);
    let graph = second::decode(&fs::read(&output)?)?.graph;
    let docs: Vec<&str> = graph.node.iter().map(|node| node.doc_string.as_str()).collect();
    assert_eq!(docs, ["doc of one", "doc of two", "doc of four"]);
    let weights: Vec<(&str, &str)> =
        graph.initializer.iter().map(|t| (t.name.as_str(), t.doc_string.as_str())).collect();
    assert_eq!(weights, [("v", "")]);
    let declared: Vec<&str> = graph.value_info.iter().map(|info| info.name.as_str()).collect();
    assert_eq!(declared, ["a"]);
    Ok(())
}

/// `SetInput` forgets where a node came from; a type attribute, which the IR does not read, must survive that.
#[test]
fn attributes_the_ir_does_not_read_survive_an_edit_of_their_node() -> Outcome {
    let folder = tempfile::tempdir()?;
    let input = folder.path().join("in.onnx");
    let mut proto =
        second::decode(&file_of(vec![TensorProto { float_data: vec![0.0], ..tensor(1, &[1]) }], Vec::new()))?;
    if let Some(node) = proto.graph.as_mut().and_then(|graph| graph.node.first_mut()) {
        node.attribute.push(onnx_protobuf::AttributeProto {
            name: "kind".to_owned(),
            type_: onnx_protobuf::attribute_proto::AttributeType::TYPE_PROTO.into(),
            tp: Some(onnx_protobuf::TypeProto { denotation: "IMAGE".to_owned(), ..Default::default() }).into(),
            ..Default::default()
        });
    }
    fs::write(&input, onnx_protobuf::Message::write_to_bytes(&proto)?)?;
    let mut file = open(&input)?;
    let (node, _) = file.model.graph.nodes().next().ok_or("no node")?;
    file.model.graph.apply([Edit::SetInput(node, 0, "t".to_owned())])?;
    let output = folder.path().join("out.onnx");
    write(Some(&file.source), &file.model, &output, &WriteOptions::default())?;
    let kept = second::decode(&fs::read(&output)?)?.graph.node[0].attribute[0].tp.denotation.clone();
    assert_eq!(kept, "IMAGE");
    let found = message(write(None, &file.model, &output, &WriteOptions::default()));
    assert!(found.contains("attribute `kind`: a sparse tensor or a type"), "{found}");
    Ok(())
}
