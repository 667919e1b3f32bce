//! The laws of this repository as tests: the four lists, the tables made from them, and what may stand in which file.
//!
//! `MBQC_BLESS=1 cargo test --test tidy` writes the tables of README.md anew.

use std::collections::BTreeSet;
use std::fmt::{Debug, Write};
use std::fs;
use std::path::Path;

use clap::Parser;
use mbqc::cli::Cli;
use mbqc_kernels::{FORMATS, Format, GROUPS, Scheme};
use mbqc_models::FAMILIES;
use mbqc_passes::method::METHODS;
use mbqc_passes::ops::{OPS, OpDef};

/// Longest Rust file; past 500 lines it is time to look for the second noun in it.
const LONGEST_FILE: usize = 700;
/// Rust files that a program writes.
const GENERATED: &[&str] = &["src/onnx/proto.rs", "src/onnx/fields.rs"];
/// Where code outside the language's guarantees may stand.
const HOMES_OF_UNSAFE: &[&str] = &["kernels/", "src/onnx/map.rs"];
/// Operators without samples: weights of a format cannot be generated like other inputs.
const TESTED_WITH_THE_FORMATS: &[&str] = &["MatMulNBits", "MbqMatMulW3", "MbqMatMulW4A8", "MbqMatMulW8A8"];
/// Bytes of test data and sample model together.
const DATA_LIMIT: u64 = 30_000_000;

/// What a folder's code must not name, and why. Tests and benches are free. Words are cut in two so that this file does
/// not name them either.
const BORDERS: &[(&str, &str, &str)] = &[
    ("kernels/", concat!("mbqc_", "passes"), "kernels know no graph"),
    ("kernels/", concat!("std::", "fs"), "kernels open no file"),
    ("passes/", concat!("std::", "fs"), "passes open no file"),
    ("passes/", concat!("std::", "env"), "passes read no environment"),
    ("passes/", concat!("std::", "thread"), "passes are given their threads"),
    ("passes/", concat!("pro", "st"), "only src/onnx knows protobuf"),
    ("passes/", concat!("mbqc_", "models"), "passes know no model families"),
    ("models/", concat!("mbqc_", "passes"), "families know no graph"),
    ("src/", concat!("pro", "st::"), "only src/onnx knows protobuf"),
    ("src/", concat!("cuda", "rc"), "only kernels/cuda/driver knows the driver"),
];

/// What no text of this repository names: hosts of package registries, and paths of somebody's machine.
const FORBIDDEN: &[&str] = &[
    concat!("crates", ".io"),
    concat!("pypi", ".org"),
    concat!("python", "hosted.org"),
    concat!("npmjs", ".org"),
    concat!("golang", ".org"),
    concat!("/wo", "rk/"),
    concat!("/t", "mp/"),
    concat!("/ro", "ot/"),
    concat!("/ho", "me/"),
    concat!("/Us", "ers/"),
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// All files of the checkout by their path from the root, with `/`; without what .gitignore names.
fn files() -> Vec<String> {
    let ignored = read(".gitignore");
    let ignored: Vec<&str> = ignored.lines().map(|line| line.trim_matches('/')).chain([".git"]).collect();
    let is_ignored = |name: &str| {
        ignored.iter().any(|rule| match rule.split_once('*') {
            Some((start, end)) => !start.contains('/') && name.starts_with(start) && name.ends_with(end),
            None => *rule == name,
        })
    };
    fn visit(folder: &Path, way: &str, is_ignored: &dyn Fn(&str) -> bool, found: &mut Vec<String>) {
        let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        for entry in entries.map(|entry| entry.expect("a readable folder")) {
            let name = entry.file_name().to_string_lossy().into_owned();
            let kind = entry.file_type().expect("a readable folder");
            if kind.is_dir() && !is_ignored(&name) {
                visit(&entry.path(), &format!("{way}{name}/"), is_ignored, found);
            } else if kind.is_file() && !(way.is_empty() && is_ignored(&name)) {
                found.push(format!("{way}{name}"));
            }
        }
    }
    let mut found = Vec::new();
    visit(root(), "", &is_ignored, &mut found);
    found.sort();
    assert!(found.iter().any(|name| name == "src/main.rs"), "the checkout is at {}", root().display());
    found
}

/// Rust files with their text.
fn sources() -> Vec<(String, String)> {
    let rust = files().into_iter().filter(|name| name.ends_with(".rs") && !GENERATED.contains(&name.as_str()));
    rust.map(|name| (name.clone(), read(&name))).collect()
}

fn ops() -> impl Iterator<Item = &'static OpDef> {
    OPS.iter().flat_map(|family| family.iter())
}

