//! CUDA on the host: the kernels' source that is shipped, compiled by a C++ compiler with `tests/emulate/arch.cuh` in the place of
//! the device, under a driver that plays one (`tests/emulate/driver.cc`), with the address and undefined-behaviour sanitizers.
//! The program that checks devices (`tests/gpu/check`) runs on it, against float64. EMULATED: nothing here ran on a GPU.

mod support;

use mbqc_kernels::cuda::Tiles;
use mbqc_kernels::{Error, FORMATS, Scales, Stored};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

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
        .args(["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-Wno-clobbered", "-Wno-unused-function"])
        .args(["-fsanitize=address,undefined", "-fno-sanitize-recover=all"])
        .args([include("tests/emulate"), include("cuda")])
        .arg(crate_folder.join("tests/emulate/driver.cc"))
        .arg("-o")
        .arg(folder.join("libcuda.so")));
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    folder
}

/// Runs the program that checks devices, on a driver if there is one: whether it was content, and what it printed.
fn check(driver: Option<&Path>, arguments: &[&str], environment: &[(&str, &str)]) -> (bool, String) {
    let test = std::env::current_exe().expect("this test");
    let program = test.ancestors().nth(2).expect("below the build's folder").join("examples/gpu_check");
    assert!(program.exists(), "run `cargo build -p mbqc-kernels --example gpu_check` first, or all tests");
    let mut command = Command::new(program);
    command.args(arguments).envs(environment.iter().copied()).env_remove("LD_LIBRARY_PATH");
    if let Some(driver) = driver {
        // The sanitizer has to be there before the program that loads the driver.
        let sanitizer = run(Command::new(compiler()).arg("-print-file-name=libasan.so")).stdout;
        let sanitizer = String::from_utf8(sanitizer).expect("a path");
        command.env("LD_PRELOAD", sanitizer.trim()).env("ASAN_OPTIONS", "detect_leaks=0");
        command.env("LD_LIBRARY_PATH", driver);
    }
    let out = run(&mut command);
    (out.status.success(), [out.stdout, out.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat())
}

/// A line for the file that `tests/run.sh` shows at the end.
fn tell(line: &str) {
    if let Some(report) = std::env::var_os("MBQC_REPORT") {
        let file = std::fs::OpenOptions::new().append(true).open(report);
        file.and_then(|mut file| writeln!(file, "{line}")).expect("the report can be written");
    }
}

/// One test: the driver takes its time to compile.
#[test]
fn devices_are_checked_on_an_emulated_one() {
    let driver = driver();
    agrees_with_f64(&driver);
    machines_without_what_it_takes_are_told(&driver);
    other_forms_are_loaded_where_machine_code_is_refused(&driver);
}

fn agrees_with_f64(driver: &Path) {
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("receipts");
    let folder = out.display().to_string();
    let (done, text) = check(Some(driver), &["--small", "--runs", "2", "--out", &folder], &[]);
    assert!(done, "{text}");
    for line in text.lines().filter(|line| line.ends_with("runs each")) {
        tell(&format!("CUDA kernels emulated on the host: {line}, in random orders of threads and blocks"));
    }
    for unit in ["w2", "w3", "w4"] {
        assert!(text.contains(&format!("{unit}: sm_90a")), "{text}");
        let receipt = std::fs::read_to_string(out.join(format!("{unit}.json"))).expect("a receipt");
        let kernel = format!("\"{unit}a16_bf16_16_g32\"");
        for part in ["\"device\": \"emulated device\"", "\"faults\": []", "\"cold\":", &kernel] {
            assert!(receipt.contains(part), "{part} is not in {receipt}");
        }
    }
}

fn machines_without_what_it_takes_are_told(driver: &Path) {
    let says = |driver: Option<&Path>, environment: &[(&str, &str)], words: &str| {
        let (done, text) = check(driver, &["--only", "check", "--small", "--runs", "2"], environment);
        assert!(!done && text.contains(words), "{environment:?}: `{words}` is not in\n{text}");
    };
    says(None, &[], "there is no CUDA driver on this machine");
    let says = |environment: &[(&str, &str)], words: &str| says(Some(driver), environment, words);
    says(&[("FAKE_CUDA_VERSION", "11040")], "the CUDA driver is of version 11.4, but mbqc takes 12.0");
    says(&[("FAKE_CUDA_DEVICES", "0")], "there is no CUDA device 0: this machine has 0");
    says(&[("FAKE_CUDA_MEMORY", "5000")], "emulated device has no room for");
    // Nothing is shipped for it, and there is neither a compiler nor a driver that takes PTX.
    let other = [("FAKE_CUDA_CAPABILITY", "110"), ("FAKE_CUDA_REFUSES", "PTX")];
    says(&other, "cannot be loaded on emulated device (sm_110): compiled for sm_110:");
    says(&[("FAKE_CUDA_CAPABILITY", "75")], "(sm_75)");
}

fn other_forms_are_loaded_where_machine_code_is_refused(driver: &Path) {
    let runs = |environment: &[(&str, &str)], form: &str| {
        let (done, text) = check(Some(driver), &["--only", "bench", "--small"], environment);
        assert!(done && text.contains(&format!("w3: {form}")), "{environment:?}: `{form}` is not in\n{text}");
    };
    runs(&[("FAKE_CUDA_CAPABILITY", "86")], "sm_80");
    runs(&[("FAKE_CUDA_CAPABILITY", "120")], "sm_120");
    runs(&[("FAKE_CUDA_REFUSES", "ELF")], "PTX for compute_80, compiled by the driver");
}

#[test]
fn weights_without_a_kernel_are_refused() {
    let tiles = |name: &str, n: usize, group: usize, gated: bool| {
        let format = FORMATS.iter().copied().find(|format| format.name == name).expect("a format of the list");
        let packed = (format.pack)(&support::codes_of(format, n, 256, group, 1));
        let scales: Vec<f32> = vec![1.0; n * 256 / group];
        let zero_points = Some(&packed.zero_points[..]).filter(|zeros| !zeros.is_empty());
        let stored = Stored { n, k: 256, group, b: &packed.b, scales: Scales::F32(&scales), zero_points };
        Tiles::new(format, &stored, gated)
    };
    assert!(tiles("w3", 32, 128, true).is_ok());
    assert!(matches!(tiles("w3", 32, 16, false), Err(Error::Group { group: 16 })));
    assert!(matches!(tiles("w3", 33, 128, true), Err(Error::Length { .. })));
    for name in ["w8", "w8a8", "w4a8"] {
        assert!(matches!(tiles(name, 32, 128, false), Err(Error::Device { format }) if format == name));
    }
}
