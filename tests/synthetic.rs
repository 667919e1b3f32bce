//! Made-up decoders: that they are what they claim to be, and what compiling one takes.

use std::collections::HashMap;
use std::path::Path;

use mbqc::data::npz;
use mbqc::onnx::{self, WriteOptions};
use mbqc_kernels::Pool;
use mbqc_passes::array::Compute;
use mbqc_passes::facts::{groups, sites};
use mbqc_passes::ir::{DType, ValueId, verify};
use mbqc_passes::run::{Runner, Walk};

#[cfg(target_os = "linux")]
#[path = "support/child.rs"]
mod child;
#[path = "support/decoder.rs"]
mod decoder;

use decoder::{Decoder, TINY};

type Outcome = Result<(), Box<dyn std::error::Error>>;

/// The expected outputs are onnxruntime's:
///
/// ```text
/// cargo run --example make_decoder -- --dtype f32 -o tiny.onnx
/// python tests/oracle/run_ort.py tiny.onnx tests/goldens/decoder_inputs.npz tests/goldens/decoder_outputs.npz
/// ```
#[test]
fn the_evaluator_agrees_with_onnxruntime() -> Outcome {
    let goldens = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens");
    let inputs = npz::read_arrays(&goldens.join("decoder_inputs.npz"))?;
    let expected = npz::read_arrays(&goldens.join("decoder_outputs.npz"))?;
    let model = TINY.model()?;
    verify::verify(&model)?;
    let graph = &model.graph;
    let walk = Walk::new(Pool::single(), Compute::F32);
    let segment = walk.prepare(&model, graph.inputs(), graph.outputs())?;
    let feeds: HashMap<ValueId, _> =
        inputs.into_iter().filter_map(|(name, array)| Some((graph.find(&name)?, array))).collect();
    let found = walk.run(&model, &segment, feeds, None)?;
    for (value, found) in graph.outputs().iter().zip(found) {
        let name = graph.name(*value);
        let expected = &expected[name];
        assert_eq!(found.shape, expected.shape, "{name}");
        let (found, expected) = (found.to_f64s(), expected.to_f64s());
        let largest = expected.iter().fold(0.0f64, |largest, v| largest.max(v.abs()));
        let error = found.iter().zip(&expected).fold(0.0f64, |error, (f, e)| error.max((f - e).abs()));
        assert!(error <= 1e-5 * largest, "{name} is off by {error}, its largest element is {largest}");
    }
    Ok(())
}

#[test]
fn layers_and_groups_are_found() -> Outcome {
    for dtype in [DType::F32, DType::F16] {
        let decoder = Decoder { layers: 3, dtype, ..TINY };
        let model = decoder.model()?;
        let survey = sites::survey(&model)?;
        assert_eq!(survey.sites.len(), 7 * decoder.layers + 1);
        assert_eq!(survey.sites.iter().filter(|site| site.head).count(), 1);
        let logits = model.graph.find("logits").ok_or("no logits")?;
        let groups = groups::groups(&model.graph, &survey, &[logits])?;
        let members = |group: &groups::Group| -> Vec<String> {
            let last = |name: &str| name.rsplit(['.', '/']).next().unwrap_or(name).to_owned();
            group.sites.iter().map(|&site| last(&survey.sites[site].name)).collect()
        };
        let found: Vec<_> = groups.iter().map(|group| (members(group).join(" "), group.fold.is_ok())).collect();
        // A value head serves two query heads, so the channels of `o_proj` cannot be scaled one by one.
        let block =
            [("q_proj k_proj v_proj", true), ("o_proj", false), ("gate_proj up_proj", true), ("down_proj", true)];
        let expected = std::iter::repeat_n(block, decoder.layers).flatten().chain([("lm_head", true)]);
        let expected: Vec<_> = expected.map(|(names, folds)| (names.to_owned(), folds)).collect();
        assert_eq!(found, expected, "{dtype}");
    }
    Ok(())
}

#[cfg(target_os = "linux")]
mod memory {
    use std::fs;
    use std::process::Command;

    use mbqc::data::npy::{Npy, NpyError};
    use mbqc::data::npz::Packing;
    use mbqc_passes::array::Array;
    use mbqc_passes::ir::{Edit, NewNode};

    use super::*;

    /// About 150 MB in f16, with a final projection that is larger than all memory promised.
    const MODEL: Decoder = Decoder {
        layers: 2,
        hidden: 1024,
        heads: 16,
        kv_heads: 4,
        intermediate: 4096,
        vocab: 44_000,
        dtype: DType::F16,
        ..TINY
    };

