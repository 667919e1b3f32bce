//! Every way a tensor can hold its elements, made with the second encoder.

use std::path::Path;

use bytes::Bytes;
use mbqc::onnx::{ReadOptions, read_bytes};
use mbqc_passes::ir::{DType, Data, Tensor};
use onnx_protobuf::{
    GraphProto, Message, ModelProto, NodeProto, OperatorSetIdProto, SparseTensorProto, StringStringEntryProto,
    TensorProto, ValueInfoProto, tensor_proto,
};

use super::Outcome;

/// The bytes of a model whose graph gives back its initializers.
pub(crate) fn model(tensors: Vec<TensorProto>, sparse: Vec<SparseTensorProto>) -> Vec<u8> {
    let value = |name: &str| ValueInfoProto { name: name.to_owned(), ..ValueInfoProto::default() };
    let names = tensors.iter().map(|t| t.name.clone());
    let names: Vec<String> = names.chain(sparse.iter().map(|t| t.values.name.clone())).collect();
    let node = |name: &String| NodeProto {
        op_type: "Identity".to_owned(),
        input: vec![name.clone()],
        output: vec![format!("{name}_out")],
        ..NodeProto::default()
    };
    let graph = GraphProto {
        name: "g".to_owned(),
        node: names.iter().map(node).collect(),
        output: names.iter().map(|name| value(&format!("{name}_out"))).collect(),
        initializer: tensors,
        sparse_initializer: sparse,
        ..GraphProto::default()
    };
    let model = ModelProto {
        ir_version: 10,
        opset_import: vec![OperatorSetIdProto { version: 20, ..OperatorSetIdProto::default() }],
        graph: Some(graph).into(),
        ..ModelProto::default()
    };
    model.write_to_bytes().unwrap_or_default()
}

pub(crate) fn tensor(code: i32, dims: &[i64]) -> TensorProto {
    TensorProto { name: "t".to_owned(), data_type: code, dims: dims.to_vec(), ..TensorProto::default() }
}

pub(crate) fn entry(key: &str, value: &str) -> StringStringEntryProto {
    StringStringEntryProto { key: key.to_owned(), value: value.to_owned(), ..StringStringEntryProto::default() }
}

fn read(tensor: TensorProto) -> Result<Tensor, String> {
    read_one(model(vec![tensor], Vec::new()))
}

fn read_one(bytes: Vec<u8>) -> Result<Tensor, String> {
    let file = read_bytes(Bytes::from(bytes), Path::new("made.onnx"), &ReadOptions::default());
    let model = file.map_err(|error| error.to_string())?.model;
    let id = model.graph.find("t").ok_or("no value `t`")?;
    model.graph.constant(id).cloned().ok_or_else(|| "not a constant".to_owned())
}

#[test]
fn elements_are_read_from_every_field() {
    let ints = |code, dims: &[i64], values: &[i32]| TensorProto { int32_data: values.to_vec(), ..tensor(code, dims) };
    #[rustfmt::skip]
    let rows: Vec<(TensorProto, DType, Vec<u8>)> = vec![
        (TensorProto { raw_data: vec![1, 2, 3, 4], ..tensor(1, &[1]) },          DType::F32,  vec![1, 2, 3, 4]),
        (TensorProto { float_data: vec![1.0, -2.0], ..tensor(1, &[2]) },         DType::F32,  [1f32, -2.0].map(f32::to_le_bytes).concat()),
        (TensorProto { float_data: vec![1.0, -2.0], ..tensor(14, &[]) },         DType::C64,  [1f32, -2.0].map(f32::to_le_bytes).concat()),
        (TensorProto { double_data: vec![0.5], ..tensor(11, &[1]) },             DType::F64,  0.5f64.to_le_bytes().to_vec()),
        (TensorProto { double_data: vec![0.5, 1.0], ..tensor(15, &[1]) },        DType::C128, [0.5f64, 1.0].map(f64::to_le_bytes).concat()),
        (TensorProto { int64_data: vec![-1], ..tensor(7, &[1]) },                DType::I64,  vec![255; 8]),
        (TensorProto { uint64_data: vec![u64::MAX], ..tensor(13, &[1]) },        DType::U64,  vec![255; 8]),
        (TensorProto { uint64_data: vec![0xfffe_0001], ..tensor(12, &[1]) },     DType::U32,  vec![1, 0, 0xfe, 0xff]),
        (ints(6, &[2], &[-1, 1]),                                                DType::I32,  vec![255, 255, 255, 255, 1, 0, 0, 0]),
        (ints(5, &[2], &[-2, 65535]),                                            DType::I16,  vec![254, 255, 255, 255]),
        (ints(4, &[1], &[65535]),                                                DType::U16,  vec![255, 255]),
        (ints(3, &[2], &[-1, 127]),                                              DType::I8,   vec![255, 127]),
        (ints(2, &[2], &[255, 0]),                                               DType::U8,   vec![255, 0]),
        (ints(9, &[2], &[1, 0]),                                                 DType::Bool, vec![1, 0]),
        (ints(10, &[1], &[0x3c00]),                                              DType::F16,  vec![0, 0x3c]),
        (ints(16, &[1], &[0x3f80]),                                              DType::BF16, vec![0x80, 0x3f]),
        (ints(17, &[1], &[0x38]),                                                DType::F8E4M3FN, vec![0x38]),
        (ints(22, &[3], &[0x21, 0x0f]),                                          DType::I4,   vec![0x21, 0x0f]),
        (ints(21, &[2], &[0xba]),                                                DType::U4,   vec![0xba]),
        (ints(25, &[5], &[0xe4, 1]),                                             DType::U2,   vec![0xe4, 1]),
        (tensor(1, &[0, 3]),                                                     DType::F32,  vec![]),
        (TensorProto { raw_data: vec![9; 5], ..tensor(99, &[7]) },               DType::Other(99), vec![9; 5]),
    ];
    for (proto, dtype, bytes) in rows {
        let dims: Vec<usize> = proto.dims.iter().map(|&dim| usize::try_from(dim).unwrap_or(0)).collect();
        assert_eq!(read(proto), Ok(Tensor::raw(dtype, dims, bytes)));
    }
    let strings = TensorProto { string_data: vec![b"a".to_vec(), vec![255]], ..tensor(8, &[2]) };
    let data = Data::Strings(vec![Bytes::from_static(b"a"), Bytes::from_static(&[255])]);
    assert_eq!(read(strings), Ok(Tensor { dtype: DType::String, dims: vec![2], data }));
}

