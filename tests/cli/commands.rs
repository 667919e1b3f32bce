//! Lists, explanations, and one JSON document on standard output.

use std::path::Path;

use mbqc::data::npz;
use mbqc::onnx::{ReadOptions, read};
use mbqc_passes::array::{Array, Buf};
use mbqc_passes::ir::DType;
use serde_json::{Value, json};

use super::Outcome;
use super::place::{Place, tiny};

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
    let all = place.run("list");
    assert_eq!((all.code, all.out.lines().count()), (Some(0), 4), "{all}");
    let ops = place.run("list ops");
    assert_eq!(ops.code, Some(0));
    assert!(ops.out.lines().count() > 70 && ops.out.lines().any(|l| l.starts_with("LayerNormalization ")), "{ops}");
    Ok(())
}

#[test]
fn explanations() -> Outcome {
    let place = Place::new()?;
    let mut told = String::new();
    for name in ["w3", "w4g64", "w8a8", "mbq", "range", "llava", "Gelu"] {
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
    place.data("in.npz", &[("input_ids", Array::i64([1, 6], vec![1; 6]))])?;
    for (arguments, keys) in [
        ("m.onnx -o q.onnx --format w3g32 --calib calib.npz --json", &["plan", "coverage", "written"][..]),
        ("m.onnx -o q.onnx --format w3g32 --method rtn --json --dry-run --quiet", &["plan", "coverage", "written"]),
        ("inspect m.onnx --json", &["graphs", "image_token"]),
        ("inspect q.onnx --json --text --calib calib.npz", &["graphs", "first_sample", "text"]),
        ("inspect m.onnx --json --diff q.onnx", &["diff"]),
        ("verify m.onnx q.onnx --data calib.npz --json", &["summary", "blocks"]),
        ("m.onnx -o r.onnx --format w3g32 --plan-out plan.json --json", &["plan", "written"]),
        ("apply m.onnx --plan plan.json -o r.onnx --json", &["coverage", "written"]),
        ("bake q.onnx -o r.onnx --json", &["layers", "written"]),
        ("run q.onnx --inputs in.npz --outputs out.npz --json", &["outputs", "written"]),
        ("run q.onnx --inputs in.npz --outputs out.npz --repeat 3 --json", &["outputs", "written", "seconds"]),
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

/// Arrays that are no inputs are not read, whatever they hold; whole numbers of other widths are taken.
#[test]
fn run_takes_what_it_can() -> Outcome {
    let place = Place::with_tiny()?;
    let ids = Array { dtype: DType::U8, shape: vec![1, 6], buf: Buf::Bytes(vec![1; 6].into()) };
    place.data("in.npz", &[("input_ids", ids), ("images", Array::f32([2], vec![1.0, 2.0]))])?;
    let ran = place.run("run m.onnx --inputs in.npz --outputs out.npz");
    insta::assert_snapshot!(ran);
    assert!(place.path("out.npz").is_file());
    Ok(())
}

/// The comparison says how the compared layers would run elsewhere, and how many samples a figure rests on.
#[test]
fn what_verify_tells() -> Outcome {
    let place = Place::with_tiny()?;
    let ran = place.run("m.onnx -o q.onnx --format w8g32 --method rtn");
    assert_eq!(ran.code, Some(0), "{ran}");
    let mut arrays = super::place::good();
    arrays.push(("kind", Array::i64([3], vec![0, 0, 1])));
    place.data("kinds.npz", &arrays)?;
    let ran = place.run("verify m.onnx q.onnx --data kinds.npz");
    assert_eq!(ran.code, Some(0), "{ran}");
    let about = |line: &&str| ["int8", ", 0 ", ", 1 "].iter().any(|part| line.contains(part));
    let lines: Vec<&str> = ran.out.lines().filter(about).collect();
    assert!(lines.len() == 3 && lines[0].ends_with("n = 2"), "{ran}");
    assert!(lines[1].ends_with("+- n/a  n = 1") && lines[2].contains("2 layers allow"), "{ran}");
    Ok(())
}

/// Bytes are those of the constants that are written: shared ones once, in the containers they have.
#[test]
fn coverage_counts_what_is_written() -> Outcome {
    let place = Place::new()?;
    let twice = r#"[up2] u2 = MatMul (r, "mlp.up.weight") [down2] d2 = MatMul (u2, "mlp.down.weight") [last] last = Add (r, d2)"#;
    place.model("m.onnx", &tiny(twice))?;
    // 64 rows of a group of 32 and 32 rows of two: codes, scales in f32, rows of zero points of four bits.
    let (scales, zero_points) = (4 * (64 + 64), 64 + 32);
    for (target, codes) in [("mbqc", 2 * 2048 * 3 / 8), ("ort", 2 * 2048 / 2)] {
        let ran =
            place.run(&format!("m.onnx -o q.onnx --format w3g32 --method rtn --dry-run --json --target {target}"));
        let document: Value = serde_json::from_str(&ran.out).map_err(|e| format!("{e}: {ran}"))?;
        let line = &document["coverage"]["quantized"]["w3g32"];
        let expected = json!({ "layers": 4, "weights": 4096, "before": 16384, "after": codes + scales + zero_points });
        assert_eq!(*line, expected, "{target}");
    }
    Ok(())
}

/// The example of README: arrays of the sample model's evaluation set, made with a line of Python there.
#[test]
fn run_of_the_sample_model() -> Outcome {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/pocket-vlm");
    let place = Place::new()?;
    let all = npz::read(&folder.join("eval.npz"))?;
    let first = |name: &str| -> Result<Array, Box<dyn std::error::Error>> {
        let array = all[name].entry(0).ok_or("no sample")?.to_array()?;
        Ok(array)
    };
    let images = first("images")?.to_f64s();
    let [height, width] = [all["images"].shape[1], all["images"].shape[2]];
    let pixels = (0..3).flat_map(|c| (0..height * width).map(move |at| (c, at)));
    let pixels = pixels.map(|(c, at)| (images[at * 3 + c] / 127.5 - 1.0) as f32).collect();
    let arrays = [
        ("pixel_values", Array::f32([1, 3, height, width], pixels)),
        ("input_ids", first("input_ids")?),
        ("attention_mask", first("attention_mask")?),
    ];
    place.data("inputs.npz", &arrays)?;
    let ran = place.run(&format!("run {}/model.onnx --inputs inputs.npz --outputs outputs.npz", folder.display()));
    assert_eq!(ran.code, Some(0), "{ran}");
    let outputs = npz::read_arrays(&place.path("outputs.npz"))?;
    assert!(outputs["logits"].as_f32()?.iter().all(|x| x.is_finite()), "{ran}");
    Ok(())
}

/// Every layer is timed, with the bytes that it moves; what cannot be timed is told.
#[test]
fn bench_times_every_layer() -> Outcome {
    let place = Place::with_tiny()?;
    let ran = place.run("m.onnx -o q.onnx --format w3g32 --method rtn");
    assert_eq!(ran.code, Some(0), "{ran}");
    let ran = place.run("bench q.onnx --rows 1,20 --seconds 0.01 --threads 2 --json");
    assert_eq!(ran.code, Some(0), "{ran}");
    let told: serde_json::Value = serde_json::from_str(&ran.out)?;
    let layers = told["layers"].as_array().ok_or("a list")?;
    let of = |key: &str| layers.iter().map(|layer| layer[key].clone()).collect::<Vec<_>>();
    // Codes of 32x64 weights, 64 scales in f32 and as many nibbles; 32 inputs and 64 outputs to a row, in f32.
    let weight = |k: usize, n: usize| k * n / 8 * 3 + 4 * (n * k / 32) + n * (k / 32).div_ceil(2);
    let bytes = |k: usize, n: usize, rows: usize| weight(k, n) + 4 * rows * (k + n);
    assert_eq!(of("node"), ["up", "down", "up", "down"].map(serde_json::Value::from));
    let expected = [bytes(32, 64, 1), bytes(64, 32, 1), bytes(32, 64, 20), bytes(64, 32, 20)];
    assert_eq!(of("bytes"), expected.map(serde_json::Value::from));
    assert!(of("kernel").iter().all(|kernel| kernel == "int16"), "{ran}");
    assert!(of("seconds").iter().all(|seconds| seconds.as_f64().is_some_and(|s| s > 0.0)), "{ran}");
    assert_eq!(told["threads"], 2);
    let table = place.run("bench q.onnx --seconds 0.01");
    assert!(table.code == Some(0) && table.out.lines().count() == 6 && table.out.contains("all layers"), "{table}");

    let outliers = place.run("bench q.onnx --seconds 0.01 --outliers 7 --json");
    assert!(outliers.code == Some(0) && outliers.out.contains("\"outliers\": 7"), "{outliers}");

    let nothing = place.run("bench m.onnx");
    assert!(nothing.code == Some(3) && nothing.err.contains("no quantized layers"), "{nothing}");
    let no_rows = place.run("bench q.onnx --rows 0");
    assert!(no_rows.code == Some(2) && no_rows.err.contains("--rows 0"), "{no_rows}");
    Ok(())
}

/// A forced instruction set is used, and one that there is not is refused before any work.
#[test]
fn instruction_sets_can_be_forced() -> Outcome {
    let place = Place::with_tiny()?;
    let ran = place.run("m.onnx -o q.onnx --format w3g32 --method rtn");
    assert_eq!(ran.code, Some(0), "{ran}");
    let with = |isa: &str, arguments: &str| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_mbqc"));
        place.command(command.args(arguments.split_whitespace()).env("MBQC_ISA", isa))
    };
    let bench = with("scalar", "bench q.onnx --seconds 0.01 --json");
    assert!(bench.code == Some(0) && bench.out.contains("\"isa\": \"scalar\""), "{bench}");
    let refused = with("sse9", "bench q.onnx");
    assert!(refused.code == Some(2) && refused.err.contains("MBQC_ISA: `sse9` is not an instruction set"), "{refused}");
    Ok(())
}

/// Layers of other formats stay, with what they need.
#[test]
fn bake_leaves_other_formats() -> Outcome {
    let place = Place::with_tiny()?;
    let ran = place.run("m.onnx -o q.onnx --format w3g32 --head-format w8a8 --method rtn");
    assert_eq!(ran.code, Some(0), "{ran}");
    let ran = place.run("bake q.onnx -o r.onnx");
    assert_eq!(ran.code, Some(0), "{ran}");
    let baked = read(&place.path("r.onnx"), &ReadOptions::default())?.model;
    let functions: Vec<&str> = baked.functions.iter().map(|function| function.name.as_str()).collect();
    assert_eq!(functions, ["MbqMatMulW8A8"]);
    assert!(baked.opsets.iter().any(|(domain, _)| domain == "ai.mbqc"), "{:?}", baked.opsets);
    let same = place.run("verify q.onnx r.onnx --data calib.npz");
    assert_eq!(same.code, Some(0), "{same}");
    Ok(())
}
