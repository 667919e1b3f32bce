//! What the main job says at its end.

use indexmap::IndexMap;
use serde_json::{Value, json};

use super::Outcome;
use crate::Error;
use crate::cli::Common;
use crate::onnx::{File, Written};
use crate::report::{print, tell};

/// Bytes of a model's files before and after.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sizes {
    before: u64,
    after: u64,
}

impl Sizes {
    /// Of the file that was read and the files that were written.
    pub fn of(file: &File, written: &Written) -> Sizes {
        let data: usize = file.source.data_files().map(|(_, bytes)| bytes).sum();
        let before = (file.source.file_bytes() + data) as u64;
        Sizes { before, after: written.model_bytes + written.data_bytes }
    }

    /// `wrote q.onnx (1.20 MB; it was 8.10 MB)`.
    pub fn sentence(self, written: &Written) -> String {
        let mb = |bytes: u64| bytes as f64 / 1e6;
        let data = written.data.as_ref().map(|data| format!(" and {}", data.display())).unwrap_or_default();
        format!("wrote {}{data} ({:.2} MB; it was {:.2} MB)", written.model.display(), mb(self.after), mb(self.before))
    }
}

/// The files that were written, for programs.
pub fn written_json(written: &Written) -> Value {
    json!({
        "model": written.model,
        "model_bytes": written.model_bytes,
        "data": written.data,
        "data_bytes": written.data_bytes,
    })
}

fn document(outcome: &Outcome) -> Value {
    let decided = &outcome.decided;
    let sensitivities: IndexMap<&str, _> =
        decided.prepared.sensitivities.iter().map(|(value, found)| (value.as_str(), found)).collect();
    json!({
        "plan": decided.plan,
        "coverage": decided.coverage,
        "sensitivities": sensitivities,
        "gradients": decided.prepared.gradients,
        "written": outcome.written.as_ref().map(written_json),
    })
}

/// Prints what was done: a table for people, a document for programs. Of a folder, the vision encoder may have been
/// compiled, too.
pub fn report(outcome: &Outcome, vision: Option<&Outcome>, common: &Common) -> Result<(), Error> {
    if common.json {
        let mut whole = document(outcome);
        if let Some(vision) = vision {
            whole["vision_encoder"] = document(vision);
        }
        return print(&format!("{whole:#}"));
    }
    if common.quiet {
        return Ok(());
    }
    for outcome in vision.into_iter().chain([outcome]) {
        let decided = &outcome.decided;
        if vision.is_some() {
            tell(&format!("{}:", decided.file.source.path().display()));
        }
        tell(decided.coverage.table().trim_end());
        let declined = decided.plan.groups.iter().filter(|g| g.declined.is_some()).count();
        if declined > 0 {
            tell(&format!(
                "{declined} of {} groups keep a scale of one (`--json` or the plan tells why)",
                decided.plan.groups.len()
            ));
        }
        let multiplied = decided.plan.groups.iter().filter(|g| g.mul && !g.scale.is_empty()).count();
        if multiplied > 0 {
            tell(&format!(
                "{multiplied} of {} groups have their scale in a Mul before the layers, because no constant can absorb it",
                decided.plan.groups.len()
            ));
        }
        // What nothing can absorb is usual. A group that something could absorb a scale for, and that was not searched, is not.
        for group in decided.plan.groups.iter().filter(|group| group.producer.is_some() && !group.mul) {
            if let Some(reason) = &group.declined {
                tell(&format!("not searched: {}: {reason}", group.sites.join(", ")));
            }
        }
        match &outcome.written {
            Some(written) => tell(&Sizes::of(&decided.file, written).sentence(written)),
            None => tell("dry run: no model was written"),
        }
    }
    Ok(())
}
