//! The CUDA kernels compile for every architecture, within their ceilings of registers, spills and instructions; which of them a
//! device has vouched for; and the README's table of what was measured. Whether they compute the right thing is tested on the host
//! (`tests/emulated.rs`); nothing here runs on a GPU.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use mbqc_kernels::cuda::{ManyRows, Spread, TileCost, source_hash, units};
use serde_json::{Value, json};
use support::{Outcome, python, tell};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn kernels_compile_within_their_ceilings() -> Outcome {
    let Some(python) = python() else { return Ok(()) };
    let output = Command::new(&python).arg(root().join("tests/gpu/compile.py")).output()?;
    let (table, faults) = (String::from_utf8(output.stdout)?, String::from_utf8(output.stderr)?);
    assert!(output.status.success(), "{table}\n{faults}");
    let last = table.lines().next_back().ok_or("the script says nothing")?;
    tell(&format!("CUDA: {last}"));
    Ok(())
}

/// What `tests/gpu/compile.py` has found out.
fn costs() -> Result<Value, Box<dyn std::error::Error>> {
    Ok(serde_json::from_str(&fs::read_to_string(root().join("tests/gpu/costs.json"))?)?)
}

/// `tests/gpu/run.sh` with a program in place of `gpu_check` that notes what it is asked for: parts follow one another, one that fails or has
/// no time left is told and fails the whole, and what there is so far is kept.
#[test]
#[cfg(target_os = "linux")]
fn parts_on_a_device_follow_one_another() -> Outcome {
    use std::os::unix::fs::PermissionsExt;
    let folder = std::env::temp_dir().join(format!("mbqc-run-sh-{}", std::process::id()));
    fs::create_dir_all(&folder)?;
    let (program, asked) = (folder.join("check"), folder.join("asked"));
    let text = "#!/bin/sh\necho \"$*\" >>\"$ASKED\"\n[ \"$2\" = \"$FAILS\" ] && exit 7\n[ \"$3\" = --out ] && echo {} >\"$4/$2.json\"\nexit 0\n";
    fs::write(&program, text)?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    let run = |out: &str, fails: &str, seconds: &str| -> Result<(i32, String, String), Box<dyn std::error::Error>> {
        fs::write(&asked, "")?;
        let mut command = Command::new("bash");
        command.arg(root().join("tests/gpu/run.sh")).arg(&program).arg(folder.join(out)).arg(seconds);
        // Without torch, the sanitizers or a profiler, whatever is installed here.
        let command = command.env("PYTHONPATH", &folder).env("ASKED", &asked).env("FAILS", fails).env_remove("PEERS");
        fs::write(folder.join("torch.py"), "raise ImportError\n")?;
        let status = command.output()?.status.code().ok_or("no status")?;
        Ok((status, fs::read_to_string(folder.join(out).join("log.txt"))?, fs::read_to_string(&asked)?))
    };
    let order = |asked: &str| {
        let own = asked.lines().filter(|line| !line.contains("--small") && !line.contains("alone"));
        own.map(|line| line.split(' ').take(2).collect::<Vec<_>>().join(" ")).collect::<Vec<_>>()
    };
    let parts = ["--only check", "--only bench", "--only tune"];
    let (status, log, asked) = run("good", "none", "100")?;
    assert!(status == 0 && order(&asked) == parts, "{log}");
    for part in ["check", "bench", "tune"] {
        assert!(log.contains(&format!("== {part}: done in ")), "{log}");
    }
    let kept = Command::new("tar").arg("tzf").arg(folder.join("good/all.tar.gz")).output()?;
    let kept = String::from_utf8(kept.stdout)?;
    assert!(["./log.txt", "./check.json", "./bench.json"].iter().all(|file| kept.contains(file)), "{kept}");
    let (status, log, asked) = run("bad", "bench", "100")?;
    assert!(status == 1 && order(&asked) == parts && log.contains("== bench: FAILED with status 7"), "{log}");
    let (status, log, asked) = run("late", "none", "3")?;
    assert!(status == 1 && asked.is_empty() && log.contains("== check: no time is left"), "{log}");
    fs::remove_dir_all(&folder)?;
    Ok(())
}

