//! What reverse-mode rules share.

use super::VjpCall;
use crate::ir::Attr;
use crate::rewrite::tape::Tape;

/// The gradients a rule answers.
pub(super) type Gradients = Result<Vec<Option<String>>, String>;

/// The gradient of output 0.
pub(super) fn gradient<'c>(call: &'c VjpCall<'_>) -> Result<&'c str, String> {
    if call.d_outputs.iter().skip(1).any(Option::is_some) {
        return Err("only its first output can be differentiated".to_owned());
    }
    call.d_outputs.first().and_then(Option::as_deref).ok_or_else(|| "its output has no gradient".to_owned())
}

/// The answer of a rule for an operator of one input.
pub(super) fn one(name: String) -> Gradients {
    Ok(vec![Some(name)])
}

/// A gradient for input 0 and none for the others.
pub(super) fn only_first(call: &VjpCall<'_>, name: String) -> Vec<Option<String>> {
    let mut all = vec![None; call.inputs.len().max(1)];
    all[0] = Some(name);
    all
}

/// Whether the gradient of an input is wanted.
pub(super) fn wanted(call: &VjpCall<'_>, slot: usize) -> bool {
    call.wants.get(slot) == Some(&true) && call.inputs.get(slot).is_some_and(|name| !name.is_empty())
}

/// The gradient (or output) of a reduction, given back the axes that the reduction dropped, so that it broadcasts
/// against the reduction's input.
pub(super) fn undo_reduction(t: &mut Tape<'_>, call: &VjpCall<'_>, name: &str) -> String {
    let node = call.node;
    if node.int("keepdims", 1) != 0 {
        return name.to_owned();
    }
    match (call.inputs.get(1), node.ints("axes")) {
        (Some(axes), _) if !axes.is_empty() => t.op("Unsqueeze", &[name, axes]),
        (_, Some(axes)) => unsqueeze(t, call, name, axes),
        // Everything was reduced to one number, which broadcasts, or nothing at all.
        _ => name.to_owned(),
    }
}

/// `name` with axes of length 1 put in, in the form that the operator set asks for.
pub(super) fn unsqueeze(t: &mut Tape<'_>, call: &VjpCall<'_>, name: &str, axes: &[i64]) -> String {
    if standard_opset(call) < 13 {
        return t.op_with("Unsqueeze", &[name], &[("axes", Attr::Ints(axes.to_vec()))]);
    }
    let axes = t.ints(axes);
    t.op("Unsqueeze", &[name, &axes])
}

/// A mean or sum (`ReduceMean`, `ReduceSum`) over axes that stay with length 1, in the form that the operator set asks
/// for.
pub(super) fn reduce(t: &mut Tape<'_>, call: &VjpCall<'_>, op: &str, name: &str, axes: &[i64]) -> String {
    let since = if op == "ReduceSum" { 13 } else { 18 };
    if standard_opset(call) < since {
        return t.op_with(op, &[name], &[("axes", Attr::Ints(axes.to_vec()))]);
    }
    let axes = t.ints(axes);
    t.op(op, &[name, &axes])
}

/// A gradient for input 0 that is `g` repeated to its shape.
pub(super) fn repeated(t: &mut Tape<'_>, call: &VjpCall<'_>, g: &str) -> Gradients {
    let shape = t.op("Shape", &[&call.inputs[0]]);
    Ok(only_first(call, t.op("Expand", &[g, &shape])))
}

/// Version of the standard operator set, in which the appended nodes are written. A node of another domain does not
/// tell; then the present forms are used, which the evaluator takes in every version.
fn standard_opset(call: &VjpCall<'_>) -> i64 {
    if matches!(call.node.domain.as_str(), "" | "ai.onnx") { call.opset } else { 18 }
}

/// A value reshaped so that the axes from `axis` on are its last, all in one; and how to undo that.
pub(super) fn flatten(t: &mut Tape<'_>, name: &str, axis: i64) -> String {
    t.op_with("Flatten", &[name], &[("axis", Attr::Int(axis))])
}

/// A flattened value in the shape of `like`.
pub(super) fn unflatten(t: &mut Tape<'_>, name: &str, like: &str) -> String {
    let shape = t.op("Shape", &[like]);
    t.op("Reshape", &[name, &shape])
}
