//! Reading and writing ONNX files and text, over the corpus of real exports when it is there, over small text fixtures,
//! and over hostile bytes.

mod corpus;
mod files;
mod fixtures;
mod hostile;
mod same;
mod second;
#[path = "../support/mod.rs"]
mod support;
mod tensors;

type Outcome = Result<(), Box<dyn std::error::Error>>;