/// Reports all offences at once.
fn none(what: &str, offences: &[String]) {
    assert!(offences.is_empty(), "{what}:\n  {}", offences.join("\n  "));
}

#[test]
fn every_value_of_the_four_lists_says_what_it_is() {
    let abouts = ops()
        .map(|op| (op.name, op.about))
        .chain(FORMATS.iter().map(|format| (format.name, format.about)))
        .chain(FORMATS.iter().flat_map(|format| format.kernels).map(|kernel| (kernel.name, kernel.about)))
        .chain(METHODS.iter().map(|method| (method.name, method.about)))
        .chain(FAMILIES.iter().map(|family| (family.name, family.about)));
    let bad = abouts
        .filter(|(name, about)| name.is_empty() || about.len() < 8 || about.trim() != *about || about.contains('\n'));
    none("no sentence about", &bad.map(|(name, about)| format!("`{name}`: `{about}`")).collect::<Vec<_>>());
}

#[test]
fn names_in_the_lists_are_unique() {
    fn check(list: &str, names: impl Iterator<Item = String>) {
        let mut seen = BTreeSet::new();
        let twice: Vec<String> = names.filter(|name| !seen.insert(name.clone())).collect();
        none(&format!("twice in {list}"), &twice);
    }
    check("OPS", ops().map(|op| format!("{}::{}", op.domain, op.name)));
    check("FORMATS", FORMATS.iter().map(|format| format.name.to_owned()));
    check("METHODS", METHODS.iter().map(|method| method.name.to_owned()));
    check("FAMILIES", FAMILIES.iter().map(|family| family.name.to_owned()));
    for format in FORMATS {
        check(format.name, format.kernels.iter().map(|kernel| kernel.name.to_owned()));
    }
    for op in ops() {
        check(op.name, op.samples.iter().map(|sample| sample.name.to_owned()));
    }
}

#[test]
fn the_lists_are_in_order() {
    let order = |format: &&Format| (format.scheme == Scheme::WeightActivation, format.bits);
    assert!(FORMATS.is_sorted_by_key(order), "formats by what they quantize, then by bits");
    assert!(FORMATS.iter().all(|format| format.kernels[0].name == "reference"), "the reference kernel first");
    assert!(GROUPS.is_sorted(), "group sizes by size");
    assert!(METHODS.is_sorted_by_key(|method| method.needs_data()), "methods without data first");
    let (last, named) = FAMILIES.split_last().expect("families");
    assert_eq!(last.name, "generic", "the family that fits everything last");
    assert!(named.is_sorted_by_key(|family| family.name), "families by name");
}

#[test]
fn every_operator_has_samples() {
    let without = ops().filter(|op| op.samples.is_empty()).map(|op| op.name);
    assert_eq!(without.collect::<Vec<_>>(), TESTED_WITH_THE_FORMATS, "operators without samples");
}

/// `RangeSearch` as `range search`.
fn words(value: &impl Debug) -> String {
    let mut text = String::new();
    for letter in format!("{value:?}").chars() {
        if letter.is_uppercase() && !text.is_empty() {
            text.push(' ');
        }
        text.extend(letter.to_lowercase());
    }
    if text == "none" { "-".to_owned() } else { text }
}

