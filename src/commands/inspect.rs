//! `mbqc inspect`.

use std::path::Path;

use crate::Error;
use crate::cli::Common;

/// What is in a model.
pub fn inspect(
    model: &Path,
    text: bool,
    diff: Option<&Path>,
    calib: Option<&Path>,
    image_token_id: Option<i64>,
    common: &Common,
) -> Result<(), Error> {
    let _ = (model, text, diff, calib, image_token_id, common);
    Ok(())
}
