//! The laws of the IR, checked.
//!
//! - every value read is an input, a constant, an output of a node, or (in a subgraph) a value of a surrounding graph;
//! - producers and outputs point at each other;
//! - names are unique and not empty;
//! - the graph is acyclic;
//! - a constant's bytes fit its type and shape.

use super::{Data, Def, Error, Graph, Model, graph::captured, walk};

/// Checks the main graph, its subgraphs and the function bodies.
pub fn verify(model: &Model) -> Result<(), Error> {
    check(&model.graph, &[])?;
    for function in &model.functions {
        check(&function.body, &[])?;
    }
    Ok(())
}

fn check(graph: &Graph, outer: &[&Graph]) -> Result<(), Error> {
    for (id, value) in graph.values() {
        if value.name.is_empty() || graph.find(&value.name) != Some(id) {
            return Err(Error::Duplicate(value.name.clone()));
        }
        match &value.def {
            Def::Node(node, slot) => {
                let points_back = graph.get_node(*node).is_some_and(|n| n.output(*slot as usize) == Some(id));
                if !points_back {
                    return Err(Error::Undefined(value.name.clone()));
                }
            }
            Def::Const(tensor) => {
                if !matches!(tensor.data, Data::Strings(_))
                    && let Some(needed) = tensor.dtype.bytes_for(tensor.len())
                    && tensor.stored_bytes() != needed
                {
                    return Err(Error::Size {
                        name: value.name.clone(),
                        dtype: tensor.dtype,
                        dims: tensor.dims.clone(),
                        needed,
                        found: tensor.stored_bytes(),
                    });
                }
            }
            Def::Outer => {
                let seen = outer.iter().any(|g| g.find(&value.name).is_some());
                if !seen {
                    return Err(Error::Undefined(value.name.clone()));
                }
            }
            Def::Input => {}
        }
    }
    walk::topological(graph)?;
    let mut scope = vec![graph];
    scope.extend(outer);
    for (_, node) in graph.nodes() {
        for name in captured(node) {
            if !scope.iter().any(|g| g.find(&name).is_some()) {
                return Err(Error::Undefined(name));
            }
        }
        for inner in node.attrs.iter().flat_map(|(_, attr)| attr.graphs()) {
            check(inner, &scope)?;
        }
    }
    Ok(())
}
