//! `src/onnx/proto.rs` and `src/onnx/fields.rs` are generated from `src/onnx/onnx.proto` and checked in; this test
//! generates them again. `MBQC_BLESS=1 cargo test --test onnx_schema` writes the files.

use std::error::Error;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use protox::prost_reflect::{DescriptorPool, Kind, MessageDescriptor};

#[test]
fn the_checked_in_types_are_what_the_schema_generates() -> Result<(), Box<dyn Error>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/onnx");
    let out = tempfile::tempdir()?;
    let schema = protox::compile([folder.join("onnx.proto")], [&folder])?;
    let fields = field_table(&DescriptorPool::from_file_descriptor_set(schema.clone())?)?;
    prost_build::Config::new().bytes(["."]).disable_comments(["."]).out_dir(out.path()).compile_fds(schema)?;
    check(&folder.join("proto.rs"), &fs::read_to_string(out.path().join("onnx.rs"))?)?;
    check(&folder.join("fields.rs"), &fields)
}

/// Every message with its field numbers and, for a field that holds a message, which one.
fn field_table(pool: &DescriptorPool) -> Result<String, Box<dyn Error>> {
    let messages: Vec<MessageDescriptor> = pool.all_messages().collect();
    let short = |message: &MessageDescriptor| message.full_name().trim_start_matches("onnx.").to_owned();
    let root = messages.iter().position(|m| short(m) == "ModelProto").ok_or("no ModelProto")?;
    let mut text = String::from("// This file is @generated from onnx.proto by tests/onnx_schema.rs.\n");
    writeln!(text, "pub(super) const ROOT: usize = {root};")?;
    text.push_str("pub(super) type Fields = &'static [(u32, Option<usize>)];\n");
    text.push_str("pub(super) const MESSAGES: &[(&str, Fields)] = &[\n");
    for message in &messages {
        write!(text, "    (\"{}\", &[", short(message))?;
        for field in message.fields() {
            let inner = match field.kind() {
                Kind::Message(inner) => messages.iter().position(|m| *m == inner),
                _ => None,
            };
            write!(text, "({}, {inner:?}), ", field.number())?;
        }
        text.push_str("]),\n");
    }
    text.push_str("];\n");
    Ok(text)
}

fn check(checked_in: &Path, generated: &str) -> Result<(), Box<dyn Error>> {
    if std::env::var_os("MBQC_BLESS").is_some() {
        fs::write(checked_in, generated)?;
    }
    let found = fs::read_to_string(checked_in)?;
    assert!(found == generated, "{} is stale; see the comment at the top of this test", checked_in.display());
    Ok(())
}
