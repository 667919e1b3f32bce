//! Folds: who absorbs a scale, who declines and why, and that a graph computes the same after scales were folded.

use std::sync::Arc;

use mbqc_kernels::Pool;
use mbqc_passes::array::{Array, Compute};
use mbqc_passes::facts::groups::{Group, groups};
use mbqc_passes::facts::sites::{Site, Survey, survey};
use mbqc_passes::ir::{Dim, Model, Type, text, verify};
use mbqc_passes::method::group_plan;
use mbqc_passes::plan::{GroupPlan, Plan, RangeRule, Recipe, ScaleRule, VERSION, site_key};
use mbqc_passes::rewrite::apply::{Accuracy, Options, Target, apply};
use mbqc_passes::rewrite::fallback::Fallback;
use mbqc_passes::run::{Feeds, Runner, Walk};

struct Case {
    about: &'static str,
    /// Head and body of a graph with tokens `x` and output `y`; constants are drawn from seeds.
    graph: &'static str,
    /// A line per group: its layers, `<-`, and what absorbs or why nothing does.
    groups: &'static [&'static str],
}

#[rustfmt::skip]
const CASES: &[Case] = &[
    Case {
        about: "norm to qkv, values to the output projection through attention, norm to gate and up, up to down",
        graph: "
<float[32] g1 = [\"seed\": \"1\"], float[32] b1 = [\"seed\": \"2\"], float[32, 32] wq = [\"seed\": \"3\"], float[32, 32] wk = [\"seed\": \"4\"],
 float[32, 32] wv = [\"seed\": \"5\"], float[32] bv = [\"seed\": \"6\"], float[32, 32] wo = [\"seed\": \"7\"], int64[4] heads = {0, 0, 4, 8}, int64[3] flat = {0, 0, -1},
 float[32] g2 = [\"seed\": \"8\"], float[32, 64] wg = [\"seed\": \"9\"], float[32, 64] wu = [\"seed\": \"10\"], float[64, 32] wd = [\"seed\": \"11\"]> {
  h = LayerNormalization <axis = -1> (x, g1, b1)
  q0 = MatMul (h, wq)  q1 = Reshape (q0, heads)  q = Transpose <perm = [0, 2, 1, 3]> (q1)
  k0 = MatMul (h, wk)  k1 = Reshape (k0, heads)  k = Transpose <perm = [0, 2, 3, 1]> (k1)
  v00 = MatMul (h, wv)  v0 = Add (bv, v00)  v1 = Reshape (v0, heads)  v = Transpose <perm = [0, 2, 1, 3]> (v1)
  qk = MatMul (q, k)  p = Softmax <axis = -1> (qk)  o3 = MatMul (p, v)
  o2 = Transpose <perm = [0, 2, 1, 3]> (o3)  o1 = Reshape (o2, flat)  o = MatMul (o1, wo)
  r = Add (x, o)
  m = LayerNormalization <axis = -1> (r, g2)
  gate = MatMul (m, wg)  up = MatMul (m, wu)  act = Sigmoid (gate)  prod = Mul (act, up)  down = MatMul (prod, wd)
  y = Add (down, r)
}",
        groups: &[
            "wq wk wv <- LayerNormalization `LayerNormalization -> h`: g1 b1",
            "wo <- linear `MatMul -> v00`: wv bv",
            "wg wu <- LayerNormalization `LayerNormalization -> m`: g2",
            "wd <- linear `MatMul -> up`: wu",
        ],
    },
    Case {
        about: "fused qkv that is split, and fused gate and up",
        graph: "
<float[32, 96] wqkv = [\"seed\": \"3\"], float[96] b = [\"seed\": \"4\"], float[32, 32] wo = [\"seed\": \"7\"], int64[4] heads = {0, 0, -1, 8}, int64[3] flat = {0, 0, 32},
 float[32, 128] wgu = [\"seed\": \"9\"], float[64, 32] wd = [\"seed\": \"11\"]> {
  qkv0 = MatMul (x, wqkv)  qkv = Add (qkv0, b)  q0, k0, v0 = Split <axis = -1, num_outputs = 3> (qkv)
  q1 = Reshape (q0, heads)  q = Transpose <perm = [0, 2, 1, 3]> (q1)
  k1 = Reshape (k0, heads)  k = Transpose <perm = [0, 2, 3, 1]> (k1)
  v1 = Reshape (v0, heads)  v = Transpose <perm = [0, 2, 1, 3]> (v1)
  qk = MatMul (q, k)  p = Softmax <axis = -1> (qk)  o3 = MatMul (p, v)
  o2 = Transpose <perm = [0, 2, 1, 3]> (o3)  o1 = Reshape (o2, flat)  o = MatMul (o1, wo)
  r = Add (x, o)
  gu = MatMul (r, wgu)  gate, up = Split <axis = 2, num_outputs = 2> (gu)
  act = Sigmoid (gate)  silu = Mul (act, gate)  prod = Mul (silu, up)  down = MatMul (prod, wd)
  y = Add (down, r)
}",
        groups: &[
            "wqkv <- declined: `x` is also read by Add `Add -> r`",
            "wo <- linear `MatMul -> qkv0`: wqkv[64+32] b[64+32]",
            "wgu <- declined: `r` is also read by Add `Add -> y`",
            "wd <- linear `MatMul -> gu`: wgu[64+64]",
        ],
    },
    Case {
        about: "fused qkv as timm writes it: three axes, turned, taken one by one",
        graph: "
<float[32, 96] wqkv = [\"seed\": \"3\"], float[32, 32] wo = [\"seed\": \"7\"], int64[5] three = {1, -1, 3, 4, 8}, int64[3] flat = {1, -1, 32},
 int64 zero = {0}, int64 one = {1}, int64 two = {2}> {
  qkv = MatMul (x, wqkv)  a = Reshape (qkv, three)  all = Transpose <perm = [2, 0, 3, 1, 4]> (a)
  q = Gather <axis = 0> (all, zero)  k0 = Gather <axis = 0> (all, one)  v = Gather <axis = 0> (all, two)
  k = Transpose <perm = [0, 1, 3, 2]> (k0)
  qk = MatMul (q, k)  p = Softmax <axis = -1> (qk)  o3 = MatMul (p, v)
  o2 = Transpose <perm = [0, 2, 1, 3]> (o3)  o1 = Reshape (o2, flat)  o = MatMul (o1, wo)
  y = Add (o, x)
}",
        groups: &["wqkv <- declined: `x` is also read by Add `Add -> y`", "wo <- linear `MatMul -> qkv`: wqkv[64+32]"],
    },
    Case {
        about: "a slice of the values is read elsewhere, too",
        graph: "
<float[32, 96] w = [\"seed\": \"3\"], float[32, 32] wo = [\"seed\": \"7\"], int64[1] s = {64}, int64[1] e = {96}, int64[1] ax = {2}, int64[1] s2 = {40}, int64[1] e2 = {72}> {
  qkv = MatMul (x, w)  v = Slice (qkv, s, e, ax)  other = Slice (qkv, s2, e2, ax)
  o = MatMul (v, wo)  t = Tanh (other)
  y = Add (o, t)
}",
        groups: &["w <- declined: `x` is an input or a constant", "wo <- declined: `qkv` is also read by Slice `Slice -> other`"],
    },
    Case {
        about: "grouped queries: one value head serves two",
        graph: "
<float[32, 16] wv = [\"seed\": \"3\"], float[32, 32] wo = [\"seed\": \"7\"], int64[5] heads = {0, 0, 2, 1, 8}, int64[5] twice = {1, 1, 1, 2, 1}, int64[3] flat = {0, 0, 32}> {
  v0 = MatMul (x, wv)  v1 = Reshape (v0, heads)  v2 = Expand (v1, twice)  v = Reshape (v2, flat)
  o = MatMul (v, wo)
  y = Add (o, x)
}",
        groups: &["wv <- declined: `x` is also read by Add `Add -> y`", "wo <- declined: Expand `Expand -> v2` cannot absorb a scale per channel"],
    },
    Case {
        about: "ReLU passes a positive factor, a sigmoid does not",
        graph: "
<float[32, 64] w1 = [\"seed\": \"3\"], float[64] b1 = [\"seed\": \"4\"], float[64, 64] w2 = [\"seed\": \"5\"], float[64, 32] w3 = [\"seed\": \"7\"]> {
  a = Gemm <transB = 0> (x2, w1, b1)  r = Relu (a)  b = MatMul (r, w2)  s = Sigmoid (b)  y = MatMul (s, w3)
}",
        groups: &[
            "w1 <- declined: `x2` is an input or a constant",
            "w2 <- linear `Gemm -> a`: w1 b1",
            "w3 <- declined: Sigmoid `Sigmoid -> s` cannot absorb a scale per channel",
        ],
    },
    Case {
        about: "Gemm adds the value that it multiplies",
        graph: "
<float[32] g = [\"seed\": \"1\"], float[32, 32] w = [\"seed\": \"3\"]> {
  h = Mul (x2, g)  a = Gemm (h, w, h)  y = Add (a, x2)
}",
        groups: &["w <- declined: `h` is also read by Gemm `Gemm -> a`"],
    },
    Case {
        about: "the third input of a Gemm is read by somebody else, too",
        graph: "
<float[32, 32] wu = [\"seed\": \"1\"], float[32] c = [\"seed\": \"2\"], float[32, 32] wd = [\"seed\": \"3\"]> {
  u = Gemm (x2, wu, c)  d = MatMul (u, wd)  o = Add (x2, c)  y = Add (d, o)
}",
        groups: &["wu <- declined: `x2` is also read by Add `Add -> o`", "wd <- linear `Gemm -> u`: wu c"],
    },
    Case {
        about: "the third input of a Gemm is scaled and shown by a Constant node",
        graph: "
<float[32, 4] wu = [\"seed\": \"1\"], float[4, 32] wd = [\"seed\": \"3\"]> {
  c = Constant <value = float[4] {9, -7, 5, 8}> ()
  u = Gemm <beta = 0.5> (x2, wu, c)  y = MatMul (u, wd)
}",
        groups: &["wu <- declined: `x2` is an input or a constant", "wd <- linear `Gemm -> u`: wu c"],
    },
    Case {
        about: "a norm whose gain and bias are one constant",
        graph: "
<float[32] g = [\"seed\": \"1\"], float[32, 32] w = [\"seed\": \"3\"]> {
  n = LayerNormalization <axis = -1> (x, g, g)  y = MatMul (n, w)
}",
        groups: &["w <- LayerNormalization `LayerNormalization -> n`: g g"],
    },
    Case {
        about: "casts to whole numbers are no views",
        graph: "
<float forty = {40}, float[32] g = [\"seed\": \"1\"], float[32] h = [\"seed\": \"2\"], float[32, 32] w = [\"seed\": \"3\"], float[32, 32] v = [\"seed\": \"4\"]> {
  large = Mul (x, forty)  n = Mul (large, g)  i = Cast <to = 7> (n)  f = Cast <to = 1> (i)  a = MatMul (f, w)
  m = Mul (large, h)  b = MatMul (m, v)  j = Cast <to = 7> (m)  k = Cast <to = 1> (j)
  o = Add (a, b)  y = Add (o, k)
}",
        groups: &[
            "w <- declined: Cast `Cast -> i` cannot absorb a scale per channel",
            "v <- declined: `m` is also read by Cast `Cast -> j`",
        ],
    },
    Case {
        about: "tokens along the last axis",
        graph: "
<float[32] g = [\"seed\": \"1\"], float[32, 32] w = [\"seed\": \"3\"], float[32, 32] v = [\"seed\": \"4\"]> {
  h = Mul (x32, g)  a = MatMul (w, h)
  i = Mul (x32, g)  b = Gemm <transA = 1> (i, v)
  y = Add (a, b)
}",
        groups: &[
            "w <- declined: `MatMul -> a` reads its activation with tokens along the last axis",
            "v <- declined: `Gemm -> b` reads its activation with tokens along the last axis",
        ],
    },
    Case {
        about: "one weight, read in two ways, behind a Cast, and as it is",
        graph: "
<float[32] g1 = [\"seed\": \"1\"], float[32] g2 = [\"seed\": \"2\"], float[32, 32] w = [\"seed\": \"3\"], float16[32, 32] h16 = [\"seed\": \"4\"], float[32] g3 = [\"seed\": \"5\"], float[32] g4 = [\"seed\": \"6\"]> {
  a = Mul (x2, g1)  b = Mul (x2, g2)  wt = Transpose <perm = [1, 0]> (w)
  c = MatMul (a, w)  d = MatMul (b, wt)  e = Gemm <alpha = 0.5> (a, w)
  h = Cast <to = 1> (h16)  i = Mul (x2, g3)  j = Mul (x2, g4)  k = MatMul (i, h)  l = MatMul (j, h)
  m = Add (c, d)  n = Add (k, l)  o = Add (m, n)  y = Add (e, o)
}",
        groups: &[
            "w w <- declined: weight `w` is shared with another layer",
            "w <- declined: weight `w` is shared with another layer",
            "h16 <- declined: weight `h16` is shared with another layer",
            "h16 <- declined: weight `h16` is shared with another layer",
        ],
    },
    Case {
        about: "the rows of a weight that two layers see through one Transpose",
        graph: "
<float[32, 32] wt = [\"seed\": \"1\"], float[32, 32] wd = [\"seed\": \"2\"]> {
  w = Transpose <perm = [1, 0]> (wt)  u = MatMul (x2, w)  d = MatMul (u, wd)  t = Tanh (d)  q = MatMul (t, w)  y = Add (q, d)
}",
        groups: &[
            "wt <- declined: weight `wt` is shared with another layer",
            "wd <- declined: weight `wt` of `MatMul -> u` is shared with another node",
            "wt <- declined: weight `wt` is shared with another layer",
        ],
    },
    Case {
        about: "a head that shares its table with an embedding has columns of its own",
        graph: "
<float[32] g = [\"seed\": \"1\"], float[64, 32] table = [\"seed\": \"3\"], int64[1, 6] ids = {1, 2, 3, 4, 5, 6}> {
  e = Gather (table, ids)  s = Add (e, x)  h = Mul (s, g)  t = Transpose <perm = [1, 0]> (table)  y = MatMul (h, t)
}",
        groups: &["table <- Mul `Mul -> h`: g"],
    },
    Case {
        about: "two norms with one gain",
        graph: "
<float[32] g = [\"seed\": \"1\"], float[32, 32] w = [\"seed\": \"3\"], float[32, 32] v = [\"seed\": \"4\"]> {
  a = LayerNormalization <axis = -1> (x, g)  b = MatMul (a, w)  c = Add (b, x)  d = LayerNormalization <axis = -1> (c, g)  e = MatMul (d, v)  y = Add (e, c)
}",
        groups: &["w <- LayerNormalization `LayerNormalization -> a`: g", "v <- LayerNormalization `LayerNormalization -> d`: g"],
    },
    Case {
        about: "operators of other domains are not what their names say",
        graph: "
<float[32] g = [\"seed\": \"1\"], float[32, 32] w = [\"seed\": \"3\"]> {
  h = Mul (x2, g)  i = Identity (h)  y = MatMul (i, w)  z = acme.Mul (y, g)
}",
        groups: &["w <- Mul `Mul -> h`: g"],
    },
];

fn model(case: &Case) -> Model {
    let tokens = "float[1, 6, 32] x, float[5, 32] x2, float[32, 32] x32";
    let source =
        format!("<ir_version: 8, opset_import: [\"\": 18, \"acme\": 1]>\nmain ({tokens}) => (y)\n{}\n", case.graph);
    text::parse(&source).unwrap_or_else(|error| panic!("{}: {error}", case.about))
}

fn found(model: &Model, survey: &Survey) -> Vec<Group> {
    groups(&model.graph, survey, model.graph.outputs()).expect("the graph is lawful")
}

fn line(model: &Model, survey: &Survey, group: &Group) -> String {
    let sites: Vec<&str> = group.sites.iter().map(|&s| survey.sites[s].weight.name.as_str()).collect();
    let how = match &group.fold {
        Err(declined) => format!("declined: {}", declined.reason),
        Ok(fold) => {
            let each = fold.divided.iter().map(|d| {
                let first = d.channels[0];
                assert!(d.channels.iter().copied().eq(first..first + d.channels.len()), "{:?}", d.channels);
                assert!(model.graph.node(d.node).input(d.slot).is_some(), "{}", d.constant);
                let whole = d.channels.len() == d.entries;
                d.constant.clone() + &if whole { String::new() } else { format!("[{first}+{}]", d.channels.len()) }
            });
            format!("{}: {}", fold.producer, each.collect::<Vec<_>>().join(" "))
        }
    };
    format!("{} <- {how}", sites.join(" "))
}

#[test]
fn producers_and_reasons() {
    for case in CASES {
        let model = model(case);
        let survey = survey(&model).expect("the graph is lawful");
        let lines: Vec<String> = found(&model, &survey).iter().map(|group| line(&model, &survey, group)).collect();
        assert_eq!(lines, case.groups, "{}", case.about);
    }
}

/// Numbers in (0, 1) that look random (splitmix64).
fn uniform(seed: u64, len: usize) -> Vec<f32> {
    let one = |i: u64| {
        let mut z = (seed << 32).wrapping_add(i).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f32 / (1u64 << 24) as f32
    };
    (0..len as u64).map(one).collect()
}

fn run(model: &Model) -> Vec<f64> {
    let graph = &model.graph;
    let walk = Walk::new(Pool::single(), Compute::F32);
    let wanted = [graph.find("y").expect("y is there")];
    let mut feeds = Feeds::new();
    for (i, &input) in graph.inputs().iter().enumerate() {
        let Some(Type::Tensor(_, Some(dims))) = &graph.value(input).ty else { panic!("declared above") };
        let dims: Vec<usize> = dims.iter().map(|d| if let Dim::Size(size) = d { *size } else { 1 }).collect();
        let len = dims.iter().product();
        feeds
            .insert(input, Array::f32(dims, uniform(100 + i as u64, len).into_iter().map(|v| 2.0 * v - 1.0).collect()));
    }
    let segment = walk.prepare(model, graph.inputs(), &wanted).expect("prepares");
    walk.run(model, &segment, feeds, None).expect("runs").remove(0).to_f64s()
}

fn recipe(model: &Model, site: &Site, format: &str, group: Option<usize>) -> Recipe {
    Recipe {
        site: site_key(model, site),
        name: site.name.clone(),
        weight: site.weight.name.clone(),
        n: site.n,
        k: site.k,
        format: format.to_owned(),
        range: RangeRule::IncludeZero,
        scales: ScaleRule::Stored,
        group,
    }
}

fn plan(recipes: Vec<Recipe>, groups: Vec<GroupPlan>) -> Plan {
    Plan {
        version: VERSION,
        method: "test".to_owned(),
        source: String::new(),
        calibration: None,
        settings: serde_json::Value::Null,
        recipes,
        groups,
        skipped: Vec::new(),
    }
}

/// Applies all folds, and a `Mul` where there is none, with scales from a half to two, in 8 bits, and looks for a difference that rounding does not explain.
///
/// `spoil` may change the plan before.
fn error(model: &Model, quantized: impl Fn(&str) -> bool, spoil: impl FnOnce(&mut Plan)) -> f64 {
    let survey = survey(model).expect("the graph is lawful");
    let groups = found(model, &survey);
    let sites = survey.sites.iter().enumerate().filter(|(_, site)| quantized(&site.weight.name));
    let group_of = |index: usize| groups.iter().position(|g| g.sites.contains(&index));
    let mut plan = plan(
        sites.map(|(index, site)| recipe(model, site, "w8g16", group_of(index))).collect(),
        groups.iter().map(|group| group_plan(&model.graph, &survey, group, None)).collect(),
    );
    for (i, (entry, group)) in plan.groups.iter_mut().zip(&groups).enumerate() {
        let all = group.sites.iter().all(|&s| quantized(&survey.sites[s].weight.name));
        entry.mul = group.fold.as_ref().is_err_and(|declined| declined.mul);
        if entry.mul || (group.fold.is_ok() && all) {
            entry.scale = uniform(i as u64, group.k).into_iter().map(|u| 2f32.powf(2.0 * u - 1.0)).collect();
        }
    }
    spoil(&mut plan);
    let options = Options { target: Target::Mbqc, fallback: Fallback::Ort, accuracy: Accuracy::Exact };
    let applied = apply(model, &survey, &plan, &options, &Arc::new(Pool::single())).expect("applies");
    verify::verify(&applied).expect("the result is lawful");
    let (before, after) = (run(model), run(&applied));
    let difference: f64 = before.iter().zip(&after).map(|(a, b)| (a - b).powi(2)).sum();
    (difference / before.iter().map(|a| a * a).sum::<f64>()).sqrt()
}

/// What rounding to 8 bits may change more when scales spread the weights, and what a missing divisor changes at least: a multiple
/// of what rounding changes by itself.
const MORE: f64 = 4.0;

/// The change by rounding alone.
fn rounding(model: &Model, quantized: impl Fn(&str) -> bool) -> f64 {
    error(model, quantized, |plan| plan.groups.iter_mut().for_each(|group| group.scale.clear()))
}

#[test]
fn folded_graphs_compute_the_same() {
    for case in CASES {
        let model = model(case);
        let (plain, all) = (rounding(&model, |_| true), error(&model, |_| true, |_| ()));
        assert!(plain < 0.02, "{}: off by {plain} without scales", case.about);
        assert!(all < MORE * plain, "{}: off by {all}, without scales by {plain}", case.about);
        // Producers that stay float take their divisors as they are stored.
        for kept in ["wv", "wu", "wqkv", "wgu", "w1"].iter().filter(|name| case.graph.contains(&format!("{name} ="))) {
            let plain = rounding(&model, |name| name != *kept);
            let some = error(&model, |name| name != *kept, |_| ());
            assert!(some < MORE * plain, "{}, {kept} in float: off by {some}, without scales by {plain}", case.about);
        }
    }
}

#[test]
fn a_fold_that_forgets_a_constant_is_seen() {
    let (mut tried, mut multiplied) = (0, 0);
    for case in CASES {
        let model = model(case);
        let plain = rounding(&model, |_| true);
        let groups = found(&model, &survey(&model).expect("the graph is lawful"));
        for (index, group) in groups.iter().enumerate() {
            if group.fold.as_ref().is_err_and(|declined| declined.mul) {
                let off = error(&model, |_| true, |plan| plan.groups[index].mul = false);
                assert!(off > MORE * plain, "{}: without the Mul of group {index}: {off}, {plain}", case.about);
                multiplied += 1;
            }
            for forgotten in 0..group.fold.as_ref().map_or(0, |fold| fold.divided.len()) {
                let off = error(&model, |_| true, |plan| drop(plan.groups[index].divided.remove(forgotten)));
                assert!(off > MORE * plain, "{}: divisor {forgotten} of group {index}: {off}, {plain}", case.about);
                tried += 1;
            }
        }
    }
    assert!(tried > 10 && multiplied > 10, "{tried}, {multiplied}");
}

/// The producer's weight is the attribute of a `Constant` node and stays float.
#[test]
fn constant_nodes_are_divided() {
    let model = text::parse(
        "<ir_version: 8, opset_import: [\"\": 18]>\nmain (float[5, 2] x) => (y)\n<float[3, 4] down = [\"seed\": \"1\"]> {
  up = Constant <value = float[2, 3] {1, 2, 3, 4, 5, 6}> ()  u = MatMul (x, up)  y = MatMul (u, down)
}",
    )
    .expect("parses");
    let off = error(&model, |name| name == "down", |_| ());
    assert!(off < 0.02, "off by {off}");
    let without = error(&model, |name| name == "down", |plan| plan.groups.iter_mut().for_each(|g| g.divided.clear()));
    assert!(without > 0.1, "the scales do nothing: {without}");
}

#[test]
fn what_is_left_can_be_compiled_later() {
    let model = model(&CASES[0]);
    let options = Options { target: Target::Mbqc, fallback: Fallback::Ort, accuracy: Accuracy::Exact };
    let quantize = |model: &Model, which: &dyn Fn(&str) -> bool| {
        let survey = survey(model).expect("the graph is lawful");
        let sites = survey.sites.iter().filter(|site| which(&site.weight.name));
        let recipes = sites.map(|site| recipe(model, site, "w3g16", None)).collect();
        apply(model, &survey, &plan(recipes, Vec::new()), &options, &Arc::new(Pool::single())).expect("applies")
    };
    let once = quantize(&model, &|_| true);
    let twice = quantize(&quantize(&model, &|name| name < "wm"), &|_| true);
    assert_eq!(twice.functions.len(), 1);
    assert_eq!(run(&once), run(&twice));
}

#[test]
fn impossible_plans_are_refused() {
    let model = model(&CASES[0]);
    let survey = survey(&model).expect("the graph is lawful");
    let options = Options { target: Target::Mbqc, fallback: Fallback::Ort, accuracy: Accuracy::Exact };
    let refused = |change: &dyn Fn(&mut Plan)| {
        let groups = found(&model, &survey);
        let mut plan = plan(
            survey.sites.iter().map(|site| recipe(&model, site, "w4g16", Some(0))).take(1).collect(),
            groups.iter().map(|group| group_plan(&model.graph, &survey, group, None)).collect(),
        );
        plan.groups[0].scale = vec![2.0; 32];
        change(&mut plan);
        apply(&model, &survey, &plan, &options, &Arc::new(Pool::single())).expect_err("refused").to_string()
    };
    for (change, said) in [
        (&(|p: &mut Plan| p.groups[0].scale[3] = 0.0) as &dyn Fn(&mut Plan), "has a scale of 0"),
        (&|p: &mut Plan| p.groups[0].scale[3] = f32::NAN, "has a scale of NaN"),
        (&|p: &mut Plan| p.groups[0].scale.truncate(31), "31"),
        (&|p: &mut Plan| p.groups[0].divided[0].runs = vec![[1, 32]], "along its axis"),
        (&|p: &mut Plan| p.groups[0].divided[0].axis = 7, "an axis 7"),
        (&|p: &mut Plan| p.groups[0].divided[0].reader = "nowhere".to_owned(), "nowhere"),
        (&|p: &mut Plan| p.groups[0].divided[0].constant = "nothing".to_owned(), "nothing"),
        (&|p: &mut Plan| p.recipes.push(p.recipes[0].clone()), "occurs twice"),
        (&|p: &mut Plan| p.recipes[0].group = Some(99), "group 99"),
        (&|p: &mut Plan| p.recipes[0].format = "w5g16".to_owned(), "w5g16"),
    ] {
        let message = refused(change);
        assert!(message.contains(said), "{message}");
    }
}
