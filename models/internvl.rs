use crate::{Family, Inputs, Pixels, Positions, config};

/// InternVL: the original code (`internvl_chat`) and the port in transformers (`internvl`).
pub(crate) const FAMILY: Family = Family {
    name: "internvl",
    about: "InternVL 2 to 3: InternViT with pixel shuffle. Every tile is a picture of its own; configurations of the \
            original code do not give the image token, it is looked up in the tokenizer.",
    fits: |found| {
        config::is(found, &["internvl", "internvl_chat"], &["InternVLForConditionalGeneration", "InternVLChatModel"])
    },
    inputs: Inputs { pixels: Pixels::Pictures, positions: Positions::Row },
    image_token: config::image_token,
    image_text: Some("<IMG_CONTEXT>"),
};
