//! A folder to run the program in, and what is put there.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use mbqc::data::npy::Npy;
use mbqc::data::npz::{self, Packing};
use mbqc::onnx::{Placement, WriteOptions, write};
use mbqc_passes::array::Array;
use mbqc_passes::ir::Model;
use mbqc_passes::ir::text::parse;

/// A decoder of one block over a table of 64 tokens; `{}` stands for the value that the final norm reads, computed
/// from the residual stream `r` by the nodes put there.
const TINY: &str = r#"
<ir_version: 10, opset_import: ["": 20, "my": 1]>
tiny (int64[1,T] input_ids) => (float[1,T,64] logits)
<
  float[64,32] table = ["seed": "1"],
  float[32] gain1 = ["seed": "2"], float[32] shift1 = ["seed": "3"],
  float[32,64] "mlp.up.weight" = ["seed": "4", "scale": "0.3"],
  float[64,32] "mlp.down.weight" = ["seed": "5", "scale": "0.3"],
  float[32] gain2 = ["seed": "6"], float[32] shift2 = ["seed": "7"],
  float[32,64] head = ["seed": "8", "scale": "0.3"]
>
{
  [embed] x = Gather (table, input_ids)
  [norm1] h = LayerNormalization <axis = -1> (x, gain1, shift1)
  [up] u = MatMul (h, "mlp.up.weight")
  [act] g = Gelu (u)
  [down] d = MatMul (g, "mlp.down.weight")
  [residual] r = Add (x, d)
  {}
  [norm2] n = LayerNormalization <axis = -1> (last, gain2, shift2)
  [head] logits = MatMul (n, head)
}
"#;

/// The small decoder, with these nodes between its residual stream `r` and the value `last` that its final norm reads.
pub(crate) fn tiny(between: &str) -> String {
    TINY.replace("{}", between)
}

/// A run of the program.
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl std::fmt::Display for Ran {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.code {
            Some(code) => writeln!(f, "exit code {code}")?,
            None => writeln!(f, "killed")?,
        }
        write!(f, "{}{}", self.out, self.err)
    }
}

/// A folder of the test's own.
pub(crate) struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    pub(crate) fn new() -> std::io::Result<Place> {
        Ok(Place { folder: tempfile::tempdir()? })
    }

    /// A place with the small decoder as `m.onnx` and good data as `calib.npz`.
    pub(crate) fn with_tiny() -> Result<Place, Box<dyn std::error::Error>> {
        let place = Place::new()?;
        place.model("m.onnx", &tiny("[last] last = Identity (r)"))?;
        place.data("calib.npz", &good())?;
        Ok(place)
    }

    pub(crate) fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a model given as text.
    pub(crate) fn model(&self, name: &str, text: &str) -> Result<Model, Box<dyn std::error::Error>> {
        let model = parse(text)?;
        self.write(name, &model, Placement::Inline)?;
        Ok(model)
    }

    pub(crate) fn write(&self, name: &str, model: &Model, placement: Placement) -> Result<(), mbqc::onnx::Error> {
        write(None, model, &self.path(name), &WriteOptions { placement, threshold: 64, ..WriteOptions::default() })
            .map(drop)
    }

    /// Writes a data set.
    pub(crate) fn data(&self, name: &str, arrays: &[(&str, Array)]) -> Result<(), Box<dyn std::error::Error>> {
        let each: Result<Vec<_>, _> =
            arrays.iter().map(|(name, a)| Ok::<_, mbqc::data::npy::NpyError>((*name, Npy::from_array(a)?))).collect();
        Ok(npz::write(&self.path(name), each?, Packing::Stored)?)
    }

    /// Runs `mbqc` with arguments that are separated by blanks.
    pub(crate) fn run(&self, arguments: &str) -> Ran {
        self.command(Command::new(env!("CARGO_BIN_EXE_mbqc")).args(arguments.split_whitespace()))
    }

    /// Runs a command in the folder.
    pub(crate) fn command(&self, command: &mut Command) -> Ran {
        let output = command.current_dir(self.folder.path()).env("RUST_BACKTRACE", "0").output().expect("it starts");
        let text = |bytes: &[u8]| {
            let text = String::from_utf8_lossy(bytes).replace(&self.folder.path().display().to_string(), "FOLDER");
            text.lines().map(|line| without_time(line) + "\n").collect::<String>()
        };
        let ran = Ran { code: output.status.code(), out: text(&output.stdout), err: text(&output.stderr) };
        assert!(ran.code != Some(101) && !ran.err.contains("panicked"), "{arguments:?}: {ran}", arguments = command);
        ran
    }

    /// Runs `mbqc` and expects it to refuse with this exit code and to leave the folder as it was.
    pub(crate) fn refused(&self, code: i32, arguments: &str) -> String {
        let before = self.files();
        let ran = self.run(arguments);
        assert_eq!(ran.code, Some(code), "mbqc {arguments}\n{ran}");
        assert_eq!(ran.out, "", "mbqc {arguments}: nothing on standard output");
        assert!(self.files() == before, "mbqc {arguments}: left {:?}", self.files().keys());
        format!("$ mbqc {arguments}\n{ran}\n")
    }

    /// All files with their bytes.
    pub(crate) fn files(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        fn visit(folder: &Path, all: &mut BTreeMap<PathBuf, Vec<u8>>) {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                let path = entry.path();
                if path.is_dir() {
                    visit(&path, all);
                    all.insert(path, Vec::new());
                } else {
                    let bytes = fs::read(&path).unwrap_or_default();
                    all.insert(path, bytes);
                }
            }
        }
        let mut all = BTreeMap::new();
        visit(self.folder.path(), &mut all);
        all
    }
}

/// `gradients: 4 in 0.1 s` says how long a stage took; snapshots must not.
fn without_time(line: &str) -> String {
    match line.rsplit_once(" in ") {
        Some((stage, time)) if time.ends_with(" s") && time.starts_with(|c: char| c.is_ascii_digit()) => {
            format!("{stage} in TIME")
        }
        _ => line.to_owned(),
    }
}

/// Three samples of six tokens for the small decoder: two image tokens, one prompt token, three answer tokens.
pub(crate) fn good() -> Vec<(&'static str, Array)> {
    let ids: Vec<i64> = (0..18).map(|i| i * 7 % 64).collect();
    let answer = |i: usize| i % 6 >= 3;
    let labels = ids.iter().enumerate().map(|(i, &id)| if answer(i) { id } else { -100 }).collect();
    let vision = (0..18).map(|i| i64::from(i % 6 < 2)).collect();
    vec![
        ("input_ids", Array::i64([3, 6], ids)),
        ("labels", Array::i64([3, 6], labels)),
        ("vision_mask", Array::i64([3, 6], vision)),
    ]
}

/// The good data with one array replaced, or left out.
pub(crate) fn good_but(name: &'static str, array: Option<Array>) -> Vec<(&'static str, Array)> {
    let mut arrays = good();
    arrays.retain(|(field, _)| *field != name);
    arrays.extend(array.map(|array| (name, array)));
    arrays
}
