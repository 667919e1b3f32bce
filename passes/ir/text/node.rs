//! Nodes and their attributes, read from text.

use bytes::Bytes;

use super::literal::parse_payload;
use super::scan::{Number, ParseError, Scanner, is_special, is_type_word};
use crate::ir::{Attr, GraphBuilder, NewNode, Tensor};

/// A parser: a position in the text and how deep in subgraphs it is.
pub(super) struct Reader<'a> {
    pub(super) scan: Scanner<'a>,
    pub(super) depth: usize,
}

/// ONNX's attribute types: number and name in the text.
#[rustfmt::skip]
const KINDS: &[(i32, &str)] = &[
    (1, "float"), (2, "int"), (3, "string"), (4, "tensor"), (5, "graph"), (11, "sparse_tensor"), (13, "type_proto"),
    (6, "floats"), (7, "ints"), (8, "strings"), (9, "tensors"), (10, "graphs"), (12, "sparse_tensors"), (14, "type_protos"),
];

/// The name of an attribute type; empty for one that is not known.
pub(super) fn kind_name(code: i32) -> &'static str {
    KINDS.iter().find(|(number, _)| *number == code).map_or("", |(_, name)| name)
}

/// Operator sets.
pub(super) fn opsets(scan: &mut Scanner<'_>) -> Result<Vec<(String, i64)>, ParseError> {
    scan.expect('[')?;
    let mut opsets = Vec::new();
    if scan.matches(']') {
        return Ok(opsets);
    }
    loop {
        let domain = scan.text()?;
        scan.expect(':')?;
        opsets.push((domain, scan.integer()?));
        if !scan.matches(',') {
            scan.expect(']')?;
            return Ok(opsets);
        }
    }
}

