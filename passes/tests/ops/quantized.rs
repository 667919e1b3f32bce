//! Quantized layers that cannot be multiplied say why. Those that can are checked with their formats.

use mbqc_kernels::Pool;
use mbqc_passes::array::{Array, Buf, Compute};
use mbqc_passes::ir::DType;
use mbqc_passes::ir::text::parse;
use mbqc_passes::ops::{Call, find};

/// What is wrong, the attributes, the inputs, and what the error must say; `x`, `b`, `s` and `z` are those of a layer of 32 input
/// and 8 output channels in groups of 16.
const CASES: &[(&str, &str, &str, &[&str])] = &[
    ("no N", "K = 32, block_size = 16", "x, b, s", &["attribute N is missing", "from 1 to 4294967295"]),
    (
        "a K that no memory holds",
        "K = 4611686018427387904, N = 8, block_size = 16",
        "x, b, s",
        &["attribute K is 4611686018427387904"],
    ),
    (
        "an input of other channels",
        "K = 48, N = 8, block_size = 16",
        "x, b, s",
        &["input A has shape [3, 32]", "K = 48"],
    ),
    (
        "codes of another length",
        "K = 32, N = 9, block_size = 16",
        "x, b, s",
        &["the packed codes holds 128 elements, expected 144"],
    ),
    ("codes that are floats", "K = 32, N = 8, block_size = 16", "x, s, s", &["input B has type float, expected uint8"]),
    (
        "scales that are bytes",
        "K = 32, N = 8, block_size = 16",
        "x, b, b",
        &["input scales has type uint8, expected floats"],
    ),
    ("zero points that are floats", "K = 32, N = 8, block_size = 16", "x, b, s, s", &["zero points of type float;"]),
    ("an order of groups", "K = 32, N = 8, block_size = 16", "x, b, s, z, z", &["g_idx is given"]),
    (
        "an input too many",
        "K = 32, N = 8, block_size = 16",
        "x, b, s, z, \"\", \"\", s",
        &["7 inputs, expected at most 6"],
    ),
];

fn bytes<const RANK: usize>(shape: [usize; RANK], byte: u8) -> Array {
    let bytes = vec![byte; shape.iter().product()];
    Array { dtype: DType::U8, shape: shape.to_vec(), buf: Buf::Bytes(bytes.into()) }
}

fn multiply(attributes: &str, inputs: &str) -> Result<Vec<Array>, String> {
    let text = format!(
        "<ir_version: 10, opset_import: [\"\": 20, \"com.microsoft\": 1]>
         main (float[3,32] x, uint8[8,2,8] b, float[8,2] s, uint8[8,1] z) => (y)
         {{ y = com.microsoft.MatMulNBits <bits = 4, {attributes}> ({inputs}) }}"
    );
    let model = parse(&text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    let (_, node) = model.graph.nodes().next().expect("one node");
    let array = |name: &str| match name.trim() {
        "x" => Some(Array::f32([3, 32], vec![0.5; 96])),
        "b" => Some(bytes([8, 2, 8], 0x21)),
        "s" => Some(Array::f32([8, 2], vec![1.0; 16])),
        "z" => Some(bytes([8, 1], 0x11)),
        _ => None,
    };
    let inputs: Vec<Option<Array>> = inputs.split(',').map(array).collect();
    let op = find("com.microsoft", "MatMulNBits").expect("in the table");
    let pool = Pool::new(1);
    let call = Call { node, inputs: &inputs, opset: 1, compute: Compute::F32, pool: &pool };
    (op.eval)(&call).map_err(|error| error.to_string())
}

#[test]
fn what_is_wrong_with_a_layer_is_said() {
    // Codes 1 and 2 in turn, zero points 1.
    let y = multiply("K = 32, N = 8, block_size = 16", "x, b, s, z").expect("nothing is wrong");
    let y = y[0].as_f32().expect("floats");
    assert!(y.len() == 24 && y.iter().all(|y| (y - 8.0).abs() < 1e-5), "{y:?}");
    for (what, attributes, inputs, words) in CASES {
        let said = multiply(attributes, inputs).expect_err(what);
        for word in *words {
            assert!(said.contains(word), "{what}: `{word}` is not in\n{said}");
        }
    }
}
