//! Options that make no sense: exit code 2.

use super::Outcome;
use super::place::Place;

#[test]
fn unknown_words() -> Outcome {
    let place = Place::with_tiny()?;
    std::fs::create_dir(place.path("folder"))?;
    let mut told = String::new();
    for options in [
        "--format w5g32",
        "--format w3g100",
        "--format w3",
        "--vision-format w3g0",
        "--format w8a8g128",
        "--format w3g32 --head-format w8a8 --target ort",
        "--method mbqq",
        "--method mbq",
        "--method awq --format none",
        "--include nothing*",
        "--exclude a[",
    ] {
        told += &place.refused(2, &format!("m.onnx -o out.onnx {options}"));
    }
    told += &place.refused(2, "explain nothing");
    let globs = place.refused(2, "m.onnx -o out.onnx --include up down");
    assert!(globs.contains("repeat the option"), "{globs}");
    told += &place.refused(2, "inspect m.onnx --diff folder");
    insta::assert_snapshot!(told);
    // These are clap's words; only the exit code is ours.
    for arguments in
        ["", "m.onnx", "m.onnx -o out.onnx --no-such-option", "list nothing", "m.onnx -o out.onnx --samples -1"]
    {
        assert_eq!(place.run(arguments).code, Some(2), "mbqc {arguments}");
    }
    Ok(())
}

/// Options that have no effect are told, and nothing else changes.
#[test]
fn idle_options() -> Outcome {
    let place = Place::with_tiny()?;
    let mut told = String::new();
    for options in [
        "--samples 2 --image-token-id 3 --answer-rows shifted",
        "--method rtn --calib calib.npz",
        "--method awq --calib calib.npz --floor none",
        "--target ort --fallback none",
        "--fallback standard",
        "--format w8a8 --fallback standard",
        "--format w8a8 --method range --range search",
        "--format w8a8 --head-format w4g32 --method range",
    ] {
        let format = if options.contains("--format") { "" } else { "--format w4g32 " };
        let arguments = format!("m.onnx -o out.onnx {format}--dry-run {options}");
        let ran = place.run(&arguments);
        assert_eq!(ran.code, Some(0), "{arguments}: {ran}");
        let warnings: String = ran.err.lines().filter(|l| l.contains("warning")).map(|l| format!("{l}\n")).collect();
        told += &format!("$ mbqc {arguments}\n{warnings}\n");
    }
    insta::assert_snapshot!(told);
    Ok(())
}
