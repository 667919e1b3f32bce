//! Outputs that would destroy an input or each other, however they are spelled: refused before anything is done.

#![cfg(unix)]

use std::fs;
use std::os::unix::fs::symlink;

use mbqc::onnx::Placement;
use mbqc_passes::array::Array;
use mbqc_passes::ir::text::parse;

use super::Outcome;
use super::place::{Place, tiny};

#[test]
fn files() -> Outcome {
    let place = Place::with_tiny()?;
    fs::create_dir(place.path("folder"))?;
    symlink("m.onnx", place.path("soft.onnx"))?;
    fs::hard_link(place.path("m.onnx"), place.path("hard.onnx"))?;
    fs::write(place.path("config.json"), "{}")?;
    let model = parse(&tiny("[last] last = Identity (r)"))?;
    place.write("ext.onnx", &model, Placement::External)?;
    let made = place.run("m.onnx -o q.onnx --format w3g32 --plan-out plan.json");
    assert_eq!(made.code, Some(0), "{made}");
    place.data("in.npz", &[("input_ids", Array::i64([1, 6], vec![1; 6]))])?;
    let mut told = String::new();
    for rest in [
        "m.onnx -o m.onnx",
        "m.onnx -o ./folder/../m.onnx",
        "m.onnx -o soft.onnx",
        "m.onnx -o hard.onnx",
        "m.onnx --calib calib.npz -o calib.npz",
        "m.onnx -o out.onnx --plan-out m.onnx",
        "m.onnx -o out.onnx --plan-out config.json",
        "m.onnx -o out.onnx --plan-out folder/../out.onnx",
        "m.onnx -o out.onnx --plan-out out.onnx.data",
        "m.onnx -o out.onnx --calib calib.npz --plan-out calib.npz",
        "m.onnx -o out.onnx --plan-out hard.onnx --dry-run",
        "ext.onnx -o out.onnx --plan-out ext.onnx.data",
        "ext.onnx -o ext.onnx.data",
        "apply m.onnx --plan plan.json -o plan.json",
        "apply m.onnx --plan plan.json -o m.onnx",
        "bake q.onnx -o folder/../q.onnx",
        "run m.onnx --inputs in.npz --outputs m.onnx",
        "run m.onnx --inputs in.npz --outputs ./in.npz",
    ] {
        let format = if rest.starts_with("m.onnx") || rest.starts_with("ext.onnx") { " --format w3g32" } else { "" };
        told += &place.refused(2, &format!("{rest}{format}"));
    }
    insta::assert_snapshot!(told);
    Ok(())
}

#[test]
fn folders() -> Outcome {
    let place = Place::new()?;
    fs::create_dir_all(place.path("vlm/inner"))?;
    place.model("vlm/decoder_model_merged.onnx", &tiny("[last] last = Identity (r)"))?;
    symlink("vlm", place.path("link"))?;
    let mut told = String::new();
    for rest in [
        "vlm -o vlm",
        "vlm -o ./vlm/inner/..",
        "vlm -o link",
        "link -o vlm",
        "vlm -o vlm/out",
        "vlm -o link/new/out",
        "vlm/inner/.. -o .",
        "vlm -o out --plan-out vlm/decoder_model_merged.onnx",
        "vlm -o out --plan-out out/decoder_model_merged.onnx",
    ] {
        let code = if rest.ends_with("out/decoder_model_merged.onnx") { 1 } else { 2 };
        told += &place.refused(code, &format!("{rest} --format w3g32"));
    }
    insta::assert_snapshot!(told);
    Ok(())
}