/// A sentence inside of a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

fn methods_table() -> String {
    let mut text =
        "| method | data | rows | transforms | judge | round | what it does |\n|---|---|---|---|---|---|---|\n"
            .to_owned();
    for method in METHODS {
        let data = if method.needs_data() { "yes" } else { "no" };
        let [rows, transforms, judge, round] =
            [words(&method.rows), words(&method.transforms), words(&method.judge), words(&method.round)];
        let (name, about) = (method.name, cell(method.about));
        writeln!(text, "| `{name}` | {data} | {rows} | {transforms} | {judge} | {round} | {about} |")
            .expect("a string");
    }
    text
}

fn formats_table() -> String {
    let groups: Vec<String> = GROUPS.iter().map(usize::to_string).collect();
    let mut text =
        "| format | group sizes | bits per weight at g128 | op | what is stored |\n|---|---|---|---|---|\n".to_owned();
    for format in FORMATS {
        let f16_scale = 16;
        let (groups, stored) = match format.scheme {
            Scheme::WeightOnly => {
                let stored = f64::from(format.bits) + f64::from(f16_scale + format.zero_point_bits) / 128.0;
                (groups.join(", "), format!("{stored:.3}"))
            }
            Scheme::WeightActivation => ("-".to_owned(), format!("{}", format.bits)),
        };
        let schema = &format.schema;
        let (name, domain, op, about) = (format.name, schema.domain, schema.op, cell(format.about));
        writeln!(text, "| `{name}` | {groups} | {stored} | `{domain}::{op}` | {about} |").expect("a string");
    }
    text
}

fn families_table() -> String {
    let mut text = "| family | what is known about it |\n|---|---|\n".to_owned();
    for family in FAMILIES {
        writeln!(text, "| `{}` | {} |", family.name, cell(family.about)).expect("a string");
    }
    text
}

#[test]
fn readme_tables_are_those_of_the_lists() {
    let before = read("README.md");
    let mut after = before.clone();
    for (name, table) in [("methods", methods_table()), ("formats", formats_table()), ("families", families_table())] {
        let (begin, end) = (format!("<!-- begin {name} -->\n"), format!("<!-- end {name} -->"));
        let start = after.find(&begin).unwrap_or_else(|| panic!("README.md lacks {begin}")) + begin.len();
        let stop = after[start..].find(&end).unwrap_or_else(|| panic!("README.md lacks {end}")) + start;
        after.replace_range(start..stop, &table);
    }
    if std::env::var_os("MBQC_BLESS").is_some() {
        fs::write(root().join("README.md"), &after).expect("README.md can be written");
        return;
    }
    assert!(before == after, "tables of README.md are out of date; MBQC_BLESS=1 cargo test --test tidy writes them");
}

#[test]
fn commands_in_the_readme_parse() {
    let text = read("README.md").replace("\\\n", " ");
    let mut count = 0;
    for block in text.split("```sh\n").skip(1) {
        let block = block.split("```").next().expect("a split has a first part");
        for line in block.lines().map(|line| line.split(" #").next().expect("a split has a first part")) {
            let line = line.replace("cargo run --release --", "mbqc");
            if line.starts_with("mbqc ") {
                Cli::try_parse_from(line.split_whitespace()).unwrap_or_else(|error| panic!("{line}\n{error}"));
                count += 1;
            }
        }
    }
    assert!(count >= 10, "only {count} command lines were found");
}

#[test]
fn the_check_of_a_change_runs_the_test_command_of_the_readme() {
    for file in ["README.md", ".ci/run"] {
        assert!(read(file).lines().any(|line| line.trim_start_matches("step ") == "tests/run.sh"), "{file}");
    }
}

