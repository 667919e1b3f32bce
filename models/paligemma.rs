use crate::{Family, Inputs, Pixels, Positions, config};

/// PaliGemma 1 and 2.
pub(crate) const FAMILY: Family = Family {
    name: "paligemma",
    about: "PaliGemma 1 and 2: SigLIP and Gemma. Image and prompt attend to one another in both directions; a graph \
            that was exported with a causal mask is compiled as it is.",
    fits: |found| config::is(found, &["paligemma"], &["PaliGemmaForConditionalGeneration"]),
    inputs: Inputs { pixels: Pixels::Pictures, positions: Positions::Row },
    image_token: config::image_token,
    image_text: Some("<image>"),
};
