//! Whether a plan's scales cancel: what multiplies the weights of a group has to divide what the group reads.

use std::collections::HashMap;

use crate::facts::fold::fold;
use crate::facts::sites::Survey;
use crate::ir::Model;
use crate::plan::{DividedPlan, Plan, site_key};

use super::ApplyError;

/// Checks the groups of a plan, which may come from a file that somebody has edited: every layer that reads a group's input
/// takes its scale, and the constants that are divided are those that absorb it in this graph. Groups with a `Mul` before
/// each of their layers need no such thing.
///
/// # Errors
///
/// [`ApplyError::Misfit`] for the first group of which that is not true.
pub fn check(model: &Model, survey: &Survey, plan: &Plan) -> Result<(), ApplyError> {
    let graph = &model.graph;
    let uses = graph.uses();
    let group_of: HashMap<&str, usize> =
        plan.recipes.iter().filter_map(|r| Some((r.site.as_str(), r.group?))).collect();
    let mut members: HashMap<usize, Vec<usize>> = HashMap::new();
    for (index, site) in survey.sites.iter().enumerate() {
        if let Some(&group) = group_of.get(site_key(model, site).as_str()) {
            members.entry(group).or_default().push(index);
        }
    }
    for (index, group) in plan.groups.iter().enumerate().filter(|(_, group)| !group.scale.is_empty() && !group.mul) {
        let misfit = |found: String, expected: &str| ApplyError::Misfit {
            what: "group",
            name: group.input.clone(),
            found,
            expected: expected.to_owned(),
        };
        let input = graph
            .find(&group.input)
            .ok_or_else(|| misfit("is not in the model".to_owned(), "a value of the main graph"))?;
        let sites = members.get(&index).map_or(&[][..], Vec::as_slice);
        let found = fold(graph, survey, &uses, input, sites).map_err(|declined| {
            let expected = "that all layers that read it have a recipe with this group, or that its `scale` is empty";
            misfit(format!("has a scale whose inverse nothing absorbs: {}", declined.reason), expected)
        })?;
        let wanted: Vec<DividedPlan> = found.divided.iter().map(|divided| DividedPlan::of(graph, divided)).collect();
        if let Some(other) = group.divided.iter().find(|divided| !wanted.contains(divided)) {
            let found = format!("divides `{}` where {} reads it", other.constant, other.reader);
            return Err(misfit(found, &format!("no more and nothing else than {}", in_words(&wanted))));
        }
        if let Some(missing) = wanted.iter().find(|divided| !group.divided.contains(divided)) {
            let found = format!("does not divide `{}` where {} reads it", missing.constant, missing.reader);
            return Err(misfit(found, &in_words(&wanted)));
        }
    }
    Ok(())
}

fn in_words(divided: &[DividedPlan]) -> String {
    let each = divided.iter().map(|d| {
        let runs = if d.runs.is_empty() { String::new() } else { format!(", runs {:?}", d.runs) };
        format!("`{}` (input {} of the node that gives `{}`, axis {}{runs})", d.constant, d.slot, d.reader, d.axis)
    });
    each.collect::<Vec<_>>().join(" and ")
}