#[test]
fn tensors_that_do_not_add_up_are_refused() {
    let external = |entries: &[(&str, &str)]| TensorProto {
        data_location: tensor_proto::DataLocation::EXTERNAL.into(),
        external_data: entries.iter().map(|(key, value)| entry(key, value)).collect(),
        ..tensor(1, &[2])
    };
    let segment = tensor_proto::Segment { begin: 0, end: 1, ..tensor_proto::Segment::default() };
    #[rustfmt::skip]
    let rows: Vec<(TensorProto, &str)> = vec![
        (TensorProto { raw_data: vec![0; 7], ..tensor(1, &[2]) }, "initializer `t`: float of shape [2] needs 8 bytes in raw_data, found 7"),
        (TensorProto { float_data: vec![0.0], ..tensor(1, &[2]) }, "needs 8 bytes in float_data, found 4"),
        (tensor(10, &[1]), "float16 of shape [1] needs 2 bytes in int32_data, found 0"),
        (TensorProto { int32_data: vec![256], ..tensor(2, &[1]) }, "found the stored value 256, expected -128 to 255 for uint8"),
        (TensorProto { raw_data: vec![0; 4], ..tensor(1, &[-1]) }, "found dimension -1, expected zero or more"),
        (tensor(1, &[1 << 40, 1 << 40]), "is larger than memory addresses reach"),
        (tensor(8, &[2]), "shape [2] needs 2 strings, found 0"),
        (TensorProto { segment: Some(segment).into(), ..tensor(1, &[2]) }, "one segment of several"),
        (TensorProto { name: String::new(), ..tensor(1, &[0]) }, "found an initializer without a name"),
        (external(&[]), "no location is given"),
        (external(&[("location", "../x")]), "leaves the model's folder"),
        (external(&[("location", "/etc/passwd")]), "leaves the model's folder"),
        (external(&[("location", "a/../../x")]), "leaves the model's folder"),
        (external(&[("location", "no_such_file"), ("offset", "0")]), "put the data file there"),
        (external(&[("location", "x"), ("offset", "-1")]), "offset is \"-1\", expected a whole number of bytes"),
    ];
    for (proto, expected) in rows {
        let found = read(proto).map_or_else(|error| error, |tensor| format!("no error but {tensor:?}"));
        assert!(found.starts_with("made.onnx: ") && found.contains(expected), "{found}\n  should say: {expected}");
    }
}

#[test]
fn sparse_initializers_are_seen_as_the_dense_tensors_they_stand_for() -> Outcome {
    let sparse = |indices: Vec<i64>, shape: &[i64]| {
        let values = TensorProto { float_data: vec![5.0, 7.0], ..tensor(1, &[2]) };
        let indices = TensorProto { int64_data: indices, ..tensor(7, shape) };
        let proto = SparseTensorProto {
            values: Some(values).into(),
            indices: Some(indices).into(),
            dims: vec![2, 3],
            ..SparseTensorProto::default()
        };
        read_one(model(Vec::new(), vec![proto]))
    };
    for dense in [sparse(vec![1, 5], &[2])?, sparse(vec![0, 1, 1, 2], &[2, 2])?] {
        assert_eq!((dense.dtype, dense.dims.as_slice()), (DType::F32, [2, 3].as_slice()));
        assert_eq!(dense.to_f64(), Some(vec![0.0, 5.0, 0.0, 0.0, 0.0, 7.0]));
    }
    let outside = sparse(vec![1, 6], &[2]).map_or_else(|error| error, |_| "no error".to_owned());
    assert!(outside.contains("index [6] lies outside [2, 3]"), "{outside}");
    Ok(())
}
