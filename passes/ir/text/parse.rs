//! Text to models.

use super::literal::parse_payload;
use super::node::{Reader, opsets};
use super::scan::{ParseError, Scanner, dtype, is_type_word};
use crate::ir::{Attr, Dim, Error as Law, Function, Graph, GraphBuilder, Model, Type, verify};

/// Graphs nested deeper than this are refused.
pub(super) const DEPTH: usize = 64;

/// The model a text describes, verified. Never panics, whatever the text.
pub fn parse(text: &str) -> Result<Model, ParseError> {
    let mut reader = Reader { scan: Scanner::new(text), depth: 0 };
    let start = reader.scan.clone();
    let model = reader.model()?;
    verify::verify(&model).map_err(|law| start.error(format!("the text is well-formed, but {law}")))?;
    Ok(model)
}

/// What stands before a name: nothing, or a type.
pub(super) struct Entry {
    pub(super) ty: Option<Type>,
    pub(super) name: String,
}

impl Reader<'_> {
    fn model(&mut self) -> Result<Model, ParseError> {
        let mut model = Model::default();
        let mut version = String::new();
        if self.scan.matches('<') {
            loop {
                let before = self.scan.clone();
                let key = self.scan.identifier().unwrap_or_default();
                self.scan.expect(':')?;
                match key {
                    "ir_version" => model.ir_version = self.scan.integer()?,
                    "opset_import" => model.opsets = opsets(&mut self.scan)?,
                    "producer_name" => model.producer = self.scan.text()?,
                    "producer_version" => version = self.scan.text()?,
                    "metadata_props" => model.metadata = self.notes()?,
                    "domain" | "doc_string" => drop(self.scan.text()?),
                    "model_version" => drop(self.scan.integer()?),
                    _ => return Err(before.error(format!("`{key}` is not a field of a model"))),
                }
                if !self.scan.matches(',') {
                    break;
                }
            }
            self.scan.expect('>')?;
        }
        if !version.is_empty() {
            model.producer = format!("{} {version}", model.producer);
        }
        let name = self.scan.name()?;
        model.graph = self.graph(name)?;
        while !self.scan.is_end() {
            let function = self.function()?;
            model.functions.push(function);
        }
        Ok(model)
    }

    fn notes(&mut self) -> Result<Vec<(String, String)>, ParseError> {
        self.scan.expect('[')?;
        let mut notes = Vec::new();
        if self.scan.matches(']') {
            return Ok(notes);
        }
        loop {
            let key = self.scan.text()?;
            self.scan.expect(':')?;
            notes.push((key, self.scan.text()?));
            if !self.scan.matches(',') {
                self.scan.expect(']')?;
                return Ok(notes);
            }
        }
    }

    fn function(&mut self) -> Result<Function, ParseError> {
        let (mut domain, mut overload, mut imports) = (String::new(), String::new(), Vec::new());
        if self.scan.matches('<') {
            loop {
                let before = self.scan.clone();
                let key = self.scan.identifier().unwrap_or_default();
                self.scan.expect(':')?;
                match key {
                    "domain" => domain = self.scan.text()?,
                    "overload" => overload = self.scan.text()?,
                    "opset_import" => imports = opsets(&mut self.scan)?,
                    "doc_string" => drop(self.scan.text()?),
                    _ => return Err(before.error(format!("`{key}` is not a field of a function"))),
                }
                if !self.scan.matches(',') {
                    break;
                }
            }
            self.scan.expect('>')?;
        }
        let name = self.scan.name()?;
        let (mut attributes, mut defaults): (Vec<String>, Vec<(String, Attr)>) = (Vec::new(), Vec::new());
        if self.scan.matches('<') && !self.scan.matches('>') {
            loop {
                let key = self.scan.name()?;
                if matches!(self.scan.peek(), Some(':' | '=')) {
                    defaults.push((key, self.attr_value()?));
                } else {
                    attributes.push(key);
                }
                if !self.scan.matches(',') {
                    break;
                }
            }
            self.scan.expect('>')?;
        }
        let mut body = GraphBuilder::new(name.clone());
        let inputs = self.entries()?;
        self.scan.expect_arrow()?;
        let outputs = self.entries()?;
        for input in &inputs {
            body.input(&input.name, input.ty.clone()).map_err(|law| self.law(&law))?;
        }
        let declared = self.listed(&mut body, false)?;
        self.finish(body, outputs, declared).map(|body| Function {
            domain,
            name,
            overload,
            attributes,
            defaults,
            opsets: imports,
            body,
            origin: None,
        })
    }

    /// A graph, from behind its name.
    pub(super) fn graph(&mut self, name: String) -> Result<Graph, ParseError> {
        self.depth += 1;
        if self.depth > DEPTH {
            return Err(self.scan.error(format!("graphs are nested more than {DEPTH} deep")));
        }
        let mut graph = GraphBuilder::new(name);
        self.scan.expect('(')?;
        if !self.scan.matches(')') {
            loop {
                let entry = self.entry()?;
                graph.input(&entry.name, entry.ty.clone()).map_err(|law| self.law(&law))?;
                if self.scan.matches('=') {
                    self.constant(&mut graph, entry)?;
                }
                if !self.scan.matches(',') {
                    break;
                }
            }
            self.scan.expect(')')?;
        }
        self.scan.expect_arrow()?;
        let outputs = self.entries()?;
        let declared = self.listed(&mut graph, true)?;
        let graph = self.finish(graph, outputs, declared)?;
        self.depth -= 1;
        Ok(graph)
    }

    /// Nodes, then outputs and declarations, in the order the file reader has them.
    fn finish(
        &mut self,
        mut graph: GraphBuilder,
        outputs: Vec<Entry>,
        declared: Vec<Entry>,
    ) -> Result<Graph, ParseError> {
        self.nodes(&mut graph)?;
        for output in outputs {
            graph.output(&output.name, output.ty);
        }
        for Entry { ty, name } in declared {
            if let Some(ty) = ty {
                graph.declare(&name, ty);
            }
        }
        Ok(graph.finish())
    }

    /// Constants, which go into the graph, and declarations, which are given back.
    fn listed(&mut self, graph: &mut GraphBuilder, constants: bool) -> Result<Vec<Entry>, ParseError> {
        let mut declared = Vec::new();
        if !self.scan.matches('<') || self.scan.matches('>') {
            return Ok(declared);
        }
        loop {
            let entry = self.entry()?;
            if constants && self.scan.matches('=') {
                self.constant(graph, entry)?;
            } else {
                declared.push(entry);
            }
            if !self.scan.matches(',') {
                self.scan.expect('>')?;
                return Ok(declared);
            }
        }
    }

    fn constant(&mut self, graph: &mut GraphBuilder, entry: Entry) -> Result<(), ParseError> {
        let Entry { ty, name } = entry;
        let (dtype, dims) = self.concrete(ty)?;
        let tensor = parse_payload(&mut self.scan, dtype, dims)?;
        graph.constant(&name, tensor, None).map_err(|law| self.law(&law))?;
        Ok(())
    }

    /// The element type and shape of a constant.
    pub(super) fn concrete(&self, ty: Option<Type>) -> Result<(crate::ir::DType, Vec<usize>), ParseError> {
        let Some(Type::Tensor(dtype, Some(dims))) = ty else {
            return Err(self.scan.error("a constant needs a tensor type with a shape before its name".to_owned()));
        };
        let size = |dim: Dim| match dim {
            Dim::Size(size) => Ok(size),
            Dim::Symbol(_) | Dim::Unknown => {
                Err(self.scan.error("every dimension of a constant must be a number".to_owned()))
            }
        };
        Ok((dtype, dims.into_iter().map(size).collect::<Result<_, _>>()?))
    }

    /// Names with optional types, in parentheses.
    fn entries(&mut self) -> Result<Vec<Entry>, ParseError> {
        self.scan.expect('(')?;
        let mut entries = Vec::new();
        if self.scan.matches(')') {
            return Ok(entries);
        }
        loop {
            entries.push(self.entry()?);
            if !self.scan.matches(',') {
                self.scan.expect(')')?;
                return Ok(entries);
            }
        }
    }

    fn entry(&mut self) -> Result<Entry, ParseError> {
        let ty = if self.scan.peek_identifier().is_some_and(is_type_word) { Some(self.ty()?) } else { None };
        let name = self.scan.name()?;
        if name.is_empty() {
            return Err(self.scan.error("a name must not be empty".to_owned()));
        }
        Ok(Entry { ty, name })
    }

    /// A type.
    pub(super) fn ty(&mut self) -> Result<Type, ParseError> {
        let word = self.scan.identifier().unwrap_or_default();
        let Some(dtype) = dtype(word) else {
            // A sequence, optional, map or the like: kept as a type that is not read.
            self.scan.expect('(')?;
            self.closing()?;
            return Ok(Type::Other);
        };
        if !self.scan.matches('[') {
            return Ok(Type::Tensor(dtype, Some(Vec::new())));
        }
        if self.scan.matches(']') {
            return Ok(Type::Tensor(dtype, None));
        }
        let mut dims = Vec::new();
        loop {
            dims.push(match self.scan.peek() {
                Some('?') => {
                    self.scan.expect('?')?;
                    Dim::Unknown
                }
                Some(c) if c.is_ascii_digit() || c == '-' => {
                    let size = self.scan.integer()?;
                    Dim::Size(usize::try_from(size).map_err(|_| self.scan.error(format!("a dimension of {size}")))?)
                }
                _ => Dim::Symbol(self.scan.name()?),
            });
            if !self.scan.matches(',') {
                self.scan.expect(']')?;
                return Ok(Type::Tensor(dtype, Some(dims)));
            }
        }
    }

    /// Skips to behind the parenthesis that closes the one before.
    fn closing(&mut self) -> Result<(), ParseError> {
        let mut open = 1usize;
        while open > 0 {
            match self.scan.peek() {
                Some('(') => open += 1,
                Some(')') => open -= 1,
                Some('"') => {
                    self.scan.string()?;
                    continue;
                }
                Some(c) if c.is_ascii_alphanumeric() || "_[],.?".contains(c) => {}
                _ => return Err(self.scan.expected("`)`")),
            }
            self.scan.take();
        }
        Ok(())
    }

    /// A law of the IR that the text before this breaks.
    pub(super) fn law(&self, law: &Law) -> ParseError {
        self.scan.error(law.to_string())
    }
}
