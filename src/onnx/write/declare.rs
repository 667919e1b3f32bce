//! Declared types of values, kept while they are what the source says.

use std::collections::{HashMap, HashSet};

use mbqc_passes::ir::{Graph, Type, Value, ValueId};

use super::emit::Emitter;
use super::generate::value_info;
use super::origins::Initializer;
use crate::onnx::proto::{FunctionProto, GraphProto, NodeProto, TensorProto, ValueInfoProto};
use crate::onnx::read::convert::type_of;

/// What the source says about the values of one graph, merged as the reader merges it.
#[derive(Default)]
pub(super) struct Declared<'a> {
    pub(super) types: HashMap<&'a str, Type>,
    pub(super) defined: HashSet<&'a str>,
}

impl<'a> Declared<'a> {
    pub(super) fn of_graph(source: Option<&'a GraphProto>) -> Declared<'a> {
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

    pub(super) fn of_function(source: Option<&'a FunctionProto>) -> Declared<'a> {
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

impl<'a> Emitter<'a> {
    /// Inputs or outputs.
    pub(super) fn ends(
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
    pub(super) fn value_infos(
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
}
