//! From the IR to messages: what nobody changed is taken from the source, the rest is generated.

use std::collections::HashSet;
use std::path::Path;

use mbqc_passes::ir::{Def, Function, Graph, Model, Origin, Tensor, ValueId};

use super::declare::Declared;
use super::generate::{entries, imports, new_tensor};
use super::origins::{Initializer, Origins};
use super::place::Layout;
use crate::onnx::Error;
use crate::onnx::proto::{FunctionProto, GraphProto, ModelProto, SparseTensorProto, TensorProto};
use crate::onnx::read::convert::{notes, opsets, producer};
use crate::onnx::read::external::is_external;

/// Builds the message of one output.
pub(super) struct Emitter<'a> {
    /// The output, for messages.
    pub(super) file: &'a Path,
    source: Option<&'a ModelProto>,
    pub(super) origins: Origins<'a>,
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

    pub(super) fn graph(&mut self, graph: &Graph, source: Option<&'a GraphProto>) -> Result<GraphProto, Error> {
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
    pub(super) fn initializers(
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
    pub(super) fn kept_tensor(
        &mut self,
        found: &TensorProto,
        tensor: &Tensor,
        beside: bool,
    ) -> Result<TensorProto, Error> {
        let mut proto = found.clone();
        if beside || is_external(found) {
            self.changed = true;
            self.layout.place(&mut proto, tensor, beside).map_err(|reason| self.payload(found.name(), reason))?;
        }
        Ok(proto)
    }

    pub(super) fn new_tensor(&mut self, name: &str, tensor: &Tensor, beside: bool) -> Result<TensorProto, Error> {
        let mut proto = new_tensor(name, tensor);
        self.layout.place(&mut proto, tensor, beside).map_err(|reason| self.payload(name, reason))?;
        Ok(proto)
    }

    fn payload(&self, tensor: &str, reason: String) -> Error {
        Error::Payload { file: self.file.to_owned(), tensor: tensor.to_owned(), reason }
    }

    /// Notes that the thing with this origin comes next in the output.
    pub(super) fn step(&mut self, kind: usize, origin: Option<Origin>) {
        self.changed |= origin != Some(Origin(self.next[kind]));
        self.next[kind] += 1;
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

/// True when a part of a sparse tensor lies in a data file; such a tensor is written densely.
fn beside(sparse: &SparseTensorProto) -> bool {
    [&sparse.values, &sparse.indices].into_iter().flatten().any(is_external)
}
