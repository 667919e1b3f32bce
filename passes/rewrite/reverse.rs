//! Reverse mode as a graph rewrite: appends, to a copy of a graph, ordinary nodes that compute gradients.
//!
//! The rules stand in the op table ([`crate::ops::Vjp`]). The appended nodes read the forward values' shapes at run
//! time, so one backward graph serves all sequence lengths, and it can be dumped, inspected and run like any other.

use std::collections::HashMap;

use crate::ir::{Edit, Model, NodeId, ValueId, walk};
use crate::ops::{self, Vjp, VjpCall};

use super::tape::{GRAD_DOMAIN, Tape};

/// Why no gradient can be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReverseError {
    /// An operator on the way has no rule.
    #[error(
        "node `{node}` ({op}) lies between `{value}` and the loss, and has no gradient rule: {reason}; \
         exclude its branch or use a method without gradients (--method awq or rtn)"
    )]
    NoRule {
        /// Which node.
        node: String,
        /// Its operator.
        op: String,
        /// A value whose gradient was asked for and that depends on this node's gradient.
        value: String,
        /// Why.
        reason: String,
    },
    /// Nothing connects a value with the outputs.
    #[error("the loss does not depend on value `{0}`")]
    Unconnected(String),
    /// An edit broke a law.
    #[error(transparent)]
    Law(#[from] crate::ir::Error),
}

/// A model whose graph also computes gradients.
#[derive(Clone, Debug)]
pub struct Backward {
    /// The extended model. Its graph keeps all values of the original one, under the same ids.
    pub model: Model,
    /// For every value asked for, the value that is its gradient; `None` where the loss does not depend on it.
    pub gradients: Vec<Option<ValueId>>,
    /// The inputs that take the gradients of the outputs ("seeds"), in the order of the outputs given.
    pub seeds: Vec<ValueId>,
}

/// Extends `model` so that it computes, for each value of `wanted`, the gradient of `sum(output * seed)` over all
/// `outputs`. The seeds become graph inputs named `seed/<output>`.
pub fn reverse(model: &Model, outputs: &[ValueId], wanted: &[ValueId]) -> Result<Backward, ReverseError> {
    let graph = &model.graph;
    let active = walk::reached_from(graph, wanted)?;
    let mut tape = Tape::new(graph);
    let mut edits = Vec::new();
    // Gradient contributions by value; summed in the order in which readers were visited.
    let mut parts: HashMap<ValueId, Vec<String>> = HashMap::new();
    for output in outputs {
        let seed = seed_name(graph.name(*output));
        edits.push(Edit::AddInput(seed.clone(), graph.value(*output).ty.clone()));
        parts.entry(*output).or_default().push(seed);
    }
    let order = walk::topological(graph)?;
    let mut total: HashMap<ValueId, String> = HashMap::new();
    for &id in order.iter().rev() {
        let node = graph.node(id);
        let any_active = graph.reads(id).any(|v| active[v.0 as usize]);
        let mut d_outputs = Vec::with_capacity(node.outputs.len());
        for output in &node.outputs {
            d_outputs.push(match output {
                Some(v) => sum_parts(&mut tape, &mut parts, &mut total, *v),
                None => None,
            });
        }
        if !any_active || d_outputs.iter().all(Option::is_none) {
            continue;
        }
        let wants: Vec<bool> = node.inputs.iter().map(|v| v.is_some_and(|v| active[v.0 as usize])).collect();
        let grads = apply_rule(model, id, d_outputs, wants.clone(), &mut tape, wanted)?;
        for (slot, grad) in grads.into_iter().enumerate() {
            if let (Some(name), Some(Some(value)), Some(true)) = (grad, node.inputs.get(slot), wants.get(slot)) {
                parts.entry(*value).or_default().push(name);
            }
        }
    }
    let mut names = Vec::with_capacity(wanted.len());
    for value in wanted {
        names.push(sum_parts(&mut tape, &mut parts, &mut total, *value));
    }
    edits.extend(tape.finish());
    let mut extended = model.clone();
    extended.graph.apply(edits)?;
    extended.import(GRAD_DOMAIN, 1);
    let find = |name: &String| extended.graph.find(name);
    let gradients = names.iter().map(|name| name.as_ref().and_then(find)).collect();
    let seeds = outputs.iter().filter_map(|&o| find(&seed_name(graph.name(o)))).collect();
    Ok(Backward { model: extended, gradients, seeds })
}

/// Name of the graph input that takes the gradient of an output.
pub fn seed_name(output: &str) -> String {
    format!("seed/{output}")
}

fn sum_parts(
    tape: &mut Tape<'_>,
    parts: &mut HashMap<ValueId, Vec<String>>,
    total: &mut HashMap<ValueId, String>,
    value: ValueId,
) -> Option<String> {
    if let Some(name) = total.get(&value) {
        return Some(name.clone());
    }
    let mut contributions = parts.remove(&value)?.into_iter();
    let mut sum = contributions.next()?;
    for next in contributions {
        sum = tape.op("Add", &[&sum, &next]);
    }
    total.insert(value, sum.clone());
    Some(sum)
}

fn apply_rule(
    model: &Model,
    id: NodeId,
    d_outputs: Vec<Option<String>>,
    wants: Vec<bool>,
    tape: &mut Tape<'_>,
    wanted: &[ValueId],
) -> Result<Vec<Option<String>>, ReverseError> {
    let graph = &model.graph;
    let node = graph.node(id);
    let no_rule = |reason: String| ReverseError::NoRule {
        node: graph.label(id),
        op: node.qualified_op(),
        value: wanted.first().map_or_else(String::new, |&v| graph.name(v).to_owned()),
        reason,
    };
    let shadowed = model.function(&node.domain, &node.op).is_some();
    let Some(op) = ops::find(&node.domain, &node.op).filter(|_| !shadowed) else {
        return Err(no_rule("the operator is not in the op table".to_owned()));
    };
    let names = |ids: &[Option<ValueId>]| -> Vec<String> {
        ids.iter().map(|v| v.map_or_else(String::new, |v| graph.name(v).to_owned())).collect()
    };
    match op.vjp {
        Vjp::Rule(rule) => {
            let call = VjpCall {
                node,
                inputs: names(&node.inputs),
                outputs: names(&node.outputs),
                d_outputs,
                wants,
                opset: model.opset_of(&node.domain).unwrap_or(1),
            };
            rule(tape, &call).map_err(no_rule)
        }
        Vjp::Zero => Ok(vec![None; node.inputs.len()]),
        Vjp::Stop(reason) => Err(no_rule(reason.to_owned())),
        Vjp::Missing => Err(no_rule("no rule has been written for this operator".to_owned())),
    }
}
