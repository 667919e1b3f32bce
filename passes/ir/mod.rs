//! The intermediate representation; its laws are the crate documentation.

mod attr;
mod dtype;
mod edit;
pub mod graph;
mod model;
mod tensor;
pub mod text;
pub mod verify;
pub mod walk;

pub use attr::Attr;
pub use dtype::DType;
pub use edit::{Edit, NewNode, Place};
pub use graph::{Def, Dim, Graph, GraphBuilder, Node, NodeId, Origin, Type, Uses, Value, ValueId};
pub use model::{Function, GraphPath, Model, fresh_name};
pub use tensor::{Data, Lazy, Sink, Tensor};

/// A broken law of the IR.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Two definitions of one name.
    #[error("value `{0}` is defined twice; names must be unique")]
    Duplicate(String),
    /// A name without a definition.
    #[error("value `{0}` is read but nothing defines it")]
    Undefined(String),
    /// A constant was expected.
    #[error("value `{0}` is not a constant")]
    NotConstant(String),
    /// A value whose producer was to be removed is still in use.
    #[error("value `{0}` is still read, so its producer cannot be removed")]
    StillRead(String),
    /// A node that is not there.
    #[error("there is no node #{0} in the graph")]
    NoNode(u32),
    /// An input slot that is not there.
    #[error("node `{0}` has no input slot {1}")]
    NoSlot(String, usize),
    /// The graph has a cycle.
    #[error("node `{0}` depends on its own output")]
    Cycle(String),
    /// A tensor whose bytes do not fit its shape.
    #[error("constant `{name}` of type {dtype} and shape {dims:?} needs {needed} bytes, but holds {found}")]
    Size {
        /// Name of the constant.
        name: String,
        /// Its element type.
        dtype: DType,
        /// Its shape.
        dims: Vec<usize>,
        /// Bytes that type and shape ask for.
        needed: usize,
        /// Bytes that are there.
        found: usize,
    },
}
