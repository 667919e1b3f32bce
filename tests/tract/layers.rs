//! Single layers: every format, both float types, with and without bias and zero points, against f64 and our evaluator.

use std::path::Path;

use mbqc::engine;
use mbqc::onnx::{ReadOptions, WriteOptions, read, write};
use mbqc_kernels::affine::{Codes, fake_quantize_tokens};
use mbqc_kernels::{FORMATS, Format, GROUPS, Scales, Scheme, Spec, Stored};
use mbqc_passes::array::Array;
use mbqc_passes::ir::{DType, Edit, Graph, Model, NewNode, Node, NodeId, Tensor, text};
use tract_onnx::prelude::{Framework, InferenceModelExt};

use super::support::{Outcome, compile, difference, tell};
use super::{Arrays, Shapes, in_ours, in_tract};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Input channels: more than the largest group, and no multiple of 32, so that all groups but those of 16 leave a padded block.
const K: usize = 272;
const N: usize = 20;

/// What a layer has besides its weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Variant {
    /// What the compiler writes for a MatMul.
    Plain,
    /// An `Add` behind it, as in the float graph.
    Add,
    /// A bias of the op itself, which the compiler does not write.
    Bias,
    /// No zero points: all are the middle of the codes.
    NoZeroPoints,
}

const VARIANTS: [Variant; 4] = [Variant::Plain, Variant::Add, Variant::Bias, Variant::NoZeroPoints];

/// Rows of the inputs: a single token, and several.
const SIZES: [(usize, usize); 2] = [(1, 1), (2, 7)];

#[test]
fn layers_of_every_format_compute_what_their_codes_say() -> Outcome {
    let folder = tempfile::tempdir()?;
    let emitted = folder.path().join("out.onnx");
    let (mut cases, mut worst) = (0, [0f64; 2]);
    for spec in FORMATS.iter().flat_map(|&format| specs(format)) {
        let format = spec.format;
        for (float, variant) in [DType::F32, DType::F16].into_iter().flat_map(|f| VARIANTS.map(|v| (f, v))) {
            let model = layer(folder.path(), &emitted, &spec.to_string(), float, variant)?;
            let half = usize::from(float == DType::F16);
            // Activations are multiplied as integers of 16 bits; half precision has 11, and a value is rounded by the product
            // and by the Add.
            let tolerance = [5e-5, 2e-3][half];
            for ((batch, tokens), shapes) in
                SIZES.into_iter().flat_map(|s| [Shapes::Declared, Shapes::Given].map(|d| (s, d)))
            {
                let case = format!("{spec} {float} {variant:?} {batch}x{tokens} {shapes:?}");
                let x = activations(batch, tokens, float);
                let expected = Array::f64([batch, tokens, N], closed_form(&model, format, &x)?);
                let inputs = Arrays::from([("x".to_owned(), x)]);
                let found = in_tract(&emitted, &inputs, shapes).map_err(|error| format!("{case}: {error:?}"))?;
                let ours = in_ours(&model, &inputs)?;
                assert_eq!((found[0].dtype, &found[0].shape), (float, &expected.shape), "{case}");
                let error = difference(&found[0], &expected, &inputs);
                assert!(error < tolerance, "{case}: {error:.1e} from what the codes say");
                let apart = difference(&found[0], &ours[0], &inputs);
                assert!(apart < [1e-6, 2e-3][half], "{case}: {apart:.1e} from our evaluator");
                worst[half] = worst[half].max(error);
                cases += 1;
            }
        }
    }
    tell(&format!(
        "tract: {cases} cases of single layers, to {:.1e} (float16: {:.1e}) of their codes",
        worst[0], worst[1]
    ));
    Ok(())
}

/// A format with every group size that it has.
fn specs(format: &'static Format) -> Vec<Spec> {
    match format.scheme {
        Scheme::WeightOnly => GROUPS.iter().map(|&group| Spec { format, group: Some(group) }).collect(),
        Scheme::WeightActivation => vec![Spec { format, group: None }],
    }
}

/// Compiles a float model given as text and compares tract with our evaluator.
fn check(model: &str, flags: &[&str], inputs: &Arrays) -> Outcome {
    let folder = tempfile::tempdir()?;
    let (source, emitted) = (folder.path().join("float.onnx"), folder.path().join("out.onnx"));
    write(None, &text::parse(model)?, &source, &WriteOptions::default())?;
    compile(&source, &emitted, &[&["--method", "rtn"], flags].concat())?;
    let found = in_tract(&emitted, inputs, Shapes::Given).map_err(|error| format!("{flags:?}: {error:?}"))?;
    let ours = in_ours(&read(&emitted, &ReadOptions::default())?.model, inputs)?;
    let apart = difference(&found[0], &ours[0], inputs);
    assert!(apart < 1e-6, "{flags:?}: {apart:.1e} from our evaluator");
    Ok(())
}

