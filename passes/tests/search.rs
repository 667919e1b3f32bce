//! The driver on small models: what is searched, on what, and what is said of the rest.

use std::cell::Cell;
use std::sync::{Arc, Mutex};

use mbqc_kernels::Pool;
use mbqc_passes::array::{Array, Compute};
use mbqc_passes::facts::modality::Class;
use mbqc_passes::facts::sites::survey;
use mbqc_passes::ir::{Model, ValueId, text};
use mbqc_passes::method::driver::{Chosen, Error, Request};
use mbqc_passes::method::{self, CalibrationSample, Method, Prepared, RhoScheme, Round, Samples, decide};
use mbqc_passes::plan::{GroupPlan, Plan};
use mbqc_passes::rewrite::apply::{Accuracy, Options, Target, apply};
use mbqc_passes::rewrite::fallback::Fallback;
use mbqc_passes::run::{Feeds, Observer, RunError, Runner, Segment, Walk};

const TOKENS: usize = 12;

/// A layer whose input `h0` is a frontier, an MLP, a mean over tokens by which vision rows reach answer rows, a head.
const MODEL: &str = r#"
<ir_version: 10, opset_import: ["" : 20]>
main (float16[1,T,32] x) => (float16[1,T,80] logits)
<
  float16[32,32] w0 = ["seed": "1", "scale": "0.3"],
  float16[32,32] w1 = ["seed": "2", "scale": "0.3"],
  float16[32] gain = ["seed": "3"],
  float16[32] bias = ["seed": "4"],
  float16[32,64] w_up = ["seed": "5", "scale": "0.3"],
  float16[64,32] w_down = ["seed": "6", "scale": "0.3"],
  float16[32,80] w_head = ["seed": "7"],
  int64[1] axes = {1}
>
{
  h0 = MatMul(x, w0)
  y0 = MatMul(h0, w1)
  h1 = Add(x, y0)
  normed = LayerNormalization <axis: int = -1> (h1, gain, bias)
  up = MatMul(normed, w_up)
  act = Relu(up)
  down = MatMul(act, w_down)
  h2 = Add(h1, down)
  mean = ReduceMean <keepdims: int = 1> (h2, axes)
  h3 = Add(h2, mean)
  logits = MatMul(h3, w_head)
}
"#;

/// Samples of made-up activations: vision rows, prompt rows, answer rows.
struct Made {
    input: ValueId,
    count: usize,
    labels: Vec<i64>,
    classes: Vec<Class>,
}

impl Made {
    fn new(model: &Model) -> Made {
        let mut labels = vec![-100; TOKENS];
        labels[9..].copy_from_slice(&[3, 7, 11]);
        let class = |t: usize| match t {
            0..6 => Class::Vision,
            8..11 => Class::Answer,
            _ => Class::Prompt,
        };
        let input = model.graph.find("x").expect("an input");
        Made { input, count: 5, labels, classes: (0..TOKENS).map(class).collect() }
    }
}

impl Samples for Made {
    fn len(&self) -> usize {
        self.count
    }

    fn sample(&self, index: usize) -> Result<CalibrationSample, String> {
        // Channels of different sizes, so that exponents matter.
        let at = |i: usize| {
            let bits = (i as u64 + 1 + 10_000 * index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
            (bits as f32 / (1 << 23) as f32 - 1.0) * (1.0 + (i % 32 % 7) as f32)
        };
        let x = Array::f32([1, TOKENS, 32], (0..TOKENS * 32).map(at).collect());
        Ok(CalibrationSample {
            name: format!("{index}"),
            feeds: Feeds::from([(self.input, x)]),
            classes: self.classes.clone(),
            labels: self.labels.clone(),
        })
    }
}

/// A runner that counts what it is asked.
struct Spy {
    walk: Walk,
    logits: ValueId,
    /// Times the logits were wanted of a run, and the most constant bytes a prepared part held.
    seen: Mutex<(usize, usize)>,
}

impl Runner for Spy {
    fn prepare(&self, model: &Model, fed: &[ValueId], wanted: &[ValueId]) -> Result<Segment, RunError> {
        let segment = self.walk.prepare(model, fed, wanted)?;
        let mut seen = self.seen.lock().expect("no worker panicked");
        seen.1 = seen.1.max(segment.constant_bytes());
        Ok(segment)
    }

