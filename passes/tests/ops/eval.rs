//! Evaluation against goldens that onnxruntime, the ONNX reference evaluator or a closed form computed.

use std::collections::BTreeMap;
use std::path::PathBuf;

use mbqc_passes::array::{Array, Compute};
use mbqc_passes::ops::SampleAttr;
use serde_json::{Value, json};

use crate::samples::{all, evaluate, inputs, is_float, key, model, numbers};

/// Sums of `f32` differ in their last bits with the order of summation, which the witness does not tell; 1e-5 of the
/// largest magnitude in the output is some hundred such bits, and far below any mistake in a formula.
const TOLERANCE: f64 = 1e-5;

const REGENERATE: &str = "write the samples with `MBQC_WRITE_SAMPLES=samples.json cargo test -p mbqc-passes --test ops \
                          eval`, then run `python tests/oracle/op_samples.py samples.json passes/tests/goldens/ops.json`";

/// A number as JSON has it: what is not finite by name.
fn number(value: f64) -> Value {
    if value.is_finite() { json!(value) } else { json!(value.to_string().to_lowercase()) }
}

fn describe(array: &Array) -> Value {
    let data: Vec<Value> = match array.to_i64s() {
        Ok(whole) => whole.into_iter().map(|v| json!(v)).collect(),
        Err(_) => numbers(array).into_iter().map(number).collect(),
    };
    json!({"dtype": array.dtype.name(), "shape": array.shape, "data": data})
}

/// All samples, as the script that makes the goldens reads them.
fn samples() -> Value {
    let mut out = serde_json::Map::new();
    for (op, sample) in all() {
        let attrs: serde_json::Map<String, Value> = sample
            .attrs
            .iter()
            .map(|(name, attr)| {
                let value = match *attr {
                    SampleAttr::Int(v) => json!({"int": v}),
                    SampleAttr::Float(v) => json!({"float": number(f64::from(v))}),
                    SampleAttr::Ints(v) => json!({"ints": v}),
                    SampleAttr::Floats(v) => json!({"floats": v}),
                    SampleAttr::Str(v) => json!({"string": v}),
                };
                ((*name).to_owned(), value)
            })
            .collect();
        let arrays = inputs(op, sample, Compute::F32);
        let row = json!({
            "op": op.name, "domain": op.domain, "opset": sample.opset, "attrs": attrs, "outputs": sample.outputs,
            "inputs": arrays.iter().map(|array| array.as_ref().map(describe)).collect::<Vec<_>>(),
        });
        assert!(out.insert(key(op, sample), row).is_none(), "two samples are called {}", key(op, sample));
    }
    Value::Object(out)
}

#[derive(serde::Deserialize)]
struct Golden {
    outputs: Vec<Expected>,
}

#[derive(serde::Deserialize)]
struct Expected {
    dtype: String,
    shape: Vec<usize>,
    data: Vec<Value>,
}

impl Expected {
    fn numbers(&self) -> Vec<f64> {
        let read = |value: &Value| match value {
            Value::Bool(b) => f64::from(u8::from(*b)),
            Value::String(name) => name.parse().expect("a float by name"),
            other => other.as_f64().expect("a number"),
        };
        self.data.iter().map(read).collect()
    }

    /// What is wrong with an output.
    fn fault(&self, found: &Array) -> Option<String> {
        if found.dtype.name() != self.dtype || found.shape != self.shape {
            let (dtype, shape) = (&self.dtype, &self.shape);
            return Some(format!("expected {dtype}{shape:?}, found {}{:?}", found.dtype, found.shape));
        }
        let (expected, found_numbers) = (self.numbers(), numbers(found));
        if expected.len() != found_numbers.len() {
            return Some(format!("expected {} elements, found {}", expected.len(), found_numbers.len()));
        }
        let largest = expected.iter().filter(|v| v.is_finite()).fold(0.0, |top: f64, v| top.max(v.abs()));
        let allowed = if is_float(found) { TOLERANCE * largest } else { 0.0 };
        let same = |e: f64, f: f64| e == f || (e.is_nan() && f.is_nan()) || (e - f).abs() <= allowed;
        let at = expected.iter().zip(&found_numbers).position(|(&e, &f)| !same(e, f))?;
        Some(format!("element {at}: expected {}, found {}", expected[at], found_numbers[at]))
    }
}

