//! Messages made from the IR alone.

use mbqc_passes::ir::{Attr, Dim, Tensor, Type};

use crate::onnx::proto::attribute_proto::AttributeType;
use crate::onnx::proto::tensor_shape_proto::{Dimension, dimension};
use crate::onnx::proto::{
    AttributeProto, OperatorSetIdProto, StringStringEntryProto, TensorProto, TensorShapeProto, TypeProto,
    ValueInfoProto, type_proto,
};

/// A tensor without its payload.
pub(super) fn new_tensor(name: &str, tensor: &Tensor) -> TensorProto {
    TensorProto {
        dims: tensor.dims.iter().map(|&dim| size(dim)).collect(),
        data_type: Some(tensor.dtype.onnx()),
        name: Some(name.to_owned()),
        ..TensorProto::default()
    }
}

/// An attribute, without the tensors and graphs it may hold.
pub(super) fn plain_attr(name: &str, attr: &Attr) -> AttributeProto {
    let of = |ty: AttributeType| AttributeProto {
        name: Some(name.to_owned()),
        r#type: Some(ty as i32),
        ..AttributeProto::default()
    };
    match attr {
        Attr::Int(value) => AttributeProto { i: Some(*value), ..of(AttributeType::Int) },
        Attr::Float(value) => AttributeProto { f: Some(*value), ..of(AttributeType::Float) },
        Attr::String(value) => AttributeProto { s: Some(value.clone()), ..of(AttributeType::String) },
        Attr::Ints(values) => AttributeProto { ints: values.clone(), ..of(AttributeType::Ints) },
        Attr::Floats(values) => AttributeProto { floats: values.clone(), ..of(AttributeType::Floats) },
        Attr::Strings(values) => AttributeProto { strings: values.clone(), ..of(AttributeType::Strings) },
        Attr::Tensor(_) => of(AttributeType::Tensor),
        Attr::Graph(_) => of(AttributeType::Graph),
        Attr::Tensors(_) => of(AttributeType::Tensors),
        Attr::Graphs(_) => of(AttributeType::Graphs),
        Attr::Ref(target, ty) => {
            AttributeProto { ref_attr_name: Some(target.clone()), r#type: Some(*ty), ..of(AttributeType::Undefined) }
        }
        Attr::Opaque => of(AttributeType::Undefined),
    }
}

/// The declaration of a value.
pub(super) fn value_info(name: &str, ty: Option<&Type>) -> ValueInfoProto {
    let tensor = |ty: &Type| match ty {
        Type::Tensor(dtype, dims) => Some(TypeProto {
            value: Some(type_proto::Value::TensorType(type_proto::Tensor {
                elem_type: Some(dtype.onnx()),
                shape: dims.as_ref().map(|dims| TensorShapeProto { dim: dims.iter().map(dimension).collect() }),
            })),
            denotation: None,
        }),
        Type::Other => None,
    };
    ValueInfoProto { name: Some(name.to_owned()), r#type: ty.and_then(tensor), ..ValueInfoProto::default() }
}

fn dimension(dim: &Dim) -> Dimension {
    let value = match dim {
        Dim::Size(known) => Some(dimension::Value::DimValue(size(*known))),
        Dim::Symbol(name) => Some(dimension::Value::DimParam(name.clone())),
        Dim::Unknown => None,
    };
    Dimension { value, denotation: None }
}

fn size(dim: usize) -> i64 {
    i64::try_from(dim).unwrap_or(i64::MAX)
}

/// Operator sets.
pub(super) fn imports(opsets: &[(String, i64)]) -> Vec<OperatorSetIdProto> {
    let one = |(domain, version): &(String, i64)| OperatorSetIdProto {
        domain: Some(domain.clone()),
        version: Some(*version),
    };
    opsets.iter().map(one).collect()
}

/// Key-value notes.
pub(super) fn entries(notes: &[(String, String)]) -> Vec<StringStringEntryProto> {
    let one =
        |(key, value): &(String, String)| StringStringEntryProto { key: Some(key.clone()), value: Some(value.clone()) };
    notes.iter().map(one).collect()
}
