//! Token rows: what changes with one token must belong to that token.

use mbqc_passes::array::{Array, Buf, Compute};
use mbqc_passes::ir::Model;
use mbqc_passes::ops::{Flow, FlowCall, OpDef, Rows, Sample, Space, elementwise_flow};

use crate::samples::{all, evaluate, inputs, key, model, op_key, ops};

/// What the operator says of its outputs' rows when input `slot` has rows, and no other input has.
fn answer(
    op: &OpDef,
    sample: &Sample,
    model: &Model,
    given: &[Option<Array>],
    outputs: &[Array],
    (slot, rows): (usize, Rows),
) -> Vec<Option<Rows>> {
    let (_, node) = model.graph.nodes().next().expect("the model has one node");
    let mut all_rows = vec![None; given.len()];
    all_rows[slot] = Some(rows);
    let call = FlowCall { node, inputs: given, outputs, rows: &all_rows, opset: sample.opset };
    match op.flow {
        Flow::Elementwise => elementwise_flow(&call),
        Flow::Keep => vec![all_rows[0]; outputs.len()],
        Flow::Rule(rule) => rule(&call),
        Flow::Ends => vec![None; outputs.len()],
    }
}

/// The array with the elements of one token changed: floats moved, others taken from the next token, so that indices
/// stay in their range.
fn changed(array: &Array, rows: Rows, token: usize) -> Array {
    let of = |e: usize| (e / rows.inner) % rows.len;
    let next = |e: usize| if token + 1 < rows.len { e + rows.inner } else { e - token * rows.inner };
    let buf = match &array.buf {
        Buf::F64(v) => Buf::F64(
            v.iter()
                .enumerate()
                .map(|(e, &x)| if of(e) == token { x * 0.5 + 0.37 } else { x })
                .collect::<Vec<_>>()
                .into(),
        ),
        Buf::I64(v) => {
            Buf::I64((0..v.len()).map(|e| if of(e) == token { v[next(e)] } else { v[e] }).collect::<Vec<_>>().into())
        }
        Buf::Bool(v) => Buf::Bool((0..v.len()).map(|e| v[e] ^ (of(e) == token)).collect::<Vec<_>>().into()),
        other => other.clone(),
    };
    Array { buf, ..array.clone() }
}

/// Elements that differ; `None` when the shapes do.
fn differing(before: &Array, after: &Array) -> Option<Vec<usize>> {
    if before.shape != after.shape {
        return None;
    }
    let (before, after) = (before.to_f64s(), after.to_f64s());
    Some((0..before.len()).filter(|&e| before[e].to_bits() != after[e].to_bits()).collect())
}

#[test]
fn a_token_changes_its_own_rows_only() {
    let (mut faults, mut followed, mut ended) = (Vec::new(), 0, 0);
    let mut flowing = std::collections::BTreeSet::new();
    for (op, sample) in all() {
        let model = model(op, sample);
        let given = inputs(op, sample, Compute::F64);
        let Ok(outputs) = evaluate(op, sample, &model, &given, Compute::F64) else {
            faults.push(format!("{}: does not evaluate", key(op, sample)));
            continue;
        };
        for (slot, array) in given.iter().enumerate() {
            let Some(array) = array.as_ref().filter(|array| !array.is_empty()) else { continue };
            for axis in 0..array.rank() {
                let rows = Rows::along(Space::Tokens, &array.shape, axis);
                let answers = answer(op, sample, &model, &given, &outputs, (slot, rows));
                assert_eq!(answers.len(), outputs.len(), "{}: one answer for each output", key(op, sample));
                let place = format!("{}: input {slot}, axis {axis}", key(op, sample));
                for (out, answer) in outputs.iter().zip(&answers) {
                    let Some(found) = answer else {
                        ended += 1;
                        continue;
                    };
                    flowing.insert(op_key(op));
                    let period = found.len * found.inner;
                    if found.len != rows.len || (period > 0 && out.len() % period != 0) {
                        faults.push(format!("{place}: {found:?} does not fit output {:?}", out.shape));
                    }
                }
                for token in 0..rows.len {
                    let mut moved = given.clone();
                    moved[slot] = Some(changed(array, rows, token));
                    let Ok(after) = evaluate(op, sample, &model, &moved, Compute::F64) else { continue };
                    for ((before, after), answer) in outputs.iter().zip(&after).zip(&answers) {
                        let Some(found) = answer else { continue };
                        followed += 1;
                        let belongs = |e: usize| found.inner > 0 && (e / found.inner) % found.len.max(1) == token;
                        match differing(before, after) {
                            Some(elements) => {
                                if let Some(e) = elements.iter().find(|&&e| !belongs(e)) {
                                    faults.push(format!("{place}, token {token}: element {e} changes, rows {found:?}"));
                                }
                            }
                            None => faults.push(format!("{place}, token {token}: the output's shape changes")),
                        }
                    }
                }
            }
        }
    }
    assert!(faults.is_empty(), "{} of {followed}:\n{}", faults.len(), faults.join("\n"));
    for op in ops().filter(|op| !matches!(op.flow, Flow::Ends) && !op.samples.is_empty()) {
        assert!(flowing.contains(&op_key(op)), "no sample of {} has rows that flow on", op_key(op));
    }
    println!("{followed} changes stay in their rows; {ended} times rows end");
}
