//! The graphs of a model, side by side: the main graph, its subgraphs, and the bodies of local functions.

use crate::ir::{Attr, Def, Error, Function, Graph, GraphPath, Model, Node, NodeId, Tensor, Uses, ValueId, walk};
use crate::run::OWN_DOMAINS;

use super::weight_ops::{LEAST, holds_weights, is_column, is_matrix};

/// A graph and where it stands.
pub(super) struct Place<'a> {
    pub(super) graph: &'a Graph,
    /// The way to it from the main graph, or from the function's body.
    pub(super) path: GraphPath,
    /// The function in whose body it stands.
    pub(super) function: Option<&'a Function>,
    /// The place around it and the node that holds it.
    pub(super) holder: Option<(usize, NodeId)>,
    /// Subgraphs: the node that holds one, and its place.
    pub(super) inner: Vec<(NodeId, usize)>,
    /// Nodes in topological order.
    pub(super) order: Vec<NodeId>,
    pub(super) uses: Uses,
    /// For every value: nothing but constants lies behind it.
    constant: Vec<bool>,
}

impl Place<'_> {
    /// True when nothing but constants lies behind a value.
    pub(super) fn is_constant(&self, value: ValueId) -> bool {
        self.constant[value.0 as usize]
    }

    /// True when nothing but constants lies behind what a node computes.
    pub(super) fn makes_constants(&self, node: &Node) -> bool {
        node.outputs.iter().flatten().all(|&v| self.is_constant(v))
    }
}

/// A constant that may be a weight.
pub(super) struct Source<'a> {
    pub(super) place: usize,
    /// The value that shows it; `None` for an attribute that is no value.
    pub(super) value: Option<ValueId>,
    /// The node that holds it as an attribute.
    pub(super) node: Option<NodeId>,
    pub(super) name: String,
    pub(super) tensor: &'a Tensor,
}

/// All graphs of a model, outer before inner, functions last.
pub(super) struct Places<'a> {
    all: Vec<Place<'a>>,
    functions: &'a [Function],
    /// The place of the body of every function; none for those of our own domains, which are bodies for other runtimes.
    bodies: Vec<Option<usize>>,
}

