//! From an operand back to the constant it shows.

use crate::ir::{Attr, DType, Def, GraphPath, Model, Tensor, ValueId};

use super::sites::Weight;

/// Follows a value back to the constant it shows, through Transpose, Cast, Identity and `Constant` nodes, and out of
/// subgraphs. Answers the constant, and whether an odd number of transposes lies between. `rows_are_outputs` is left for
/// the caller, who knows the product.
pub(super) fn resolve(model: &Model, path: &GraphPath, value: ValueId) -> Option<(Weight, bool)> {
    let mut path = path.clone();
    let mut value = value;
    let mut transposed = false;
    let mut read_as = None;
    loop {
        let graph = model.graph_at(&path)?;
        let entry = graph.value(value);
        let weight = |tensor: &Tensor| Weight {
            owner: path.clone(),
            name: entry.name.clone(),
            tensor: tensor.clone(),
            rows_are_outputs: false,
            read_as: read_as.unwrap_or(tensor.dtype),
        };
        match &entry.def {
            Def::Const(tensor) => return Some((weight(tensor), transposed)),
            Def::Input => return None,
            Def::Outer => {
                let name = entry.name.clone();
                loop {
                    path.pop()?;
                    if let Some(found) = model.graph_at(&path)?.find(&name) {
                        value = found;
                        break;
                    }
                }
            }
            Def::Node(producer, _) => {
                let node = graph.node(*producer);
                if node.is("Constant") {
                    let Some(Attr::Tensor(tensor)) = node.attr("value") else { return None };
                    return Some((weight(tensor), transposed));
                } else if node.is("Cast") {
                    // A cast to whole numbers makes other numbers of it.
                    let to = i32::try_from(node.int("to", 0)).ok().map(DType::from_onnx)?;
                    if !to.is_float() {
                        return None;
                    }
                    read_as = read_as.or(Some(to));
                } else if node.is("Transpose") {
                    transposed ^= swaps(node.ints("perm"))?;
                } else if !node.is("Identity") {
                    return None;
                }
                value = node.input(0)?;
            }
        }
    }
}

/// Whether a Transpose swaps the two axes of a matrix; `None` where it does something else to a tensor of higher rank.
fn swaps(perm: Option<&[i64]>) -> Option<bool> {
    let Some(perm) = perm else { return Some(true) };
    let identity = perm.iter().enumerate().all(|(i, &p)| i as i64 == p);
    match (identity, perm.len()) {
        (true, _) => Some(false),
        (false, 2) => Some(true),
        (false, _) => None,
    }
}
