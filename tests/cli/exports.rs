//! Exports as they are found in the world, where the corpus is at hand.

use std::collections::BTreeSet;
use std::path::Path;

use mbqc_passes::array::Array;

use super::Outcome;
use super::place::Place;
use super::support::{NO_CORPUS, corpus_folder, skip};

const IMAGE: i64 = 150;

/// Two samples: a prompt, `images` placeholders, four answer tokens; with more arrays.
fn samples(images: usize, more: &[(&'static str, Array)]) -> Vec<(&'static str, Array)> {
    let (prompt, answer) = (3, 4);
    let tokens = prompt + images + answer;
    let id = |sample: usize, t: usize| match t {
        t if (prompt..prompt + images).contains(&t) => IMAGE,
        t => ((sample * 31 + t * 17) % 140 + 5) as i64,
    };
    let ids: Vec<i64> = (0..2).flat_map(|s| (0..tokens).map(move |t| id(s, t))).collect();
    let labels =
        ids.iter().enumerate().map(|(at, &id)| if at % tokens >= prompt + images { id } else { -100 }).collect();
    let mut arrays = vec![("input_ids", Array::i64([2, tokens], ids)), ("labels", Array::i64([2, tokens], labels))];
    arrays.extend(more.iter().cloned());
    arrays
}

fn floats(shape: &[usize]) -> Array {
    let values = (0..shape.iter().product::<usize>()).map(|i| (i * 37 % 101) as f32 / 50.0 - 1.0);
    Array::f32(shape, values.collect())
}

fn case(name: &str) -> Option<String> {
    let folder = corpus_folder().join(name);
    if !folder.is_dir() {
        skip(NO_CORPUS);
        return None;
    }
    Some(folder.display().to_string())
}

/// Blocks whose cut is not a float are left out, and no block is listed under two names.
#[test]
fn verify_of_folders() -> Outcome {
    for (name, images) in [
        ("llava15_3graph_classic", 16),
        ("llava_ov_3graph_classic", 16),
        ("paligemma_3graph_classic", 16),
        ("internvl2_3graph_classic", 4),
    ] {
        let Some(folder) = case(name) else { return Ok(()) };
        let place = Place::new()?;
        place.data("data.npz", &samples(images, &[("pixel_values", floats(&[2, 1, 3, 28, 28]))]))?;
        let options = format!("--image-token-id {IMAGE}");
        let ran = place.run(&format!("{folder} -o out --format w4g32 --calib data.npz {options}"));
        assert_eq!(ran.code, Some(0), "{name}: {ran}");
        let ran = place.run(&format!("verify {folder} out --data data.npz {options}"));
        assert_eq!(ran.code, Some(0), "{name}: {ran}");
        let blocks = ran.out.lines().skip_while(|line| !line.starts_with("after")).skip(1);
        let figures: Vec<String> = blocks.filter_map(|l| Some(l.rsplit_once(')')?.1.trim().to_owned())).collect();
        let nonzero: Vec<&String> = figures.iter().filter(|f| !f.starts_with("0.00000 0.00000")).collect();
        let distinct: BTreeSet<&&String> = nonzero.iter().collect();
        assert!(nonzero.len() > 1 && distinct.len() == nonzero.len(), "{name}: a block is listed twice: {ran}");
    }
    Ok(())
}

/// Positions along three axes, patches without an axis for the sample, and an encoder that cannot be run.
#[test]
fn qwen_folders() -> Outcome {
    for (name, images) in [("qwen2_5_vl_3graph_dynamo", 16), ("qwen2_5_vl_3graph_classic_t215", 16)] {
        let Some(folder) = case(name) else { return Ok(()) };
        let place = Place::new()?;
        let tokens = images + 7;
        let positions = (0..2 * 3 * tokens).map(|i| (i % tokens) as i64).collect();
        let more = [
            ("pixel_values", floats(&[2, 64, 294])),
            ("image_grid_thw", Array::i64([2, 1, 3], [1, 8, 8].repeat(2))),
            ("position_ids", Array::i64([2, 3, tokens], positions)),
        ];
        place.data("data.npz", &samples(images, &more))?;
        let ran = place.run(&format!("{folder} -o out --format w4g32 --calib data.npz --image-token-id {IMAGE}"));
        assert_eq!(ran.code, Some(0), "{name}: {ran}");
    }
    let Some(folder) = case("qwen2_vl_3graph_classic") else { return Ok(()) };
    let place = Place::new()?;
    let positions = Array::i64([2, 3, 11], (0..66).map(|i| i % 11).collect());
    let mut arrays = samples(4, &[("position_ids", positions), ("inputs_embeds", floats(&[2, 11, 128]))]);
    place.data("data.npz", &arrays)?;
    let command = format!("{folder} -o out --format w4g32 --image-token-id {IMAGE} --calib");
    let ran = place.run(&format!("{command} data.npz"));
    assert_eq!(ran.code, Some(0), "{ran}");
    arrays.retain(|(name, _)| *name != "inputs_embeds");
    arrays.push(("pixel_values", floats(&[2, 16, 294])));
    arrays.push(("image_grid_thw", Array::i64([2, 1, 3], [1, 4, 4].repeat(2))));
    place.data("pictures.npz", &arrays)?;
    let ran = place.run(&format!("{folder} -o pictures --format w4g32 --image-token-id {IMAGE} --calib pictures.npz"));
    assert!(ran.code == Some(0) || ran.err.contains("save `inputs_embeds`"), "{ran}");
    Ok(())
}

/// Pictures and texts that are not one sequence: methods that count all rows alike need no classes.
#[test]
fn dual_encoders() -> Outcome {
    let Some(folder) = case("clip_dual_classic") else { return Ok(()) };
    let place = Place::new()?;
    let model = Path::new(&folder).join("model.onnx").display().to_string();
    let ids = Array::i64([2, 12], (0..24).map(|i| i * 5 % 90 + 3).collect());
    place.data("data.npz", &[("input_ids", ids), ("pixel_values", floats(&[2, 3, 28, 28]))])?;
    let ran = place.run(&format!("{model} -o out.onnx --format w4g16 --method awq --calib data.npz"));
    assert_eq!(ran.code, Some(0), "{ran}");
    assert!(!ran.err.contains("vision rows"), "{ran}");
    let told = place.refused(1, &format!("{model} -o mbq.onnx --format w4g16 --calib data.npz"));
    assert!(told.contains("--method awq"), "{told}");
    Ok(())
}

/// The merge of every exporter counts its features.
#[test]
fn placeholders_of_single_graphs() -> Outcome {
    for (name, images) in [
        ("llava15_single_classic", 16),
        ("llava_ov_single_classic", 16),
        ("llava_ov_single_where_dynamo", 16),
        ("llava_ov_single_indexput_dynamo", 16),
        ("internvl2_single_classic", 4),
        ("paligemma_single_dynamo", 16),
    ] {
        let Some(folder) = case(name) else { return Ok(()) };
        let place = Place::new()?;
        for (data, count) in [("good", images), ("few", images - 1), ("many", images + 1)] {
            place.data(&format!("{data}.npz"), &samples(count, &[("pixel_values", floats(&[2, 3, 28, 28]))]))?;
        }
        let model = Path::new(&folder).join("model.onnx").display().to_string();
        let run = |data: &str| format!("{model} -o out.onnx --format w4g16 --dry-run --calib {data}.npz");
        let ran = place.run(&run("good"));
        assert_eq!(ran.code, Some(0), "{name}: {ran}");
        for (data, count) in [("few", images - 1), ("many", images + 1)] {
            let told = place.refused(1, &run(data));
            let expected = format!("sample 0: found {count} image placeholders");
            assert!(told.contains(&expected) && told.contains(&format!("expected {images}")), "{name}: {told}");
        }
    }
    let Some(folder) = case("paligemma_single_concat_classic") else { return Ok(()) };
    let place = Place::new()?;
    place.data("data.npz", &samples(0, &[("pixel_values", floats(&[2, 3, 28, 28]))]))?;
    let model = Path::new(&folder).join("model.onnx").display().to_string();
    let told = place.refused(1, &format!("{model} -o out.onnx --format w4g16 --image-token-id 150 --calib data.npz"));
    assert!(told.contains("concatenated in front of the text"), "{told}");
    Ok(())
}
