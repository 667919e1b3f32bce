//! `mbqc inspect`.

use std::fs;

use super::Outcome;
use super::place::{Place, tiny};

/// A model in which an image enters: two layers for its patches, and a merge by `Where`.
const MERGE: &str = r#"
<ir_version: 10, opset_import: ["": 20]>
merged (int64[1,T] input_ids, float[1,T,16] image_rows, float[n,3,4,4] pixel_values) => (float[1,T,40] logits)
<
  float[40,16] table = ["seed": "1"],
  int64 image = {3}, int64[1] last = {-1}, int64[3] flat = {1, -1, 48},
  float[48,16] "vision.proj.weight" = ["seed": "2", "scale": "0.3"],
  float[16] "vision.proj.bias" = ["seed": "3", "scale": "0.3"],
  float[16,16] q = ["seed": "4", "scale": "0.3"], float[16,16] k = ["seed": "5", "scale": "0.3"],
  float[16] gain = ["seed": "6"],
  float[16,40] head = ["seed": "7", "scale": "0.3"]
>
{
  [flatten] patches = Reshape (pixel_values, flat)
  [proj] p = MatMul (patches, "vision.proj.weight")
  [proj_bias] features = Add (p, "vision.proj.bias")
  [pool] pooled = ReduceMean <keepdims = 1> (features)
  [embed] tokens = Gather (table, input_ids)
  [is_image] mask = Equal (input_ids, image)
  [mask3] mask3 = Unsqueeze (mask, last)
  [images] images = Add (image_rows, pooled)
  [merge] x = Where (mask3, images, tokens)
  [gain] h = Mul (x, gain)
  [q_proj] a = MatMul (h, q)
  [k_proj] b = MatMul (h, k)
  [gate] g = Sigmoid (a)
  [gated] y = Mul (g, b)
  [residual] r = Add (x, y)
  [head] logits = MatMul (r, head)
}
"#;

fn shown(place: &Place, arguments: &str) -> String {
    let ran = place.run(arguments);
    assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""), "{arguments}: {ran}");
    format!("$ mbqc {arguments}\n{}\n", ran.out)
}

#[test]
fn reports() -> Outcome {
    let place = Place::with_tiny()?;
    place.model("merged.onnx", MERGE)?;
    let mlp = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/graphs/mlp.txt");
    place.model("mlp.onnx", &fs::read_to_string(mlp)?)?;
    let quantized = place.run("m.onnx -o q.onnx --format w3g32 --head-format w8g32 --method rtn");
    assert_eq!(quantized.code, Some(0), "{quantized}");
    let rounded = place.run("m.onnx -o s.onnx --format w4a8 --head-format w8a8 --calib calib.npz");
    assert_eq!(rounded.code, Some(0), "{rounded}");
    let mut told = String::new();
    for arguments in ["m.onnx --calib calib.npz", "mlp.onnx", "merged.onnx", "q.onnx", "s.onnx"] {
        let arguments = &format!("inspect {arguments}");
        told += &shown(&place, arguments);
    }
    let notes = ["mbqc.source.sha256", "mbqc.plan.sha256"];
    let hidden = |line: &str| match notes.iter().find(|note| line.contains(**note)) {
        Some(note) => format!("  {note} = SHA256\n"),
        None => format!("{line}\n"),
    };
    insta::assert_snapshot!(told.lines().map(hidden).collect::<String>());
    Ok(())
}

#[test]
fn texts_and_differences() -> Outcome {
    let place = Place::with_tiny()?;
    place.model("other.onnx", &tiny("[last] last = Neg (r)"))?;
    let mut told = shown(&place, "inspect m.onnx --text");
    told += &shown(&place, "inspect m.onnx --text --calib calib.npz");
    told += &shown(&place, "inspect m.onnx --diff other.onnx");
    told += &shown(&place, "inspect m.onnx --diff m.onnx");
    insta::assert_snapshot!(told);
    Ok(())
}

/// The text with its comments reads back as the graph it was made from.
#[test]
fn text_reads_back() -> Outcome {
    let place = Place::new()?;
    let model = place.model("merged.onnx", MERGE)?;
    let ran = place.run("inspect merged.onnx --text");
    let again = mbqc_passes::ir::text::parse(&ran.out)?;
    assert_eq!(
        mbqc_passes::ir::text::dump(&again).lines().count(),
        mbqc_passes::ir::text::dump(&model).lines().count()
    );
    assert_eq!(again.graph.node_count(), model.graph.node_count());
    Ok(())
}

#[test]
fn folders() -> Outcome {
    let place = Place::with_tiny()?;
    fs::create_dir(place.path("vlm"))?;
    place.model(
        "vlm/decoder_model_merged.onnx",
        &tiny("[last] last = Identity (r)")
            .replace("[embed] x = Gather (table, input_ids)", "[start] x = Identity (inputs_embeds)")
            .replace("int64[1,T] input_ids", "float[1,T,32] inputs_embeds"),
    )?;
    place.model(
        "vlm/embed_tokens.onnx",
        "<ir_version: 10, opset_import: [\"\": 20]> embed (int64[1,T] input_ids) => (float[1,T,32] inputs_embeds) \
         <float[64,32] table = [\"seed\": \"1\"]> { [embed] inputs_embeds = Gather (table, input_ids) }",
    )?;
    fs::write(place.path("vlm/config.json"), r#"{"model_type": "llava", "image_token_index": 3}"#)?;
    let mut told = shown(&place, "inspect vlm --calib calib.npz");
    told += &shown(&place, "inspect vlm --diff vlm");
    insta::assert_snapshot!(told);
    Ok(())
}