#[test]
fn samples_agree_with_their_witness() {
    let samples = samples();
    if let Some(path) = std::env::var_os("MBQC_WRITE_SAMPLES") {
        std::fs::write(path, samples.to_string()).expect("the samples can be written");
        return;
    }
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/ops.json");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}; {REGENERATE}", path.display()));
    let goldens: BTreeMap<String, Golden> = serde_json::from_str(&text).expect("goldens are as the script wrote them");
    let mut faults = Vec::new();
    let mut compared = 0;
    for (op, sample) in all() {
        let name = key(op, sample);
        let Some(golden) = goldens.get(&name) else {
            faults.push(format!("{name}: no golden; {REGENERATE}"));
            continue;
        };
        for compute in [Compute::F32, Compute::F64] {
            let mut fault = |what: String| faults.push(format!("{name} ({compute:?}): {what}"));
            match evaluate(op, sample, &model(op, sample), &inputs(op, sample, compute), compute) {
                Err(error) => fault(error.to_string()),
                Ok(outputs) if outputs.len() != golden.outputs.len() => {
                    fault(format!("expected {} outputs, found {}", golden.outputs.len(), outputs.len()));
                }
                Ok(outputs) => {
                    compared += 1;
                    for (slot, (expected, found)) in golden.outputs.iter().zip(&outputs).enumerate() {
                        if let Some(what) = expected.fault(found) {
                            fault(format!("output {slot}: {what}"));
                        }
                    }
                }
            }
        }
    }
    assert!(faults.is_empty(), "{} of {compared} evaluations:\n{}", faults.len(), faults.join("\n"));
    let stale: Vec<&String> = goldens.keys().filter(|name| samples.get(name.as_str()).is_none()).collect();
    assert!(stale.is_empty(), "goldens without a sample: {stale:?}; {REGENERATE}");
    println!("{compared} evaluations agree");
}

/// The f64 carrier serves finite differences, for which its functions must be good to far more than `f32`.
#[test]
fn double_precision_is_double() {
    // erf(0.5), tanh(0.5), 1 / (1 + exp(-0.5)) to 16 digits, from tables.
    let known =
        [("Erf", 0.520_499_877_813_046_5), ("Tanh", 0.462_117_157_260_009_8), ("Sigmoid", 0.622_459_331_201_854_6)];
    for (name, expected) in known {
        let op = mbqc_passes::ops::find("", name).expect("in the table");
        let sample = &op.samples[0];
        let x = Some(Array::f64([1], vec![0.5]));
        let found = evaluate(op, sample, &model(op, sample), &[x], Compute::F64).expect("evaluates");
        let found = numbers(&found[0])[0];
        assert!((found - expected).abs() < 1e-15, "{name}(0.5): expected {expected}, found {found}");
    }
}

/// Malformed inputs are answered with an error, never with a panic.
#[test]
fn malformed_inputs_are_refused() {
    let odd = [
        None,
        Some(Array::f32([], vec![1.0])),
        Some(Array::f32([0], vec![])),
        Some(Array::f32([7, 1, 5], vec![0.5; 35])),
        Some(Array::i64([3], vec![-9, 0, 1 << 40])),
        Some(Array::bool([2, 2], vec![true; 4])),
    ];
    let mut refused = 0;
    for (op, sample) in all() {
        let model = model(op, sample);
        let good = inputs(op, sample, Compute::F32);
        for slot in 0..good.len() {
            for bad in &odd {
                let mut given = good.clone();
                given[slot].clone_from(bad);
                let answer = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                    evaluate(op, sample, &model, &given, Compute::F32)
                }));
                match answer {
                    Ok(answer) => refused += usize::from(answer.is_err()),
                    Err(_) => panic!("{}: input {slot} given as {bad:?}", key(op, sample)),
                }
            }
        }
        let none = evaluate(op, sample, &model, &[], Compute::F32);
        assert!(none.is_err() || sample.inputs.is_empty(), "{}: no inputs at all were accepted", key(op, sample));
    }
    assert!(refused > 100, "only {refused} malformed inputs were refused");
}
