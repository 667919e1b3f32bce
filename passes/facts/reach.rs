//! Where constants end: the nodes that read them, through whatever only moves or combines constants, into subgraphs, out
//! of them, and through calls of local functions.

use std::collections::{HashMap, HashSet};

use crate::ir::{Error, Graph, Node, NodeId, Tensor, ValueId};

use super::places::Places;
use super::weight_ops::{WeightOp, is_carrier, is_column, is_matrix, is_parameter};

/// Where a constant ends.
#[derive(Clone, Debug)]
pub(super) struct End {
    /// The graph.
    pub(super) place: usize,
    /// The node that reads it; none where it is an output of the graph.
    pub(super) node: Option<NodeId>,
    /// The input slot, or the number of the output.
    pub(super) slot: usize,
    /// Operators on the way there.
    pub(super) via: Vec<String>,
    /// A Reshape on the way makes a matrix.
    pub(super) folded: bool,
    /// What it is there.
    pub(super) role: Role,
}

impl End {
    /// True when the constant is the quantized form of what is read.
    pub(super) fn is_dequantized(&self) -> bool {
        self.via.iter().any(|op| op.rsplit("::").next() == Some("DequantizeLinear"))
    }

    /// True when a constant is a weight here: a vector is one only behind a Reshape, as the bytes of a quantized weight, or as
    /// the second operand of a layer with one output channel.
    pub(super) fn is_weight(&self, tensor: &Tensor) -> bool {
        let vector_too = match self.role {
            Role::Weight(row) | Role::Called(row) => {
                row.is_quantized() || self.folded || (row.is_linear() && self.slot == 1 && is_column(tensor))
            }
            Role::Parameter | Role::Table | Role::Output => return false,
        };
        is_matrix(tensor) || vector_too
    }

    /// The operators on the way, each named once.
    pub(super) fn way(&self) -> String {
        let mut named: Vec<&str> = Vec::new();
        for op in &self.via {
            if !named.contains(&op.as_str()) {
                named.push(op);
            }
        }
        named.join(", ")
    }
}

