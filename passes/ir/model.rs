//! A model: a graph, the operator sets it speaks, and its local functions.

use std::collections::HashSet;

use super::{Attr, Graph, NodeId, Origin};

/// A function that travels with the model and defines an operator by other operators.
#[derive(Clone, Debug, PartialEq)]
pub struct Function {
    /// Domain of the operator it defines.
    pub domain: String,
    /// Name of the operator it defines.
    pub name: String,
    /// Overload, usually empty.
    pub overload: String,
    /// Attributes that calls may give and the body may refer to.
    pub attributes: Vec<String>,
    /// Attributes that calls may leave out, with the value they have then.
    pub defaults: Vec<(String, Attr)>,
    /// Operator sets of the body.
    pub opsets: Vec<(String, i64)>,
    /// The body; its inputs and outputs are the function's, in order.
    pub body: Graph,
    /// Set while the function is as the file has it.
    pub origin: Option<Origin>,
}

/// A model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Model {
    /// ONNX IR version.
    pub ir_version: i64,
    /// Operator sets as (domain, version); the standard domain is the empty string.
    pub opsets: Vec<(String, i64)>,
    /// The main graph.
    pub graph: Graph,
    /// Model-local functions.
    pub functions: Vec<Function>,
    /// Key-value notes.
    pub metadata: Vec<(String, String)>,
    /// Who wrote the file, as the file says it.
    pub producer: String,
}

/// The way from the main graph to a subgraph: at each step a node, the index of its attribute, and the index of the
/// graph in that attribute. The empty path is the main graph.
pub type GraphPath = Vec<(NodeId, usize, usize)>;

impl Model {
    /// Version of the standard operator set; 1 when the file imports none.
    pub fn opset(&self) -> i64 {
        self.opset_of("").unwrap_or(1)
    }

    /// Version of an imported operator set.
    pub fn opset_of(&self, domain: &str) -> Option<i64> {
        let same = |d: &str| d == domain || (domain.is_empty() && d == "ai.onnx");
        self.opsets.iter().find(|(d, _)| same(d)).map(|(_, version)| *version)
    }

    /// Imports an operator set, or raises its version.
    pub fn import(&mut self, domain: &str, version: i64) {
        match self.opsets.iter_mut().find(|(d, _)| d == domain) {
            Some((_, v)) => *v = (*v).max(version),
            None => self.opsets.push((domain.to_owned(), version)),
        }
    }

    /// The local function that defines an operator.
    pub fn function(&self, domain: &str, name: &str) -> Option<&Function> {
        self.functions.iter().find(|f| f.domain == domain && f.name == name)
    }

    /// The names of all values of the main graph and its subgraphs: what a graph calls its own, its subgraphs may not.
    pub fn names(&self) -> HashSet<String> {
        let paths = self.graph_paths();
        let graphs = paths.iter().filter_map(|path| self.graph_at(path));
        graphs.flat_map(|graph| graph.values().map(|(_, value)| value.name.clone())).collect()
    }

    /// Sets a note, replacing one with the same key.
    pub fn set_metadata(&mut self, key: &str, value: impl Into<String>) {
        let value = value.into();
        match self.metadata.iter_mut().find(|(k, _)| k == key) {
            Some((_, v)) => *v = value,
            None => self.metadata.push((key.to_owned(), value)),
        }
    }

    /// Paths of the main graph and all subgraphs, outer before inner.
    pub fn graph_paths(&self) -> Vec<GraphPath> {
        fn visit(graph: &Graph, path: &GraphPath, out: &mut Vec<GraphPath>) {
            out.push(path.clone());
            for (id, node) in graph.nodes() {
                for (a, (_, attr)) in node.attrs.iter().enumerate() {
                    for (g, inner) in attr.graphs().iter().enumerate() {
                        let mut next = path.clone();
                        next.push((id, a, g));
                        visit(inner, &next, out);
                    }
                }
            }
        }
        let mut out = Vec::new();
        visit(&self.graph, &Vec::new(), &mut out);
        out
    }

    /// The graph at the end of a path.
    pub fn graph_at(&self, path: &GraphPath) -> Option<&Graph> {
        self.graph.at(path)
    }

    /// The graph at the end of a path, to be edited.
    pub fn graph_at_mut(&mut self, path: &GraphPath) -> Option<&mut Graph> {
        path.iter().try_fold(&mut self.graph, |graph, &(node, attr, index)| {
            graph.nodes.get_mut(node.0 as usize)?.as_mut()?.attrs.get_mut(attr)?.1.graphs_mut().get_mut(index)
        })
    }
}

/// A name that is not taken, made from `base`, and taken from now on.
pub fn fresh_name(taken: &mut HashSet<String>, base: &str) -> String {
    let numbered = (1..).map(|i| format!("{base}_{i}"));
    let name = std::iter::once(base.to_owned()).chain(numbered).find(|name| !taken.contains(name)).unwrap_or_default();
    taken.insert(name.clone());
    name
}
