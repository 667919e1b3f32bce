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
}