    #[test]
    fn compiling_takes_little_memory_and_threads_change_no_byte() -> Outcome {
        let folder = tempfile::tempdir()?;
        let model = folder.path().join("model.onnx");
        let written = onnx::write(None, &MODEL.model()?, &model, &WriteOptions::default())?;
        assert!(written.model_bytes + written.data_bytes > 140 << 20);
        let mut outputs = Vec::new();
        for threads in ["1", "2"] {
            // The same name in two folders: a data file's name is part of the model.
            let folder = folder.path().join(threads);
            fs::create_dir(&folder)?;
            let output = folder.join("out.onnx");
            let mut mbqc = Command::new(env!("CARGO_BIN_EXE_mbqc"));
            mbqc.arg(&model).arg("-o").arg(&output);
            mbqc.args(["--method", "rtn", "--head-format", "w4g32", "--quiet", "--threads", threads]);
            let child::Usage { anonymous, processor, elapsed } = child::watch(&mut mbqc)?;
            let seen = format!("{anonymous} bytes in {elapsed} s, {processor} s of processor time, {threads} threads");
            assert!(anonymous > 1 << 20, "{seen}: the child was not seen running");
            assert!(anonymous < 64 << 20, "{seen}");
            outputs.push(fs::read(&output)?);
        }
        assert!(outputs[0].len() > 30 << 20);
        assert!(outputs[0] == outputs[1], "one thread and two give different bytes");
        Ok(())
    }

    /// A decoder whose layers take 3.6 MB in f32 each, with one calibration sample beside it.
    fn write_calibrated(layers: usize, folder: &Path) -> Outcome {
        let decoder = Decoder { layers, hidden: 256, heads: 8, kv_heads: 4, intermediate: 1024, vocab: 1024, ..TINY };
        let mut model = decoder.model()?;
        // Frequencies times positions, an outer product, without a constant that looks like a weight.
        let graph = &mut model.graph;
        let (product, _) =
            graph.find("/model/rotary_emb/MatMul_output_0").and_then(|v| graph.producer(v)).ok_or("no product")?;
        let names = |values: &[Option<ValueId>]| -> Vec<String> {
            values.iter().flatten().map(|v| graph.name(*v).to_owned()).collect()
        };
        let (inputs, outputs) = (names(&graph.node(product).inputs), names(&graph.node(product).outputs));
        let mul = NewNode::new("Mul", &[&inputs[0], &inputs[1]], &[&outputs[0]]);
        graph.apply([Edit::ReplaceNode(product, mul)])?;
        onnx::write(None, &model, &folder.join("model.onnx"), &WriteOptions::default())?;
        let tokens = 24;
        let values = (0..tokens * 256).map(|i| ((i * 37 % 101) as f32 - 50.0) * 0.02).collect();
        let class = |is: fn(usize) -> bool| (0..tokens).map(|t| i64::from(is(t))).collect();
        let labels = (0..tokens).map(|t| if t < 16 { -100 } else { t as i64 }).collect();
        let arrays = [
            ("inputs_embeds", Array::f32([1, tokens, 256], values)),
            ("vision_mask", Array::i64([1, tokens], class(|t| (2..12).contains(&t)))),
            ("labels", Array::i64([1, tokens], labels)),
        ];
        let stored = arrays.iter().map(|(name, array)| Ok((*name, Npy::from_array(array)?)));
        let stored = stored.collect::<Result<Vec<_>, NpyError>>()?;
        Ok(npz::write(&folder.join("calib.npz"), stored, Packing::Stored)?)
    }

    /// Calibration holds one piece's weights at a time: eight more layers would take 29 MB in f32, twice that in reverse.
    #[test]
    fn calibrating_takes_the_memory_of_a_layer() -> Outcome {
        let mut seen = Vec::new();
        for layers in [4, 12] {
            let folder = tempfile::tempdir()?;
            write_calibrated(layers, folder.path())?;
            let mut mbqc = Command::new(env!("CARGO_BIN_EXE_mbqc"));
            mbqc.current_dir(folder.path());
            mbqc.args([
                "model.onnx",
                "--calib",
                "calib.npz",
                "-o",
                "out.onnx",
                "--dry-run",
                "--quiet",
                "--threads",
                "1",
            ]);
            seen.push(child::watch(&mut mbqc)?.anonymous);
        }
        assert!(seen[0] > 4 << 20, "{seen:?}: the child was not seen running");
        assert!(seen[1] < seen[0] + (10 << 20), "{seen:?} bytes with 4 and 12 layers");
        Ok(())
    }
}