#[test]
fn three_bits_run_whatever_they_are_written_for() -> Outcome {
    let model = format!(
        "<ir_version: 10, opset_import: [\"\": 21]>\n\
         main (float[batch, tokens, {K}] x) => (float[batch, tokens, {N}] y)\n\
         <float[{K}, {N}] w = [\"seed\": \"7\"]>\n{{\n   y = MatMul (x, w)\n}}\n"
    );
    let inputs = Arrays::from([("x".to_owned(), activations(2, 7, DType::F32))]);
    for way in [["--fallback", "ort"], ["--fallback", "standard"], ["--fallback", "none"], ["--target", "ort"]] {
        check(&model, &[["--format", "w3g32"], ["--head-format", "w3g32"], way].concat(), &inputs)?;
    }
    Ok(())
}

#[test]
fn layers_inside_of_an_if_run() -> Outcome {
    // The weight belongs to the graph outside.
    let model = format!(
        "<ir_version: 8, opset_import: [\"\": 17]>\n\
         main (bool flag, float[batch, tokens, {K}] x) => (float[batch, tokens, {N}] y)\n\
         <float[{K}, {N}] w = [\"seed\": \"7\"]>\n{{\n   y = If <then_branch = one () => (a) {{ a = MatMul (x, w) }}, \
         else_branch = two () => (b) {{ n = Neg (x) b = MatMul (n, w) }}> (flag)\n}}\n"
    );
    for (spec, flag) in ["w3g16", "w8g16", "w4a8", "w8a8"].into_iter().flat_map(|spec| [(spec, false), (spec, true)]) {
        let (flag, x) = (Array::bool([], vec![flag]), activations(2, 7, DType::F32));
        let inputs = Arrays::from([("flag".to_owned(), flag), ("x".to_owned(), x)]);
        check(&model, &["--format", spec, "--head-format", spec], &inputs)?;
    }
    Ok(())
}

#[test]
fn weights_stay_as_they_are_stored() -> Outcome {
    let folder = tempfile::tempdir()?;
    let emitted = folder.path().join("out.onnx");
    for format in FORMATS {
        let model = layer(folder.path(), &emitted, &specs(format)[0].to_string(), DType::F32, Variant::Plain)?;
        let constants = model.graph.values().filter_map(|(id, _)| model.graph.constant(id));
        let stored: usize = constants.map(Tensor::stored_bytes).sum();
        let optimized = engine::tract::onnx().model_for_path(&emitted)?.into_optimized()?;
        let held = optimized.nodes().iter().filter_map(|node| node.outputs.first()?.fact.konst.as_ref());
        let held: usize = held.map(|tensor| tensor.len() * tensor.datum_type().size_of()).sum();
        assert_eq!(held, stored, "{}: bytes of constants in tract, and in the file", format.name);
        assert!(stored < 2 * K * N, "{}: {stored} bytes for {K}x{N} weights", format.name);
    }
    Ok(())
}

/// Compiles a layer into `emitted` and reads it again.
fn layer(folder: &Path, emitted: &Path, spec: &str, float: DType, variant: Variant) -> Result<Model> {
    let name = if float == DType::F16 { "float16" } else { "float" };
    let (constant, nodes) = match variant {
        Variant::Add => (format!(", {name}[{N}] c = [\"seed\": \"8\"]"), "p = MatMul (x, w)\n   y = Add (p, c)"),
        _ => (String::new(), "y = MatMul (x, w)"),
    };
    let model = text::parse(&format!(
        "<ir_version: 8, opset_import: [\"\": 17]>\n\
         main ({name}[batch, tokens, {K}] x) => ({name}[batch, tokens, {N}] y)\n\
         <{name}[{K}, {N}] w = [\"seed\": \"7\"]{constant}>\n{{\n   {nodes}\n}}\n"
    ))?;
    let source = folder.join("float.onnx");
    write(None, &model, &source, &WriteOptions::default())?;
    let exact = ["--accuracy", "exact"];
    compile(&source, emitted, &[&["--method", "rtn", "--format", spec, "--head-format", spec][..], &exact].concat())?;
    let mut file = read(emitted, &ReadOptions::default())?;
    if matches!(variant, Variant::Bias | Variant::NoZeroPoints) {
        vary(&mut file.model.graph, variant, float)?;
        let varied = folder.join("varied.onnx");
        write(Some(&file.source), &file.model, &varied, &WriteOptions::default())?;
        std::fs::rename(&varied, emitted)?;
        file = read(emitted, &ReadOptions::default())?;
    }
    Ok(file.model)
}

