//! Orders, reachability, and what lies behind views.

use petgraph::algo::toposort;
use petgraph::graph::{DiGraph, NodeIndex};

use super::{Error, Graph, Node, NodeId, ValueId};

/// The graph as petgraph sees it: one vertex per node, one edge per value that flows.
pub fn petgraph(graph: &Graph) -> (DiGraph<NodeId, ValueId>, Vec<Option<NodeIndex>>) {
    let mut view = DiGraph::with_capacity(graph.node_count(), graph.node_count() * 2);
    let mut index = vec![None; graph.node_bound()];
    for (id, _) in graph.nodes() {
        index[id.0 as usize] = Some(view.add_node(id));
    }
    for (id, _) in graph.nodes() {
        for value in graph.reads(id) {
            if let Some((producer, _)) = graph.producer(value)
                && let (Some(from), Some(to)) = (index[producer.0 as usize], index[id.0 as usize])
            {
                view.add_edge(from, to, value);
            }
        }
    }
    (view, index)
}

/// Nodes in an order in which producers come before readers. A file order that is already such an order is kept.
pub fn topological(graph: &Graph) -> Result<Vec<NodeId>, Error> {
    let mut seen = vec![false; graph.value_bound()];
    let sorted = graph.nodes().all(|(id, node)| {
        let ready = graph.reads(id).all(|v| graph.producer(v).is_none() || seen[v.0 as usize]);
        for output in node.outputs.iter().flatten() {
            seen[output.0 as usize] = true;
        }
        ready
    });
    if sorted {
        return Ok(graph.nodes().map(|(id, _)| id).collect());
    }
    let (view, _) = petgraph(graph);
    match toposort(&view, None) {
        Ok(order) => Ok(order.into_iter().map(|index| view[index]).collect()),
        Err(cycle) => Err(Error::Cycle(graph.label(view[cycle.node_id()]))),
    }
}

/// Whether a node gives the elements of its first input in another shape or type.
fn is_view(node: &Node) -> bool {
    let views = ["Cast", "Identity", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Transpose"];
    views.iter().any(|op| node.is(op))
}

/// The value whose elements `value` shows in another shape or type; `value` itself if it is no view.
pub fn behind_views(graph: &Graph, mut value: ValueId) -> ValueId {
    while let Some((producer, _)) = graph.producer(value) {
        match graph.node(producer).input(0).filter(|_| is_view(graph.node(producer))) {
            Some(before) => value = before,
            None => break,
        }
    }
    value
}

/// Marks every value that depends on one of `sources` (which are marked too). Indexed by [`ValueId`].
pub fn reached_from(graph: &Graph, sources: &[ValueId]) -> Result<Vec<bool>, Error> {
    let mut reached = vec![false; graph.value_bound()];
    for source in sources {
        reached[source.0 as usize] = true;
    }
    for id in topological(graph)? {
        if graph.reads(id).any(|v| reached[v.0 as usize]) {
            for output in graph.node(id).outputs.iter().flatten() {
                reached[output.0 as usize] = true;
            }
        }
    }
    Ok(reached)
}

/// Marks every value that one of `sinks` depends on (they are marked too). Indexed by [`ValueId`].
pub fn ancestors_of(graph: &Graph, sinks: &[ValueId]) -> Vec<bool> {
    let mut marked = vec![false; graph.value_bound()];
    let mut stack: Vec<ValueId> = sinks.to_vec();
    while let Some(value) = stack.pop() {
        if std::mem::replace(&mut marked[value.0 as usize], true) {
            continue;
        }
        if let Some((producer, _)) = graph.producer(value) {
            stack.extend(graph.reads(producer));
        }
    }
    marked
}
