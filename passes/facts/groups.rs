//! Groups: the sites that read one value, the producer that can absorb the inverse of their equalisation scale, and
//! the value at which their error is judged.
//!
//! Everything is read from dataflow; no layer or class names are looked at.

use std::collections::HashMap;

use petgraph::algo::dominators;
use petgraph::graph::{DiGraph, NodeIndex};
use petgraph::visit::Reversed;

use crate::ir::{Def, Graph, Node, NodeId, Uses, ValueId, walk};

use super::fold::{Declined, Fold, cuts_off, fold};
use super::sites::{Site, Survey};

/// What lies on the way from a group to its judging point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A Softmax or Attention.
    Attention,
    /// Neither.
    Mlp,
}

/// Sites of the main graph that read one value.
#[derive(Clone, Debug)]
pub struct Group {
    /// Indices into [`Survey::sites`].
    pub sites: Vec<usize>,
    /// The value they read (behind views that keep the channels apart).
    pub input: ValueId,
    /// Input channels.
    pub k: usize,
    /// Which constants absorb 1/s, or why there are none.
    pub fold: Result<Fold, Declined>,
    /// Where the error is judged.
    pub judge: ValueId,
    /// Attention or MLP.
    pub kind: Kind,
}

/// Groups of the main graph, in topological order. `outputs` are the outputs that matter (logits); others, such as
/// caches, play no part in judging.
pub fn groups(graph: &Graph, survey: &Survey, outputs: &[ValueId]) -> Result<Vec<Group>, crate::ir::Error> {
    let view = View::of(graph, survey, outputs)?;
    let mut by_root: Vec<(ValueId, Vec<usize>)> = Vec::new();
    for (index, site) in survey.sites.iter().enumerate().filter(|(_, site)| site.path.is_empty()) {
        let root = view.root(site);
        match by_root.iter_mut().find(|(other, sites)| *other == root && survey.sites[sites[0]].k == site.k) {
            Some((_, sites)) => sites.push(index),
            None => by_root.push((root, vec![index])),
        }
    }
    let mut found = Vec::with_capacity(by_root.len());
    for (input, sites) in by_root {
        let (judge, kind) = view.judge(&sites, input);
        let k = survey.sites[sites[0]].k;
        let fold = fold(graph, survey, &view.uses, input, &sites);
        found.push(Group { sites, input, k, fold, judge, kind });
    }
    // Groups judged at one value are of one kind: the o projection belongs to attention although no Softmax lies
    // behind it.
    let attention: Vec<ValueId> = found.iter().filter(|g| g.kind == Kind::Attention).map(|g| g.judge).collect();
    for group in &mut found {
        if attention.contains(&group.judge) {
            group.kind = Kind::Attention;
        }
    }
    Ok(found)
}

struct View<'a> {
    graph: &'a Graph,
    survey: &'a Survey,
    uses: Uses,
    /// Site index by node.
    site_of: HashMap<NodeId, usize>,
    /// Nodes that the outputs need.
    needed: Vec<bool>,
    /// The needed nodes, with one more vertex behind all outputs.
    flow: DiGraph<Option<NodeId>, ()>,
    vertex: Vec<Option<NodeIndex>>,
    /// Dominators of the reversed graph, from the vertex behind all outputs.
    behind: dominators::Dominators<NodeIndex>,
}

/// True when nothing but constants lies behind a value.
pub fn constant_alone(graph: &Graph, value: ValueId) -> bool {
    let mut stack = vec![value];
    let mut seen = vec![false; graph.value_bound()];
    while let Some(value) = stack.pop() {
        if std::mem::replace(&mut seen[value.0 as usize], true) {
            continue;
        }
        match &graph.value(value).def {
            Def::Const(_) => {}
            Def::Input | Def::Outer => return false,
            Def::Node(producer, _) => stack.extend(graph.reads(*producer)),
        }
    }
    true
}

/// The operator of a node of the standard domain; empty for others.
fn standard(node: &Node) -> &str {
    if node.is(&node.op) { &node.op } else { "" }
}

