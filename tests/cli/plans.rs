//! Saved plans.

use std::fs;

use mbqc::onnx::Placement;
use mbqc_passes::ir::text::parse;
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
    edited("twice.json", &|p| p["recipes"][1] = p["recipes"][0].clone())?;
    edited("nobody.json", &|p| {
        p["groups"][1]["scale"] = vec![2.0; 64].into();
        p["groups"][1]["mul"] = false.into();
    })?;
    edited("field.json", &|p| p["recipes"][0]["fromat"] = "w3g32".into())?;
    edited("loose.json", &|p| p["recipes"][0]["group"] = Value::Null)?;
    edited("fewer.json", &|p| drop(p["recipes"].as_array_mut().expect("a list").remove(0)))?;
    edited("runs.json", &|p| p["groups"][0]["divided"][0]["runs"] = serde_json::json!([[0, 16], [0, 16]]))?;
    edited("both.json", &|p| p["groups"][0]["mul"] = true.into())?;
    edited("empty.json", &|p| p["recipes"] = Value::Array(Vec::new()))?;
    let mut told = String::new();
    for name in [
        "missing", "words", "cut", "version", "site", "size", "format", "group", "scale", "nan", "twice", "nobody",
        "field", "loose", "fewer", "runs", "both",
    ] {
        told += &place.refused(1, &format!("apply m.onnx --plan {name}.json -o out.onnx"));
    }
    told += &place.refused(1, "apply other.onnx --plan plan.json -o out.onnx");
    told += &place.refused(3, "apply m.onnx --plan empty.json -o out.onnx");
    let other = mbqc::stamp::file_hash(&place.path("other.onnx"))?;
    insta::assert_snapshot!(told.replace(&source, "SHA256-OF-M").replace(&other, "SHA256-OF-OTHER"));
    Ok(())
}

/// The plan knows the weights it was made for, wherever they lie.
#[test]
fn weights_in_data_files_are_part_of_the_model() -> Outcome {
    let place = Place::new()?;
    let model = parse(&tiny("[last] last = Identity (r)"))?;
    place.write("ext.onnx", &model, Placement::External)?;
    let made = place.run("ext.onnx -o q.onnx --format w3g32 --dry-run --plan-out plan.json");
    assert_eq!(made.code, Some(0), "{made}");
    let fits = place.run("apply ext.onnx --plan plan.json -o q.onnx");
    assert_eq!(fits.code, Some(0), "{fits}");
    let mut data = fs::read(place.path("ext.onnx.data"))?;
    data[0] ^= 1;
    fs::write(place.path("ext.onnx.data"), data)?;
    let told = place.refused(1, "apply ext.onnx --plan plan.json -o other.onnx");
    assert!(told.contains("the plan was made for a model with SHA-256"), "{told}");
    Ok(())
}

/// A data file that the new model does not use goes when it was ours, and stays when it was not.
#[test]
fn data_files_that_are_left_over() -> Outcome {
    let place = Place::with_tiny()?;
    let model = parse(&tiny("[last] last = Identity (r)"))?;
    place.write("ext.onnx", &model, Placement::External)?;
    let first = place.run("ext.onnx -o q.onnx --format w3g32");
    assert!(first.code == Some(0) && place.path("q.onnx.data").is_file(), "{first}");
    let ours = place.run("m.onnx -o q.onnx --format w3g32");
    assert!(ours.code == Some(0) && !place.path("q.onnx.data").exists(), "{ours}");
    assert!(ours.err.contains("removed q.onnx.data"), "{ours}");
    fs::write(place.path("q.onnx.data"), "not ours")?;
    let foreign = place.run("m.onnx -o q.onnx --format w3g32");
    assert!(foreign.code == Some(0) && place.path("q.onnx.data").is_file(), "{foreign}");
    assert!(foreign.err.contains("warning: q.onnx.data does not belong"), "{foreign}");
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
