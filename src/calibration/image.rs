//! Which tokens stand for image features.

use std::path::{Path, PathBuf};

use mbqc_passes::array::Array;
use mbqc_passes::facts::modality::find_merge;
use mbqc_passes::ir::Graph;

use super::has_pictures;
use crate::Error;
use crate::data::Sample;

/// How image placeholders are recognised in a sample that brings no vision mask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageToken {
    /// The token id.
    pub id: i64,
    /// Where it was read, for messages.
    pub from: &'static str,
}

/// The image token id: from the graph's merge, which must not contradict what is asked; else as asked, else from the
/// folder's `config.json`, else by the family's placeholder text from its `tokenizer.json`.
pub fn image_token(asked: Option<i64>, graph: &Graph, folder: &Path) -> Result<Option<ImageToken>, Error> {
    if let Some(merge) = find_merge(graph).map_err(|source| Error::Law { pass: "reading", source })? {
        let id = merge.image_token;
        if let Some(asked) = asked.filter(|&asked| asked != id) {
            return Err(Error::Usage(format!(
                "--image-token-id {asked}, but the graph puts image features where `{}` is {id}; leave the option out",
                graph.name(merge.ids)
            )));
        }
        return Ok(Some(ImageToken { id, from: "the graph's merge node" }));
    }
    if let Some(id) = asked {
        return Ok(Some(ImageToken { id, from: "--image-token-id" }));
    }
    let Some(config) = optional_json(folder.join("config.json"))? else { return Ok(None) };
    let family = mbqc_models::find(&config);
    if let Some(id) = (family.image_token)(&config) {
        return Ok(Some(ImageToken { id, from: "config.json" }));
    }
    let Some(text) = family.image_text else { return Ok(None) };
    let tokenizer = optional_json(folder.join("tokenizer.json"))?;
    let id = tokenizer.and_then(|tokenizer| mbqc_models::config::added_token(&tokenizer, text));
    Ok(id.map(|id| ImageToken { id, from: "tokenizer.json" }))
}

/// A JSON file that may be absent.
fn optional_json(file: PathBuf) -> Result<Option<serde_json::Value>, Error> {
    let Ok(text) = std::fs::read_to_string(&file) else { return Ok(None) };
    let parsed = serde_json::from_str(&text);
    parsed.map(Some).map_err(|e| Error::Content { file, reason: format!("not valid JSON: {e}") })
}

/// Which tokens of a sample are image placeholders. Where nothing tells and it is `needed`, a sample with pictures is an
/// error.
pub(super) fn image_places(
    sample: &Sample,
    image: Option<ImageToken>,
    needed: bool,
) -> Result<Vec<bool>, crate::data::Error> {
    if let Some(vision) = &sample.vision {
        return Ok(vision.clone());
    }
    match (token_places(sample, image), needed && has_pictures(sample)) {
        (Some(places), _) => Ok(places),
        (None, true) if image.is_none() => Err(sample.error(
            "it has pictures, but neither a `vision_mask` nor a known image token id, so its vision rows cannot be told \
             from its text rows; pass --image-token-id, save `vision_mask`, or take a method that counts all rows alike \
             (--method awq)"
                .to_owned(),
        )),
        _ => Ok(vec![false; sample.tokens()]),
    }
}

/// Where the sample has the image token; `None` when it has no ids or no token is known.
pub(super) fn token_places(sample: &Sample, image: Option<ImageToken>) -> Option<Vec<bool>> {
    let ids = sample.arrays.get("input_ids").map(Array::to_i64s)?.ok()?;
    let token = image?;
    Some(ids.iter().map(|&id| id == token.id).collect())
}
