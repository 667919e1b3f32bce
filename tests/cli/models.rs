//! Models that cannot be compiled.

use std::fs;

use mbqc::onnx::Placement;
use mbqc_passes::ir::text::parse;
use mbqc_passes::ir::{Edit, Tensor};

use super::Outcome;
use super::place::{Place, tiny};

#[test]
fn files_that_are_no_models() -> Outcome {
    let place = Place::with_tiny()?;
    let bytes = fs::read(place.path("m.onnx"))?;
    fs::write(place.path("cut.onnx"), &bytes[..bytes.len() / 2])?;
    fs::write(place.path("text.onnx"), "Not a model, just words.\n")?;
    fs::write(place.path("empty.onnx"), "")?;
    fs::create_dir(place.path("folder"))?;
    let mut told = String::new();
    for model in ["missing.onnx", "cut.onnx", "text.onnx", "empty.onnx", "calib.npz", "folder"] {
        told += &place.refused(1, &format!("{model} -o out.onnx"));
    }
    told += &place.refused(1, "inspect text.onnx");
    insta::assert_snapshot!(told);
    Ok(())
}

#[test]
fn external_data() -> Outcome {
    let place = Place::new()?;
    let model = parse(&tiny("[last] last = Identity (r)"))?;
    for name in ["gone", "cut", "outer"] {
        place.write(&format!("{name}.onnx"), &model, Placement::External)?;
    }
    fs::remove_file(place.path("gone.onnx.data"))?;
    let data = fs::read(place.path("cut.onnx.data"))?;
    fs::write(place.path("cut.onnx.data"), &data[..data.len() - 4097])?;
    // Another path of the same length, which leads out of the folder.
    let bytes = fs::read(place.path("outer.onnx"))?;
    let (from, to) = (b"outer.onnx.data", b"../../etc/hosts");
    let mut outside = bytes.clone();
    for at in 0..bytes.len() - from.len() {
        if &bytes[at..at + from.len()] == from {
            outside[at..at + from.len()].copy_from_slice(to);
        }
    }
    fs::write(place.path("outer.onnx"), outside)?;
    let mut told = String::new();
    for name in ["gone", "cut", "outer"] {
        told += &place.refused(1, &format!("{name}.onnx -o out.onnx"));
    }
    insta::assert_snapshot!(told);
    Ok(())
}