/// Gives the quantized node a bias, or takes its zero points.
fn vary(graph: &mut Graph, variant: Variant, float: DType) -> Outcome {
    let (id, node) = quantized(graph)?;
    let names = |values: &[Option<_>]| values.iter().map(|v| v.map_or("", |v| graph.name(v)).to_owned()).collect();
    let (mut inputs, outputs): (Vec<String>, _) = (names(&node.inputs), names(&node.outputs));
    let mut edits = Vec::new();
    if variant == Variant::Bias {
        let values: Vec<f32> = (0..N).map(|i| i as f32 / 8.0 - 1.0).collect();
        edits.push(Edit::AddConst("bias".to_owned(), Tensor::floats(float, [N], &values).ok_or("a float type")?));
        // MatMulNBits has g_idx between zero points and bias.
        let place = FORMATS.iter().find(|f| f.schema.op == node.op).and_then(|f| f.schema.slot("bias"));
        inputs.resize(place.ok_or("no bias")?, String::new());
        inputs.push("bias".to_owned());
    } else {
        inputs.truncate(3);
    }
    let (domain, op, attrs) = (node.domain.clone(), node.op.clone(), node.attrs.clone());
    edits.push(Edit::ReplaceNode(id, NewNode { domain, op, inputs, outputs, attrs, ..NewNode::default() }));
    Ok(graph.apply(edits)?)
}

/// The only node that is no standard operator.
fn quantized(graph: &Graph) -> Result<(NodeId, &Node)> {
    graph.nodes().find(|(_, node)| !node.domain.is_empty()).ok_or_else(|| "no quantized layer".into())
}

/// `[batch, tokens, K]`: multiples of 1/32 below 2, exact in both float types.
fn activations(batch: usize, tokens: usize, float: DType) -> Array {
    let values = (0..batch * tokens * K).map(|i| ((i * 37 % 101) as f32 - 50.0) / 32.0).collect();
    Array::f32([batch, tokens, K], values).with_dtype(float)
}

/// The layer in f64, from its codes: `y = sum_k (q - z) s x + c` for every row of `x: [.., K]`, rounded to 8 bits where the
/// format says so.
fn closed_form(model: &Model, format: &Format, x: &Array) -> Result<Vec<f64>> {
    let graph = &model.graph;
    let (_, node) = quantized(graph)?;
    let input = |slot| node.input(slot).and_then(|value| graph.constant(value));
    let scales = input(2).and_then(Tensor::to_f64).ok_or("no scales")?;
    let single: Vec<f32> = scales.iter().map(|&scale| scale as f32).collect();
    let group = usize::try_from(node.int("block_size", i64::try_from(K)?))?;
    let b = input(1).ok_or("no B")?.bytes();
    let zero_points = format.schema.slot("zero_points").and_then(input).map(Tensor::bytes);
    let Codes { codes, zero_points, .. } =
        (format.unpack)(&Stored { n: N, k: K, group, b, scales: Scales::F32(&single), zero_points })?;
    let weight = |row: usize, column: usize| {
        let place = row * K.div_ceil(group) + column / group;
        (f64::from(codes[row * K + column]) - f64::from(zero_points[place])) * scales[place]
    };
    let constants = ["bias", "c"].map(|name| graph.find(name).and_then(|v| graph.constant(v)).and_then(Tensor::to_f64));
    let mut rows = x.to_f64s();
    if format.scheme == Scheme::WeightActivation {
        let mut rounded: Vec<f32> = rows.iter().map(|&x| x as f32).collect();
        fake_quantize_tokens(&mut rounded, K);
        rows = rounded.into_iter().map(f64::from).collect();
    }
    let one = |x: &[f64], row: usize| {
        let product: f64 = x.iter().enumerate().map(|(column, x)| weight(row, column) * x).sum();
        product + constants.iter().flatten().map(|c| c[row]).sum::<f64>()
    };
    Ok(rows.chunks(K).flat_map(|x| (0..N).map(|row| one(x, row)).collect::<Vec<_>>()).collect())
}