impl Reader<'_> {
    /// Nodes in braces.
    pub(super) fn nodes(&mut self, graph: &mut GraphBuilder) -> Result<(), ParseError> {
        self.scan.expect('{')?;
        while !self.scan.matches('}') {
            let node = self.node()?;
            graph.node(node, None).map_err(|law| self.law(&law))?;
        }
        Ok(())
    }

    fn node(&mut self) -> Result<NewNode, ParseError> {
        let mut node = NewNode::default();
        if self.scan.matches('[') {
            node.name = self.scan.optional_name()?.unwrap_or_default();
            self.scan.expect(']')?;
        }
        node.outputs = self.names()?;
        self.scan.expect('=')?;
        let mut path = vec![self.scan.name()?];
        while self.scan.matches('.') {
            path.push(self.scan.name()?);
        }
        node.op = path.pop().unwrap_or_default();
        node.domain = path.join(".");
        if self.scan.matches(':') {
            node.overload = self.scan.name()?;
        }
        node.attrs = self.attrs()?;
        self.scan.expect('(')?;
        node.inputs = self.names()?;
        self.scan.expect(')')?;
        if node.attrs.is_empty() {
            node.attrs = self.attrs()?;
        }
        Ok(node)
    }

    /// Names between commas; `""`, or nothing before a comma, is an absent one.
    fn names(&mut self) -> Result<Vec<String>, ParseError> {
        let mut names = Vec::new();
        loop {
            match self.scan.optional_name()? {
                Some(name) => names.push(name),
                None if self.scan.peek() == Some(',') => names.push(String::new()),
                None => return Ok(names),
            }
            if !self.scan.matches(',') {
                return Ok(names);
            }
        }
    }

    fn attrs(&mut self) -> Result<Vec<(String, Attr)>, ParseError> {
        let mut attrs = Vec::new();
        if !self.scan.matches('<') || self.scan.matches('>') {
            return Ok(attrs);
        }
        loop {
            let key = self.scan.name()?;
            attrs.push((key, self.attr_value()?));
            if !self.scan.matches(',') {
                self.scan.expect('>')?;
                return Ok(attrs);
            }
        }
    }

    /// The type and value of an attribute, from behind its name.
    pub(super) fn attr_value(&mut self) -> Result<Attr, ParseError> {
        let kind = match self.scan.matches(':') {
            true => {
                let word = self.scan.identifier().unwrap_or_default();
                let kind = KINDS.iter().find(|(_, name)| *name == word);
                Some(kind.ok_or_else(|| self.scan.error(format!("`{word}` is not an attribute type")))?)
            }
            false => None,
        };
        self.scan.expect('=')?;
        if self.scan.matches('@') {
            return Ok(Attr::Ref(self.scan.name()?, kind.map_or(0, |(code, _)| *code)));
        }
        let before = self.scan.clone();
        let word = kind.map_or("", |(_, name)| name);
        let attr = if self.scan.matches('[') { self.attr_list(word)? } else { self.single(word)? };
        let fits = match attr {
            Attr::Opaque => matches!(word, "" | "type_proto" | "sparse_tensor" | "type_protos" | "sparse_tensors"),
            ref other => word.is_empty() || kind_name(code(other)) == word,
        };
        if fits { Ok(attr) } else { Err(before.error(format!("found a value of another type, expected {word}"))) }
    }

    /// A value that is not a list. `kind` is the type it is said to have, or empty.
    fn single(&mut self, kind: &str) -> Result<Attr, ParseError> {
        match self.scan.peek() {
            Some('"') => {
                let text = self.scan.string()?;
                if matches!(kind, "graph" | "graphs") || self.scan.peek() == Some('(') {
                    let name = String::from_utf8(text);
                    let name = name.map_err(|_| self.scan.error("the name of a graph is not UTF-8".to_owned()))?;
                    return Ok(Attr::Graph(Box::new(self.graph(name)?)));
                }
                Ok(Attr::String(Bytes::from(text)))
            }
            Some(c) if c.is_ascii_alphabetic() || c == '_' => match self.scan.peek_identifier() {
                Some(word) if is_type_word(word) && !matches!(kind, "graph" | "graphs") => self.tensor_or_type(),
                Some(word) if !is_special(word) => {
                    let name = self.scan.name()?;
                    Ok(Attr::Graph(Box::new(self.graph(name)?)))
                }
                _ => self.scan.number().and_then(|number| self.scalar(number, kind)),
            },
            _ => self.scan.number().and_then(|number| self.scalar(number, kind)),
        }
    }

    fn scalar(&self, number: Number<'_>, kind: &str) -> Result<Attr, ParseError> {
        let wrong = || self.scan.error(format!("`{}` is not a number that an attribute holds", number.text));
        if number.is_float || matches!(kind, "float" | "floats") {
            return number.text.parse().map(Attr::Float).map_err(|_| wrong());
        }
        number.text.parse().map(Attr::Int).map_err(|_| wrong())
    }

    fn tensor_or_type(&mut self) -> Result<Attr, ParseError> {
        let ty = self.ty()?;
        let named = self.scan.optional_name()?;
        let equals = self.scan.matches('=');
        if named.is_none() && !equals && self.scan.peek() != Some('{') {
            return Ok(Attr::Opaque);
        }
        let (dtype, dims) = self.concrete(Some(ty))?;
        parse_payload(&mut self.scan, dtype, dims).map(Attr::Tensor)
    }

    fn attr_list(&mut self, kind: &str) -> Result<Attr, ParseError> {
        let mut items = Vec::new();
        let before = self.scan.clone();
        if !self.scan.matches(']') {
            loop {
                items.push(self.single(kind)?);
                if !self.scan.matches(',') {
                    break;
                }
            }
            self.scan.expect(']')?;
        }
        let first = items.first().map_or(kind, |item| match item {
            Attr::Int(_) => "ints",
            Attr::Float(_) => "floats",
            Attr::String(_) => "strings",
            Attr::Tensor(_) => "tensors",
            Attr::Graph(_) => "graphs",
            _ => "",
        });
        let count = items.len();
        let items = items.into_iter();
        let (attr, taken) = match first {
            "ints" => collect(items, as_int, Attr::Ints),
            "floats" => collect(items, as_float, Attr::Floats),
            "strings" => collect(items, as_string, Attr::Strings),
            "tensors" => collect(items, as_tensor, Attr::Tensors),
            "graphs" => collect(items, as_graph, Attr::Graphs),
            "type_protos" | "sparse_tensors" => (Attr::Opaque, count),
            "" => return Err(before.error("an empty list needs a type, as in `axes: ints = []`".to_owned())),
            other => return Err(before.error(format!("found a list, expected {other}"))),
        };
        if taken == count { Ok(attr) } else { Err(before.error("the values of a list must be of one type".to_owned())) }
    }
}

fn collect<T>(
    items: impl Iterator<Item = Attr>,
    take: fn(Attr) -> Option<T>,
    make: fn(Vec<T>) -> Attr,
) -> (Attr, usize) {
    let taken: Vec<T> = items.filter_map(take).collect();
    let count = taken.len();
    (make(taken), count)
}

fn as_int(attr: Attr) -> Option<i64> {
    if let Attr::Int(value) = attr { Some(value) } else { None }
}

fn as_float(attr: Attr) -> Option<f32> {
    if let Attr::Float(value) = attr { Some(value) } else { None }
}

fn as_string(attr: Attr) -> Option<Bytes> {
    if let Attr::String(value) = attr { Some(value) } else { None }
}

fn as_tensor(attr: Attr) -> Option<Tensor> {
    if let Attr::Tensor(value) = attr { Some(value) } else { None }
}

fn as_graph(attr: Attr) -> Option<crate::ir::Graph> {
    if let Attr::Graph(value) = attr { Some(*value) } else { None }
}

/// ONNX's number for the type of an attribute.
fn code(attr: &Attr) -> i32 {
    match attr {
        Attr::Float(_) => 1,
        Attr::Int(_) => 2,
        Attr::String(_) => 3,
        Attr::Tensor(_) => 4,
        Attr::Graph(_) => 5,
        Attr::Floats(_) => 6,
        Attr::Ints(_) => 7,
        Attr::Strings(_) => 8,
        Attr::Tensors(_) => 9,
        Attr::Graphs(_) => 10,
        Attr::Ref(_, code) => *code,
        Attr::Opaque => 13,
    }
}