#[test]
fn nothing_to_quantize() -> Outcome {
    let place = Place::with_tiny()?;
    let graph = |body: &str| format!("<ir_version: 10, opset_import: [\"\": 20]> g {body}");
    place.model(
        "int8.onnx",
        &graph(
            "(int8[1,T,32] x) => (int8[1,T,64] y) <int8[32,64] w = [\"seed\": \"1\"]> { [product] y = MatMul (x, w) }",
        ),
    )?;
    place.model("plain.onnx", &graph("(float[2] x) => (float[2] y) { y = Relu (x) }"))?;
    place.model(
        "table.onnx",
        &graph("(int64[T] ids) => (float[T,32] y) <float[9,32] table = [\"seed\": \"1\"]> { [embed] y = Gather (table, ids) }"),
    )?;
    place.model(
        "given.onnx",
        &graph("(float[1,T,32] x, float[32,64] w = [\"seed\": \"1\"]) => (float[1,T,64] y) { [product] y = MatMul (x, w) }"),
    )?;
    place.model(
        "cut.onnx",
        "<ir_version: 10, opset_import: [\"\": 20, \"local\": 1]> g (float[1,T,32] x) => (float[1,T,32] y)
         <float[32,64] w = [\"seed\": \"1\"], float[32,32] v = [\"seed\": \"2\"], float[32,32] p = [\"seed\": \"3\"]>
         { [halves] a, b = Split <axis = 1, num_outputs = 2> (w) [product] h = MatMul (x, a) [call] i = local.Linear (h, v)
           [positions] y = Add (i, p) }
         <domain: \"local\", opset_import: [\"\": 20]> Linear (x, w) => (y) { y = MatMul (x, w) }",
    )?;
    let first = place.run("m.onnx -o q.onnx --format w3g32");
    assert_eq!(first.code, Some(0), "{first}");
    let mut told = String::new();
    for model in ["int8.onnx", "plain.onnx", "table.onnx", "given.onnx", "cut.onnx", "q.onnx"] {
        told += &place.refused(3, &format!("{model} -o out.onnx --method rtn --format w3g32"));
    }
    told += &place.refused(3, "m.onnx -o out.onnx --method rtn --format w3g128");
    told += &place.refused(3, "m.onnx -o out.onnx --method rtn --format w3g64 --strict");
    told += &place.refused(3, "m.onnx -o out.onnx --method rtn --format w3g32 --exclude mlp.*");
    told += &place.refused(3, "bake m.onnx -o out.onnx");
    insta::assert_snapshot!(told);
    Ok(())
}

/// What was not asked for cannot be what `--strict` refuses.
#[test]
fn strict_is_about_what_was_asked_for() -> Outcome {
    let place = Place::new()?;
    place.model(
        "m.onnx",
        "<ir_version: 10, opset_import: [\"\": 20]> g (int64[T] ids, float[T,32] pixels) => (float[T,32] y)
         <float[9,32] table = [\"seed\": \"1\"], float[32,64] cut = [\"seed\": \"2\"], float[32,32] w = [\"seed\": \"3\"]>
         { [embed] t = Gather (table, ids) [halves] a, b = Split <axis = 1, num_outputs = 2> (cut)
           [vision] p = MatMul (pixels, a) [join] j = Add (p, t) [text] h = MatMul (j, w) [residual] y = Add (h, j) }",
    )?;
    for (options, code) in [
        ("", 0),
        ("--vision-format w3g32", 3),
        ("--vision-format w3g32 --exclude vision", 0),
        ("--vision-format w3g32 --include w", 0),
        ("--vision-format w3g32 --include w --include cut", 3),
    ] {
        let ran = place.run(&format!("m.onnx -o out.onnx --method rtn --format w3g32 --strict {options}"));
        assert_eq!(ran.code, Some(code), "{options}: {ran}");
    }
    Ok(())
}

#[test]
fn weights_without_a_quantized_value() -> Outcome {
    let place = Place::with_tiny()?;
    let mut told = String::new();
    for (name, bad) in [("nan", f32::NAN), ("inf", f32::INFINITY)] {
        let mut model = parse(&tiny("[last] last = Identity (r)"))?;
        let weight = model.graph.find("mlp.up.weight").ok_or("no weight")?;
        let mut values = vec![0.5; 32 * 64];
        // Stored [k, n]: input channel 3 of output channel 7.
        values[3 * 64 + 7] = bad;
        model.graph.apply([Edit::SetConst(weight, Tensor::f32s([32, 64], &values))])?;
        place.write(&format!("{name}.onnx"), &model, Placement::Inline)?;
        for method in ["rtn", "range", "mbq"] {
            let data = if method == "mbq" { " --calib calib.npz" } else { "" };
            told += &place.refused(1, &format!("{name}.onnx -o out.onnx --format w3g32 --method {method}{data}"));
        }
    }
    insta::assert_snapshot!(told);
    Ok(())
}

#[test]
fn operators_without_evaluation_or_gradient() -> Outcome {
    let place = Place::with_tiny()?;
    place.model("secret.onnx", &tiny("[secret] last = my.Secret (r)"))?;
    place.model("product.onnx", &tiny("[product] p = ReduceProd <keepdims = 1> (r) [last] last = Add (r, p)"))?;
    let mut told = String::new();
    for model in ["secret", "product"] {
        told += &place.refused(1, &format!("{model}.onnx -o out.onnx --format w3g32 --calib calib.npz"));
    }
    // The ways out that the messages name.
    for (arguments, output) in [
        ("secret.onnx -o a.onnx --format w3g32 --method range", "a.onnx"),
        ("product.onnx -o b.onnx --format w3g32 --calib calib.npz --method awq", "b.onnx"),
    ] {
        let ran = place.run(arguments);
        assert_eq!(ran.code, Some(0), "{arguments}: {ran}");
        assert!(place.path(output).is_file());
    }
    insta::assert_snapshot!(told);
    Ok(())
}