impl<'a> Places<'a> {
    /// The graphs of a model.
    pub(super) fn of_model(model: &'a Model) -> Result<Places<'a>, Error> {
        let mut places = Places { functions: &model.functions, ..Places::of_graph(&model.graph)? };
        for function in &model.functions {
            let body = if OWN_DOMAINS.contains(&function.domain.as_str()) {
                None
            } else {
                Some(places.add(&function.body, GraphPath::new(), Some(function), None)?)
            };
            places.bodies.push(body);
        }
        Ok(places)
    }

    /// A graph and its subgraphs.
    pub(super) fn of_graph(graph: &'a Graph) -> Result<Places<'a>, Error> {
        let mut places = Places { all: Vec::new(), functions: &[], bodies: Vec::new() };
        places.add(graph, GraphPath::new(), None, None)?;
        Ok(places)
    }

    fn add(
        &mut self,
        graph: &'a Graph,
        path: GraphPath,
        function: Option<&'a Function>,
        holder: Option<(usize, NodeId)>,
    ) -> Result<usize, Error> {
        let at = self.all.len();
        let order = walk::topological(graph)?;
        let constant = self.constants(graph, &order, holder);
        let uses = graph.uses();
        self.all.push(Place { graph, path: path.clone(), function, holder, inner: Vec::new(), order, uses, constant });
        for (id, node) in graph.nodes() {
            for (a, (_, attr)) in node.attrs.iter().enumerate() {
                for (g, inner) in attr.graphs().iter().enumerate() {
                    let way = [path.as_slice(), &[(id, a, g)]].concat();
                    let place = self.add(inner, way, function, Some((at, id)))?;
                    self.all[at].inner.push((id, place));
                }
            }
        }
        Ok(at)
    }

    fn constants(&self, graph: &Graph, order: &[NodeId], holder: Option<(usize, NodeId)>) -> Vec<bool> {
        let mut constant = vec![false; graph.value_bound()];
        for (id, value) in graph.values() {
            constant[id.0 as usize] = match value.def {
                Def::Const(_) => true,
                Def::Outer => self.outer(holder, &value.name).is_some_and(|(at, v)| self.all[at].is_constant(v)),
                Def::Input | Def::Node(..) => false,
            };
        }
        for &id in order {
            let made = graph.reads(id).all(|v| constant[v.0 as usize]);
            for output in graph.node(id).outputs.iter().flatten() {
                constant[output.0 as usize] = made;
            }
        }
        constant
    }

    /// The value of this name in the graphs around a subgraph.
    fn outer(&self, mut holder: Option<(usize, NodeId)>, name: &str) -> Option<(usize, ValueId)> {
        while let Some((at, _)) = holder {
            if let Some(value) = self.all[at].graph.find(name) {
                return Some((at, value));
            }
            holder = self.all[at].holder;
        }
        None
    }

    /// The graphs with their indices.
    pub(super) fn iter(&self) -> impl Iterator<Item = (usize, &Place<'a>)> {
        self.all.iter().enumerate()
    }

    /// The graph with this index.
    pub(super) fn at(&self, index: usize) -> &Place<'a> {
        &self.all[index]
    }

    /// True for a Reshape into more than a vector.
    pub(super) fn makes_matrix(&self, place: usize, node: &Node) -> bool {
        let graph = self.all[place].graph;
        let shape = node.input(1).filter(|_| node.is("Reshape"));
        let constant = shape.map(|v| match graph.producer(v).and_then(|(id, _)| graph.node(id).attr("value")) {
            Some(Attr::Tensor(tensor)) => tensor.to_i64(),
            _ => graph.constant(v).and_then(Tensor::to_i64),
        });
        // A shape that is computed may be any.
        constant.is_some_and(|dims| dims.is_none_or(|dims| dims.iter().filter(|&&d| d != 1).count() >= 2))
    }

    /// The body of the local function that a node calls.
    pub(super) fn called(&self, node: &Node) -> Option<usize> {
        let index = self.functions.iter().position(|f| f.domain == node.domain && f.name == node.op)?;
        self.bodies.get(index).copied().flatten()
    }

    /// The node of the outermost graph in which a node stands.
    pub(super) fn outermost(&self, mut place: usize, mut node: NodeId) -> NodeId {
        while let Some((around, holder)) = self.all[place].holder {
            (place, node) = (around, holder);
        }
        node
    }

    /// All constants that may be weights: initializers and attributes of nodes, of a type that holds weights, and with two
    /// dimensions larger than one or, since a matrix may be stored as a vector, many elements.
    pub(super) fn sources(&self) -> Vec<Source<'a>> {
        let mut found = Vec::new();
        for (at, place) in self.iter() {
            let graph = place.graph;
            for (id, value) in graph.values() {
                if let Def::Const(tensor) = &value.def {
                    let name = value.name.clone();
                    found.push(Source { place: at, value: Some(id), node: None, name, tensor });
                }
            }
            for (id, node) in graph.nodes() {
                for (key, attr) in &node.attrs {
                    let tensors = match attr {
                        Attr::Tensor(tensor) => std::slice::from_ref(tensor),
                        Attr::Tensors(tensors) => tensors,
                        _ => &[],
                    };
                    let value = node.output(0).filter(|_| node.is("Constant") && key == "value");
                    let name = value.map_or_else(|| format!("{}.{key}", graph.label(id)), |v| graph.name(v).to_owned());
                    found.extend(tensors.iter().map(|tensor| Source {
                        place: at,
                        value,
                        node: Some(id),
                        name: name.clone(),
                        tensor,
                    }));
                }
            }
        }
        found.retain(|s| {
            holds_weights(s.tensor.dtype) && (is_matrix(s.tensor) || is_column(s.tensor) || s.tensor.len() >= LEAST)
        });
        found
    }
}
