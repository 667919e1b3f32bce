//! What a graph shows about the ids it is given.

use mbqc_passes::facts::modality::Merge;
use mbqc_passes::ir::{Def, Dim, Error, Graph, Type, ValueId, walk};

/// A table that ids of a graph input are looked up in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Table {
    /// The graph input.
    pub(super) input: String,
    /// Name of the constant.
    pub(super) name: String,
    /// Its entries.
    pub(super) rows: usize,
    /// Elements of an entry.
    pub(super) width: usize,
}

/// The tables of a graph that are indexed by an input as it is given.
pub(super) fn tables(graph: &Graph) -> Vec<Table> {
    let lookups = graph.nodes().filter(|(_, node)| node.is("Gather") && node.int("axis", 0) == 0);
    let each = lookups.filter_map(|(_, node)| {
        let (table, ids) = (node.input(0)?, walk::behind_views(graph, node.input(1)?));
        if !matches!(graph.value(ids).def, Def::Input) {
            return None;
        }
        let dims = &graph.constant(table)?.dims;
        let &[rows, width] = dims.as_slice() else { return None };
        Some(Table { input: graph.name(ids).to_owned(), name: graph.name(table).to_owned(), rows, width })
    });
    each.collect()
}

/// Size of the vocabulary, where the logits declare it.
pub(super) fn vocabulary(graph: &Graph, logits: ValueId) -> Option<usize> {
    match &graph.value(logits).ty {
        Some(Type::Tensor(_, Some(dims))) => match dims.last() {
            Some(Dim::Size(size)) => Some(*size),
            _ => None,
        },
        _ => None,
    }
}

/// Values that the elements of some values reach: shapes and comparisons do not count.
fn reached(graph: &Graph, sources: &[ValueId]) -> Result<Vec<bool>, Error> {
    let mut marks = vec![false; graph.value_bound()];
    for source in sources {
        marks[source.0 as usize] = true;
    }
    for id in walk::topological(graph)? {
        let node = graph.node(id);
        let ends = ["Shape", "Size", "Equal", "Not", "NonZero", "ConstantOfShape"].iter().any(|op| node.is(op));
        if !ends && graph.reads(id).any(|value| marks[value.0 as usize]) {
            node.outputs.iter().flatten().for_each(|output| marks[output.0 as usize] = true);
        }
    }
    Ok(marks)
}

/// Graph inputs that hold pictures.
fn pictures(graph: &Graph) -> Vec<ValueId> {
    graph.find("pixel_values").into_iter().filter(|value| graph.inputs().contains(value)).collect()
}

/// The node that puts image features in front of the text by `Concat`, where one does.
pub(super) fn front_concat(graph: &Graph) -> Result<Option<String>, Error> {
    let Some(ids) = graph.find("input_ids") else { return Ok(None) };
    let (from_ids, from_pixels) = (reached(graph, &[ids])?, reached(graph, &pictures(graph))?);
    let is = |value: &ValueId, a: &[bool], b: &[bool]| a[value.0 as usize] && !b[value.0 as usize];
    let found = graph.nodes().find(|(_, node)| {
        let each = || node.inputs.iter().flatten();
        node.is("Concat")
            && each().any(|value| is(value, &from_ids, &from_pixels))
            && each().any(|value| is(value, &from_pixels, &from_ids))
    });
    Ok(found.map(|(id, _)| graph.label(id)))
}

/// The values that hold the image features before anything that depends on token ids is done with them.
pub(super) fn features(graph: &Graph, merge: &Merge) -> Result<Vec<ValueId>, Error> {
    let from_ids = walk::reached_from(graph, &[merge.ids])?;
    let from_pixels = walk::reached_from(graph, &pictures(graph))?;
    let needed = walk::ancestors_of(graph, &[merge.value]);
    let mut found = Vec::new();
    for (id, node) in graph.nodes() {
        let meets = node.outputs.iter().flatten().any(|v| needed[v.0 as usize] && from_ids[v.0 as usize]);
        let each = graph.reads(id).filter(|v| meets && from_pixels[v.0 as usize] && !from_ids[v.0 as usize]);
        found.extend(each);
    }
    found.sort();
    found.dedup();
    Ok(found)
}
