//! Where payloads go: into the message, or to a place in the data file.

use std::collections::HashMap;
use std::io;

use bytes::Bytes;
use mbqc_passes::ir::{Attr, Data, Def, Graph, Lazy, Model, Tensor};

use crate::onnx::map::Holes;
use crate::onnx::proto::{StringStringEntryProto, TensorProto, tensor_proto::DataLocation};
use crate::onnx::read::external::is_external;

/// Where weights are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Placement {
    /// Weights nobody changed stay where they were. New and changed ones follow the file they came from: beside the
    /// model if it had a data file, inside it otherwise. A model of more than 1.5 GiB that is larger than its source
    /// file gets a data file in any case.
    #[default]
    Auto,
    /// Everything inside the model file; an error if that passes the limit of protobuf.
    Inline,
    /// Everything from the threshold on in a data file.
    External,
}

/// New models with more payload than this get a data file.
const INLINE_LIMIT: usize = 3 << 29;

/// Payloads in the data file start at multiples of this, the size of a memory page.
const ALIGN: u64 = 4096;

/// A payload and the place it gets in the data file.
#[derive(Debug)]
pub(super) struct Blob {
    pub(super) tensor: String,
    pub(super) offset: u64,
    pub(super) data: Payload,
}

/// Bytes that are there, or that will be made.
#[derive(Clone, Debug)]
pub(super) enum Payload {
    Ready(Bytes),
    Lazy(Lazy),
}

/// The layout of one output: which payloads lie where.
#[derive(Debug)]
pub(super) struct Layout {
    placement: Placement,
    threshold: usize,
    location: String,
    /// The source keeps weights in data files.
    beside: bool,
    /// Too large for one file.
    large: bool,
    blobs: Vec<Blob>,
    seen: HashMap<(usize, usize), usize>,
    end: u64,
    holes: Holes,
    filling: Vec<(String, Lazy)>,
}

impl Layout {
    /// The layout of `model`. `location` is the name of its data file; the pair tells the size of the model
    /// file it was read from and whether that had a data file.
    pub(super) fn new(
        model: &Model,
        placement: Placement,
        threshold: usize,
        location: String,
        (inside, beside): (usize, bool),
    ) -> io::Result<Layout> {
        let mut total = Total::default();
        total.graph(&model.graph);
        model.functions.iter().for_each(|function| total.graph(&function.body));
        Ok(Layout {
            placement,
            threshold,
            location,
            beside,
            large: total.bytes > INLINE_LIMIT.max(inside),
            blobs: Vec::new(),
            seen: HashMap::new(),
            end: 0,
            holes: Holes::new(total.lazy, total.longest)?,
            filling: Vec::new(),
        })
    }

    /// The contents of the data file, by offset; empty when there is none.
    pub(super) fn blobs(&self) -> &[Blob] {
        &self.blobs
    }

    /// Length of the data file.
    pub(super) fn data_bytes(&self) -> u64 {
        self.blobs.last().map_or(0, |blob| {
            let len = match &blob.data {
                Payload::Ready(bytes) => bytes.len(),
                Payload::Lazy(lazy) => lazy.len(),
            };
            blob.offset + len as u64
        })
    }

    /// The payload that belongs where a piece of the encoding is a stand-in.
    pub(super) fn filling(&self, piece: &Bytes) -> Option<&(String, Lazy)> {
        self.filling.get(self.holes.index_of(piece)?)
    }

    /// True when this initializer goes to the data file. `source` is the one it is in the file it was read from.
    pub(super) fn is_beside(&self, tensor: &Tensor, source: Option<&TensorProto>) -> bool {
        let large_enough = tensor.stored_bytes() >= self.threshold.max(1) && !matches!(tensor.data, Data::Strings(_));
        large_enough
            && match self.placement {
                Placement::Inline => false,
                Placement::External => true,
                Placement::Auto => self.large || source.map_or(self.beside, is_external),
            }
    }

    /// Puts the payload of `tensor` into `proto` or, if `beside`, into the data file.
    pub(super) fn place(&mut self, proto: &mut TensorProto, tensor: &Tensor, beside: bool) -> Result<(), String> {
        *proto = TensorProto {
            dims: proto.dims.clone(),
            data_type: proto.data_type,
            name: proto.name.take(),
            doc_string: proto.doc_string.take(),
            metadata_props: std::mem::take(&mut proto.metadata_props),
            ..TensorProto::default()
        };
        let payload = match &tensor.data {
            Data::Strings(strings) => {
                proto.string_data.clone_from(strings);
                return Ok(());
            }
            Data::Raw(bytes) => Payload::Ready(bytes.clone()),
            Data::Lazy(lazy) => Payload::Lazy(lazy.clone()),
        };
        if beside {
            let offset = self.offset_of(proto.name(), payload);
            let entry = |key: &str, value: String| StringStringEntryProto { key: Some(key.into()), value: Some(value) };
            proto.data_location = Some(DataLocation::External as i32);
            proto.external_data = vec![
                entry("location", self.location.clone()),
                entry("offset", offset.to_string()),
                entry("length", tensor.stored_bytes().to_string()),
            ];
            return Ok(());
        }
        proto.raw_data = Some(match payload {
            Payload::Ready(bytes) => bytes,
            Payload::Lazy(lazy) => self.inside(proto.name(), lazy)?,
        });
        Ok(())
    }

    /// The offset of a payload, the same for every tensor that holds the same bytes.
    fn offset_of(&mut self, tensor: &str, data: Payload) -> u64 {
        let (key, len) = match &data {
            Payload::Ready(bytes) => ((bytes.as_ptr().addr(), bytes.len()), bytes.len()),
            Payload::Lazy(lazy) => ((lazy.identity(), usize::MAX), lazy.len()),
        };
        if let Some(&at) = self.seen.get(&key) {
            return self.blobs[at].offset;
        }
        let offset = self.end.next_multiple_of(ALIGN);
        self.end = offset + len as u64;
        self.seen.insert(key, self.blobs.len());
        self.blobs.push(Blob { tensor: tensor.to_owned(), offset, data });
        offset
    }

    /// A stand-in inside the message for a long payload that is made on demand; a short one is made now.
    fn inside(&mut self, tensor: &str, lazy: Lazy) -> Result<Bytes, String> {
        let number = self.filling.len();
        match self.holes.hole(number, lazy.len()).filter(|hole| hole.len() >= crate::onnx::map::VIEW) {
            Some(hole) => {
                self.filling.push((tensor.to_owned(), lazy));
                Ok(hole)
            }
            None => lazy.produce(),
        }
    }
}

/// Sums over all payloads of a model.
#[derive(Default)]
struct Total {
    bytes: usize,
    lazy: usize,
    longest: usize,
}

impl Total {
    fn graph(&mut self, graph: &Graph) {
        for (_, value) in graph.values() {
            if let Def::Const(tensor) = &value.def {
                self.tensor(tensor);
            }
        }
        for (_, attr) in graph.nodes().flat_map(|(_, node)| &node.attrs) {
            match attr {
                Attr::Tensor(tensor) => self.tensor(tensor),
                Attr::Tensors(tensors) => tensors.iter().for_each(|tensor| self.tensor(tensor)),
                _ => attr.graphs().iter().for_each(|graph| self.graph(graph)),
            }
        }
    }

    fn tensor(&mut self, tensor: &Tensor) {
        self.bytes = self.bytes.saturating_add(tensor.stored_bytes());
        if let Data::Lazy(lazy) = &tensor.data {
            self.lazy += 1;
            self.longest = self.longest.max(lazy.len());
        }
    }
}
