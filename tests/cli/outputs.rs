//! Outputs that cannot be written.

use std::fs;
use std::process::Command;

use mbqc_passes::array::Array;

use super::Outcome;
use super::place::Place;

#[test]
fn places_that_take_no_output() -> Outcome {
    let place = Place::with_tiny()?;
    fs::create_dir(place.path("folder"))?;
    fs::copy(place.path("m.onnx"), place.path("folder/decoder_model.onnx"))?;
    let run = "m.onnx --format w3g32 --method rtn -o";
    let mut told = String::new();
    for output in ["folder", "missing/out.onnx", "m.onnx/out.onnx", "/proc/out.onnx", "/dev/null"] {
        told += &place.refused(1, &format!("{run} {output}"));
    }
    told += &place.refused(1, &format!("{run} out.onnx --plan-out missing/plan.json"));
    told += &place.refused(1, &format!("{run} out.onnx --plan-out /dev/null"));
    // Said before time is spent on calibration: no progress line.
    told += &place.refused(1, "m.onnx --format w3g32 --calib calib.npz -o missing/out.onnx");
    place.data("in.npz", &[("input_ids", Array::i64([1, 6], vec![1; 6]))])?;
    told += &place.refused(1, "run m.onnx --inputs in.npz --outputs missing/out.npz");
    // Before calibration, too.
    told += &place.refused(1, "m.onnx --format w3g32 --calib calib.npz -o out.onnx --plan-out missing/plan.json");
    told += &place.refused(1, "folder --format w3g32 --calib calib.npz -o m.onnx/out");
    told += &place.refused(1, "folder --format w3g32 --method rtn -o m.onnx");
    insta::assert_snapshot!(told);
    Ok(())
}

/// A limit on the size of files stands for a full disk: writing fails after some bytes.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_leaves_nothing() -> Outcome {
    let place = Place::with_tiny()?;
    let mbqc = env!("CARGO_BIN_EXE_mbqc");
    let mut told = String::new();
    let data = place.run("m.onnx -o q.onnx --format w3g32 --method rtn --plan-out plan.json");
    assert_eq!(data.code, Some(0), "{data}");
    place.data("in.npz", &[("input_ids", Array::i64([1, 6], vec![1; 6]))])?;
    for arguments in [
        "m.onnx -o out.onnx --format w3g32 --method rtn",
        "apply m.onnx --plan plan.json -o out.onnx",
        "bake q.onnx -o out.onnx",
        "run m.onnx --inputs in.npz --outputs out.npz",
    ] {
        let before = place.files();
        let script = format!("ulimit -f 1; exec {mbqc} {arguments}");
        let ran = place.command(Command::new("sh").args(["-c", &script]));
        assert_eq!(ran.code, Some(1), "{arguments}: {ran}");
        assert!(place.files() == before, "{arguments}: left {:?}", place.files().keys());
        told += &format!("$ mbqc {arguments}\n{ran}\n");
    }
    // The plan fits, the model does not: what the search found is kept.
    let arguments = "m.onnx -o out.onnx --format w3g32 --calib calib.npz --plan-out kept.json";
    let before = place.files().len();
    let ran = place.command(Command::new("sh").args(["-c", &format!("ulimit -f 16; exec {mbqc} {arguments}")]));
    assert_eq!((ran.code, place.files().len()), (Some(1), before + 1), "{ran}");
    told += &format!("$ mbqc {arguments}\n{ran}\n");
    let ran = place.run("apply m.onnx --plan kept.json -o out.onnx");
    assert_eq!(ran.code, Some(0), "{ran}");
    let ran = place.command(Command::new("sh").args(["-c", &format!("exec {mbqc} list formats > /dev/full")]));
    assert_eq!(ran.code, Some(1), "{ran}");
    told += &format!("$ mbqc list formats > /dev/full\n{ran}\n");
    let ran = place.command(Command::new("sh").args(["-c", &format!("{mbqc} list ops | head -n 1 > first")]));
    assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""), "a closed pipe is no error");
    insta::assert_snapshot!(told);
    Ok(())
}