impl<'a> View<'a> {
    fn of(graph: &'a Graph, survey: &'a Survey, outputs: &[ValueId]) -> Result<View<'a>, crate::ir::Error> {
        let values = walk::ancestors_of(graph, outputs);
        let mut needed = vec![false; graph.node_bound()];
        let mut flow = DiGraph::new();
        let mut vertex = vec![None; graph.node_bound()];
        for (id, node) in graph.nodes() {
            if node.outputs.iter().flatten().any(|v| values[v.0 as usize]) {
                needed[id.0 as usize] = true;
                vertex[id.0 as usize] = Some(flow.add_node(Some(id)));
            }
        }
        let sink = flow.add_node(None);
        for (id, node) in graph.nodes() {
            let Some(to) = vertex[id.0 as usize] else { continue };
            for (producer, _) in graph.reads(id).filter_map(|v| graph.producer(v)) {
                if let Some(from) = vertex[producer.0 as usize] {
                    flow.add_edge(from, to, ());
                }
            }
            if node.outputs.iter().flatten().any(|v| outputs.contains(v)) {
                flow.add_edge(to, sink, ());
            }
        }
        let main = survey.sites.iter().enumerate().filter(|(_, s)| s.path.is_empty());
        let site_of = main.map(|(index, site)| (site.node, index)).collect();
        let behind = dominators::simple_fast(Reversed(&flow), sink);
        Ok(View { graph, survey, uses: graph.uses(), site_of, needed, flow, vertex, behind })
    }

    /// The value behind views of the site's input, as long as the views keep the last axis.
    fn root(&self, site: &Site) -> ValueId {
        let mut value = site.x;
        while let Some((producer, _)) = self.graph.producer(value) {
            let node = self.graph.node(producer);
            let keeps_channels = match standard(node) {
                "Identity" | "Cast" | "Dropout" => !cuts_off(node),
                "Reshape" => self.last_of_shape(node.input(1)) == Some(site.k as i64),
                _ => false,
            };
            match node.input(0).filter(|_| keeps_channels) {
                Some(before) if self.last_dim_can_be(before, site.k) => value = before,
                _ => break,
            }
        }
        value
    }

    fn last_of_shape(&self, shape: Option<ValueId>) -> Option<i64> {
        let shape = shape?;
        if let Some(tensor) = self.graph.constant(shape) {
            return tensor.to_i64()?.last().copied();
        }
        // A shape that is put together from pieces: look at the last piece.
        let (producer, _) = self.graph.producer(shape)?;
        let node = self.graph.node(producer);
        match standard(node) {
            "Concat" => self.last_of_shape(node.inputs.last().copied().flatten()),
            "Constant" => match node.attr("value") {
                Some(crate::ir::Attr::Tensor(tensor)) => tensor.to_i64()?.last().copied(),
                _ => None,
            },
            _ => None,
        }
    }

    /// Whether a value's last dimension may be `k`, as far as its producer or declared type tells.
    fn last_dim_can_be(&self, value: ValueId, k: usize) -> bool {
        use crate::ir::{Dim, Type};
        if let Some(Type::Tensor(_, Some(dims))) = &self.graph.value(value).ty {
            return dims.last() == Some(&Dim::Size(k));
        }
        let Some((producer, _)) = self.graph.producer(value) else { return false };
        let node = self.graph.node(producer);
        match standard(node) {
            "LayerNormalization" | "RMSNormalization" => {
                node.input(1).and_then(|v| self.graph.constant(v)).is_some_and(|t| t.len() == k)
            }
            "Mul" | "Add" => node.inputs.iter().flatten().any(|v| self.row_constant(*v, k)),
            _ => false,
        }
    }

    fn row_constant(&self, value: ValueId, k: usize) -> bool {
        self.graph.constant(value).is_some_and(|t| t.dtype.is_float() && t.len() == k && t.dims.last() == Some(&k))
    }

    /// The judging point of a group, and what lies on the way there.
    fn judge(&self, sites: &[usize], input: ValueId) -> (ValueId, Kind) {
        let outs: Vec<ValueId> = sites.iter().map(|&s| self.survey.sites[s].out).collect();
        let reached = walk::reached_from(self.graph, &outs).unwrap_or_default();
        let mut at = match outs[..] {
            [only] => only,
            _ => match self.common_post_dominator(&outs) {
                Some(value) => value,
                None => outs[0],
            },
        };
        let mut moved = outs.len() > 1;
        loop {
            let producer = self.graph.producer(at).map(|(node, _)| node);
            let linear = producer.and_then(|node| self.linear_output(node));
            if moved && linear.is_some_and(|(_, index)| !sites.contains(&index)) {
                at = linear.map_or(at, |(out, _)| out);
                break;
            }
            if self.enters_residual(at, &reached) {
                break;
            }
            match self.common_post_dominator(&[at]) {
                Some(next) if next != at => at = next,
                _ => break,
            }
            moved = true;
        }
        (at, if self.softmax_between(input, at) { Kind::Attention } else { Kind::Mlp })
    }

    /// If `node` is a site or the bias `Add` of one: the output after the bias, and the site.
    fn linear_output(&self, node: NodeId) -> Option<(ValueId, usize)> {
        if let Some(&index) = self.site_of.get(&node) {
            return Some((self.survey.sites[index].out, index));
        }
        let found = self.survey.sites.iter().enumerate().find(|(_, s)| s.bias.as_ref().is_some_and(|b| b.node == node));
        found.filter(|(_, s)| s.path.is_empty()).map(|(index, site)| (site.out, index))
    }

    /// True when a reader of `value` adds it to something that does not come from the group (a residual connection), or
    /// puts it into such a thing (the merge of image features into token embeddings).
    fn enters_residual(&self, value: ValueId, reached: &[bool]) -> bool {
        self.uses.of(value).iter().any(|&(reader, slot)| {
            let node = self.graph.node(reader);
            // The slots that hold values of the same kind; the rest are gains, indices and conditions.
            let peers: &[usize] = match (node.domain.as_str(), node.op.as_str()) {
                ("com.microsoft", "SkipLayerNormalization" | "SkipSimplifiedLayerNormalization") => &[0, 1],
                (_, "Add") if node.is("Add") => &[0, 1],
                (_, op @ ("ScatterND" | "ScatterElements")) if node.is(op) => &[0, 2],
                (_, "Where") if node.is("Where") => &[1, 2],
                _ => return false,
            };
            self.needed[reader.0 as usize]
                && peers.contains(&slot)
                && peers
                    .iter()
                    .filter(|&&other| other != slot)
                    .filter_map(|&other| node.input(other))
                    .any(|v| !reached[v.0 as usize] && !constant_alone(self.graph, v))
        })
    }

    /// The first value through which everything from `values` to the outputs passes.
    fn common_post_dominator(&self, values: &[ValueId]) -> Option<ValueId> {
        let mut chains = values.iter().map(|&value| {
            let readers = self.uses.of(value).iter().map(|(node, _)| *node);
            let mut common: Option<Vec<NodeIndex>> = None;
            for reader in readers.filter(|node| self.needed[node.0 as usize]) {
                let vertex = self.vertex[reader.0 as usize]?;
                let chain: Vec<NodeIndex> = self.behind.dominators(vertex)?.collect();
                common = Some(match common {
                    None => chain,
                    Some(before) => before.into_iter().filter(|v| chain.contains(v)).collect(),
                });
            }
            common
        });
        let first = chains.next()??;
        let mut common = first;
        for chain in chains {
            let chain = chain?;
            common.retain(|v| chain.contains(v));
        }
        let node = self.flow[*common.first()?]?;
        self.graph.node(node).output(0)
    }

    fn softmax_between(&self, from: ValueId, to: ValueId) -> bool {
        let Ok(reached) = walk::reached_from(self.graph, &[from]) else { return false };
        let needed = walk::ancestors_of(self.graph, &[to]);
        self.graph.nodes().any(|(_, node)| {
            let attends = match node.domain.as_str() {
                "com.microsoft" => node.op.ends_with("Attention"),
                _ => node.is("Softmax") || node.is("Attention"),
            };
            attends && node.outputs.iter().flatten().any(|v| reached[v.0 as usize] && needed[v.0 as usize])
        })
    }
}
