//! Towers: which values depend on token ids.

use crate::ir::{Def, Graph, NodeId, Type, ValueId, walk};

use super::sites::Tower;

/// Which values of a graph depend on token ids.
pub(super) struct Towers {
    has_embedding: bool,
    text: Vec<bool>,
}

impl Towers {
    /// `lookups` are the nodes that look rows of a constant table up. One is a token embedding when its indices come from
    /// a whole-number graph input through nothing but casts, views and clips.
    pub(super) fn of(graph: &Graph, lookups: &[NodeId]) -> Result<Towers, crate::ir::Error> {
        let mut embeddings = Vec::new();
        for &id in lookups {
            let node = graph.node(id);
            if let (Some(indices), Some(output)) = (node.input(1), node.output(0))
                && comes_from_ids(graph, indices)
            {
                embeddings.push(output);
            }
        }
        Ok(Towers { has_embedding: !embeddings.is_empty(), text: walk::reached_from(graph, &embeddings)? })
    }

    /// The tower of a node that reads this value.
    pub(super) fn of_value(&self, value: ValueId) -> Tower {
        match (self.has_embedding, self.text[value.0 as usize]) {
            (false, _) => Tower::Only,
            (true, true) => Tower::Text,
            (true, false) => Tower::Vision,
        }
    }
}

const VIEWS: &[&str] = &["Cast", "Identity", "Reshape", "Clip", "Unsqueeze", "Squeeze", "Flatten"];

fn comes_from_ids(graph: &Graph, mut value: ValueId) -> bool {
    loop {
        match &graph.value(value).def {
            Def::Input => {
                return match &graph.value(value).ty {
                    Some(Type::Tensor(dtype, _)) => dtype.is_int(),
                    _ => true,
                };
            }
            Def::Const(_) | Def::Outer => return false,
            Def::Node(producer, _) => {
                let node = graph.node(*producer);
                let next = if node.is("Where") {
                    node.input(2)
                } else {
                    node.input(0).filter(|_| VIEWS.iter().any(|op| node.is(op)))
                };
                match next {
                    Some(next) => value = next,
                    None => return false,
                }
            }
        }
    }
}
