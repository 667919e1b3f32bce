//! `mbqc apply`: the rewrite alone, from a saved plan.

use std::collections::HashSet;
use std::path::Path;

use mbqc_passes::facts::sites::survey;
use mbqc_passes::plan::{Plan, VERSION};
use serde_json::json;

use crate::cli::{Common, Emit};
use crate::pipeline::{self, Sizes, written_json};
use crate::places::{Places, probe_file};
use crate::report::coverage::Coverage;
use crate::report::print;
use crate::report::progress::Progress;
use crate::{Error, stage, stamp};

/// Applies the plan in `plan` to `model` and writes the result to `output`.
pub fn apply(model: &Path, plan: &Path, output: &Path, emit: &Emit, common: &Common) -> Result<(), Error> {
    let mut places = Places::new();
    places.model("the model", model)?;
    places.input("--plan", plan)?;
    places.model_output("-o", output)?;
    probe_file("-o", output)?;
    let file = pipeline::read_at(model, &mut places, common)?;
    let content = |reason: String| Error::Content { file: plan.to_owned(), reason };
    let text = std::fs::read(plan).map_err(Error::file(plan))?;
    let text = String::from_utf8(text).map_err(|_| content("no JSON; make a plan with --plan-out".to_owned()))?;
    let version = serde_json::from_str::<serde_json::Value>(&text).ok().and_then(|value| value["version"].as_u64());
    if let Some(version) = version.filter(|&version| version != u64::from(VERSION)) {
        return Err(content(format!(
            "plan version {version}, this program reads version {VERSION}; make it again with --plan-out"
        )));
    }
    let loaded: Plan =
        serde_json::from_str(&text).map_err(|e| content(format!("not a plan: {e}; make one with --plan-out")))?;
    if loaded.recipes.is_empty() {
        return Err(Error::Nothing(format!("{} has no recipes", plan.display())));
    }
    check(&loaded).map_err(content)?;
    let found = stamp::model_hash(&file.source)?;
    if found != loaded.source {
        return Err(content(format!(
            "the plan was made for a model with SHA-256 {} (data files included), but {} has {found}; make the plan from \
             this model",
            loaded.source,
            model.display()
        )));
    }
    let survey = survey(&file.model).map_err(|source| Error::Law { pass: "survey", source })?;
    let progress = Progress::new(common.quiet);
    let pool = pipeline::pool(common);
    let result = pipeline::apply_plan(&file.model, &survey, &loaded, emit, &pool, &progress)?;
    let published = stage::write_model(Some(&file.source), &result, output, &progress)?;
    published.note.iter().for_each(|note| progress.say(note));
    let written = &published.written;
    progress.say(&Sizes::of(&file, written).sentence(written));
    if common.json {
        let coverage = Coverage::of(&loaded, &survey, &result);
        return print(&format!("{:#}", json!({ "coverage": coverage, "written": written_json(written) })));
    }
    Ok(())
}

/// What an edited plan must keep, whatever the model is.
fn check(plan: &Plan) -> Result<(), String> {
    let mut sites = HashSet::new();
    for recipe in &plan.recipes {
        if !sites.insert(&recipe.site) {
            return Err(format!("two recipes for layer `{}`, expected one; take one out", recipe.site));
        }
        if let Some(group) = recipe.group.filter(|&group| group >= plan.groups.len()) {
            let (site, count) = (&recipe.site, plan.groups.len());
            return Err(format!("layer `{site}` names group {group}, but the plan has {count}, counted from 0"));
        }
    }
    for (index, group) in plan.groups.iter().enumerate() {
        let input = &group.input;
        if let Some(bad) = group.scale.iter().find(|s| !(s.is_finite() && **s > 0.0)) {
            return Err(format!("group {index} (`{input}`) has a scale of {bad}, expected finite numbers above zero"));
        }
        if !group.scale.is_empty() && group.divided.is_empty() && !group.mul {
            let why = group.declined.as_deref().unwrap_or("no constant is named in `divided`");
            return Err(format!(
                "group {index} (`{input}`) has a scale, but nothing absorbs its inverse ({why}); leave `scale` empty, or set `mul`"
            ));
        }
        if group.mul && !group.divided.is_empty() {
            let constant = &group.divided[0].constant;
            return Err(format!(
                "group {index} (`{input}`) has `mul` and divides `{constant}`, which would scale twice; take one out"
            ));
        }
    }
    Ok(())
}