    fn run(
        &self,
        model: &Model,
        segment: &Segment,
        feeds: Feeds,
        observe: Option<&mut Observer<'_>>,
    ) -> Result<Vec<Array>, RunError> {
        if segment.wanted().contains(&self.logits) {
            self.seen.lock().expect("no worker panicked").0 += 1;
        }
        self.walk.run(model, segment, feeds, observe)
    }

    fn pool(&self) -> &Pool {
        self.walk.pool()
    }

    fn compute(&self) -> Compute {
        self.walk.compute()
    }
}

struct Job<'a> {
    model: &'a Model,
    method: Method,
    format: &'static str,
    threads: usize,
    held_bytes: usize,
}

/// What a job answered: the plan, last progress of the search, times the logits were computed, largest prepared part.
struct Ran {
    prepared: Prepared,
    search: (usize, usize),
    logits: usize,
    largest: usize,
}

impl<'a> Job<'a> {
    fn new(model: &'a Model, method: &str) -> Job<'a> {
        let method = method::find(method).expect("a method").clone();
        Job { model, method, format: "w3g16", threads: 2, held_bytes: usize::MAX }
    }

    fn run(&self, samples: &Made) -> Result<Ran, Error> {
        let logits = self.model.graph.find("logits").expect("logits");
        let walk = Walk::new(Pool::new(self.threads), Compute::F32);
        let spy = Spy { walk, logits, seen: Mutex::new((0, 0)) };
        let survey = survey(self.model)?;
        let spec = self.format.parse().expect("a format");
        let sites = survey.sites.iter().enumerate().filter(|(_, site)| !site.head);
        let chosen = sites.map(|(site, _)| Chosen { site, spec }).collect();
        let search = Cell::new((0, 0));
        let progress = |stage: &str, done: usize, total: usize| {
            if stage == "search" {
                search.set((done, total));
            }
            assert!(done <= total, "{stage}: {done} of {total}");
        };
        let prepared = decide(&Request {
            model: self.model,
            survey: &survey,
            chosen,
            skipped: Vec::new(),
            method: &self.method,
            logits,
            runner: &spy,
            samples: Some(samples),
            gradient_samples: usize::MAX,
            search_samples: usize::MAX,
            held_bytes: self.held_bytes,
            progress: &progress,
        })?;
        let (logits, largest) = *spy.seen.lock().expect("no worker panicked");
        Ok(Ran { prepared, search: search.get(), logits, largest })
    }
}

fn model(text: &str) -> Model {
    text::parse(text).expect("a model")
}

fn group<'a>(plan: &'a Plan, input: &str) -> &'a GroupPlan {
    plan.groups.iter().find(|group| group.input == input).unwrap_or_else(|| panic!("no group reads {input}"))
}

fn json(plan: &Plan) -> String {
    serde_json::to_string(plan).expect("a plan is JSON")
}

#[test]
fn each_group_is_searched_once_and_nothing_behind_the_last() {
    let model = model(MODEL);
    let ran = Job::new(&model, "awq").run(&Made::new(&model)).expect("a plan");
    let plan = &ran.prepared.plan;
    let searched: Vec<&str> = plan.groups.iter().filter(|g| g.exponent.is_some()).map(|g| g.input.as_str()).collect();
    assert_eq!(searched, ["h0", "normed", "act"], "`h0` is a frontier: it ends one piece and starts the next");
    assert_eq!(ran.search, (3, 3));
    assert!(plan.groups.iter().all(|g| g.exponent.is_some() != g.declined.is_some()));
    assert_eq!(ran.logits, 1, "the logits are computed to trace rows on one sample, and by no search");
}

#[test]
fn budget_and_threads_change_nothing() {
    let model = model(MODEL);
    let samples = Made::new(&model);
    let expected = Job::new(&model, "mbq").run(&samples).expect("a plan").prepared;
    for (threads, held_bytes) in [(1, usize::MAX), (1, 1), (2, 1), (3, 20_000), (8, 50_000)] {
        let found = Job { threads, held_bytes, ..Job::new(&model, "mbq") }.run(&samples).expect("a plan").prepared;
        assert!(json(&found.plan) == json(&expected.plan), "{threads} threads, {held_bytes} bytes: another plan");
        assert!(found.sensitivities == expected.sensitivities, "{threads} threads, {held_bytes} bytes");
    }
}

