//! Folders of graphs as one unit.

use std::fs;

use mbqc_passes::array::Array;

use super::Outcome;
use super::place::{Place, good, tiny};

/// A folder with the three graphs, and with what lies around in such folders.
pub(crate) fn vlm() -> Result<Place, Box<dyn std::error::Error>> {
    let place = Place::new()?;
    fs::create_dir(place.path("vlm"))?;
    let decoder = tiny("[last] last = Identity (r)")
        .replace("[embed] x = Gather (table, input_ids)", "[start] x = Identity (inputs_embeds)")
        .replace("int64[1,T] input_ids", "float[1,T,32] inputs_embeds");
    place.model("vlm/decoder_model_merged.onnx", &decoder)?;
    place.model(
        "vlm/embed_tokens.onnx",
        "<ir_version: 10, opset_import: [\"\": 20]> embed (int64[1,T] input_ids) => (float[1,T,32] inputs_embeds) \
         <float[64,32] table = [\"seed\": \"1\"]> { [embed] inputs_embeds = Gather (table, input_ids) }",
    )?;
    place.model(
        "vlm/vision_encoder.onnx",
        "<ir_version: 10, opset_import: [\"\": 20]> vision (float[P,48] pixel_values) => (float[P,32] image_features) \
         <float[48,32] \"vision.proj.weight\" = [\"seed\": \"2\", \"scale\": \"0.3\"]> \
         { [proj] image_features = MatMul (pixel_values, \"vision.proj.weight\") }",
    )?;
    let files = [
        ("config.json", r#"{"model_type": "llava", "image_token_index": 3}"#),
        ("tokenizer.json", "{}"),
        ("chat_template.jinja", ""),
        ("LICENSE", ""),
        (".gitattributes", ""),
        ("eval.npz", ""),
        ("model.safetensors", ""),
        ("decoder_model_merged_q4.onnx", ""),
        ("decoder_model_merged_q4.onnx_data", ""),
    ];
    for (name, text) in files {
        fs::write(place.path("vlm").join(name), text)?;
    }
    place.data("calib.npz", &samples(2))?;
    Ok(place)
}

/// Three samples of six tokens with as many image tokens as patches.
fn samples(patches: usize) -> Vec<(&'static str, Array)> {
    let mut arrays = good();
    let image = |at: usize, id: i64| if at % 6 < patches { 3 } else { 4 + id % 60 };
    let ids = (0..18).map(|at| image(at, at as i64 * 7)).collect::<Vec<i64>>();
    let labels = ids.iter().enumerate().map(|(at, &id)| if at % 6 >= 3 { id } else { -100 }).collect();
    arrays.clear();
    arrays.push(("input_ids", Array::i64([3, 6], ids)));
    arrays.push(("labels", Array::i64([3, 6], labels)));
    let pixels = (0..3 * 2 * 48).map(|i| (i * 37 % 101) as f32 / 50.0 - 1.0).collect();
    arrays.push(("pixel_values", Array::f32([3, 2, 48], pixels)));
    arrays
}

fn names(place: &Place, folder: &str) -> String {
    let files = place.files();
    let names = files.keys().filter_map(|path| path.strip_prefix(place.path(folder)).ok());
    names.map(|name| format!("  {}\n", name.display())).skip(1).collect()
}

#[test]
fn what_belongs_to_the_unit_is_copied() -> Outcome {
    let place = vlm()?;
    let mut told = String::new();
    for arguments in [
        "vlm -o out --format w3g32 --calib calib.npz",
        // It was written by mbqc.
        "vlm -o out --format w3g32 --vision-format w4g16 --calib calib.npz --plan-out plan.json",
        "vlm -o new/out --format w3g32",
    ] {
        let ran = place.run(arguments);
        assert_eq!(ran.code, Some(0), "{arguments}: {ran}");
        told += &format!("$ mbqc {arguments}\n{ran}\n");
    }
    told += &format!("out\n{}", names(&place, "out"));
    let vision = place.run("inspect out --json");
    assert!(vision.out.contains("\"format\": \"w4g16\"") && vision.out.contains("\"format\": \"w3g32\""), "{vision}");
    let verified = place.run("verify vlm out --data calib.npz");
    assert_eq!(verified.code, Some(0), "{verified}");
    insta::assert_snapshot!(told);
    Ok(())
}

#[test]
fn folders_that_are_not_filled() -> Outcome {
    let place = vlm()?;
    fs::create_dir(place.path("full"))?;
    fs::write(place.path("full/letter.txt"), "")?;
    let mut told = place.refused(1, "vlm -o full --format w3g32");
    let forced = place.run("vlm -o full --format w3g32 --force");
    assert!(forced.code == Some(0) && place.path("full/letter.txt").is_file(), "{forced}");
    for (code, command) in [
        (1, "apply vlm --plan plan.json -o out"),
        (1, "bake vlm -o out.onnx"),
        (1, "run vlm --inputs calib.npz --outputs out.npz"),
    ] {
        fs::write(place.path("plan.json"), "{}")?;
        told += &place.refused(code, command);
    }
    place.data("wrong.npz", &samples(1))?;
    told += &place.refused(1, "vlm -o out --format w3g32 --calib wrong.npz");
    let far = Array::i64([3, 6], vec![70; 18]);
    let mut arrays = samples(2);
    arrays[0].1 = far;
    place.data("far.npz", &arrays)?;
    told += &place.refused(1, "vlm -o out --format w3g32 --calib far.npz");
    fs::remove_file(place.path("vlm/embed_tokens.onnx"))?;
    told += &place.refused(1, "vlm -o out --format w3g32 --calib calib.npz");
    insta::assert_snapshot!(told);
    Ok(())
}

/// A data set that brings `inputs_embeds` needs none of the graphs before the decoder.
#[test]
fn embeddings_go_around_the_encoders() -> Outcome {
    let place = vlm()?;
    place.model(
        "vlm/vision_encoder.onnx",
        "<ir_version: 10, opset_import: [\"\": 20, \"my\": 1]> vision (float[P,48] pixel_values) => \
         (float[P,32] image_features) { [secret] image_features = my.Secret (pixel_values) }",
    )?;
    let told = place.refused(1, "vlm -o out --format w3g32 --calib calib.npz");
    let mut arrays = samples(2);
    let embeds = (0..18 * 32).map(|i| (i * 29 % 97) as f32 / 48.0 - 1.0).collect();
    arrays.push(("inputs_embeds", Array::f32([3, 6, 32], embeds)));
    place.data("embeds.npz", &arrays)?;
    let ran = place.run("vlm -o out --format w3g32 --calib embeds.npz");
    assert_eq!(ran.code, Some(0), "{ran}");
    insta::assert_snapshot!(told);
    Ok(())
}

/// A full disk is told of by the name the file would have had.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_leaves_no_folder() -> Outcome {
    let place = vlm()?;
    let before = place.files();
    let mbqc = env!("CARGO_BIN_EXE_mbqc");
    let script = format!("ulimit -f 1; exec {mbqc} vlm -o out --format w3g32");
    let ran = place.command(std::process::Command::new("sh").args(["-c", &script]));
    assert_eq!(ran.code, Some(1), "{ran}");
    assert!(place.files() == before, "left {:?}", place.files().keys());
    assert!(ran.err.contains("error: out/"), "{ran}");
    Ok(())
}