/// Whether a receipt says that a device, and no emulated one, ran these kernels of these sources, and nothing was wrong.
fn vouches(receipt: &Value, unit: &str, hash: &str, kernels: &Value) -> bool {
    // A check that was cut off has found no fault either.
    let right = receipt["complete"] == true && receipt["faults"].as_array().is_some_and(Vec::is_empty);
    let all = kernels.as_array().filter(|kernels| !kernels.is_empty());
    let checked =
        all.is_some_and(|all| all.iter().all(|name| receipt["kernels"][name.as_str().unwrap_or("")].is_object()));
    let real = receipt["device"].as_str().is_some_and(|device| device != "emulated device");
    receipt["unit"] == unit && receipt["sources"] == hash && right && checked && real
}

#[test]
fn receipts_vouch_for_what_a_device_did_with_these_sources_alone() {
    let kernels = json!({"one": {}, "two": {}});
    let mut good = json!({"unit": "w3", "sources": "ab", "device": "NVIDIA H200", "faults": [], "kernels": kernels});
    good["complete"] = json!(true);
    let all = json!(["one", "two"]);
    assert!(vouches(&good, "w3", "ab", &all));
    assert!(
        !vouches(&good, "w4", "ab", &all) && !vouches(&good, "w3", "cd", &all),
        "another unit's, or of other sources"
    );
    for other in [json!(["one", "two", "three"]), json!([]), json!(null)] {
        assert!(!vouches(&good, "w3", "ab", &other), "{other}");
    }
    for (key, value) in [
        ("device", json!("emulated device")),
        ("device", json!(null)),
        ("complete", json!(false)),
        ("complete", json!(null)),
        ("faults", json!(["wrong"])),
        ("faults", json!(null)),
        ("kernels", json!({})),
        ("kernels", json!({"one": {}})),
        ("kernels", json!(null)),
        ("sources", json!(null)),
    ] {
        let mut bad = good.clone();
        bad[key] = value;
        assert!(!vouches(&bad, "w3", "ab", &all), "{bad}");
    }
}

/// A receipt, if a device gave one for the sources as they are: what `tests/gpu/check` wrote on it, under `tests/gpu/receipts`. One
/// with times comes before one without.
fn receipt(unit: &str) -> Result<Option<Value>, Box<dyn std::error::Error>> {
    let (hash, kernels) = (source_hash(unit)?, costs()?["kernels"][unit].take());
    let mut files: Vec<PathBuf> = match fs::read_dir(root().join("tests/gpu/receipts")) {
        Ok(entries) => entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?,
        Err(_) => return Ok(None),
    };
    files.retain(|file| file.extension().is_some_and(|extension| extension == "json"));
    files.sort();
    let mut found = Vec::new();
    for file in files {
        let receipt: Value = serde_json::from_str(&fs::read_to_string(&file)?)?;
        if vouches(&receipt, unit, &hash, &kernels) {
            found.push(receipt);
        }
    }
    found.sort_by_key(|receipt| receipt["times"].as_array().is_none_or(Vec::is_empty));
    Ok(found.into_iter().next())
}

#[test]
fn a_receipt_has_to_name_every_kernel_of_a_unit() -> Outcome {
    let costs = costs()?;
    let listed = costs["kernels"].as_object().ok_or("no kernels")?;
    let mut names: Vec<&str> = units().map(|unit| unit.name).collect();
    names.sort_unstable();
    let mut found: Vec<&String> = listed.keys().collect();
    found.sort_unstable();
    assert_eq!(found, names, "run tests/gpu/compile.py --archive");
    let all: Vec<&Value> = listed.values().flat_map(|kernels| kernels.as_array().into_iter().flatten()).collect();
    assert!(all.len() > 60 && all.iter().all(|name| name.is_string()), "{all:?}");
    Ok(())
}

#[test]
fn devices_vouch_for_kernels_or_it_is_said_that_none_does() -> Outcome {
    let costs = costs()?;
    for unit in units() {
        let kernels = costs["kernels"][unit.name].as_array().ok_or("no kernels")?;
        let names: Vec<&str> = kernels.iter().filter_map(Value::as_str).collect();
        let (unit, names) = (unit.name, names.join(" "));
        tell(&match receipt(unit)? {
            Some(receipt) => {
                format!("CUDA receipts: {unit} VERIFIED on {} as {}: {names}", receipt["device"], receipt["image"])
            }
            None => format!("CUDA receipts: {unit} STALE, no device has run these sources: {names}"),
        });
    }
    Ok(())
}