#[test]
fn no_part_holds_the_model() {
    let model = model(MODEL);
    let ran = Job::new(&model, "mbq").run(&Made::new(&model)).expect("a plan");
    let weights = 4 * (32 * 32 * 2 + 32 * 64 * 2 + 32 * 80);
    // The largest piece is the MLP, which in reverse is held as it is and transposed.
    assert!(ran.largest <= 4 * (32 * 64 * 2 * 2 + 3 * 64), "{} of {weights} bytes", ran.largest);
}

/// The mean over tokens has no rows, and so has what is computed of it.
#[test]
fn rows_that_cannot_be_told_apart_are_no_judge() {
    let mixed = "mixed = ReduceMean <keepdims: int = 1> (up, axes)\n  act = Relu(mixed)";
    let model = model(&MODEL.replace("act = Relu(up)", mixed));
    let samples = Made::new(&model);
    let plan = Job::new(&model, "mbq").run(&samples).expect("a plan").prepared.plan;
    let normed = group(&plan, "normed");
    assert_eq!(normed.declined.as_deref(), Some("the rows of `down` cannot be told apart"));
    assert_eq!((normed.exponent, normed.losses.len(), normed.scale.len()), (None, 0, 0));
    assert!(group(&plan, "h0").exponent.is_some());
    // Without weights per class there is nothing to tell apart.
    let plan = Job::new(&model, "awq").run(&samples).expect("a plan").prepared.plan;
    assert!(group(&plan, "normed").exponent.is_some());
}

#[test]
fn a_judge_that_no_weighted_row_reaches_is_none() {
    let model = model(MODEL);
    let classes = vec![Class::Prompt; TOKENS];
    let samples = Made { classes, ..Made::new(&model) };
    let plan = Job::new(&model, "mbq").run(&samples).expect("a plan").prepared.plan;
    let reason = group(&plan, "normed").declined.as_deref().expect("a reason");
    assert!(reason.starts_with("no row that counts reaches `down`"), "{reason}");
}

#[test]
fn labels_outside_of_the_vocabulary_name_the_sample() {
    let model = model(MODEL);
    let mut samples = Made::new(&model);
    samples.labels[10] = 80;
    let error = Job::new(&model, "mbq").run(&samples).err().expect("no token 80").to_string();
    assert!(error.starts_with("calibration data: sample 0: token 10: label 80 is neither -100 nor an id"), "{error}");
}

