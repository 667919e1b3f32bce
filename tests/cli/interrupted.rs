//! Runs that end early, and listeners that do.

#![cfg(target_os = "linux")]

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::Outcome;
use super::place::Place;

/// A signal while the model is written: the run ends by it and nothing stays.
#[test]
fn signals_leave_nothing() -> Outcome {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/pocket-vlm");
    let place = Place::new()?;
    for (signal, number, output) in
        [("TERM", 15, "out.onnx"), ("INT", 2, "out.onnx"), ("HUP", 1, "out.onnx"), ("TERM", 15, "out")]
    {
        let model = if output == "out" { folder.clone() } else { folder.join("model.onnx") };
        let mut child = Command::new(env!("CARGO_BIN_EXE_mbqc"))
            .args([model.as_os_str(), "-o".as_ref(), output.as_ref(), "--threads".as_ref(), "1".as_ref()])
            .current_dir(place.path(""))
            .stderr(Stdio::null())
            .spawn()?;
        // The search of ranges happens while the model is written.
        let begun = Instant::now();
        let staged = || fs::read_dir(place.path("")).into_iter().flatten().flatten().next();
        while staged().is_none_or(|folder| fs::read_dir(folder.path()).into_iter().flatten().next().is_none()) {
            assert!(begun.elapsed() < Duration::from_secs(60) && child.try_wait()?.is_none(), "nothing was staged");
            std::thread::sleep(Duration::from_millis(2));
        }
        assert!(Command::new("kill").args([format!("-{signal}"), child.id().to_string()]).status()?.success());
        let status = child.wait()?;
        assert_eq!(status.signal(), Some(number), "{signal}: {status}");
        assert!(place.files().is_empty(), "{signal}: left {:?}", place.files().keys());
    }
    Ok(())
}

/// What `nohup` wants ignored stays ignored, also while there is something to remove.
#[test]
fn ignored_signals_stay_ignored() -> Outcome {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/pocket-vlm/model.onnx");
    let place = Place::new()?;
    let mbqc = env!("CARGO_BIN_EXE_mbqc");
    let script = format!("trap '' HUP; exec {mbqc} {} -o out.onnx --include *.layers.0.* --quiet", model.display());
    let mut child = Command::new("sh").args(["-c", &script]).current_dir(place.path("")).spawn()?;
    let mut sent = 0;
    while child.try_wait()?.is_none() {
        if fs::read_dir(place.path(""))?.next().is_some() {
            Command::new("kill").args(["-HUP", &child.id().to_string()]).stderr(Stdio::null()).status()?;
            sent += 1;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(sent > 0 && child.wait()?.success() && place.path("out.onnx").is_file(), "{sent} signals");
    Ok(())
}

/// Nobody reads what is told: no reason to fail, and none to write no model.
#[test]
fn closed_standard_error() -> Outcome {
    let place = Place::with_tiny()?;
    let mbqc = env!("CARGO_BIN_EXE_mbqc");
    for (arguments, code) in [
        ("m.onnx -o out.onnx --format w3g32 --calib calib.npz", "0"),
        ("verify m.onnx out.onnx --data calib.npz", "0"),
        ("missing.onnx -o out.onnx", "1"),
        ("m.onnx --no-such-option", "2"),
    ] {
        let script = format!("{{ sleep 0.1; {mbqc} {arguments}; echo $? > code; }} 2>&1 | true");
        place.command(Command::new("bash").args(["-c", &format!("{script}; wait")]));
        let until = Instant::now() + Duration::from_secs(30);
        while !place.path("code").exists() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(fs::read_to_string(place.path("code"))?.trim(), code, "{arguments}");
        fs::remove_file(place.path("code"))?;
    }
    assert!(place.path("out.onnx").is_file());
    Ok(())
}
