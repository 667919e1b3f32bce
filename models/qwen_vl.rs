use crate::{Family, Inputs, Pixels, Positions, config};

/// Qwen2-VL and Qwen2.5-VL.
pub(crate) const FAMILY: Family = Family {
    name: "qwen_vl",
    about: "Qwen2-VL and Qwen2.5-VL: pictures of any size as flat patches, and positions along three axes. Save \
            `pixel_values`, `image_grid_thw` and `position_ids` as the processor makes them; `images` alone \
            are not enough.",
    fits: |found| {
        config::is(
            found,
            &["qwen2_vl", "qwen2_5_vl"],
            &["Qwen2VLForConditionalGeneration", "Qwen2_5_VLForConditionalGeneration"],
        )
    },
    inputs: Inputs { pixels: Pixels::Patches, positions: Positions::Grid },
    image_token: config::image_token,
    image_text: Some("<|image_pad|>"),
};
