//! CUDA on the host: the kernels' source that is shipped, compiled by a C++ compiler with `tests/gpu/emulate/arch.cuh` in the place of
//! the device, under a driver that plays one (`tests/gpu/emulate/driver.cc`), with the address and undefined-behaviour sanitizers.
//! The program that checks devices (`tests/gpu/check`) runs on it, against float64. EMULATED: nothing here ran on a GPU.

#[path = "cli/place.rs"]
#[allow(dead_code, reason = "a part is used here")]
mod place;
mod support;

use mbqc_kernels::cuda::units;
use place::Place;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use support::{Outcome, python, skip, tell};

fn compiler() -> String {
    std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned())
}

fn run(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|error| {
        panic!("`{}` (for the C++ compiler, CXX names another): {error}", command.get_program().display())
    })
}

/// Compiles the driver; its folder.
fn driver() -> PathBuf {
    let crate_folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("driver");
    std::fs::create_dir_all(&folder).expect("a folder of this build");
    let include = |path: &str| format!("-I{}", crate_folder.join(path).display());
    let out = run(Command::new(compiler())
        .args(["-std=c++17", "-O1", "-g", "-shared", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off"])
        .args([
            "-Wall",
            "-Wextra",
            "-Werror",
            "-Wno-unknown-pragmas",
            "-Wno-clobbered",
            "-Wno-unused-function",
            "-Wno-psabi",
        ])
        .args(["-fsanitize=address,undefined", "-fno-sanitize-recover=all"])
        .args([include("tests/gpu/emulate"), include("kernels/cuda")])
        .arg(crate_folder.join("tests/gpu/emulate/driver.cc"))
        .arg("-o")
        .arg(folder.join("libcuda.so")));
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    // It plays cuBLASLt too, and must be one library.
    let blas = folder.join("libcublasLt.so");
    if !blas.exists() {
        std::os::unix::fs::symlink("libcuda.so", blas).expect("a folder of this build");
    }
    folder
}

/// An example, which cargo builds with the tests, unless it is told to build a single test.
fn built(example: &str) -> PathBuf {
    let test = std::env::current_exe().expect("this test");
    let program = test.ancestors().nth(2).expect("below the build's folder").join("examples").join(example);
    assert!(program.exists(), "run `cargo build --examples` first, or all tests");
    program
}

/// Whether the dynamic linker knows a library of this machine.
fn installed(library: &str) -> bool {
    let listed =
        Command::new("ldconfig").arg("-p").output().or_else(|_| Command::new("/sbin/ldconfig").arg("-p").output());
    listed.is_ok_and(|listed| String::from_utf8_lossy(&listed.stdout).contains(library))
}

/// Lets a program find the driver.
fn on<'a>(driver: &Path, command: &'a mut Command) -> &'a mut Command {
    // The sanitizer has to be there before the program that loads the driver.
    let sanitizer = run(Command::new(compiler()).arg("-print-file-name=libasan.so")).stdout;
    let sanitizer = String::from_utf8(sanitizer).expect("a path");
    command.env("LD_PRELOAD", sanitizer.trim()).env("ASAN_OPTIONS", "detect_leaks=0").env("LD_LIBRARY_PATH", driver)
}

