//! Saved plans.

use std::fs;

use serde_json::Value;

use super::Outcome;
use super::place::{Place, tiny};

#[test]
fn plans_that_do_not_fit() -> Outcome {
    let place = Place::with_tiny()?;
    place.model("other.onnx", &tiny("[last] last = Neg (r)"))?;
    let made = place.run("m.onnx -o q.onnx --format w3g32 --calib calib.npz --plan-out plan.json");
    assert_eq!(made.code, Some(0), "{made}");
    let plan: Value = serde_json::from_str(&fs::read_to_string(place.path("plan.json"))?)?;
    let source = plan["source"].as_str().ok_or("no source")?.to_owned();
    let edited = |name: &str, edit: &dyn Fn(&mut Value)| {
        let mut changed = plan.clone();
        edit(&mut changed);
        fs::write(place.path(name), changed.to_string())
    };
    fs::write(place.path("words.json"), "no plan")?;
    fs::write(place.path("cut.json"), &plan.to_string()[..200])?;
    edited("version.json", &|p| p["version"] = 99.into())?;
    edited("site.json", &|p| p["recipes"][0]["site"] = "nowhere".into())?;
    edited("size.json", &|p| p["recipes"][0]["n"] = 65.into())?;
    edited("format.json", &|p| p["recipes"][0]["format"] = "w5g32".into())?;
    edited("group.json", &|p| p["recipes"][0]["group"] = 77.into())?;
    edited("scale.json", &|p| p["groups"][0]["scale"] = vec![1.0; 3].into())?;
    edited("nan.json", &|p| p["groups"][0]["scale"] = vec![0.0; 32].into())?;
    let mut told = String::new();
    for name in ["missing", "words", "cut", "version", "site", "size", "format", "group", "scale", "nan"] {
        told += &place.refused(1, &format!("apply m.onnx --plan {name}.json -o out.onnx"));
    }
    told += &place.refused(1, "apply other.onnx --plan plan.json -o out.onnx");
    told += &place.refused(1, "apply m.onnx --plan plan.json -o m.onnx");
    let other = mbqc::stamp::file_hash(&place.path("other.onnx"))?;
    insta::assert_snapshot!(told.replace(&source, "SHA256-OF-M").replace(&other, "SHA256-OF-OTHER"));
    Ok(())
}

#[test]
fn a_plan_gives_the_same_bytes_again() -> Outcome {
    let place = Place::with_tiny()?;
    for target in ["mbqc", "ort"] {
        let options = format!("--format w3g32 --calib calib.npz --target {target} --plan-out plan.json");
        for arguments in [
            format!("m.onnx -o q.onnx {options}"),
            format!("apply m.onnx --plan plan.json -o again.onnx --target {target}"),
        ] {
            let ran = place.run(&arguments);
            assert_eq!(ran.code, Some(0), "{arguments}: {ran}");
        }
        assert!(fs::read(place.path("q.onnx"))? == fs::read(place.path("again.onnx"))?, "{target}");
    }
    Ok(())
}
