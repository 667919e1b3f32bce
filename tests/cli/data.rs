//! Calibration data that does not fit.

use std::fs;

use mbqc_passes::array::Array;

use super::Outcome;
use super::place::{Place, good, good_but, tiny};

const RUN: &str = "m.onnx -o out.onnx --format w3g32 --calib";

#[test]
fn data_that_does_not_fit() -> Outcome {
    let place = Place::with_tiny()?;
    let ids = |shape: [usize; 2], values: Vec<i64>| Some(Array::i64(shape, values));
    let floats = Array::f32([3, 6], (0..18).map(|i| i as f32 / 4.0).collect());
    fs::write(place.path("words.npz"), "no archive")?;
    fs::create_dir(place.path("nothing"))?;
    place.data("no_ids.npz", &good_but("input_ids", None))?;
    place.data("float_ids.npz", &good_but("input_ids", Some(floats)))?;
    place.data("long_labels.npz", &good_but("labels", ids([3, 7], vec![1; 21])))?;
    place.data("few_labels.npz", &good_but("labels", ids([2, 6], vec![1; 12])))?;
    place.data("flat_ids.npz", &good_but("input_ids", Some(Array::i64([3], vec![1; 3]))))?;
    place.data("far_ids.npz", &good_but("input_ids", ids([3, 6], vec![64; 18])))?;
    let mut far = vec![-100; 18];
    far[9..12].fill(64);
    place.data("far_labels.npz", &good_but("labels", ids([3, 6], far)))?;
    let mut negative = vec![1; 18];
    negative[8] = -1;
    place.data("negative_ids.npz", &good_but("input_ids", ids([3, 6], negative)))?;
    let shifted = |i: i64| if i % 6 >= 3 && i % 6 < 5 { (i + 1) * 7 % 64 } else { -100 };
    place.data("shifted.npz", &good_but("labels", ids([3, 6], (0..18).map(shifted).collect())))?;
    let both = (0..18).map(|i| i64::from(i % 6 < 4)).collect();
    place.data("both.npz", &good_but("vision_mask", ids([3, 6], both)))?;
    let mut hole = good();
    hole.push(("weights", Array::f32([3, 1], vec![1.0, f32::NAN, 1.0])));
    place.data("nan.npz", &hole)?;
    place.data("no_answers.npz", &good_but("labels", ids([3, 6], vec![-100; 18])))?;
    place.data("no_labels.npz", &good_but("labels", None))?;
    place.data("empty.npz", &[])?;
    let mut told = String::new();
    for name in [
        "missing",
        "words",
        "nothing",
        "no_ids",
        "float_ids",
        "long_labels",
        "few_labels",
        "flat_ids",
        "far_ids",
        "far_labels",
        "negative_ids",
        "shifted",
        "both",
        "nan",
        "no_answers",
        "no_labels",
        "empty",
    ] {
        let suffix = if name == "nothing" { "" } else { ".npz" };
        told += &place.refused(1, &format!("{RUN} {name}{suffix}"));
    }
    insta::assert_snapshot!(told);
    Ok(())
}

#[test]
fn graphs_that_the_data_does_not_fit() -> Outcome {
    let place = Place::with_tiny()?;
    let text = tiny("[last] last = Identity (r)");
    place.model("fixed.onnx", &text.replace("[1,T]", "[1,8]").replace("[1,T,", "[1,8,"))?;
    place.model("batch.onnx", &text.replace("[1,T]", "[2,T]").replace("[1,T,", "[2,T,"))?;
    let extra = text.replace("input_ids) =>", "input_ids, float[1,T,32] image_features) =>");
    place.model("extra.onnx", &extra.replace("Identity (r)", "Add (r, image_features)"))?;
    place.model(
        "integer.onnx",
        &text
            .replace("logits = MatMul (n, head)", "f = MatMul (n, head) logits = ArgMax (f)")
            .replace("float[1,T,64] logits", "int64[] logits"),
    )?;
    let mut told = String::new();
    for model in ["fixed", "batch", "extra", "integer"] {
        told += &place.refused(1, &format!("{model}.onnx -o out.onnx --format w3g32 --calib calib.npz"));
    }
    told += &place.refused(1, "m.onnx -o out.onnx --format w3g32 --calib calib.npz --logits scores");
    told += &place.refused(2, "m.onnx -o out.onnx --format w3g32 --calib calib.npz --samples 0");
    told += &place.refused(2, "m.onnx -o out.onnx --format w3g32 --calib calib.npz --search-samples 0");
    told += &place.refused(1, "verify m.onnx m.onnx --data missing.npz");
    told += &place.refused(1, "run m.onnx --inputs calib.npz --outputs out.npz");
    insta::assert_snapshot!(told);
    Ok(())
}

#[test]
fn samples_without_vision_or_answers_are_counted() -> Outcome {
    let place = Place::with_tiny()?;
    let mut labels = vec![-100; 18];
    labels[3..6].copy_from_slice(&[1, 2, 3]);
    place.data("one_answer.npz", &good_but("labels", Some(Array::i64([3, 6], labels))))?;
    let mut vision = vec![0; 18];
    vision[0] = 1;
    place.data("one_picture.npz", &good_but("vision_mask", Some(Array::i64([3, 6], vision))))?;
    place.data("text_only.npz", &good_but("vision_mask", None))?;
    let mut told = String::new();
    for name in ["one_answer", "one_picture", "text_only"] {
        let arguments = format!("{RUN} {name}.npz");
        let ran = place.run(&arguments);
        assert_eq!(ran.code, Some(0), "{arguments}: {ran}");
        told += &format!("$ mbqc {arguments}\n{ran}\n");
        fs::remove_file(place.path("out.onnx"))?;
    }
    assert_eq!(good().len(), 3);
    insta::assert_snapshot!(told);
    Ok(())
}
