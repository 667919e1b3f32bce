//! Reverse-mode rules against central differences.

use mbqc_kernels::Pool;
use mbqc_passes::array::{Array, Buf, Compute};
use mbqc_passes::ir::ValueId;
use mbqc_passes::ops::{OpDef, Sample, Vjp};
use mbqc_passes::rewrite::reverse::reverse;
use mbqc_passes::run::{Feeds, Runner, Walk};

use crate::samples::{
    Random, UNSAMPLED, all, evaluate, input_name, inputs, is_float, key, model, numbers, op_key, ops,
};

/// Differences and rules agree to about 1e-9 where nothing is wrong, constants of rules being rounded to `f32` to about
/// 1e-7; a mistake in a formula shows in the first digits.
const TOLERANCE: f64 = 1e-4;

/// What a wrong rule is played by: the right one times this.
const WRONG: f64 = 1.005;

const STEP: f64 = 1e-6;
const DIRECTIONS: usize = 3;

/// Along one direction: the slope that differences show, and the one the rule says.
#[derive(Clone, Copy, Debug)]
struct Slopes {
    measured: f64,
    claimed: f64,
}

impl Slopes {
    fn agree(self, factor: f64) -> bool {
        let claimed = self.claimed * factor;
        // The constant stands for the rounding of differences: 1e-16 of a loss of order 10 over a step of 1e-6.
        (claimed - self.measured).abs() <= TOLERANCE * claimed.abs().max(self.measured.abs()) + 1e-8
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn loss(op: &OpDef, sample: &Sample, given: &[Option<Array>], seeds: &[Option<Array>]) -> Result<f64, String> {
    let outputs = evaluate(op, sample, &model(op, sample), given, Compute::F64).map_err(|e| e.to_string())?;
    let terms = outputs.iter().zip(seeds).filter_map(|(y, seed)| Some(dot(&numbers(y), &numbers(seed.as_ref()?))));
    Ok(terms.sum())
}

fn random_like(array: &Array, random: &mut Random) -> Array {
    let values = (0..array.len()).map(|_| random.within(-1.0, 1.0)).collect();
    Array::f64(array.shape.clone(), values).with_dtype(array.dtype)
}

/// Slopes of every checked input along every direction.
fn slopes(op: &OpDef, sample: &Sample) -> Result<Vec<(usize, Vec<Slopes>)>, String> {
    let model = model(op, sample);
    let graph = &model.graph;
    let given = inputs(op, sample, Compute::F64);
    let mut random = Random::new(&key(op, sample));
    let outputs = evaluate(op, sample, &model, &given, Compute::F64).map_err(|e| e.to_string())?;
    let seeds: Vec<Option<Array>> = outputs.iter().map(|y| is_float(y).then(|| random_like(y, &mut random))).collect();
    let seeded: Vec<ValueId> =
        graph.outputs().iter().zip(&seeds).filter(|(_, seed)| seed.is_some()).map(|(&v, _)| v).collect();
    let find = |slot: usize| graph.find(&input_name(slot)).ok_or_else(|| format!("input {slot} is absent"));
    let wanted = sample.grads.iter().map(|&slot| find(slot)).collect::<Result<Vec<_>, _>>()?;

    let backward = reverse(&model, &seeded, &wanted).map_err(|e| e.to_string())?;
    let mut feeds = Feeds::new();
    for (slot, array) in given.iter().enumerate() {
        if let Some(array) = array {
            feeds.insert(find(slot)?, array.clone());
        }
    }
    feeds.extend(backward.seeds.iter().copied().zip(seeds.iter().flatten().cloned()));
    let gradients = backward.gradients.iter().copied().collect::<Option<Vec<_>>>().ok_or("an input has no gradient")?;
    let fed: Vec<ValueId> = feeds.keys().copied().collect();
    let walk = Walk::new(Pool::new(2), Compute::F64);
    let segment = walk.prepare(&backward.model, &fed, &gradients).map_err(|e| e.to_string())?;
    let gradients = walk.run(&backward.model, &segment, feeds, None).map_err(|e| e.to_string())?;

    let mut found = Vec::new();
    for (&slot, gradient) in sample.grads.iter().zip(&gradients) {
        let Some(x) = &given[slot] else { return Err(format!("input {slot} is absent")) };
        if gradient.shape != x.shape || gradient.dtype != x.dtype {
            let (shape, dtype) = (&gradient.shape, gradient.dtype);
            return Err(format!("input {slot} is {}{:?}, its gradient {dtype}{shape:?}", x.dtype, x.shape));
        }
        let mut along = Vec::new();
        for _ in 0..DIRECTIONS {
            let direction = numbers(&random_like(x, &mut random));
            let moved = |by: f64| {
                let values = numbers(x).iter().zip(&direction).map(|(x, d)| x + by * d).collect::<Vec<f64>>();
                let mut moved = given.clone();
                moved[slot] = Some(Array { buf: Buf::F64(values.into()), ..x.clone() });
                loss(op, sample, &moved, &seeds)
            };
            let measured = (moved(STEP)? - moved(-STEP)?) / (2.0 * STEP);
            along.push(Slopes { measured, claimed: dot(&numbers(gradient), &direction) });
        }
        found.push((slot, along));
    }
    Ok(found)
}

#[test]
fn rules_agree_with_differences() {
    let (mut faults, mut checked) = (Vec::new(), 0);
    for (op, sample) in all().filter(|(_, sample)| !sample.grads.is_empty()) {
        match slopes(op, sample) {
            Err(error) => faults.push(format!("{}: {error}", key(op, sample))),
            Ok(inputs) => {
                for (slot, along) in inputs {
                    checked += 1;
                    if !along.iter().all(|slopes| slopes.agree(1.0)) {
                        faults.push(format!("{}: input {slot}: {along:?}", key(op, sample)));
                    }
                }
            }
        }
    }
    assert!(faults.is_empty(), "{} of {checked} gradients:\n{}", faults.len(), faults.join("\n"));
    println!("{checked} gradients agree");
}

/// The check above would notice a rule that is wrong by half a percent.
#[test]
fn a_wrong_rule_would_be_noticed() {
    let (mut rejected, mut rules) = (0, 0);
    for op in ops().filter(|op| matches!(op.vjp, Vjp::Rule(_))) {
        rules += 1;
        let mut seen = false;
        for sample in op.samples.iter().filter(|sample| !sample.grads.is_empty()) {
            for (slot, along) in slopes(op, sample).unwrap_or_default() {
                let flat = along.iter().all(|slopes| slopes.measured == 0.0 && slopes.claimed == 0.0);
                let noticed = along.iter().any(|slopes| !slopes.agree(WRONG));
                assert!(noticed || flat, "{}: input {slot} passes with a gradient times {WRONG}", key(op, sample));
                seen |= noticed;
                rejected += usize::from(noticed);
            }
        }
        assert!(seen, "no sample of {} would notice a wrong gradient", op_key(op));
    }
    println!("{rejected} wrong gradients of {rules} rules are rejected");
}

#[test]
fn every_rule_has_a_sample() {
    for op in ops() {
        let sampled = op.samples.iter().any(|sample| !sample.grads.is_empty());
        let has_rule = matches!(op.vjp, Vjp::Rule(_));
        assert_eq!(sampled, has_rule, "{}: samples with gradients belong to operators with a rule", op_key(op));
        let excused = UNSAMPLED.contains(&op_key(op).as_str());
        assert_eq!(excused, op.samples.is_empty(), "{}: samples, or a place in the list of those without", op_key(op));
        assert!(!op.about.is_empty(), "{} does not say what it does", op_key(op));
    }
}