/// Runs the program that checks devices, on a driver if there is one: whether it was content, and what it printed.
fn check(driver: Option<&Path>, arguments: &[&str], environment: &[(&str, &str)]) -> (bool, String) {
    let mut command = Command::new(built("gpu_check"));
    command.args(arguments).envs(environment.iter().copied()).env_remove("LD_LIBRARY_PATH");
    if let Some(driver) = driver {
        on(driver, &mut command);
    }
    let out = run(&mut command);
    (out.status.success(), [out.stdout, out.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat())
}

/// One test: the driver takes its time to compile.
#[test]
fn devices_are_checked_on_an_emulated_one() -> Outcome {
    let driver = driver();
    agrees_with_f64(&driver)?;
    machines_without_what_it_takes_are_told(&driver);
    other_forms_are_loaded_where_machine_code_is_refused(&driver);
    layers_of_a_file_run(&driver)
}

fn agrees_with_f64(driver: &Path) -> Outcome {
    let costs = std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/gpu/costs.json"))?;
    let costs: Value = serde_json::from_slice(&costs)?;
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("receipts");
    let folder = out.display().to_string();
    let (done, mut text) = check(Some(driver), &["--small", "--runs", "2", "--out", &folder], &[]);
    assert!(done && text.contains("256 rows at once: not checked"), "{text}");
    // Of sm_90, whose blocks may have more of shared memory than the others have.
    let larger = [("FAKE_CUDA_SHARED", "232448")];
    let (done, wide) = check(Some(driver), &["--small", "--runs", "2", "--out", &folder, "--only", "wide"], &larger);
    assert!(done, "{wide}");
    text += &wide;
    for line in text.lines().filter(|line| line.ends_with("runs each")) {
        tell(&format!("CUDA kernels emulated on the host: {line}, in random orders of threads and blocks"));
    }
    for unit in units().map(|unit| unit.name) {
        assert!(text.contains(&format!("{unit}: sm_90a")), "{text}");
        let receipt = std::fs::read_to_string(out.join(format!("{unit}.emulated-device.json"))).expect("a receipt");
        let receipt: Value = serde_json::from_str(&receipt)?;
        assert!(receipt["device"] == "emulated device" && receipt["faults"] == json!([]), "{receipt:#}");
        // All kernels that there are were checked, and none that there is not.
        let kernels = receipt["kernels"].as_object().ok_or("no kernels")?;
        let mut found: Vec<&str> = kernels.keys().map(String::as_str).collect();
        found.sort_unstable();
        let all = costs["kernels"][unit].as_array().ok_or("no kernels")?;
        assert_eq!(found, all.iter().filter_map(Value::as_str).collect::<Vec<_>>(), "{unit}");
        assert!(kernels.values().all(|kernel| kernel["runs"].as_u64() > Some(0)), "{receipt:#}");
    }
    Ok(())
}

fn machines_without_what_it_takes_are_told(driver: &Path) {
    let says = |driver: Option<&Path>, environment: &[(&str, &str)], words: &str| {
        let (done, text) = check(driver, &["--only", "bench", "--small"], environment);
        assert!(!done && text.contains(words), "{environment:?}: `{words}` is not in\n{text}");
    };
    if installed("libcuda.so") {
        tell("CUDA: what a machine without a driver says is not tested: this one has a driver");
    } else {
        says(None, &[], "there is no CUDA driver on this machine");
    }
    let says = |environment: &[(&str, &str)], words: &str| says(Some(driver), environment, words);
    says(&[("FAKE_CUDA_VERSION", "11040")], "the CUDA driver is of version 11.4, but mbqc takes 12.0");
    says(&[("FAKE_CUDA_DEVICES", "0")], "there is no CUDA device 0: this machine has 0");
    says(&[("FAKE_CUDA_MEMORY", "5000")], "emulated device has no room for");
    // Nothing is shipped for it, and the driver takes neither PTX nor what a compiler may make.
    let other = [("FAKE_CUDA_CAPABILITY", "110"), ("FAKE_CUDA_REFUSES", "ELF,PTX")];
    says(&other, "cannot be loaded on emulated device (sm_110): compiled for sm_110:");
    says(&[("FAKE_CUDA_CAPABILITY", "75"), ("FAKE_CUDA_REFUSES", "ELF,PTX")], "(sm_75)");
}

fn other_forms_are_loaded_where_machine_code_is_refused(driver: &Path) {
    let runs = |environment: &[(&str, &str)], form: &str| {
        let (done, text) = check(Some(driver), &["--only", "bench", "--small"], environment);
        assert!(done && text.contains(&format!("w3: {form}")), "{environment:?}: `{form}` is not in\n{text}");
    };
    for part in ["tune", "alone"] {
        let (done, text) = check(Some(driver), &["--only", part, "--small"], &[]);
        assert!(done && text.contains("| w4 | 256 x 96 | 16 |"), "{text}");
    }
    runs(&[("FAKE_CUDA_CAPABILITY", "86")], "sm_80");
    runs(&[("FAKE_CUDA_CAPABILITY", "120")], "sm_120");
    runs(&[("FAKE_CUDA_REFUSES", "ELF")], "PTX for compute_80, compiled by the driver");
    runs(&[("FAKE_CUDA_SHARED", "232448")], "sm_90a");
    // There is no PTX of the kernels for 256 rows: other ways are taken.
    runs(&[("FAKE_CUDA_REFUSES", "ELF"), ("FAKE_CUDA_SHARED", "232448")], "PTX for compute_80, compiled by the driver");
}

/// The folder of the compiler that `tests/gpu/compile.py` uses.
fn nvrtc() -> Result<Option<PathBuf>, Box<dyn std::error::Error>> {
    let Some(python) = python() else { return Ok(None) };
    let text = "import sysconfig; print(sysconfig.get_path('purelib') + '/nvidia/cu13/lib')";
    let folder = String::from_utf8(run(Command::new(python).args(["-c", text])).stdout)?;
    Ok(Some(PathBuf::from(folder.trim())).filter(|folder| folder.is_dir()))
}

/// `mbqc devices`, `mbqc bench --device cuda` and the example.
fn layers_of_a_file_run(driver: &Path) -> Outcome {
    let place = Place::with_tiny()?;
    let mbqc = |arguments: &str, environment: &[(&str, &str)]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mbqc"));
        command.args(arguments.split_whitespace()).envs(environment.iter().copied());
        place.command(on(driver, &mut command))
    };
    let listed = mbqc("devices", &[]);
    let words = "cuda:0  emulated device, sm_90, 3 multiprocessors, 1.0 GiB, 1 MiB of cache, driver for CUDA 13.0";
    assert!(
        listed.code == Some(0) && listed.out.contains(words) && listed.out.contains("w3        sm_90a"),
        "{listed}"
    );
    let old = [("FAKE_CUDA_CAPABILITY", "75"), ("FAKE_CUDA_REFUSES", "ELF,PTX")];
    let listed = mbqc("devices --json", &old);
    assert!(listed.code == Some(0) && listed.out.contains("\"loaded\": null"), "{listed}");
    let other = mbqc("devices", &[("FAKE_CUDA_CAPABILITY", "89")]);
    let words = "w3_wide   not loaded: it is for sm_90 alone";
    assert!(other.code == Some(0) && other.out.contains(words) && other.out.contains("w3        sm_89"), "{other}");
    let none = mbqc("devices", &[("FAKE_CUDA_DEVICES", "0")]);
    assert!(none.code == Some(0) && none.out.contains("and no device"), "{none}");

    // So that a few copies of a weight are more than the cache holds.
    let small = [("FAKE_CUDA_CACHE", "4096"), ("FAKE_CUDA_MEMORY", "10000000")];
    let ran = place.run("m.onnx -o q.onnx --format w3g32 --head-format w8g32 --method rtn");
    assert_eq!(ran.code, Some(0), "{ran}");
    let bench = mbqc("bench q.onnx --device cuda --rows 1,9 --seconds 0.01 --json", &small);
    assert_eq!(bench.code, Some(0), "{bench}");
    let told: Value = serde_json::from_str(&bench.out)?;
    let layers = told["layers"].as_array().ok_or("a list")?;
    let of = |key: &str| layers.iter().map(|layer| layer[key].clone()).collect::<Vec<_>>();
    assert_eq!(of("node"), ["up", "up", "down", "down"].map(Value::from));
    // One row of tiles to 32 channels, of 1536 bytes of codes and 4 scales to a channel; rows of 16 bits.
    let bytes = |tiles: usize, rows: usize| tiles * (1536 + 512) + 2 * rows * (32 + 64);
    assert_eq!(of("bytes"), [bytes(2, 1), bytes(2, 9), bytes(1, 1), bytes(1, 9)].map(Value::from));
    assert!(told["not_timed"].to_string().contains("no CUDA kernel for w8;"), "{bench}");
    let table = mbqc("bench q.onnx --device cuda --seconds 0.01", &small);
    assert!(table.code == Some(0) && table.out.lines().count() == 4, "{table}");
    let ran = place.run("m.onnx -o r.onnx --format w8a8 --method rtn");
    assert_eq!(ran.code, Some(0), "{ran}");
    // cuBLASLt has memory of its own.
    let larger = [("FAKE_CUDA_CACHE", "4096"), ("FAKE_CUDA_MEMORY", "100000000")];
    let table = mbqc("bench r.onnx --device cuda --rows 32 --seconds 0.01", &larger);
    assert!(table.code == Some(0) && table.out.contains("w8a8") && table.out.contains("cuBLASLt"), "{table}");
    let table = mbqc("bench r.onnx --device cuda --rows 31 --seconds 0.01", &small);
    assert!(table.code == Some(0) && table.out.contains("  mbqc") && !table.out.contains("cuBLASLt"), "{table}");
    for (arguments, words) in [
        ("--device cuda --rows 8193", "up to 8192 token rows"),
        ("--device cuda:3", "there is no CUDA device 3: this machine has 1"),
        ("--device gpu", "a device is cpu, cuda, or cuda:N"),
    ] {
        let refused = mbqc(&format!("bench q.onnx {arguments}"), &[]);
        assert!(refused.code != Some(0) && refused.err.contains(words), "{refused}");
    }
    if !installed("libcuda.so") {
        let without = place.run("bench q.onnx --device cuda");
        assert!(without.code == Some(1) && without.err.contains("there is no CUDA driver"), "{without}");
    }

    // An architecture that nothing is shipped for: NVRTC, where Python has it, compiles the kernels. The driver looks for their
    // names in what comes of it; what runs is its own.
    if let Some(folder) = nvrtc()? {
        let mut bench = Command::new(env!("CARGO_BIN_EXE_mbqc"));
        bench.args("bench q.onnx --device cuda --seconds 0.01 --json".split(' ')).envs(small);
        let libraries = std::env::join_paths([driver, &folder])?;
        let bench = on(driver, &mut bench).env("FAKE_CUDA_CAPABILITY", "110").env("LD_LIBRARY_PATH", libraries);
        let bench = place.command(bench);
        assert!(bench.code == Some(0) && bench.out.contains("\"w3\": \"compiled for sm_110\""), "{bench}");
    } else {
        skip(
            "no compiler of CUDA sources (install tests/requirements.txt): kernels for other architectures are not compiled",
        );
    }

    let mut example = Command::new(built("multiply_on_a_gpu"));
    let example = place.command(on(driver, example.args(["q.onnx", "up"])));
    assert_eq!(example.code, Some(0), "{example}");
    let numbers =
        example.out.trim().rsplit_once("largest difference to the CPU ").and_then(|(_, end)| end.split_once(", of "));
    let (difference, of) = numbers.ok_or("no difference")?;
    let (difference, of): (f32, f32) = (difference.parse()?, of.parse()?);
    assert!(of > 0.0 && difference <= 1e-5 * of, "{example}");
    Ok(())
}
