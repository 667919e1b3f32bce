//! Models to text.

use std::fmt::Write as _;

use super::literal::payload;
use super::scan::{is_identifier, name, quoted};
use crate::ir::{Attr, DType, Def, Dim, Function, Graph, Model, NodeId, Tensor, Type, ValueId};

/// What a note in a dump is about.
#[derive(Clone, Copy, Debug)]
pub enum Subject<'a> {
    /// A value: an input, a constant, or one with a declared type.
    Value(&'a Graph, ValueId),
    /// A node.
    Node(&'a Graph, NodeId),
}

/// How a model is written down.
#[derive(Clone, Copy)]
pub struct DumpOptions<'a> {
    /// Constants with more elements than this are written as a digest.
    pub small: usize,
    /// Compute digests, which reads every weight; `-` stands for them otherwise.
    pub digests: bool,
    /// A note on a value or node, written as a comment behind it.
    pub note: &'a dyn Fn(Subject<'_>) -> Option<String>,
}

impl Default for DumpOptions<'_> {
    fn default() -> Self {
        DumpOptions { small: 16, digests: true, note: &|_| None }
    }
}

/// The text of a model.
pub fn dump(model: &Model) -> String {
    dump_with(model, &DumpOptions::default())
}

/// The text of a model, with notes.
pub fn dump_with(model: &Model, options: &DumpOptions<'_>) -> String {
    let mut dump = Dump { out: String::new(), depth: 0, options };
    dump.model(model);
    dump.out
}

struct Dump<'a> {
    out: String,
    depth: usize,
    options: &'a DumpOptions<'a>,
}