/// Input by output channels.
const SIZES: [(usize, usize); 5] = [(3584, 3584), (3584, 10752), (3584, 18944), (18944, 3584), (8192, 8192)];

/// Multiprocessors of an H200, their clock in Hz, instructions per clock of each, and seconds that a product takes before and after
/// its loop: of the documentation, and a guess.
const H200: (usize, f64, f64, f64) = (132, 1.755e9, 4.0, 2.25e-6);

/// Formats with as many bytes to 4096 weights, those of 128 activations, the kernel for up to 8 rows and the one for 16.
const FEW: [(&str, usize, usize, [&str; 2]); 5] = [
    ("w3", 1536 + 128, 256, ["w3a16_f16_8_g128", "w3a16_f16_16_g128"]),
    ("w2", 1024 + 128, 256, ["w2a16_f16_8_g128", "w2a16_f16_16_g128"]),
    ("w4", 2048 + 128, 256, ["w4a16_f16_8_g128", "w4a16_f16_16_g128"]),
    ("w4a8", 2048, 128, ["w4a8_8", "w4a8_16"]),
    ("w8a8", 4096, 128, ["w8a8_8", "w8a8_16"]),
];

/// Predicted and measured times of products with few rows, activations and outputs in half precision.
fn table() -> Result<String, Box<dyn std::error::Error>> {
    let costs = costs()?;
    let verdict = |receipt: &Option<Value>| match receipt {
        Some(receipt) => format!("measured on {} (VERIFIED)", receipt["device"]),
        None => "measured: STALE, no device has run these sources".to_owned(),
    };
    let mut lines = vec![format!("groups of 128, f16, microseconds; w3 {}", verdict(&receipt("w3")?)), String::new()];
    let columns = [
        "k x n",
        "rows",
        "format",
        "MB",
        "instructions a tile",
        "spread",
        "predicted for an H200",
        "cold",
        "cuBLASLt f16 over it",
        "in the cache",
    ];
    lines.push(format!("| {} |", columns.join(" | ")));
    lines.push("|---".repeat(columns.len()) + "|");
    for (format, tile, activations, kernels) in FEW {
        let all_rows: &[usize] = if format == "w3" { &[1, 8, 16] } else { &[1] };
        let receipt = receipt(format)?;
        let mut measured = BTreeMap::new();
        for row in receipt.iter().flat_map(|receipt| receipt["times"].as_array()).flatten() {
            let size = [&row["k"], &row["n"], &row["rows"]].map(|number| number.as_u64().unwrap_or(0) as usize);
            let [cold, warm, dense] = ["cold", "warm", "dense"].map(|which| row[which][1].as_f64());
            let told = |number: f64| format!("{number:.2}");
            let ratio = dense.zip(cold).map(|(dense, cold)| dense / cold);
            measured.insert(size, [cold.map(|s| 1e6 * s), ratio, warm.map(|s| 1e6 * s)].map(|number| number.map(told)));
        }
        let of_tile = TileCost { bytes: tile, activations, instructions: 0 };
        for ((k, n), &rows) in SIZES.into_iter().flat_map(|size| all_rows.iter().map(move |rows| (size, rows))) {
            let (row_tiles, k_tiles) = (n.div_ceil(32), k.div_ceil(128));
            let (multiprocessors, clock, issue, start) = H200;
            let spread = Spread::best(row_tiles, k_tiles, of_tile, multiprocessors, &[2; 16])[rows - 1];
            let cost = costs["sm_90a"][kernels[usize::from(rows > 8)]].as_f64().ok_or("no cost")?;
            let by_instructions =
                (row_tiles * k_tiles) as f64 * cost / (multiprocessors as f64 * clock * issue) + start;
            let by_memory = spread.seconds(row_tiles, k_tiles, of_tile, rows, multiprocessors);
            let bytes = row_tiles * k_tiles * tile + rows * (activations / 128 * k + 2 * n);
            let [cold, ratio, warm] =
                measured.remove(&[k, n, rows]).unwrap_or_default().map(|told| told.unwrap_or("STALE".to_owned()));
            lines.push(format!(
                "| {k} x {n} | {rows} | {format} | {:.1} | {cost} | {} x {} | {:.1} | {cold} | {ratio} | {warm} |",
                bytes as f64 / 1e6,
                spread.together,
                spread.blocks,
                1e6 * by_memory.max(by_instructions)
            ));
        }
    }
    lines.push(String::new());
    lines.extend(table_of_many(&costs)?);
    Ok(lines.join("\n") + "\n")
}

