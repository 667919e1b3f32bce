//! The commands besides the main job.

mod bake;
mod inspect;
pub mod list;
mod run;
mod verify;

use std::path::Path;

use mbqc_passes::facts::sites::survey;
use mbqc_passes::plan::{Plan, VERSION};

use crate::cli::{Common, Emit};
use crate::pipeline;
use crate::report::progress::Progress;
use crate::{Error, stamp};

pub use bake::bake;
pub use inspect::{InspectRequest, inspect};
pub use list::{explain, list};
pub use run::run;
pub use verify::{VerifyRequest, verify};

/// `mbqc apply`: the rewrite alone, from a saved plan.
pub fn apply(model: &Path, plan: &Path, output: &Path, emit: &Emit, common: &Common) -> Result<(), Error> {
    let text = std::fs::read_to_string(plan).map_err(Error::file(plan))?;
    let content = |reason: String| Error::Content { file: plan.to_owned(), reason };
    let loaded: Plan =
        serde_json::from_str(&text).map_err(|e| content(format!("not a plan: {e}; make one with --plan-out")))?;
    if loaded.version != VERSION {
        return Err(content(format!(
            "plan version {}, this program reads version {VERSION}; make it again with --plan-out",
            loaded.version
        )));
    }
    let found = stamp::file_hash(model)?;
    if found != loaded.source {
        return Err(content(format!(
            "the plan was made for a model file with SHA-256 {}, but {} has {found}; make the plan from this file",
            loaded.source,
            model.display()
        )));
    }
    let file = pipeline::read(model, common)?;
    let survey = survey(&file.model).map_err(|source| Error::Law { pass: "survey", source })?;
    let progress = Progress::new(common.quiet);
    let pool = pipeline::pool(common);
    let written = pipeline::emit(&file, &survey, &loaded, emit, &pool, output, &progress)?;
    progress.say(&format!("wrote {} ({:.2} MB)", written.model.display(), written.model_bytes as f64 / 1e6));
    Ok(())
}
