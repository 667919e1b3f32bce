use crate::{Family, Inputs, Pixels, Positions, config};

/// LLaVA-OneVision.
pub(crate) const FAMILY: Family = Family {
    name: "llava_onevision",
    about: "LLaVA-OneVision: SigLIP and Qwen2. Its processor adds any-resolution tiles and newline tokens; pictures \
            given as `images` are one tile, so save `pixel_values` to calibrate with more.",
    fits: |found| config::is(found, &["llava_onevision"], &["LlavaOnevisionForConditionalGeneration"]),
    inputs: Inputs { pixels: Pixels::Tiles, positions: Positions::Row },
    image_token: config::image_token,
    image_text: Some("<image>"),
};
