//! The compiler of mbqc: an intermediate representation for ONNX graphs and everything that is done to it.
//!
//! This crate opens no file, knows no protobuf, starts no thread of its own and contains no `unsafe` code.
//!
//! # Laws of the intermediate representation
//!
//! 1. **Acyclic.** The file's node order is kept; a topological order is derived ([`ir::walk::topological`]), because
//!    some exporters write files that are not sorted.
//! 2. **One producer per value.** Names are unique, not empty, and survive every edit that keeps the value.
//! 3. **What is not understood is kept.** Reading and writing without a pass gives back the same bytes; for external
//!    tensors the same tensor bytes (location and offset may change). A model-local function wins over [`ops::OPS`],
//!    also when it shadows the name of a contributed operator; in our own domains (`ai.mbqc`) the function is the body
//!    for other runtimes, and the table wins.
//! 4. **Weights are views** of a memory map until a pass changes them; no pass copies one that it leaves alone.
//! 5. **Edits are values** ([`ir::Edit`]); a rule sees an immutable graph and answers with edits, with *no match*, or
//!    with *declined* and a reason. [`ir::verify::verify`] runs after every pass; a failure names the pass.
//! 6. **Facts live outside the graph**, keyed by value name. Derived facts are dropped at an edit; measured facts stay.
//! 7. **Deterministic everywhere**: indexed maps, sums in a fixed order whatever the thread count, every random draw
//!    from a named seed. The same input gives the same output bytes.
//! 8. **Every constant that may be a weight is in the plan or has a `Skipped` with its reason**, for every weight-bearing
//!    node at which it ends; [`facts::sites`] says which constants these are. Nothing is left out silently.

pub mod array;
pub mod facts;
pub mod ir;
pub mod method;
pub mod ops;
pub mod plan;
pub mod rewrite;
pub mod run;
mod stream;
pub mod weights;