impl Dump<'_> {
    fn model(&mut self, model: &Model) {
        let mut head = vec![format!("ir_version: {}", model.ir_version), opsets(&model.opsets)];
        if !model.producer.is_empty() {
            head.push(format!("producer_name: {}", quoted(model.producer.as_bytes())));
        }
        if !model.metadata.is_empty() {
            let pair = |(k, v): &(String, String)| format!("{}: {}", quoted(k.as_bytes()), quoted(v.as_bytes()));
            let pairs: Vec<String> = model.metadata.iter().map(pair).collect();
            head.push(format!("metadata_props: [{}]", pairs.join(", ")));
        }
        self.line(&format!("<{}>", head.join(", ")));
        self.start();
        self.graph(&model.graph, &name(&model.graph.name));
        self.out.push('\n');
        for function in &model.functions {
            self.function(function);
        }
    }

    fn function(&mut self, function: &Function) {
        let mut head = vec![format!("domain: {}", quoted(function.domain.as_bytes()))];
        if !function.overload.is_empty() {
            head.push(format!("overload: {}", quoted(function.overload.as_bytes())));
        }
        head.push(opsets(&function.opsets));
        self.line(&format!("<{}>", head.join(", ")));
        self.start();
        self.out.push_str(&name(&function.name));
        if function.attributes.len() + function.defaults.len() > 0 {
            self.out.push_str(" <");
            let mut first = true;
            for attribute in &function.attributes {
                self.comma(&mut first);
                self.out.push_str(&name(attribute));
            }
            for (key, attr) in &function.defaults {
                self.comma(&mut first);
                self.attr(key, attr);
            }
            self.out.push('>');
        }
        let body = &function.body;
        let names = |ids: &[ValueId]| ids.iter().map(|&id| name(body.name(id))).collect::<Vec<_>>().join(", ");
        let _ = write!(self.out, " ({}) => ({})", names(body.inputs()), names(body.outputs()));
        let declared = body.values().filter(|(_, value)| value.ty.is_some()).map(|(id, _)| id);
        let declared = declared.map(|id| (id, typed(body, id))).collect();
        self.listed(body, declared);
        self.nodes(body);
        self.out.push('\n');
    }

    fn graph(&mut self, graph: &Graph, shown: &str) {
        let ends = |ids: &[ValueId]| ids.iter().map(|&id| typed(graph, id)).collect::<Vec<_>>().join(", ");
        let _ = write!(self.out, "{shown} ({}) => ({})", ends(graph.inputs()), ends(graph.outputs()));
        let mut listed = Vec::new();
        for (id, value) in graph.values() {
            if let Def::Const(tensor) = &value.def {
                listed.push((id, format!("{} {} = {}", tensor_type(tensor), name(&value.name), self.payload(tensor))));
            }
        }
        for (id, value) in graph.values() {
            if value.ty.is_some() && !graph.inputs().contains(&id) && !graph.outputs().contains(&id) {
                listed.push((id, typed(graph, id)));
            }
        }
        self.listed(graph, listed);
        self.nodes(graph);
    }

    /// Constants and declarations, one a line.
    fn listed(&mut self, graph: &Graph, entries: Vec<(ValueId, String)>) {
        if entries.is_empty() {
            return;
        }
        self.out.push('\n');
        self.line("<");
        let last = entries.len() - 1;
        for (at, (id, entry)) in entries.into_iter().enumerate() {
            let comma = if at == last { "" } else { "," };
            let note = self.note(Subject::Value(graph, id));
            self.line(&format!("  {entry}{comma}{note}"));
        }
        self.start();
        self.out.push('>');
    }

    fn nodes(&mut self, graph: &Graph) {
        self.out.push('\n');
        self.line("{");
        self.depth += 1;
        for (id, node) in graph.nodes() {
            self.start();
            if !node.name.is_empty() {
                let _ = write!(self.out, "[{}] ", name(&node.name));
            }
            let names = |ids: &[Option<ValueId>]| {
                let one = |id: &Option<ValueId>| id.map_or_else(|| "\"\"".to_owned(), |id| name(graph.name(id)));
                ids.iter().map(one).collect::<Vec<_>>().join(", ")
            };
            let gap = if node.outputs.is_empty() { "" } else { " " };
            let _ = write!(self.out, "{}{gap}= {}", names(&node.outputs), operator(&node.domain, &node.op));
            if !node.overload.is_empty() {
                let _ = write!(self.out, ":{}", part(&node.overload));
            }
            if !node.attrs.is_empty() {
                self.out.push_str(" <");
                let mut first = true;
                for (key, attr) in &node.attrs {
                    self.comma(&mut first);
                    self.attr(key, attr);
                }
                self.out.push('>');
            }
            let note = self.note(Subject::Node(graph, id));
            let _ = writeln!(self.out, " ({}){note}", names(&node.inputs));
        }
        self.depth -= 1;
        self.start();
        self.out.push('}');
    }

    fn attr(&mut self, key: &str, attr: &Attr) {
        self.out.push_str(&part(key));
        let kind = match attr {
            Attr::Int(_) => "int",
            Attr::Float(_) => "float",
            Attr::String(_) => "string",
            Attr::Tensor(_) => "tensor",
            Attr::Graph(_) => "graph",
            Attr::Ints(_) => "ints",
            Attr::Floats(_) => "floats",
            Attr::Strings(_) => "strings",
            Attr::Tensors(_) => "tensors",
            Attr::Graphs(_) => "graphs",
            Attr::Ref(_, code) => super::node::kind_name(*code),
            Attr::Opaque => "type_proto",
        };
        if !kind.is_empty() {
            let _ = write!(self.out, ": {kind}");
        }
        self.out.push_str(" = ");
        match attr {
            Attr::Int(value) => self.push(value),
            Attr::Float(value) => self.push(format_args!("{value:?}")),
            Attr::String(value) => self.push(quoted(value)),
            Attr::Tensor(tensor) => self.tensor(tensor),
            Attr::Graph(graph) => self.graph(graph, &part(&graph.name)),
            Attr::Ints(values) => self.list(values, |dump, value| dump.push(value)),
            Attr::Floats(values) => self.list(values, |dump, value| dump.push(format_args!("{value:?}"))),
            Attr::Strings(values) => self.list(values, |dump, value| dump.push(quoted(value))),
            Attr::Tensors(values) => self.list(values, |dump, value| dump.tensor(value)),
            Attr::Graphs(values) => self.list(values, |dump, graph| dump.graph(graph, &part(&graph.name))),
            Attr::Ref(target, _) => self.push(format_args!("@{}", name(target))),
            Attr::Opaque => self.push("opaque()"),
        }
    }

    fn tensor(&mut self, tensor: &Tensor) {
        let text = self.payload(tensor);
        let equals = if text.starts_with('[') { "= " } else { "" };
        let _ = write!(self.out, "{} {equals}{text}", tensor_type(tensor));
    }

    fn payload(&self, tensor: &Tensor) -> String {
        payload(tensor, self.options.small, self.options.digests)
    }

    fn list<T>(&mut self, items: &[T], mut each: impl FnMut(&mut Self, &T)) {
        self.out.push('[');
        let mut first = true;
        for item in items {
            self.comma(&mut first);
            each(self, item);
        }
        self.out.push(']');
    }

    fn comma(&mut self, first: &mut bool) {
        if !std::mem::take(first) {
            self.out.push_str(", ");
        }
    }

    fn note(&self, subject: Subject<'_>) -> String {
        (self.options.note)(subject).map_or_else(String::new, |note| format!("  # {}", note.replace(['\n', '\r'], " ")))
    }

    fn push(&mut self, item: impl std::fmt::Display) {
        let _ = write!(self.out, "{item}");
    }

    /// The indentation of a line.
    fn start(&mut self) {
        self.out.extend(std::iter::repeat_n("  ", self.depth));
    }

    fn line(&mut self, text: &str) {
        self.start();
        self.out.push_str(text);
        self.out.push('\n');
    }
}

