//! From decoded messages to the IR.

use std::path::Path;

use mbqc_passes::ir::{
    Attr, DType, Data, Dim, Error as Law, Function, Graph, GraphBuilder, Model, NewNode, Origin, Tensor, Type,
};

use super::external::{DataFiles, is_external};
use super::{payload, sparse};
use crate::onnx::Error;
use crate::onnx::proto::attribute_proto::AttributeType;
use crate::onnx::proto::tensor_shape_proto::dimension;
use crate::onnx::proto::{
    AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, StringStringEntryProto,
    TensorProto, TypeProto, ValueInfoProto, type_proto,
};

/// Turns the messages of one file into IR. Nodes and initializers are numbered in the order of `write/origins.rs`.
pub(super) struct Converter<'a> {
    file: &'a Path,
    data: &'a mut DataFiles,
    nodes: u32,
    tensors: u32,
}

impl<'a> Converter<'a> {
    pub(super) fn new(file: &'a Path, data: &'a mut DataFiles) -> Converter<'a> {
        Converter { file, data, nodes: 0, tensors: 0 }
    }

    pub(super) fn model(&mut self, proto: &ModelProto) -> Result<Model, Error> {
        if proto.opset_import.is_empty() {
            let reason = "found no opset_import, expected the version of each operator set; the file is cut or was \
                          written by a broken exporter";
            return Err(self.malformed("the model", reason));
        }
        let empty = GraphProto::default();
        let graph = self.graph(proto.graph.as_ref().unwrap_or(&empty), "the main graph")?;
        let functions =
            proto.functions.iter().zip(0..).map(|(f, at)| self.function(f, Origin(at))).collect::<Result<_, _>>()?;
        Ok(Model {
            ir_version: proto.ir_version(),
            opsets: opsets(&proto.opset_import),
            graph,
            functions,
            metadata: notes(&proto.metadata_props),
            producer: producer(proto),
        })
    }

    fn function(&mut self, proto: &FunctionProto, origin: Origin) -> Result<Function, Error> {
        let place = format!("function {}::{}", proto.domain(), proto.name());
        let mut body = GraphBuilder::new(proto.name());
        for name in &proto.input {
            self.named(name, &place, "input")?;
            body.input(name, None).map_err(|law| self.law(&place, law))?;
        }
        self.nodes_into(&mut body, &proto.node, &place)?;
        for name in &proto.output {
            self.named(name, &place, "output")?;
            body.output(name, None);
        }
        for info in &proto.value_info {
            if let Some(ty) = type_of(info) {
                body.declare(info.name(), ty);
            }
        }
        let defaults = proto
            .attribute_proto
            .iter()
            .map(|attr| Ok((attr.name().to_owned(), self.attr(attr, &place)?)))
            .collect::<Result<_, _>>()?;
        Ok(Function {
            domain: proto.domain().to_owned(),
            name: proto.name().to_owned(),
            overload: proto.overload().to_owned(),
            attributes: proto.attribute.clone(),
            defaults,
            opsets: opsets(&proto.opset_import),
            body: body.finish(),
            origin: Some(origin),
        })
    }

    fn graph(&mut self, proto: &GraphProto, place: &str) -> Result<Graph, Error> {
        let mut graph = GraphBuilder::new(proto.name());
        for info in &proto.input {
            self.named(info.name(), place, "input")?;
            graph.input(info.name(), type_of(info)).map_err(|law| self.law(place, law))?;
        }
        for tensor in &proto.initializer {
            self.named(tensor.name(), place, "initializer")?;
            let constant = self.tensor(tensor, &format!("initializer `{}`", tensor.name()))?;
            let origin = self.next_tensor();
            graph.constant(tensor.name(), constant, origin).map_err(|law| self.law(place, law))?;
        }
        for tensor in &proto.sparse_initializer {
            let name = tensor.values.as_ref().map_or("", |values| values.name());
            self.named(name, place, "sparse initializer")?;
            let at = format!("sparse initializer `{name}`");
            let (values, indices) = (tensor.values.as_ref(), tensor.indices.as_ref());
            let values = values.map(|t| self.tensor(t, &at)).transpose()?;
            let indices = indices.map(|t| self.tensor(t, &at)).transpose()?;
            let dense = sparse::dense(&tensor.dims, values, indices).map_err(|reason| self.malformed(&at, &reason))?;
            let origin = self.next_tensor();
            graph.constant(name, dense, origin).map_err(|law| self.law(place, law))?;
        }
        self.nodes_into(&mut graph, &proto.node, place)?;
        for info in &proto.output {
            self.named(info.name(), place, "output")?;
            graph.output(info.name(), type_of(info));
        }
        for info in &proto.value_info {
            if let Some(ty) = type_of(info) {
                graph.declare(info.name(), ty);
            }
        }
        Ok(graph.finish())
    }

    fn next_tensor(&mut self) -> Option<Origin> {
        self.tensors += 1;
        Some(Origin(self.tensors - 1))
    }

    fn nodes_into(&mut self, graph: &mut GraphBuilder, nodes: &[NodeProto], place: &str) -> Result<(), Error> {
        for proto in nodes {
            let origin = Origin(self.nodes);
            self.nodes += 1;
            let at = label(proto);
            let attrs = proto
                .attribute
                .iter()
                .map(|attr| Ok((attr.name().to_owned(), self.attr(attr, &at)?)))
                .collect::<Result<_, _>>()?;
            let spec = NewNode {
                name: proto.name().to_owned(),
                domain: proto.domain().to_owned(),
                op: proto.op_type().to_owned(),
                overload: proto.overload().to_owned(),
                inputs: proto.input.clone(),
                outputs: proto.output.clone(),
                attrs,
                metadata: notes(&proto.metadata_props),
            };
            graph.node(spec, Some(origin)).map_err(|law| self.law(&format!("{place}, {at}"), law))?;
        }
        Ok(())
    }

    fn attr(&mut self, proto: &AttributeProto, place: &str) -> Result<Attr, Error> {
        let place = format!("{place}, attribute `{}`", proto.name());
        if let Some(name) = proto.ref_attr_name.as_deref().filter(|name| !name.is_empty()) {
            return Ok(Attr::Ref(name.to_owned(), proto.r#type.unwrap_or(0)));
        }
        Ok(match attr_type(proto) {
            AttributeType::Float => Attr::Float(proto.f()),
            AttributeType::Int => Attr::Int(proto.i()),
            AttributeType::String => Attr::String(proto.s.clone().unwrap_or_default()),
            AttributeType::Tensor => match &proto.t {
                Some(tensor) => Attr::Tensor(self.tensor(tensor, &place)?),
                None => return Err(self.malformed(&place, "found no tensor, expected one by the attribute's type")),
            },
            AttributeType::Graph => match &proto.g {
                Some(graph) => Attr::Graph(Box::new(self.graph(graph, &place)?)),
                None => return Err(self.malformed(&place, "found no graph, expected one by the attribute's type")),
            },
            AttributeType::Floats => Attr::Floats(proto.floats.clone()),
            AttributeType::Ints => Attr::Ints(proto.ints.clone()),
            AttributeType::Strings => Attr::Strings(proto.strings.clone()),
            AttributeType::Tensors => {
                Attr::Tensors(proto.tensors.iter().map(|tensor| self.tensor(tensor, &place)).collect::<Result<_, _>>()?)
            }
            AttributeType::Graphs => {
                Attr::Graphs(proto.graphs.iter().map(|graph| self.graph(graph, &place)).collect::<Result<_, _>>()?)
            }
            AttributeType::Undefined
            | AttributeType::SparseTensor
            | AttributeType::SparseTensors
            | AttributeType::TypeProto
            | AttributeType::TypeProtos => Attr::Opaque,
        })
    }

    fn tensor(&mut self, proto: &TensorProto, place: &str) -> Result<Tensor, Error> {
        let shape = payload::shape(proto).map_err(|reason| self.malformed(place, &reason))?;
        let data = if is_external(proto) {
            if shape.dtype == DType::String {
                return Err(self.malformed(place, "found strings as external data, expected them in the model"));
            }
            Data::Raw(self.data.view(proto, shape.bytes)?)
        } else {
            payload::inline(proto, &shape).map_err(|reason| self.malformed(place, &reason))?
        };
        Ok(Tensor { dtype: shape.dtype, dims: shape.dims, data })
    }

    fn named(&self, name: &str, place: &str, what: &str) -> Result<(), Error> {
        if name.is_empty() {
            return Err(self.malformed(place, &format!("found an {what} without a name; names must not be empty")));
        }
        Ok(())
    }

    fn malformed(&self, place: &str, reason: &str) -> Error {
        Error::Malformed { file: self.file.to_owned(), place: place.to_owned(), reason: reason.to_owned() }
    }

    fn law(&self, place: &str, source: Law) -> Error {
        Error::Graph { file: self.file.to_owned(), place: place.to_owned(), source }
    }
}

/// A text that tells which node of the file this is.
fn label(node: &NodeProto) -> String {
    let name = match node.name() {
        "" => node.output.iter().find(|name| !name.is_empty()).map_or("", |name| name),
        name => name,
    };
    format!("node `{name}` ({})", node.op_type())
}

/// The type an attribute says it has; for files that do not say, the type of the field that is filled.
pub(in crate::onnx) fn attr_type(attr: &AttributeProto) -> AttributeType {
    use AttributeType as T;
    let said = attr.r#type.and_then(|code| T::try_from(code).ok()).filter(|&ty| ty != T::Undefined);
    #[rustfmt::skip]
    let filled = [
        (attr.f.is_some(), T::Float), (attr.i.is_some(), T::Int), (attr.s.is_some(), T::String),
        (attr.t.is_some(), T::Tensor), (attr.g.is_some(), T::Graph),
        (!attr.floats.is_empty(), T::Floats), (!attr.ints.is_empty(), T::Ints), (!attr.strings.is_empty(), T::Strings),
        (!attr.tensors.is_empty(), T::Tensors), (!attr.graphs.is_empty(), T::Graphs),
    ];
    said.or_else(|| filled.iter().find(|(is, _)| *is).map(|(_, ty)| *ty)).unwrap_or(T::Undefined)
}

/// The subgraphs an attribute holds, as the converter and the writer number them.
pub(in crate::onnx) fn attr_graphs(attr: &AttributeProto) -> &[GraphProto] {
    match attr_type(attr) {
        _ if attr.ref_attr_name.as_deref().is_some_and(|name| !name.is_empty()) => &[],
        AttributeType::Graph => attr.g.as_slice(),
        AttributeType::Graphs => &attr.graphs,
        _ => &[],
    }
}

/// The declared type of a value.
pub(in crate::onnx) fn type_of(info: &ValueInfoProto) -> Option<Type> {
    match info.r#type.as_ref()? {
        TypeProto { value: Some(type_proto::Value::TensorType(tensor)), .. } => {
            let dims =
                tensor.shape.as_ref().map(|shape| shape.dim.iter().map(|dim| dim_of(dim.value.as_ref())).collect());
            Some(Type::Tensor(DType::from_onnx(tensor.elem_type()), dims))
        }
        TypeProto { value: Some(_), .. } => Some(Type::Other),
        TypeProto { value: None, .. } => None,
    }
}

fn dim_of(dim: Option<&dimension::Value>) -> Dim {
    match dim {
        Some(dimension::Value::DimValue(size)) => usize::try_from(*size).map_or(Dim::Unknown, Dim::Size),
        Some(dimension::Value::DimParam(name)) if !name.is_empty() => Dim::Symbol(name.clone()),
        Some(dimension::Value::DimParam(_)) | None => Dim::Unknown,
    }
}

/// Operator sets as (domain, version).
pub(in crate::onnx) fn opsets(imports: &[OperatorSetIdProto]) -> Vec<(String, i64)> {
    imports.iter().map(|import| (import.domain().to_owned(), import.version())).collect()
}

/// Key-value notes.
pub(in crate::onnx) fn notes(entries: &[StringStringEntryProto]) -> Vec<(String, String)> {
    entries.iter().map(|entry| (entry.key().to_owned(), entry.value().to_owned())).collect()
}

/// Name and version of the program that wrote the file.
pub(in crate::onnx) fn producer(proto: &ModelProto) -> String {
    match (proto.producer_name(), proto.producer_version()) {
        (name, "") => name.to_owned(),
        (name, version) => format!("{name} {version}"),
    }
}