/// Formats with as many bytes to 4096 weights, those of an activation and of a product's multiplicand, and the kernel for 64 rows.
const MANY: [(&str, usize, usize, &str); 3] =
    [("w3", 1536 + 128, 2, "w3a16_f16_64"), ("w4a8", 2048, 1, "w4a8_64"), ("w8a8", 4096, 1, "w8a8_64")];

/// Predicted and measured times of products with many rows: the best of our kernels for 64 and for 256 rows at once and of cuBLASLt, which may
/// take numbers made of the weight, and leave sums of integers to a kernel of ours.
fn table_of_many(costs: &Value) -> Result<Vec<String>, Box<dyn std::error::Error>> {
    let columns = [
        "k x n",
        "rows",
        "format",
        "predicted for an H200",
        "by",
        "f16 by cuBLASLt, predicted",
        "measured",
        "over cuBLASLt f16",
    ];
    let mut lines = vec![format!("| {} |", columns.join(" | ")), "|---".repeat(columns.len()) + "|"];
    let finish = receipt("finish")?;
    let (multiprocessors, ..) = H200;
    for (k, n) in [(3584usize, 3584usize), (3584, 18944)] {
        for rows in [64, 1024, 2048, 4096] {
            for (format, tile, size, kernel) in MANY {
                let (row_tiles, k_tiles) = (n.div_ceil(32), k.div_ceil(128));
                // As for groups of 32: of 128 they are fewer, but then as many clocks go to shared memory.
                let instructions = costs["sm_90a"][kernel].as_u64().ok_or("no cost")? as usize;
                let cost = TileCost { bytes: tile, activations: 128 * size, instructions };
                let (_, once) = Spread::best_alone(row_tiles, k_tiles, cost, multiprocessors, 64, 4);
                let many = ManyRows { multiprocessors, n, k, rows, tile, number: size, as_it_is: format == "w8a8" };
                let ways = [("sliced", many.sliced(once)), ("wide", many.wide()), ("blas", many.by_blas())];
                let (way, ours) = ways.into_iter().reduce(|a, b| if b.1 < a.1 { b } else { a }).ok_or("no way")?;
                let dense = many.dense();
                // All have a part in it.
                let others = [receipt(format)?, receipt(&format!("{format}_wide"))?];
                let times = finish
                    .iter()
                    .filter(|_| others.iter().all(Option::is_some))
                    .flat_map(|finish| finish["times"].as_array());
                let row = times.flatten().find(|row| {
                    row["format"] == *format
                        && row["k"] == k as u64
                        && row["n"] == n as u64
                        && row["rows"] == rows as u64
                });
                let best = row.and_then(|row| {
                    ["sliced", "wide", "blas"].iter().filter_map(|way| row[way].as_f64()).reduce(f64::min)
                });
                let ratio = best.zip(row.and_then(|row| row["dense"].as_f64())).map(|(best, dense)| best / dense);
                let cell = |number: Option<f64>, digits: usize| {
                    number.map_or("STALE".to_owned(), |number| format!("{number:.digits$}"))
                };
                lines.push(format!(
                    "| {k} x {n} | {rows} | {format} | {:.0} | {} | {:.0} | {} | {} |",
                    1e6 * ours,
                    match way {
                        "sliced" => "64 rows at once",
                        "wide" => "256 rows at once",
                        _ => "cuBLASLt",
                    },
                    1e6 * dense,
                    cell(best.map(|best| 1e6 * best), 1),
                    cell(ratio, 2)
                ));
            }
        }
    }
    Ok(lines)
}

#[test]
fn the_readme_says_what_was_measured_on_a_device() -> Outcome {
    let before = fs::read_to_string(root().join("README.md"))?;
    let (begin, end) = ("<!-- begin cuda -->\n", "<!-- end cuda -->");
    let start = before.find(begin).ok_or("README.md has no place for the table")? + begin.len();
    let stop = start + before[start..].find(end).ok_or("README.md has no end of the table")?;
    let after = [&before[..start], &table()?, &before[stop..]].concat();
    if std::env::var_os("MBQC_BLESS").is_some() {
        fs::write(root().join("README.md"), after)?;
        return Ok(());
    }
    assert!(before == after, "README.md's table is out of date; MBQC_BLESS=1 cargo test --test gpu_kernels writes it");
    Ok(())
}
