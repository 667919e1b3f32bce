//! Lists, explanations, and one JSON document on standard output.

use serde_json::Value;

use super::Outcome;
use super::place::Place;

#[test]
fn lists() -> Outcome {
    let place = Place::new()?;
    let mut told = String::new();
    for list in ["formats", "methods", "families"] {
        let ran = place.run(&format!("list {list}"));
        assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""));
        told += &format!("$ mbqc list {list}\n{}\n", ran.out);
    }
    insta::assert_snapshot!(told);
    let ops = place.run("list ops");
    assert_eq!(ops.code, Some(0));
    assert!(ops.out.lines().count() > 70 && ops.out.lines().any(|l| l.starts_with("LayerNormalization ")), "{ops}");
    Ok(())
}

#[test]
fn explanations() -> Outcome {
    let place = Place::new()?;
    let mut told = String::new();
    for name in ["w3", "w4g64", "mbq", "range", "llava", "Gelu"] {
        let ran = place.run(&format!("explain {name}"));
        assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""), "{name}: {ran}");
        told += &format!("$ mbqc explain {name}\n{}\n", ran.out);
    }
    insta::assert_snapshot!(told);
    Ok(())
}

#[test]
fn json_is_one_document() -> Outcome {
    let place = Place::with_tiny()?;
    for (arguments, keys) in [
        ("m.onnx -o q.onnx --format w3g32 --calib calib.npz --json", &["plan", "coverage", "written"][..]),
        ("m.onnx -o q.onnx --format w3g32 --method rtn --json --dry-run --quiet", &["plan", "coverage", "written"]),
        ("inspect m.onnx --json", &["graphs", "image_token"]),
        ("inspect q.onnx --json --text --calib calib.npz", &["graphs", "first_sample", "text"]),
        ("inspect m.onnx --json --diff q.onnx", &["diff"]),
        ("verify m.onnx q.onnx --data calib.npz --json", &["summary", "blocks"]),
    ] {
        let ran = place.run(arguments);
        assert_eq!(ran.code, Some(0), "{arguments}: {ran}");
        let document: Value = serde_json::from_str(&ran.out).map_err(|e| format!("{arguments}: {e}\n{}", ran.out))?;
        for key in keys {
            assert!(document.get(key).is_some(), "{arguments}: no `{key}`");
        }
    }
    Ok(())
}