/// What a constant is where it ends.
#[derive(Clone, Copy, Debug)]
pub(super) enum Role {
    /// A weight of the node.
    Weight(&'static WeightOp),
    /// A weight inside of the local function that the node calls.
    Called(&'static WeightOp),
    /// A scale, a zero point or the like of a quantized weight.
    Parameter,
    /// Anything else that is read.
    Table,
    /// An output of the graph.
    Output,
}

/// The walk from constants to where they end.
pub(super) struct Reach<'p, 'a> {
    places: &'p Places<'a>,
    /// Ends of inputs of function bodies. An entry is made before it is walked, so that a function that calls itself
    /// ends the walk.
    inside: HashMap<(usize, ValueId), Vec<End>>,
    /// Calls that the walk is in.
    depth: usize,
}

/// Calls of functions by functions that are followed.
const DEEPEST: usize = 64;

struct Step {
    place: usize,
    value: ValueId,
    before: Option<usize>,
    op: Option<String>,
    folded: bool,
}

/// The steps of one walk; each value is visited once.
struct Trail {
    steps: Vec<Step>,
    seen: HashSet<(usize, ValueId)>,
    ends: Vec<End>,
}

impl Trail {
    fn go(&mut self, place: usize, value: Option<ValueId>, before: usize, op: Option<&Node>) {
        if let Some(value) = value.filter(|v| self.seen.insert((place, *v))) {
            let folded = self.steps[before].folded;
            self.steps.push(Step { place, value, before: Some(before), op: op.map(Node::qualified_op), folded });
        }
    }

    fn go_all(&mut self, node: &Node, before: usize, folds: bool) {
        let first = self.steps.len();
        for &output in &node.outputs {
            self.go(self.steps[before].place, output, before, Some(node));
        }
        for step in &mut self.steps[first..] {
            step.folded |= folds;
        }
    }

    fn end(&mut self, at: usize, node: Option<NodeId>, slot: usize, role: Role) {
        let mut via = Vec::new();
        let mut step = Some(at);
        while let Some(index) = step {
            via.extend(self.steps[index].op.clone());
            step = self.steps[index].before;
        }
        via.reverse();
        let Step { place, folded, .. } = self.steps[at];
        self.ends.push(End { place, node, slot, via, folded, role });
    }
}

impl<'p, 'a> Reach<'p, 'a> {
    /// A walk over these graphs.
    pub(super) fn new(places: &'p Places<'a>) -> Reach<'p, 'a> {
        Reach { places, inside: HashMap::new(), depth: 0 }
    }

    /// Where the constant that `value` shows ends.
    pub(super) fn ends(&mut self, place: usize, value: ValueId) -> Vec<End> {
        let first = Step { place, value, before: None, op: None, folded: false };
        let mut trail = Trail { steps: vec![first], seen: HashSet::from([(place, value)]), ends: Vec::new() };
        let mut at = 0;
        while let Some(step) = trail.steps.get(at) {
            let (place, value) = (step.place, step.value);
            let here = self.places.at(place);
            for &(id, slot) in here.uses.of(value) {
                if slot == usize::MAX {
                    self.capture(place, id, here.graph.name(value), at, &mut trail);
                } else {
                    self.read(id, slot, at, &mut trail);
                }
            }
            self.leave(at, &mut trail);
            at += 1;
        }
        trail.ends
    }

    /// Into the subgraphs of a node that read a value of this name from around.
    fn capture(&self, place: usize, id: NodeId, name: &str, at: usize, trail: &mut Trail) {
        for &(_, inner) in self.places.at(place).inner.iter().filter(|(holder, _)| *holder == id) {
            let graph = self.places.at(inner).graph;
            match graph.find(name) {
                Some(value) => trail.go(inner, Some(value), at, None),
                None => {
                    for (deeper, _) in graph.nodes() {
                        self.capture(inner, deeper, name, at, trail);
                    }
                }
            }
        }
    }

    /// What the node does with the value in this slot.
    fn read(&mut self, id: NodeId, slot: usize, at: usize, trail: &mut Trail) {
        let Step { place, value, .. } = trail.steps[at];
        let here = self.places.at(place);
        let node = here.graph.node(id);
        if is_parameter(node, slot) {
            return trail.end(at, Some(id), slot, Role::Parameter);
        }
        if node.is("Shape") || node.is("Size") {
            return;
        }
        if here.makes_constants(node) {
            return trail.go_all(node, at, self.places.makes_matrix(place, node));
        }
        if let Some(body) = self.places.called(node) {
            return self.call(body, id, slot, at, trail);
        }
        if let Some(row) = WeightOp::of(node).filter(|row| row.slots.contains(&slot)) {
            let other = node.input(1 - slot.min(1));
            let by_weight = row.is_linear() && other.is_some_and(|v| here.is_constant(v));
            let role = if by_weight && !here.is_constant(value) { Role::Table } else { Role::Weight(row) };
            return trail.end(at, Some(id), slot, role);
        }
        if slot == 0 && is_carrier(node) {
            return trail.go_all(node, at, self.places.makes_matrix(place, node));
        }
        let body = here.inner.iter().find(|(holder, _)| *holder == id).map(|(_, inner)| *inner);
        let carried = body.filter(|_| node.is("Scan") || node.is("Loop") && slot > 1);
        match carried.and_then(|body| Some((body, *self.places.at(body).graph.inputs().get(slot)?))) {
            Some((body, input)) => trail.go(body, Some(input), at, Some(node)),
            None => trail.end(at, Some(id), slot, Role::Table),
        }
    }

    /// Through a call of a local function.
    fn call(&mut self, body: usize, id: NodeId, slot: usize, at: usize, trail: &mut Trail) {
        let Some(&input) = self.places.at(body).graph.inputs().get(slot) else {
            return trail.end(at, Some(id), slot, Role::Table);
        };
        let key = (body, input);
        if !self.inside.contains_key(&key) && self.depth < DEEPEST {
            self.inside.insert(key, Vec::new());
            self.depth += 1;
            let ends = self.ends(body, input);
            self.depth -= 1;
            self.inside.insert(key, ends);
        }
        let ends = self.inside.get(&key).map_or(&[][..], Vec::as_slice);
        let place = trail.steps[at].place;
        let node = self.places.at(place).graph.node(id);
        for end in ends.iter().filter(|end| matches!(end.role, Role::Output)) {
            trail.go(place, node.output(end.slot), at, Some(node));
        }
        let weights = || {
            ends.iter().filter_map(|end| match end.role {
                Role::Weight(row) | Role::Called(row) => Some(row),
                Role::Parameter | Role::Table | Role::Output => None,
            })
        };
        let weight = weights().find(|row| row.is_linear()).or_else(|| weights().next());
        let all = |is: fn(&Role) -> bool| !ends.is_empty() && ends.iter().all(|end| is(&end.role));
        match weight {
            Some(row) => {
                trail.end(at, Some(id), slot, Role::Called(row));
                let folded = ends.iter().any(|end| end.folded && matches!(end.role, Role::Weight(_) | Role::Called(_)));
                trail.ends.last_mut().expect("just pushed").folded |= folded;
            }
            None if all(|role| matches!(role, Role::Parameter)) => trail.end(at, Some(id), slot, Role::Parameter),
            None if all(|role| matches!(role, Role::Output)) => {}
            None => trail.end(at, Some(id), slot, Role::Table),
        }
    }

    /// Out of the graph, where the value is one of its outputs.
    fn leave(&self, at: usize, trail: &mut Trail) {
        let Step { place, value, .. } = trail.steps[at];
        let here = self.places.at(place);
        if !here.uses.is_output(value) {
            return;
        }
        for (index, _) in here.graph.outputs().iter().enumerate().filter(|(_, output)| **output == value) {
            let Some((around, id)) = here.holder else {
                trail.end(at, None, index, Role::Output);
                continue;
            };
            let node = self.places.at(around).graph.node(id);
            // The first output of a Loop's body is its condition.
            let slot = if node.is("Loop") { index.checked_sub(1) } else { Some(index) };
            trail.go(around, slot.and_then(|slot| node.output(slot)), at, Some(node));
        }
    }
}

/// For every node of a graph: it bears weights, or one in its subgraphs does. Indexed by [`NodeId`]. What local functions
/// do with constants is not looked at.
pub(super) fn weight_bearing(graph: &Graph) -> Result<Vec<bool>, Error> {
    let places = Places::of_graph(graph)?;
    let mut reach = Reach::new(&places);
    let mut bearing = vec![false; graph.node_bound()];
    for source in places.sources() {
        let Some(value) = source.value else { continue };
        for end in reach.ends(source.place, value) {
            if let Some(node) = end.node.filter(|_| end.is_weight(source.tensor)) {
                bearing[places.outermost(end.place, node).0 as usize] = true;
            }
        }
    }
    Ok(bearing)
}
