//! Single graphs in which image features are put in the place of image tokens.

use mbqc_passes::array::Array;

use super::Outcome;
use super::place::Place;

/// Features of two patches at the places where `input_ids` is 3, cut to as many as there are places.
const MERGE: &str = r#"
<ir_version: 10, opset_import: ["": 20]>
merged (int64[1,T] input_ids, float[P,48] pixel_values) => (float[1,T,40] logits)
<
  float[40,16] table = ["seed": "1"],
  int64 image = {3}, int64[1] zero = {0},
  float[48,16] "vision.proj.weight" = ["seed": "2", "scale": "0.3"],
  float[16] gain = ["seed": "6"], float[16] shift = ["seed": "8"],
  float[16,16] q = ["seed": "4", "scale": "0.3"],
  float[16,40] head = ["seed": "7", "scale": "0.3"]
>
{
  [proj] features = MatMul (pixel_values, "vision.proj.weight")
  [embed] tokens = Gather (table, input_ids)
  [is_image] mask = Equal (input_ids, image)
  [places] places = NonZero (mask)
  [indices] indices = Transpose <perm = [1, 0]> (places)
  [count] count = Shape <start = 0, end = 1> (indices)
  [used] used = Slice (features, zero, count, zero)
  [merge] x = ScatterND (tokens, indices, used)
  [norm] h = LayerNormalization <axis = -1> (x, gain, shift)
  [q_proj] a = MatMul (h, q)
  [residual] r = Add (a, x)
  [head] logits = MatMul (r, head)
}
"#;

/// Two samples of six tokens, of which the first `images` are image tokens.
fn samples(images: usize) -> Vec<(&'static str, Array)> {
    let ids: Vec<i64> = (0..12).map(|at| if at % 6 < images { 3 } else { 4 + at as i64 * 5 % 36 }).collect();
    let labels = ids.iter().enumerate().map(|(at, &id)| if at % 6 >= 4 { id } else { -100 }).collect();
    let pixels = (0..2 * 2 * 48).map(|i| (i * 37 % 101) as f32 / 50.0 - 1.0).collect();
    vec![
        ("input_ids", Array::i64([2, 6], ids)),
        ("labels", Array::i64([2, 6], labels)),
        ("pixel_values", Array::f32([2, 2, 48], pixels)),
    ]
}

#[test]
fn placeholders_and_features_are_counted() -> Outcome {
    let place = Place::new()?;
    place.model("m.onnx", MERGE)?;
    for (name, images) in [("good", 2), ("few", 1), ("many", 3)] {
        place.data(&format!("{name}.npz"), &samples(images))?;
    }
    let mut masked = samples(2);
    masked.push(("vision_mask", Array::i64([2, 6], vec![1, 1, 1, 0, 0, 0, 1, 1, 0, 0, 0, 0])));
    place.data("masked.npz", &masked)?;
    let mut told = String::new();
    for data in ["few", "many"] {
        told += &place.refused(1, &format!("m.onnx -o out.onnx --format w3g16 --calib {data}.npz"));
        told += &place.refused(1, &format!("verify m.onnx m.onnx --data {data}.npz"));
    }
    told += &place.refused(2, "m.onnx -o out.onnx --format w3g16 --calib good.npz --image-token-id 5");
    for arguments in ["--calib good.npz --image-token-id 3", "--calib masked.npz"] {
        let ran = place.run(&format!("m.onnx -o out.onnx --format w3g16 {arguments}"));
        assert_eq!(ran.code, Some(0), "{arguments}: {ran}");
        told += &format!("$ mbqc m.onnx -o out.onnx --format w3g16 {arguments}\n{ran}\n");
    }
    insta::assert_snapshot!(told);
    Ok(())
}

/// Features in front of the text instead of at tokens: rows are not tokens, which only MBQ minds.
#[test]
fn features_in_front_of_the_text() -> Outcome {
    let place = Place::new()?;
    let front = MERGE
        .replace("[merge] x = ScatterND (tokens, indices, used)", "[front] x = Concat <axis = 1> (pictures, tokens)")
        .replace("[places]", "[pictures] pictures = Unsqueeze (features, zero) [places]")
        .replace("=> (float[1,T,40] logits)", "=> (float[1,S,40] logits)");
    place.model("m.onnx", &front)?;
    place.data("good.npz", &samples(0))?;
    let told = place.refused(1, "m.onnx -o out.onnx --format w3g16 --calib good.npz");
    for method in ["awq", "range"] {
        let ran = place.run(&format!("m.onnx -o out.onnx --format w3g16 --calib good.npz --method {method}"));
        assert_eq!(ran.code, Some(0), "{method}: {ran}");
    }
    insta::assert_snapshot!(told);
    Ok(())
}
