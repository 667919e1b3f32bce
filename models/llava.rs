use crate::{Family, Inputs, Pixels, Positions, config};

/// LLaVA 1.5; also the sample model of this repository.
pub(crate) const FAMILY: Family = Family {
    name: "llava",
    about: "LLaVA 1.5 and models of its shape: one picture, a vision tower, a projector, a decoder with plain \
            positions.",
    fits: |found| config::is(found, &["llava"], &["LlavaForConditionalGeneration"]),
    inputs: Inputs { pixels: Pixels::Pictures, positions: Positions::Row },
    image_token: config::image_token,
    image_text: Some("<image>"),
};
