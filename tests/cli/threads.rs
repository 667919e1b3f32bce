//! The same input gives the same bytes, whatever the number of threads.

use std::cell::Cell;
use std::fs;
use std::path::Path;

use mbqc::calibration::{Data, DataSamples, Frontend, image_token};
use mbqc::onnx;
use mbqc_kernels::Pool;
use mbqc_passes::array::Compute;
use mbqc_passes::facts::sites::{Site, survey};
use mbqc_passes::method::driver::{Chosen, Request};
use mbqc_passes::method::{self, MaskShift, decide};
use mbqc_passes::run::{Runner, Walk};

use super::Outcome;
use super::place::Place;

/// Two blocks of the sample model, with two samples: enough for every stage, on every path, to have work for two.
fn arguments(folder: &Path) -> String {
    format!(
        "{0}/model.onnx --calib {0}/calib.npz --samples 2 --search-samples 2 --include model.layers.[01].*",
        folder.display()
    )
}

#[test]
fn threads_and_runs_give_the_same_bytes() -> Outcome {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/pocket-vlm");
    let place = Place::new()?;
    let mut first: Option<(Vec<u8>, Vec<u8>)> = None;
    for (run, threads) in [1, 2, 1, 2].into_iter().enumerate() {
        let options = format!("--threads {threads} -o q{run}.onnx --plan-out plan{run}.json --quiet");
        let ran = place.run(&format!("{} {options}", arguments(&folder)));
        assert_eq!((ran.code, ran.err.as_str(), ran.out.as_str()), (Some(0), "", ""));
        let found = (fs::read(place.path(format!("q{run}.onnx")))?, fs::read(place.path(format!("plan{run}.json")))?);
        match &first {
            None => first = Some(found),
            Some(first) => {
                assert!(first.0 == found.0, "run {run} with {threads} threads: another model");
                assert!(first.1 == found.1, "run {run} with {threads} threads: another plan");
            }
        }
    }
    Ok(())
}

/// Guards the test above against comparing one thread with itself.
#[test]
fn two_workers_really_calibrate() -> Outcome {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/pocket-vlm");
    let model = onnx::read(&folder.join("model.onnx"), &onnx::ReadOptions::default())?.model;
    let runner = Walk::new(Pool::new(2), Compute::F32);
    let survey = survey(&model)?;
    let spec = "w3g128".parse()?;
    let first = |(_, site): &(usize, &Site)| site.name.starts_with("model.layers.0.");
    let sites = survey.sites.iter().enumerate().filter(first);
    let chosen = sites.map(|(site, _)| Chosen { site, spec }).collect();
    let image = image_token(None, &model.graph, &folder)?;
    let data = Data {
        path: &folder.join("calib.npz"),
        folder: &folder,
        image,
        shift: MaskShift::Shifted,
        limit: Some(2),
        classes: true,
        logits: None,
    };
    let samples = DataSamples::open(&data, &runner, &model, Frontend::none())?;
    let most = Cell::new(0);
    let progress = |_: &str, _: usize, _: usize| most.set(most.get().max(runner.pool().workers_used()));
    let prepared = decide(&Request {
        model: &model,
        survey: &survey,
        chosen,
        skipped: Vec::new(),
        method: method::find("mbq").ok_or("no method mbq")?,
        logits: model.graph.find("logits").ok_or("no logits")?,
        runner: &runner,
        samples: Some(&samples),
        gradient_samples: 2,
        search_samples: 2,
        held_bytes: usize::MAX,
        progress: &progress,
    })?;
    assert_eq!((prepared.plan.recipes.len(), most.get()), (7, 2), "layers, workers");
    Ok(())
}
