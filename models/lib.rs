//! What must be told about a family of vision-language models because its graphs do not show it.
//!
//! A family is a `const` value in a file of its own, named once in [`FAMILIES`]. Layers, groups and blocks are never
//! looked up by name: those are read from the graph.

use serde_json::Value;

pub mod config;

mod generic;
mod internvl;
mod llava;
mod llava_onevision;
mod paligemma;
mod qwen_vl;
mod smolvlm;

/// A family of models.
pub struct Family {
    /// Name, as in `mbqc list families`.
    pub name: &'static str,
    /// What it is, and what to know before compiling it.
    pub about: &'static str,
    /// Whether a `config.json` describes a member.
    pub fits: fn(&Value) -> bool,
    /// What its graphs are fed.
    pub inputs: Inputs,
    /// The id of the token in whose place image features are put, as `config.json` has it.
    pub image_token: fn(&Value) -> Option<i64>,
    /// The text of that token in the tokenizer, for configurations that do not give the id; see
    /// [`config::added_token`].
    pub image_text: Option<&'static str>,
}

/// What the graphs of a family are fed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inputs {
    /// Layout of `pixel_values`.
    pub pixels: Pixels,
    /// Layout of `position_ids`.
    pub positions: Positions,
}

/// Layout of `pixel_values`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pixels {
    /// `[pictures, 3, H, W]`.
    Pictures,
    /// `[batch, tiles, 3, H, W]`.
    Tiles,
    /// `[patches, width]`, cut and ordered by the processor, with `image_grid_thw` beside it.
    Patches,
}

/// Layout of `position_ids`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Positions {
    /// `[batch, tokens]`: 0, 1, 2, ...
    Row,
    /// `[3, batch, tokens]`: time, height and width of image tokens (M-RoPE); depends on the image grid.
    Grid,
}

/// All families; the last one fits everything.
pub const FAMILIES: &[&Family] = &[
    &internvl::FAMILY,
    &llava::FAMILY,
    &llava_onevision::FAMILY,
    &paligemma::FAMILY,
    &qwen_vl::FAMILY,
    &smolvlm::FAMILY,
    &generic::FAMILY,
];

/// The family that a `config.json` belongs to; `generic` when no other fits.
pub fn find(config: &Value) -> &'static Family {
    FAMILIES.iter().copied().find(|family| (family.fits)(config)).unwrap_or(&generic::FAMILY)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn families_by_configuration() {
        let check = |config: Value, name: &str, token: Option<i64>| {
            let family = find(&config);
            assert_eq!((family.name, (family.image_token)(&config)), (name, token), "{config}");
        };
        check(json!({"model_type": "llava", "image_token_index": 3}), "llava", Some(3));
        let by_class = json!({"architectures": ["LlavaForConditionalGeneration"], "image_token_id": 7});
        check(by_class, "llava", Some(7));
        check(json!({"model_type": "llava_onevision", "image_token_index": 151646}), "llava_onevision", Some(151646));
        check(json!({"model_type": "internvl_chat", "llm_config": {"vocab_size": 9}}), "internvl", None);
        check(json!({"model_type": "internvl", "image_token_id": 151667}), "internvl", Some(151667));
        check(json!({"model_type": "qwen2_vl", "image_token_id": 151655}), "qwen_vl", Some(151655));
        check(json!({"architectures": ["Qwen2_5_VLForConditionalGeneration"]}), "qwen_vl", None);
        check(json!({"model_type": "smolvlm", "image_token_id": 49190}), "smolvlm", Some(49190));
        check(json!({"model_type": "idefics3", "image_token_id": 128257}), "smolvlm", Some(128257));
        check(json!({"model_type": "paligemma", "image_token_index": 257152}), "paligemma", Some(257152));
        check(json!({"model_type": "other", "text_config": {"image_token_id": 5}}), "generic", Some(5));
        check(json!({"model_type": 4, "architectures": "no list"}), "generic", None);
        check(json!([]), "generic", None);
    }

    #[test]
    fn the_list_is_in_order_and_says_something() {
        let (last, known) = FAMILIES.split_last().unwrap();
        assert_eq!(last.name, "generic");
        assert!(known.is_sorted_by_key(|family| family.name));
        assert!(FAMILIES.iter().all(|family| family.about.ends_with('.')));
        assert!(known.iter().all(|family| !(family.fits)(&json!({"model_type": "other"}))));
    }
}
