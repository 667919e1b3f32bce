//! Nodes of a body, one after the other.

use crate::ir::{Attr, DType, Error, Function, GraphBuilder, NewNode, Tensor};

/// ONNX's number for an integer attribute.
const INT: i32 = 2;

/// A function body in the making: every node has one output, whose name is made up.
pub(super) struct Body {
    name: String,
    graph: GraphBuilder,
    pub(super) opset: i64,
    count: usize,
}

impl Body {
    /// The body of the operator `name`, whose output is `Y`.
    pub(super) fn new(name: &str, inputs: &[&str], opset: i64) -> Result<Body, Error> {
        let mut graph = GraphBuilder::new(name);
        for input in inputs {
            graph.input(input, None)?;
        }
        graph.output("Y", None);
        Ok(Body { name: name.to_owned(), graph, opset, count: 0 })
    }

    pub(super) fn node(&mut self, op: &str, inputs: &[&str], attrs: Vec<(&str, Attr)>) -> Result<String, Error> {
        self.count += 1;
        let output = format!("t{}", self.count);
        self.node_to(op, "", inputs, &[&output], attrs)?;
        Ok(output)
    }

    pub(super) fn node_to(
        &mut self,
        op: &str,
        domain: &str,
        inputs: &[&str],
        outputs: &[&str],
        attrs: Vec<(&str, Attr)>,
    ) -> Result<(), Error> {
        let mut node = NewNode::new(op, inputs, outputs).domain(domain).named(outputs[0]);
        node.attrs = attrs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        self.graph.node(node, None).map(|_| ())
    }

    pub(super) fn byte(&mut self, value: u8) -> Result<String, Error> {
        self.bytes(&[], vec![value])
    }

    pub(super) fn bytes(&mut self, shape: &[usize], values: Vec<u8>) -> Result<String, Error> {
        let tensor = Tensor::raw(DType::U8, shape, values);
        self.node("Constant", &[], vec![("value", Attr::Tensor(tensor))])
    }

    pub(super) fn shift(&mut self, direction: &str, value: &str, by: u8) -> Result<String, Error> {
        if by == 0 {
            return Ok(value.to_owned());
        }
        let by = self.byte(by)?;
        self.node("BitShift", &[value, &by], vec![("direction", Attr::str(direction))])
    }

    /// A constant of whole numbers, `[values]`.
    pub(super) fn ints(&mut self, values: &[i64]) -> Result<String, Error> {
        self.node("Constant", &[], vec![("value_ints", Attr::Ints(values.to_vec()))])
    }

    /// A scalar.
    pub(super) fn float(&mut self, value: f32) -> Result<String, Error> {
        self.node("Constant", &[], vec![("value_float", Attr::Float(value))])
    }

    /// An attribute of the operator, as `[1]`.
    pub(super) fn attribute(&mut self, name: &str) -> Result<String, Error> {
        let value = self.node("Constant", &[], vec![("value_int", refer(name))])?;
        let zero = self.ints(&[0])?;
        self.node("Unsqueeze", &[&value, &zero], vec![])
    }

    /// The function with these attributes. It reads the domain `also` beside the standard one.
    pub(super) fn finish(self, attributes: &[&str], also: Option<&str>) -> Function {
        let standard = (String::new(), self.opset);
        Function {
            domain: "ai.mbqc".to_owned(),
            name: self.name,
            overload: String::new(),
            defaults: Vec::new(),
            attributes: attributes.iter().map(|&name| name.to_owned()).collect(),
            opsets: std::iter::once(standard).chain(also.map(|domain| (domain.to_owned(), 1))).collect(),
            body: self.graph.finish(),
            origin: None,
        }
    }
}

/// The value of the operator's attribute of this name.
pub(super) fn refer(name: &str) -> Attr {
    Attr::Ref(name.to_owned(), INT)
}
