//! Equality of models by names: value and node numbers may differ.

use mbqc_passes::ir::{Attr, Data, Def, Function, Graph, Model, Node, Tensor, Type, ValueId};

/// Explains the first difference between two models, up to origins, numbering, notes of nodes, and payloads of which
/// one side knows the digest only.
pub(crate) fn difference(a: &Model, b: &Model) -> Option<String> {
    let heads = |m: &Model| format!("{} {:?} {:?} {}", m.ir_version, m.opsets, m.metadata, m.producer);
    differs("model", heads(a), heads(b))
        .or_else(|| graphs(&a.graph, &b.graph))
        .or_else(|| differs("number of functions", a.functions.len(), b.functions.len()))
        .or_else(|| a.functions.iter().zip(&b.functions).find_map(|(a, b)| functions(a, b)))
}

fn differs<T: PartialEq + std::fmt::Debug>(what: &str, a: T, b: T) -> Option<String> {
    (a != b).then(|| format!("{what}: {a:?} and {b:?}"))
}

fn functions(a: &Function, b: &Function) -> Option<String> {
    let heads = |f: &Function| format!("{} {} {} {:?} {:?}", f.domain, f.name, f.overload, f.attributes, f.opsets);
    differs("function", heads(a), heads(b))
        .or_else(|| attributes(&a.defaults, &b.defaults))
        .or_else(|| graphs(&a.body, &b.body))
}

fn graphs(a: &Graph, b: &Graph) -> Option<String> {
    let ends = |g: &Graph, ids: &[ValueId]| ids.iter().map(|&id| g.name(id).to_owned()).collect::<Vec<_>>();
    differs("graph name", &a.name, &b.name)
        .or_else(|| differs("inputs", ends(a, a.inputs()), ends(b, b.inputs())))
        .or_else(|| differs("outputs", ends(a, a.outputs()), ends(b, b.outputs())))
        .or_else(|| differs("number of values", a.values().count(), b.values().count()))
        .or_else(|| a.values().find_map(|(id, _)| values(a, id, b)))
        .or_else(|| differs("number of nodes", a.node_count(), b.node_count()))
        .or_else(|| a.nodes().zip(b.nodes()).find_map(|((_, x), (_, y))| nodes(a, x, b, y)))
}

fn values(graph: &Graph, id: ValueId, other: &Graph) -> Option<String> {
    let a = graph.value(id);
    let Some(b) = other.find(&a.name).map(|id| other.value(id)) else { return Some(format!("no `{}`", a.name)) };
    let made = |g: &Graph, def: &Def| match def {
        Def::Node(node, slot) => format!("node {} {slot}", g.label(*node)),
        Def::Const(_) => "constant".to_owned(),
        other => format!("{other:?}"),
    };
    differs(&a.name, made(graph, &a.def), made(other, &b.def))
        .or_else(|| differs(&a.name, readable(&a.ty), readable(&b.ty)))
        .or_else(|| match (&a.def, &b.def) {
            (Def::Const(x), Def::Const(y)) if !tensors(x, y) => Some(format!("constant `{}`", a.name)),
            _ => None,
        })
}

/// The declared type, where the IR reads it: others cannot be written without the file they come from.
fn readable(ty: &Option<Type>) -> Option<&Type> {
    ty.as_ref().filter(|ty| **ty != Type::Other)
}

/// Type, shape and, where both sides have it, payload.
pub(crate) fn tensors(a: &Tensor, b: &Tensor) -> bool {
    let digest = |t: &Tensor| matches!(&t.data, Data::Lazy(lazy) if lazy.produce().is_err());
    a.dtype == b.dtype
        && a.dims == b.dims
        && a.stored_bytes() == b.stored_bytes()
        && (digest(a) || digest(b) || a.load() == b.load() && strings(a) == strings(b))
}

fn strings(tensor: &Tensor) -> &[bytes::Bytes] {
    if let Data::Strings(strings) = &tensor.data { strings } else { &[] }
}

fn nodes(ga: &Graph, a: &Node, gb: &Graph, b: &Node) -> Option<String> {
    let head = |g: &Graph, n: &Node| {
        let names =
            |ids: &[Option<ValueId>]| ids.iter().map(|id| id.map(|id| g.name(id).to_owned())).collect::<Vec<_>>();
        format!("{} {} {} {} {:?} {:?}", n.name, n.domain, n.op, n.overload, names(&n.inputs), names(&n.outputs))
    };
    differs("node", head(ga, a), head(gb, b)).or_else(|| attributes(&a.attrs, &b.attrs))
}

fn attributes(a: &[(String, Attr)], b: &[(String, Attr)]) -> Option<String> {
    differs("number of attributes", a.len(), b.len()).or_else(|| {
        a.iter().zip(b).find_map(|((name, x), (other, y))| {
            differs("attribute", name, other)
                .or_else(|| attribute(x, y).then(|| format!("attribute `{name}`: {x:?} and {y:?}")))
        })
    })
}

/// True when two attributes differ.
fn attribute(a: &Attr, b: &Attr) -> bool {
    match (a, b) {
        (Attr::Tensor(a), Attr::Tensor(b)) => !tensors(a, b),
        (Attr::Tensors(a), Attr::Tensors(b)) => a.len() != b.len() || a.iter().zip(b).any(|(a, b)| !tensors(a, b)),
        (Attr::Graph(a), Attr::Graph(b)) => graphs(a, b).is_some(),
        (Attr::Graphs(a), Attr::Graphs(b)) => {
            a.len() != b.len() || a.iter().zip(b).any(|(a, b)| graphs(a, b).is_some())
        }
        (Attr::Float(a), Attr::Float(b)) => a.to_bits() != b.to_bits(),
        (a, b) => a != b,
    }
}
