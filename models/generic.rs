use crate::{Family, Inputs, Pixels, Positions, config};

/// Whatever no other family fits.
pub(crate) const FAMILY: Family = Family {
    name: "generic",
    about: "Any other model: nothing is assumed beyond what the graph shows. The image token comes from config.json or \
            from the command line.",
    fits: |_| true,
    inputs: Inputs { pixels: Pixels::Pictures, positions: Positions::Row },
    image_token: config::image_token,
    image_text: None,
};
