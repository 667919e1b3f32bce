use crate::{Family, Inputs, Pixels, Positions, config};

/// SmolVLM and Idefics3.
pub(crate) const FAMILY: Family = Family {
    name: "smolvlm",
    about: "SmolVLM and Idefics3: SigLIP with pixel shuffle. Its processor cuts large pictures into tiles; save \
            `pixel_values` and `pixel_attention_mask` as it makes them.",
    fits: |found| {
        config::is(
            found,
            &["smolvlm", "idefics3"],
            &["SmolVLMForConditionalGeneration", "Idefics3ForConditionalGeneration"],
        )
    },
    inputs: Inputs { pixels: Pixels::Tiles, positions: Positions::Row },
    image_token: config::image_token,
    image_text: Some("<image>"),
};