/// A gain near the largest f16 cannot absorb much; where it cannot, there is no candidate and no loss.
#[test]
fn candidates_out_of_range_are_none_and_plans_come_back() {
    let gain = format!("gain = {{{}}}", ["60000.0"; 32].join(", "));
    let edge = MODEL.replace(r#"gain = ["seed": "3"]"#, &gain);
    let model = model(&edge.replace(r#"["seed": "4"]"#, r#"["seed": "4", "scale": "65000.0"]"#));
    let plan = Job::new(&model, "awq").run(&Made::new(&model)).expect("a plan").prepared.plan;
    let losses = &group(&plan, "normed").losses;
    assert!(losses[0].is_some() && losses[19].is_none(), "{losses:?}");
    let text = json(&plan);
    assert!(text.contains("null"));
    let back: Plan = serde_json::from_str(&text).expect("the plan is read again");
    assert_eq!(group(&back, "normed").losses, *losses);
}

#[test]
fn candidates_are_judged_as_they_will_be_written() {
    let model = model(MODEL);
    let samples = Made::new(&model);
    let mut job = Job::new(&model, "mbq");
    let mut plain = Vec::new();
    for round in [Round::Nearest, Round::RangeSearch] {
        job.method.round = round;
        let plan = job.run(&samples).expect("a plan").prepared.plan;
        assert!(plan.recipes.iter().all(|recipe| recipe.range == round.rule()));
        plain.push(group(&plan, "normed").losses[0].expect("a loss"));
    }
    assert_ne!(plain[0], plain[1], "the loss at a scale of one");
}

#[test]
fn the_paper_takes_rho_at_the_layers() {
    let model = model(MODEL);
    let samples = Made::new(&model);
    let mut job = Job::new(&model, "mbq");
    let reference = job.run(&samples).expect("a plan").prepared;
    job.method.scheme = RhoScheme::Paper;
    let paper = job.run(&samples).expect("a plan").prepared;
    let at = |name: &str| paper.sensitivities.iter().find(|(n, _)| n == name).expect("measured").1.abs;
    let ratio = |name: &str| Some(at(name).vision / at(name).answer);
    assert_eq!(group(&paper.plan, "normed").rho, ratio("up"));
    assert!(group(&reference.plan, "normed").rho >= ratio("down"), "where it is judged, or the median");
    assert_ne!(group(&paper.plan, "normed").rho, group(&reference.plan, "normed").rho);
    assert_eq!(paper.sensitivities, reference.sensitivities);
}

/// The loss of a candidate that rounds activations is the error of the graph that is written with it: of the one group, judged
/// where the search judges it.
#[test]
fn candidates_with_rounded_activations_are_what_is_written() {
    let model = model(MODEL);
    let samples = Made::new(&model);
    let walk = Walk::new(Pool::single(), Compute::F32);
    let judged = |model: &Model| -> Vec<f64> {
        let (x, down) = (model.graph.find("x").expect("x"), model.graph.find("down").expect("down"));
        let segment = walk.prepare(model, &[x], &[down]).expect("a segment");
        let run = |index| {
            let CalibrationSample { mut feeds, .. } = samples.sample(index).expect("a sample");
            let feeds = Feeds::from([(x, feeds.remove(&samples.input).expect("x"))]);
            walk.run(model, &segment, feeds, None).expect("it runs")[0].to_f64s()
        };
        (0..samples.count).flat_map(run).collect()
    };
    let float = judged(&model);
    for format in ["w4a8", "w8a8"] {
        let plan = Job { format, ..Job::new(&model, "awq") }.run(&samples).expect("a plan").prepared.plan;
        let searched = group(&plan, "normed").clone();
        let step = (searched.exponent.expect("a scale") * 20.0).round() as usize;
        for (step, scale) in [(0, Vec::new()), (step, searched.scale.clone())] {
            let mut alone = plan.clone();
            alone.recipes.retain(|recipe| recipe.weight == "w_up");
            for group in &mut alone.groups {
                group.scale = if group.input == "normed" { scale.clone() } else { Vec::new() };
            }
            let options = Options { target: Target::Mbqc, fallback: Fallback::None, accuracy: Accuracy::Exact };
            let survey = survey(&model).expect("a survey");
            let written = apply(&model, &survey, &alone, &options, &Arc::new(Pool::single())).expect("it applies");
            let error: f64 = judged(&written).iter().zip(&float).map(|(a, b)| (a - b).powi(2)).sum();
            let loss = searched.losses[step].expect("a loss");
            assert!((error / loss - 1.0).abs() < 0.02, "{format}, exponent {step}/20: {loss} is told, {error} it is");
        }
        let weights_alone = Job { format: "w8g16", ..Job::new(&model, "awq") };
        let weights_alone = weights_alone.run(&samples).expect("a plan").prepared.plan;
        assert!(group(&weights_alone, "normed").losses[0] < searched.losses[0], "rounded activations add to the error");
    }
}

/// Behind a `Mul` of their own the layers round what only they read; a residual that reads the same value keeps it, and what
/// rounding it does cannot be seen from where both come together.
#[test]
fn rounded_activations_that_others_read_are_not_judged() {
    let model = model(&MODEL.replace("h2 = Add(h1, down)", "h2 = Add(normed, down)"));
    let samples = Made::new(&model);
    let declined = |format| {
        let plan = Job { format, ..Job::new(&model, "mbq") }.run(&samples).expect("a plan").prepared.plan;
        group(&plan, "normed").declined.clone()
    };
    let reason = declined("w8a8").expect("a reason");
    assert!(reason.contains("reads `normed`, too") && reason.contains("8 bits"), "{reason}");
    assert_eq!(declined("w3g16"), None);
}
