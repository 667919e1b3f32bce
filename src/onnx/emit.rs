//! From the IR to messages: what nobody changed is taken from the source, the rest is generated.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use mbqc_passes::ir::{Attr, Def, Function, Graph, Model, Node, Origin, Tensor, Type, Value, ValueId};

use super::Error;
use super::convert::{attr_type, notes, opsets, producer, type_of};
use super::external::is_external;
use super::generate::{entries, imports, new_tensor, plain_attr, value_info};
use super::origins::{Donors, Initializer, Origins, is_opaque};
use super::place::Layout;
use super::proto::{
    AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto, ValueInfoProto,
};

/// Builds the message of one output.
pub(super) struct Emitter<'a> {
    /// The output, for messages.
    file: &'a Path,
    source: Option<&'a ModelProto>,
    origins: Origins<'a>,
    pub(super) layout: Layout,
    /// Set when the message differs from the source's.
    pub(super) changed: bool,
    /// The origins the next node and initializer have while nothing is changed.
    next: [u32; 2],
}

impl<'a> Emitter<'a> {
    pub(super) fn new(file: &'a Path, source: Option<&'a ModelProto>, layout: Layout) -> Emitter<'a> {
        let origins = source.map(Origins::of).unwrap_or_default();
        Emitter { file, source, origins, layout, changed: source.is_none(), next: [0, 0] }
    }

    pub(super) fn model(&mut self, model: &Model) -> Result<ModelProto, Error> {
        let source = self.source;
        let graph = self.graph(&model.graph, source.and_then(|s| s.graph.as_ref()))?;
        let functions = model.functions.iter().map(|f| self.function(f)).collect::<Result<Vec<_>, _>>()?;
        let kept = source.map(|source| ModelProto { graph: None, functions: Vec::new(), ..head(source) });
        let mut proto = kept.unwrap_or_default();
        if proto.ir_version() != model.ir_version {
            self.changed = true;
            proto.ir_version = Some(model.ir_version);
        }
        if opsets(&proto.opset_import) != model.opsets {
            self.changed = true;
            proto.opset_import = imports(&model.opsets);
        }
        if notes(&proto.metadata_props) != model.metadata {
            self.changed = true;
            proto.metadata_props = entries(&model.metadata);
        }
        if producer(&proto) != model.producer {
            self.changed = true;
            proto.producer_name = Some(model.producer.clone());
            proto.producer_version = None;
        }
        self.changed |= source.is_some_and(|source| source.functions.len() != functions.len());
        self.changed |= self.next != self.origins.len();
        proto.graph = Some(graph);
        proto.functions = functions;
        Ok(proto)
    }

    fn function(&mut self, function: &Function) -> Result<FunctionProto, Error> {
        let of_file = |source: &'a ModelProto| {
            let Origin(number) = function.origin?;
            source.functions.get(number as usize).filter(|found| {
                found.name() == function.name
                    && found.domain() == function.domain
                    && found.overload() == function.overload
            })
        };
        let source = self.source.and_then(of_file);
        self.changed |= source.is_none();
        let body = &function.body;
        let names = |ids: &[ValueId]| ids.iter().map(|&id| body.name(id).to_owned()).collect();
        let mut proto = FunctionProto {
            input: names(body.inputs()),
            output: names(body.outputs()),
            attribute: function.attributes.clone(),
            node: self.nodes(body, source.map_or(&[], |s| &s.node))?,
            ..source.map_or_else(FunctionProto::default, shell)
        };
        proto.attribute_proto = match source.filter(|s| s.attribute_proto.len() == function.defaults.len()) {
            Some(source) => {
                let pairs = source.attribute_proto.iter().zip(&function.defaults);
                pairs.map(|(attr, (_, value))| self.kept_attr(attr, value)).collect::<Result<_, _>>()?
            }
            None => {
                let defaults = function.defaults.iter();
                defaults.map(|(name, attr)| self.attr(&function.name, name, attr, None)).collect::<Result<_, _>>()?
            }
        };
        let declared = Declared::of_function(source);
        proto.value_info = self.value_infos(body, source.map_or(&[], |s| &s.value_info), &declared, &HashSet::new());
        if source.is_none() {
            proto.name = Some(function.name.clone());
            proto.domain = Some(function.domain.clone());
            proto.overload = Some(function.overload.clone()).filter(|overload| !overload.is_empty());
        }
        if opsets(&proto.opset_import) != function.opsets {
            proto.opset_import = imports(&function.opsets);
        }
        self.changed |= source.is_some_and(|s| {
            s.input != proto.input
                || s.output != proto.output
                || s.attribute != proto.attribute
                || s.opset_import != proto.opset_import
        });
        Ok(proto)
    }

    fn graph(&mut self, graph: &Graph, source: Option<&'a GraphProto>) -> Result<GraphProto, Error> {
        let declared = Declared::of_graph(source);
        let (initializer, sparse_initializer) = self.initializers(graph, source)?;
        let node = self.nodes(graph, source.map_or(&[], |s| &s.node))?;
        let inputs = source.map_or(&[][..], |s| &s.input);
        let outputs = source.map_or(&[][..], |s| &s.output);
        let input = self.ends(graph, graph.inputs(), inputs, &declared);
        let output = self.ends(graph, graph.outputs(), outputs, &declared);
        let ends = graph.inputs().iter().chain(graph.outputs()).map(|&id| graph.name(id)).collect();
        let value_info = self.value_infos(graph, source.map_or(&[], |s| &s.value_info), &declared, &ends);
        let gone = |name: &str| graph.find(name).is_none() && declared.defined.contains(name);
        let mut proto = GraphProto {
            node,
            name: source.and_then(|s| s.name.clone()),
            initializer,
            sparse_initializer,
            doc_string: source.and_then(|s| s.doc_string.clone()),
            input,
            output,
            value_info,
            quantization_annotation: source.map_or_else(Vec::new, |s| s.quantization_annotation.clone()),
            metadata_props: source.map_or_else(Vec::new, |s| s.metadata_props.clone()),
        };
        if source.is_none() || proto.name() != graph.name {
            self.changed = true;
            proto.name = Some(graph.name.clone());
        }
        let annotations = proto.quantization_annotation.len();
        proto.quantization_annotation.retain(|annotation| !gone(annotation.tensor_name()));
        self.changed |= annotations != proto.quantization_annotation.len();
        Ok(proto)
    }

    /// Initializers in the order of the source, then new ones.
    fn initializers(
        &mut self,
        graph: &Graph,
        source: Option<&'a GraphProto>,
    ) -> Result<(Vec<TensorProto>, Vec<SparseTensorProto>), Error> {
        let dense = source.into_iter().flat_map(|s| s.initializer.iter().map(Initializer::Dense));
        let sparse = source.into_iter().flat_map(|s| s.sparse_initializer.iter().map(Initializer::Sparse));
        let old: Vec<&str> = dense.chain(sparse).map(Initializer::name).collect();
        let listed: HashSet<&str> = old.iter().copied().collect();
        let old = old.iter().filter_map(|name| Some(graph.value(graph.find(name)?)));
        let new = graph.values().map(|(_, value)| value).filter(|value| !listed.contains(value.name.as_str()));
        let (mut dense, mut sparse) = (Vec::new(), Vec::new());
        for value in old.chain(new) {
            let Def::Const(tensor) = &value.def else { continue };
            match self.origins.initializer(value, tensor) {
                Some(Initializer::Sparse(found)) if !beside(found) => {
                    self.step(1, value.origin);
                    sparse.push(found.clone());
                }
                Some(Initializer::Dense(found)) => {
                    self.step(1, value.origin);
                    let goes_beside = self.layout.is_beside(tensor, Some(found));
                    dense.push(self.kept_tensor(found, tensor, goes_beside)?);
                }
                Some(Initializer::Sparse(_)) | None => {
                    self.changed = true;
                    let goes_beside = self.layout.is_beside(tensor, None);
                    dense.push(self.new_tensor(&value.name, tensor, goes_beside)?);
                }
            }
        }
        Ok((dense, sparse))
    }

    /// A tensor of the source, its payload put where this output has it.
    fn kept_tensor(&mut self, found: &TensorProto, tensor: &Tensor, beside: bool) -> Result<TensorProto, Error> {
        let mut proto = found.clone();
        if beside || is_external(found) {
            self.changed = true;
            self.layout.place(&mut proto, tensor, beside).map_err(|reason| self.payload(found.name(), reason))?;
        }
        Ok(proto)
    }

    fn new_tensor(&mut self, name: &str, tensor: &Tensor, beside: bool) -> Result<TensorProto, Error> {
        let mut proto = new_tensor(name, tensor);
        self.layout.place(&mut proto, tensor, beside).map_err(|reason| self.payload(name, reason))?;
        Ok(proto)
    }

    fn payload(&self, tensor: &str, reason: String) -> Error {
        Error::Payload { file: self.file.to_owned(), tensor: tensor.to_owned(), reason }
    }

    fn nodes(&mut self, graph: &Graph, source: &'a [NodeProto]) -> Result<Vec<NodeProto>, Error> {
        let donors = Donors::of(source);
        graph.nodes().map(|(id, node)| self.node(graph, node, &graph.label(id), &donors)).collect()
    }

    fn node(&mut self, graph: &Graph, node: &Node, label: &str, donors: &Donors<'a>) -> Result<NodeProto, Error> {
        if let Some(found) = self.origins.node(graph, node) {
            self.step(0, node.origin);
            let mut proto = found.clone();
            for ((attr, kept), (_, value)) in found.attribute.iter().zip(&mut proto.attribute).zip(&node.attrs) {
                *kept = self.kept_attr(attr, value)?;
            }
            if notes(&found.metadata_props) != node.metadata {
                self.changed = true;
                proto.metadata_props = entries(&node.metadata);
            }
            return Ok(proto);
        }
        self.changed = true;
        let donor = donors.node(graph, node);
        let some = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
        let names =
            |ids: &[Option<ValueId>]| ids.iter().map(|id| id.map_or("", |id| graph.name(id)).to_owned()).collect();
        let attribute = node
            .attrs
            .iter()
            .map(|(name, attr)| {
                let donor = donor.and_then(|donor| donor.attribute.iter().find(|attr| attr.name() == name));
                self.attr(label, name, attr, donor)
            })
            .collect::<Result<_, _>>()?;
        Ok(NodeProto {
            input: names(&node.inputs),
            output: names(&node.outputs),
            name: some(&node.name),
            op_type: Some(node.op.clone()),
            domain: some(&node.domain),
            overload: some(&node.overload),
            attribute,
            doc_string: donor.and_then(|donor| donor.doc_string.clone()),
            metadata_props: entries(&node.metadata),
            device_configurations: Vec::new(),
        })
    }

    /// An attribute of the source; graphs in it are built anew, since their nodes have origins of their own.
    fn kept_attr(&mut self, found: &'a AttributeProto, value: &Attr) -> Result<AttributeProto, Error> {
        match value {
            Attr::Graph(graph) => {
                let g = Some(self.graph(graph, found.g.as_ref())?);
                Ok(AttributeProto { g, ..without_graphs(found) })
            }
            Attr::Graphs(graphs) => {
                self.changed |= graphs.len() != found.graphs.len();
                let graphs = graphs.iter().zip(0..).map(|(graph, at)| self.graph(graph, found.graphs.get(at)));
                let graphs = graphs.collect::<Result<_, _>>()?;
                Ok(AttributeProto { graphs, ..without_graphs(found) })
            }
            Attr::Tensor(tensor) => {
                let t = found.t.as_ref().map(|t| self.kept_attr_tensor(t, tensor)).transpose()?;
                Ok(AttributeProto { t, ..found.clone() })
            }
            Attr::Tensors(tensors) if tensors.len() == found.tensors.len() => {
                let tensors = found.tensors.iter().zip(tensors).map(|(found, t)| self.kept_attr_tensor(found, t));
                let tensors = tensors.collect::<Result<_, _>>()?;
                Ok(AttributeProto { tensors, ..found.clone() })
            }
            _ => Ok(found.clone()),
        }
    }

    /// Tensors in attributes stay where they are: few runtimes load them from data files.
    fn kept_attr_tensor(&mut self, found: &TensorProto, tensor: &Tensor) -> Result<TensorProto, Error> {
        let beside = is_external(found) && self.layout.is_beside(tensor, Some(found));
        self.kept_tensor(found, tensor, beside)
    }

    /// An attribute made from the IR; `donor` is the one of that name in the node it replaces.
    fn attr(
        &mut self,
        node: &str,
        name: &str,
        attr: &Attr,
        donor: Option<&'a AttributeProto>,
    ) -> Result<AttributeProto, Error> {
        let mut proto = match attr {
            Attr::Tensor(tensor) => AttributeProto { t: Some(self.attr_tensor(tensor)?), ..plain_attr(name, attr) },
            Attr::Tensors(tensors) => {
                let tensors = tensors.iter().map(|tensor| self.attr_tensor(tensor)).collect::<Result<_, _>>()?;
                AttributeProto { tensors, ..plain_attr(name, attr) }
            }
            Attr::Graph(graph) => {
                let g = Some(self.graph(graph, donor.and_then(|donor| donor.g.as_ref()))?);
                AttributeProto { g, ..plain_attr(name, attr) }
            }
            Attr::Graphs(graphs) => {
                let graphs = graphs.iter().zip(0..);
                let graphs = graphs.map(|(graph, at)| self.graph(graph, donor.and_then(|donor| donor.graphs.get(at))));
                let graphs = graphs.collect::<Result<_, _>>()?;
                AttributeProto { graphs, ..plain_attr(name, attr) }
            }
            Attr::Opaque => match donor.filter(|donor| is_opaque(attr_type(donor))) {
                Some(donor) => donor.clone(),
                None => {
                    return Err(Error::Malformed {
                        file: self.file.to_owned(),
                        place: format!("node `{node}`, attribute `{name}`"),
                        reason: "a sparse tensor or a type; it is kept with the node it was read with and cannot be \
                                 moved to another"
                            .to_owned(),
                    });
                }
            },
            plain => plain_attr(name, plain),
        };
        proto.doc_string = donor.and_then(|donor| donor.doc_string.clone());
        Ok(proto)
    }

    fn attr_tensor(&mut self, tensor: &Tensor) -> Result<TensorProto, Error> {
        let mut proto = self.new_tensor("", tensor, false)?;
        proto.name = None;
        Ok(proto)
    }

    /// Inputs or outputs.
    fn ends(
        &mut self,
        graph: &Graph,
        ids: &[ValueId],
        source: &[ValueInfoProto],
        declared: &Declared<'a>,
    ) -> Vec<ValueInfoProto> {
        self.changed |= ids.len() != source.len();
        let infos = ids.iter().enumerate().map(|(at, &id)| {
            let value = graph.value(id);
            let here = source.get(at).filter(|info| info.name() == value.name);
            self.changed |= here.is_none();
            let found = here.or_else(|| source.iter().find(|info| info.name() == value.name));
            self.info(value, found, declared)
        });
        infos.collect()
    }

    fn info(&mut self, value: &Value, found: Option<&ValueInfoProto>, declared: &Declared<'a>) -> ValueInfoProto {
        match found {
            Some(found) if declared.types.get(value.name.as_str()) == value.ty.as_ref() => found.clone(),
            _ => {
                self.changed = true;
                ValueInfoProto {
                    doc_string: found.and_then(|found| found.doc_string.clone()),
                    metadata_props: found.map_or_else(Vec::new, |found| found.metadata_props.clone()),
                    ..value_info(&value.name, value.ty.as_ref())
                }
            }
        }
    }

    /// Declarations of values between inputs and outputs: those of the source whose value is still there or never was
    /// a value of this graph, then new ones.
    fn value_infos(
        &mut self,
        graph: &Graph,
        source: &[ValueInfoProto],
        declared: &Declared<'a>,
        ends: &HashSet<&str>,
    ) -> Vec<ValueInfoProto> {
        let mut infos = Vec::with_capacity(source.len());
        for found in source {
            match graph.find(found.name()).map(|id| graph.value(id)) {
                Some(value) if value.ty.is_some() || type_of(found).is_none() => {
                    infos.push(self.info(value, Some(found), declared));
                }
                None if !declared.defined.contains(found.name()) => infos.push(found.clone()),
                Some(_) | None => self.changed = true,
            }
        }
        let listed: HashSet<&str> = source.iter().map(ValueInfoProto::name).collect();
        for (_, value) in graph.values() {
            let name = value.name.as_str();
            let is_new = matches!(value.ty, Some(Type::Tensor(..))) && declared.types.get(name) != value.ty.as_ref();
            if is_new && !listed.contains(name) && !ends.contains(name) {
                infos.push(self.info(value, None, declared));
            }
        }
        infos
    }

    /// Notes that the thing with this origin comes next in the output.
    fn step(&mut self, kind: usize, origin: Option<Origin>) {
        self.changed |= origin != Some(Origin(self.next[kind]));
        self.next[kind] += 1;
    }
}

