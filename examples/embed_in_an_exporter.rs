//! For programs that make ONNX models: a graph is built in memory, its linear layers are packed into 3 bits, and the result is
//! written, without a float file in between.
//!
//! ```text
//! cargo run --release --example embed_in_an_exporter
//! ```

#![expect(clippy::print_stdout, reason = "the text is what the program is for")]

use std::sync::Arc;

use mbqc::onnx::{WriteOptions, write};
use mbqc_kernels::Pool;
use mbqc_passes::array::Compute;
use mbqc_passes::facts::sites::survey;
use mbqc_passes::ir::{DType, Dim, Error, GraphBuilder, Model, NewNode, Tensor, Type, text, verify};
use mbqc_passes::method::{self, driver};
use mbqc_passes::rewrite::apply::{Accuracy, Options, Target, apply};
use mbqc_passes::rewrite::fallback::Fallback;
use mbqc_passes::run::Walk;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let model = export()?;
    verify::verify(&model)?;

    let found = survey(&model)?;
    let walk = Walk::new(Pool::single(), Compute::F32);
    let spec = "w3g128".parse()?;
    let request = driver::Request {
        chosen: (0..found.sites.len()).map(|site| driver::Chosen { site, spec }).collect(),
        ..driver::Request::without_data(&model, &found, method::find("range").ok_or("no such method")?, &walk)?
    };
    let plan = driver::decide(&request)?.plan;
    let options = Options { target: Target::Mbqc, fallback: Fallback::Ort, accuracy: Accuracy::Auto };
    let packed = apply(&model, &found, &plan, &options, &Arc::new(Pool::single()))?;
    verify::verify(&packed)?;

    // There is no source file: everything is written new.
    let folder = std::env::temp_dir().join(format!("embed-in-an-exporter-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let written = write(None, &packed, &folder.join("mlp.w3.onnx"), &WriteOptions::default())?;
    println!("{}", text::dump(&packed));
    println!("{} bytes for {} of float weights", written.model_bytes, 2 * 256 * 512 * 4);
    std::fs::remove_dir_all(&folder)?;
    Ok(())
}

/// What an exporter does: two linear layers with a ReLU between, for any number of tokens.
fn export() -> Result<Model, Error> {
    let tokens = |width| Type::Tensor(DType::F32, Some(vec![Dim::Symbol("tokens".to_owned()), Dim::Size(width)]));
    let weight = |rows: usize, columns: usize| {
        let values: Vec<f32> = (0..rows * columns).map(|i| (i as f32 * 0.37).sin() / (rows as f32).sqrt()).collect();
        Tensor::f32s([rows, columns], &values)
    };
    let mut graph = GraphBuilder::new("mlp");
    graph.input("x", Some(tokens(256)))?;
    graph.constant("up", weight(256, 512), None)?;
    graph.constant("down", weight(512, 256), None)?;
    graph.node(NewNode::new("MatMul", &["x", "up"], &["wide"]), None)?;
    graph.node(NewNode::new("Relu", &["wide"], &["positive"]), None)?;
    graph.node(NewNode::new("MatMul", &["positive", "down"], &["y"]), None)?;
    graph.output("y", Some(tokens(256)));
    let mut model = Model { ir_version: 8, graph: graph.finish(), ..Model::default() };
    model.import("", 18);
    Ok(model)
}