fn opsets(opsets: &[(String, i64)]) -> String {
    let one = |(domain, version): &(String, i64)| format!("{}: {version}", quoted(domain.as_bytes()));
    format!("opset_import: [{}]", opsets.iter().map(one).collect::<Vec<_>>().join(", "))
}

/// A word that the syntax wants to be an identifier.
fn part(word: &str) -> String {
    if is_identifier(word) { word.to_owned() } else { quoted(word.as_bytes()) }
}

fn operator(domain: &str, op: &str) -> String {
    let domain =
        if domain.is_empty() { String::new() } else { domain.split('.').map(part).collect::<Vec<_>>().join(".") + "." };
    format!("{domain}{}", part(op))
}

/// A value with its declared type.
fn typed(graph: &Graph, id: ValueId) -> String {
    let value = graph.value(id);
    match &value.ty {
        Some(Type::Tensor(dtype, dims)) => format!("{} {}", tensor_words(*dtype, dims.as_deref()), name(&value.name)),
        Some(Type::Other) => format!("opaque() {}", name(&value.name)),
        None => name(&value.name),
    }
}

fn tensor_type(tensor: &Tensor) -> String {
    let dims: Vec<Dim> = tensor.dims.iter().map(|&dim| Dim::Size(dim)).collect();
    tensor_words(tensor.dtype, Some(&dims))
}

fn tensor_words(dtype: DType, dims: Option<&[Dim]>) -> String {
    let word = match dtype {
        DType::Other(code) => format!("undefined{code}"),
        known => known.name().to_owned(),
    };
    let one = |dim: &Dim| match dim {
        Dim::Size(size) => size.to_string(),
        Dim::Symbol(symbol) => part(symbol),
        Dim::Unknown => "?".to_owned(),
    };
    match dims {
        Some([]) => word,
        Some(dims) => format!("{word}[{}]", dims.iter().map(one).collect::<Vec<_>>().join(",")),
        None => format!("{word}[]"),
    }
}