/// What the source says about the values of one graph, merged as the reader merges it.
#[derive(Default)]
struct Declared<'a> {
    types: HashMap<&'a str, Type>,
    defined: HashSet<&'a str>,
}

impl<'a> Declared<'a> {
    fn of_graph(source: Option<&'a GraphProto>) -> Declared<'a> {
        let mut declared = Declared::default();
        let Some(source) = source else { return declared };
        for info in source.input.iter().chain(&source.output) {
            declared.defined.insert(info.name());
            if let Some(ty) = type_of(info) {
                declared.types.insert(info.name(), ty);
            }
        }
        declared.defined.extend(source.initializer.iter().map(TensorProto::name));
        declared.defined.extend(source.sparse_initializer.iter().map(|tensor| Initializer::Sparse(tensor).name()));
        declared.nodes_and_infos(&source.node, &source.value_info);
        declared
    }

    fn of_function(source: Option<&'a FunctionProto>) -> Declared<'a> {
        let mut declared = Declared::default();
        if let Some(source) = source {
            declared.defined.extend(source.input.iter().chain(&source.output).map(String::as_str));
            declared.nodes_and_infos(&source.node, &source.value_info);
        }
        declared
    }

    fn nodes_and_infos(&mut self, nodes: &'a [NodeProto], infos: &'a [ValueInfoProto]) {
        self.defined.extend(nodes.iter().flat_map(|node| &node.output).map(String::as_str));
        for info in infos {
            if let Some(ty) = type_of(info) {
                self.types.entry(info.name()).or_insert(ty);
            }
        }
    }
}

/// A model without its graph and functions.
fn head(source: &ModelProto) -> ModelProto {
    ModelProto {
        ir_version: source.ir_version,
        opset_import: source.opset_import.clone(),
        producer_name: source.producer_name.clone(),
        producer_version: source.producer_version.clone(),
        domain: source.domain.clone(),
        model_version: source.model_version,
        doc_string: source.doc_string.clone(),
        graph: None,
        metadata_props: source.metadata_props.clone(),
        training_info: source.training_info.clone(),
        functions: Vec::new(),
        configuration: source.configuration.clone(),
    }
}

/// A function without its body.
fn shell(source: &FunctionProto) -> FunctionProto {
    FunctionProto {
        name: source.name.clone(),
        doc_string: source.doc_string.clone(),
        opset_import: source.opset_import.clone(),
        domain: source.domain.clone(),
        overload: source.overload.clone(),
        metadata_props: source.metadata_props.clone(),
        ..FunctionProto::default()
    }
}

fn without_graphs(attr: &AttributeProto) -> AttributeProto {
    AttributeProto {
        name: attr.name.clone(),
        doc_string: attr.doc_string.clone(),
        r#type: attr.r#type,
        ..AttributeProto::default()
    }
}

/// True when a part of a sparse tensor lies in a data file; such a tensor is written densely.
fn beside(sparse: &SparseTensorProto) -> bool {
    [&sparse.values, &sparse.indices].into_iter().flatten().any(is_external)
}