#[test]
fn no_text_names_registries_or_machines() {
    let mut offences = Vec::new();
    // Cargo writes its registry into the lock file.
    for name in files().into_iter().filter(|name| name != "Cargo.lock") {
        let Ok(text) = String::from_utf8(fs::read(root().join(&name)).expect("a file that was listed")) else {
            continue;
        };
        for (number, line) in text.lines().enumerate() {
            let named = FORBIDDEN.iter().filter(|word| line.contains(**word));
            offences.extend(named.map(|word| format!("{name}:{}: {word}", number + 1)));
        }
    }
    none("hosts of registries or paths of a machine", &offences);
}

#[test]
fn files_have_a_size_to_live_in() {
    let long = sources().into_iter().map(|(name, text)| (name, text.lines().count()));
    let long = long.filter(|(_, lines)| *lines > LONGEST_FILE).map(|(name, lines)| format!("{name}: {lines} lines"));
    none("files over 700 lines", &long.collect::<Vec<_>>());
    let lines = read("ARCHITECTURE.md").lines().count();
    assert!(lines < 300, "ARCHITECTURE.md has {lines} lines; it is a bird's-eye view");
}

/// Files are named from the root, or from the folder of a crate.
#[test]
fn files_that_the_documents_name_exist() {
    let (mut lost, mut count) = (Vec::new(), 0);
    for document in ["README.md", "ARCHITECTURE.md"] {
        let text = read(document);
        for named in text.split('`').skip(1).step_by(2) {
            let path = Path::new(named);
            let kind = path.extension().and_then(|extension| extension.to_str());
            if !named.contains('/')
                || named.contains([' ', '*', ':'])
                || !matches!(kind, Some("rs" | "sh" | "py" | "txt"))
            {
                continue;
            }
            count += 1;
            if !["", "src", "passes", "kernels", "models", "tests"]
                .iter()
                .any(|base| root().join(base).join(path).exists())
            {
                lost.push(format!("{document}: {named}"));
            }
        }
    }
    assert!(count >= 10, "only {count} names of files were found");
    none("names of files that are not there", &lost);
}

#[test]
fn data_stays_small() {
    let data = files().into_iter().filter(|name| name.starts_with("tests/") || name.starts_with("models/"));
    let bytes: u64 = data.map(|name| fs::metadata(root().join(name)).expect("a file that was listed").len()).sum();
    assert!(bytes < DATA_LIMIT, "{bytes} bytes in tests/ and models/, at most {DATA_LIMIT}");
}

/// The lines of a file that are code, with their numbers.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let lines = text.lines().enumerate().map(|(index, line)| (index + 1, line));
    lines.filter(|(_, line)| !line.trim_start().starts_with("//"))
}

#[test]
fn code_beyond_the_guarantees_has_its_homes() {
    let keyword = concat!("un", "safe");
    let lifted = ["allow", "expect"].map(|level| format!("{level}({keyword}_code"));
    let mut offences = Vec::new();
    for (name, text) in sources() {
        if HOMES_OF_UNSAFE.iter().any(|home| name.starts_with(home)) {
            continue;
        }
        for (number, line) in code(&text) {
            let used = line.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == keyword);
            if used || lifted.iter().any(|lint| line.contains(lint.as_str())) {
                offences.push(format!("{name}:{number}"));
            }
        }
    }
    none("code that belongs into kernels/", &offences);
}

#[test]
fn crates_keep_their_borders() {
    let mut offences = Vec::new();
    for (name, text) in sources() {
        let free = name.contains("/tests") || name.contains("/benches/") || name.starts_with("src/onnx/");
        for (folder, word, why) in BORDERS.iter().filter(|(folder, ..)| !free && name.starts_with(folder)) {
            let lines = code(&text).filter(|(_, line)| line.contains(word));
            offences.extend(lines.map(|(number, _)| format!("{name}:{number}: {word} in {folder}: {why}")));
        }
    }
    none("borders between crates", &offences);
}
