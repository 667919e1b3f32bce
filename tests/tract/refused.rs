//! What cannot be run is an error that says where and why; nothing panics.

use mbqc::onnx::{WriteOptions, write};
use mbqc_passes::array::Array;
use mbqc_passes::ir::text;

use super::support::Outcome;
use super::{Arrays, Shapes, in_tract};

/// A layer of 32 input and 8 output channels in groups of 16, with one thing wrong: what is wrong, the node, the constants
/// that differ from those of [`CONSTANTS`], and what the error must say.
const CASES: &[(&str, &str, &str, &[&str])] = &[
    (
        "a name of ours in another domain",
        "y = other.MbqMatMulW3 <K = 32, N = 8, block_size = 16> (x, b, s)",
        "",
        &["node `layer` (other::MbqMatMulW3)", "`other`, expected `ai.mbqc`"],
    ),
    (
        "onnxruntime's name in our domain",
        "y = ai.mbqc.MatMulNBits <K = 32, N = 8, block_size = 16, bits = 4> (x, b, s)",
        "",
        &["node `layer` (ai.mbqc::MatMulNBits)", "`ai.mbqc`, expected `com.microsoft`"],
    ),
    (
        "three bits of onnxruntime's",
        "y = com.microsoft.MatMulNBits <K = 32, N = 8, block_size = 16, bits = 3> (x, b, s)",
        "",
        &["node `layer`", "bits = 3", "2, 4, 8 bits are supported"],
    ),
    (
        "no N",
        "y = com.microsoft.MatMulNBits <K = 32, block_size = 16> (x, b, s)",
        "",
        &["node `layer`", "attribute N is missing"],
    ),
    (
        "a negative K",
        "y = com.microsoft.MatMulNBits <K = -32, N = 8, block_size = 16> (x, b, s)",
        "",
        &["node `layer`", "attribute K is -32"],
    ),
    (
        "no scales",
        "y = com.microsoft.MatMulNBits <K = 32, N = 8, block_size = 16> (x, b)",
        "",
        &["node `layer`", "input scales is required but absent"],
    ),
    (
        "an order of groups",
        "y = com.microsoft.MatMulNBits <K = 32, N = 8, block_size = 16> (x, b, s, \"\", b)",
        "",
        &["node `layer`", "g_idx is given"],
    ),
    (
        "too many inputs",
        "y = com.microsoft.MatMulNBits <K = 32, N = 8, block_size = 16> (x, b, s, \"\", \"\", \"\", b)",
        "",
        &["node `layer`", "7 inputs, expected at most 6"],
    ),
    (
        "groups of no multiple of 8",
        "y = com.microsoft.MatMulNBits <K = 32, N = 8, block_size = 20> (x, b, s)",
        "",
        &["layer", "group size 20"],
    ),
    (
        "an input of other channels",
        "y = com.microsoft.MatMulNBits <K = 48, N = 8, block_size = 16> (x, b, s)",
        "",
        &["layer", "input A has shape", "its last axis must be K = 48"],
    ),
    (
        "codes of another length",
        "y = com.microsoft.MatMulNBits <K = 32, N = 9, block_size = 16> (x, b, s)",
        "",
        &["layer", "the packed codes holds 128 elements, expected 144"],
    ),
    (
        "sizes beyond all memory",
        "y = com.microsoft.MatMulNBits <K = 32, N = 4611686018427387904, block_size = 16> (x, b, s)",
        "",
        &["layer", "attribute N is 4611686018427387904", "must be from 1 to 4294967295"],
    ),
    (
        "scales of another length",
        "y = com.microsoft.MatMulNBits <K = 32, N = 8, block_size = 16> (x, b, s)",
        "float[8, 1] s = [\"seed\": \"2\"]",
        &["layer", "the scales holds 8 elements, expected 16"],
    ),
    (
        "codes that are floats",
        "y = com.microsoft.MatMulNBits <K = 32, N = 8, block_size = 16> (x, b, s)",
        "float[8, 2, 8] b = [\"seed\": \"2\"]",
        &["layer", "input B is of type F32, expected one of [U8]"],
    ),
    (
        "zero points that are floats",
        "y = com.microsoft.MatMulNBits <K = 32, N = 8, block_size = 16> (x, b, s, s)",
        "",
        &["layer", "input zero_points is of type F32, expected one of [U8]"],
    ),
    (
        "zero points of another length",
        "y = com.microsoft.MatMulNBits <K = 32, N = 8, block_size = 16> (x, b, s, z)",
        "uint8[7] z = [\"seed\": \"2\"]",
        &["layer", "the packed zero points holds 7 elements, expected 8"],
    ),
    (
        "zero points that are no codes",
        "y = ai.mbqc.MbqMatMulW3 <K = 32, N = 8, block_size = 16> (x, b, s, z)",
        "uint8[8, 2, 6] b = [\"seed\": \"2\"], uint8[8, 1] z = {255, 0, 0, 0, 0, 0, 0, 0}",
        &["layer", "the zero point of row 0, group 0 is 15"],
    ),
    (
        "a bias of another length",
        "y = com.microsoft.MatMulNBits <K = 32, N = 8, block_size = 16> (x, b, s, \"\", \"\", c)",
        "float[3] c = [\"seed\": \"2\"]",
        &["layer", "the bias has shape [3], expected [8]"],
    ),
    (
        "a scalar input",
        "r = ReduceSum <keepdims = 0> (x)\n   [layer] y = com.microsoft.MatMulNBits <K = 32, N = 8, block_size = 16> (r, b, s)",
        "",
        &["layer", "input A is a scalar"],
    ),
];

/// Codes of 4 bits and scales.
const CONSTANTS: [(&str, &str); 2] =
    [(" b =", "uint8[8, 2, 8] b = [\"seed\": \"1\"]"), (" s =", "float[8, 2] s = [\"seed\": \"2\"]")];

fn attempt(node: &str, constants: &str, shapes: Shapes) -> Result<(), Box<dyn std::error::Error>> {
    let usual = CONSTANTS.iter().filter(|(name, _)| !constants.contains(name)).map(|(_, constant)| *constant);
    let constants: Vec<&str> = usual.chain((!constants.is_empty()).then_some(constants)).collect();
    let node = if node.contains("[layer]") { node.to_owned() } else { format!("[layer] {node}") };
    let model = text::parse(&format!(
        "<ir_version: 8, opset_import: [\"\": 17, \"com.microsoft\": 1, \"ai.mbqc\": 1, \"other\": 1]>\n\
         main (float[batch, tokens, 32] x) => (float[] y)\n<{}>\n{{\n   {node}\n}}\n",
        constants.join(", ")
    ))?;
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("layer.onnx");
    write(None, &model, &path, &WriteOptions::default())?;
    let inputs = Arrays::from([("x".to_owned(), Array::f32([2, 3, 32], vec![0.5; 192]))]);
    in_tract(&path, &inputs, shapes).map_err(|error| format!("{error:#}"))?;
    Ok(())
}

#[test]
fn a_layer_with_nothing_wrong_runs() -> Outcome {
    attempt("y = com.microsoft.MatMulNBits <K = 32, N = 8, block_size = 16> (x, b, s)", "", Shapes::Declared)
}

#[test]
fn what_is_wrong_with_a_layer_is_said() {
    for (what, node, constants, words) in CASES {
        for shapes in [Shapes::Declared, Shapes::Given] {
            let said = attempt(node, constants, shapes).expect_err(what).to_string();
            for word in *words {
                assert!(said.contains(word), "{what} ({shapes:?}): `{word}` is not in\n{said}");
            }
        }
    }
}
