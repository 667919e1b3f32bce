//! From options to a method, a format per layer, and reasons for the rest.

use std::collections::HashMap;
use std::path::Path;

use globset::{Glob, GlobSet, GlobSetBuilder};
use indexmap::IndexMap;
use mbqc_kernels::{Scheme, Spec};
use mbqc_passes::facts::sites::{Survey, Tower};
use mbqc_passes::ir::Model;
use mbqc_passes::method::driver::Chosen;
use mbqc_passes::method::{self, Floor, MaskShift, Method, RhoScheme, Round, Unfolded};
use mbqc_passes::plan::{ScaleRule, SkipKind, Skipped};
use mbqc_passes::rewrite::apply::can_apply;
use serde_json::json;

use crate::Error;
use crate::cli::{
    AccuracyArg, AnswerRowsArg, Common, Compile, FloorArg, RangeArg, RhoArg, ScalesArg, TargetArg, UnfoldedArg,
};
use crate::report::print;
use crate::report::progress::Progress;

/// Tells which options have no effect, because nothing they speak of happens.
pub(super) fn tell_idle_options(options: &Compile, method: &Method, progress: &Progress) {
    let switches = &options.switches;
    // Name, whether it was given, and whether it speaks of gradients.
    let of_data = [
        ("--calib", options.calib.is_some(), false),
        ("--samples", options.samples.is_some(), false),
        ("--search-samples", options.search_samples.is_some(), false),
        ("--image-token-id", options.image_token_id.is_some(), false),
        ("--logits", options.logits.is_some(), false),
        ("--answer-rows", switches.answer_rows.is_some(), true),
        ("--rho", switches.rho.is_some(), true),
        ("--floor", switches.floor.is_some(), true),
        ("--half-casts", switches.half_casts.is_some(), false),
        ("--unfolded", switches.unfolded.is_some(), false),
    ];
    let why = if method.needs_data() { "counts all rows alike" } else { "uses no calibration data" };
    let has_effect = |of_gradients: bool| method.needs_data() && (!of_gradients || method.needs_gradients());
    let idle = of_data.iter().filter(|&&(_, given, of_gradients)| given && !has_effect(of_gradients));
    let idle: Vec<&str> = idle.map(|(name, ..)| *name).collect();
    if !idle.is_empty() {
        progress.warn(&format!("without effect, because method {} {why}: {}", method.name, idle.join(", ")));
    }
    let formats = [&options.format, &options.vision_format, &options.head_format];
    let specs: Vec<Spec> = formats.into_iter().filter_map(|format| format.parse().ok()).collect();
    let ours = specs.iter().any(|spec| spec.format.schema.domain == "ai.mbqc");
    if options.emit.fallback.is_some() && (options.emit.target == TargetArg::Ort || !ours) {
        let why = if ours { "--target ort writes" } else { "these formats need" };
        progress.warn(&format!("without effect, because {why} no operator with a body: --fallback"));
    }
    if rounds_activations(options) {
        let warn = |why: &str, switches: &[(&str, bool)]| {
            let idle: Vec<&str> = switches.iter().filter(|(_, given)| *given).map(|(name, _)| *name).collect();
            if !idle.is_empty() {
                progress.warn(&format!("without effect, because {why}: {}", idle.join(", ")));
            }
        };
        let range = options.method.as_deref() == Some("range");
        warn(
            "these formats are symmetric and their range is that of the largest weight",
            &[("--range", options.switches.range.is_some()), ("--method range", range)],
        );
        let accuracy = options.emit.accuracy != AccuracyArg::Auto;
        warn("these formats round activations to 8 bits by their meaning", &[("--accuracy", accuracy)]);
    }
}

/// Whether all formats that are asked for quantize weights and activations.
fn rounds_activations(options: &Compile) -> bool {
    let formats = [&options.format, &options.vision_format, &options.head_format];
    let mut specs = formats.into_iter().filter_map(|format| format.parse::<Spec>().ok()).peekable();
    specs.peek().is_some() && specs.all(|spec| spec.format.scheme == Scheme::WeightActivation)
}

/// Refuses formats that the target cannot carry.
fn check_target(options: &Compile, specs: &[Option<Spec>]) -> Result<(), Error> {
    let impossible = |spec: &&Spec| spec.format.scheme == Scheme::WeightActivation;
    match specs.iter().flatten().find(impossible) {
        Some(spec) if options.emit.target == TargetArg::Ort => Err(Error::Usage(format!(
            "--target ort: no operator of onnxruntime carries `{spec}`; leave the target out: a body of standard operators goes \
             with the model, which onnxruntime executes"
        ))),
        _ => Ok(()),
    }
}

pub(super) fn pick_method(options: &Compile, progress: &Progress) -> Result<Method, Error> {
    let name = match (&options.method, &options.calib) {
        (Some(name), _) => name.as_str(),
        (None, Some(_)) => "mbq",
        (None, None) => {
            let done = if rounds_activations(options) { "weights are rounded" } else { "ranges are searched" };
            progress.say(&format!(
                "no calibration data: {done} data-free. Pass --calib DATA.npz for modality-balanced quantization (see README, \
                 calibration data)"
            ));
            "range"
        }
    };
    let names = || method::METHODS.iter().map(|m| m.name).collect::<Vec<_>>().join(", ");
    let method =
        method::find(name).ok_or_else(|| Error::Usage(format!("no method `{name}`; there are {}", names())))?;
    if method.needs_data() && options.calib.is_none() {
        return Err(Error::Usage(format!("method {name} needs calibration data; pass --calib, or --method range")));
    }
    let mut method = method.clone();
    let switches = &options.switches;
    if let Some(rows) = switches.answer_rows {
        method.shift = match rows {
            AnswerRowsArg::Shifted => MaskShift::Shifted,
            AnswerRowsArg::Unshifted => MaskShift::Unshifted,
        };
    }
    if let Some(scheme) = switches.rho {
        method.scheme = match scheme {
            RhoArg::Reference => RhoScheme::Reference,
            RhoArg::Paper => RhoScheme::Paper,
        };
    }
    if let Some(floor) = switches.floor {
        method.floor = match floor {
            FloorArg::None => Floor::None,
            FloorArg::Median => Floor::Median,
            FloorArg::MedianLive => Floor::MedianLive,
        };
    }
    if let Some(range) = switches.range {
        method.round = match range {
            RangeArg::MinMax => Round::MinMax,
            RangeArg::IncludeZero => Round::Nearest,
            RangeArg::Search => Round::RangeSearch,
        };
    }
    if let Some(unfolded) = switches.unfolded {
        method.unfolded = match unfolded {
            UnfoldedArg::Mul => Unfolded::Mul,
            UnfoldedArg::Leave => Unfolded::Leave,
        };
    }
    if let Some(scales) = switches.scales {
        method.scales = match scales {
            ScalesArg::Stored => ScaleRule::Stored,
            ScalesArg::F32 => ScaleRule::F32,
        };
    }
    Ok(method)
}

fn parse_spec(text: &str) -> Result<Option<Spec>, Error> {
    if text == "none" {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|e: mbqc_kernels::Error| Error::Usage(e.to_string()))
}

fn globs(patterns: &[String]) -> Result<GlobSet, Error> {
    let mut set = GlobSetBuilder::new();
    for pattern in patterns {
        set.add(Glob::new(pattern).map_err(|e| Error::Usage(format!("glob `{pattern}`: {e}")))?);
    }
    set.build().map_err(|e| Error::Usage(e.to_string()))
}

/// Which layers are quantized, in which format, and why the rest is not.
pub(super) fn choose(model: &Model, survey: &Survey, options: &Compile) -> Result<(Vec<Chosen>, Vec<Skipped>), Error> {
    let format = parse_spec(&options.format)?;
    let vision = parse_spec(&options.vision_format)?;
    let head = parse_spec(&options.head_format)?;
    check_target(options, &[format, vision, head])?;
    let (include, exclude) = (globs(&options.include)?, globs(&options.exclude)?);
    let mut chosen = Vec::new();
    let mut skipped = Vec::new();
    let mut matched = false;
    for other in &survey.others {
        let mut left = Skipped::of_other(other);
        let named = |set: &GlobSet| [&other.label, &other.weight].iter().any(|n| set.is_match(n));
        let asked = (options.include.is_empty() || named(&include)) && !named(&exclude);
        if left.kind == SkipKind::Unsupported && (!asked || other.tower == Tower::Vision && vision.is_none()) {
            left.kind = SkipKind::Asked;
        }
        skipped.push(left);
    }
    for (index, site) in survey.sites.iter().enumerate() {
        let named = |set: &GlobSet| [&site.name, &site.label, &site.weight.name].iter().any(|n| set.is_match(n));
        let (spec, missing) = match (site.head, site.tower) {
            (true, _) => (head, "a final projection, kept as it is (--head-format)"),
            (false, Tower::Vision) => (vision, "vision tower, kept as it is (--vision-format)"),
            (false, Tower::Text | Tower::Only) => (format, "--format none"),
        };
        matched |= named(&include);
        let verdict = if !options.include.is_empty() && !named(&include) {
            Err((SkipKind::Asked, "not matched by --include".to_owned()))
        } else if named(&exclude) {
            Err((SkipKind::Asked, "--exclude".to_owned()))
        } else {
            match spec {
                None => Err((SkipKind::Asked, missing.to_owned())),
                Some(Spec { group: Some(group), .. }) if site.k < group => Err((
                    SkipKind::Unsupported,
                    format!("{} input channels, fewer than the group of {group}; take a smaller group", site.k),
                )),
                Some(spec) => can_apply(model, site).map(|()| spec).map_err(|reason| (SkipKind::Unsupported, reason)),
            }
        };
        match verdict {
            Ok(spec) => chosen.push(Chosen { site: index, spec }),
            Err((kind, reason)) => {
                let op = model.graph_at(&site.path).map_or_else(String::new, |g| g.node(site.node).qualified_op());
                skipped.push(Skipped::of_site(site, &op, kind, reason));
            }
        }
    }
    if !options.include.is_empty() && !matched {
        return Err(Error::Usage(format!(
            "--include {} matches no layer; `mbqc inspect` lists their names",
            options.include.join(", ")
        )));
    }
    Ok((chosen, skipped))
}

/// Tells what is left alone, where nothing is written: a line per reason, and the sum; or a document for programs.
pub(super) fn tell_skips(skipped: &[Skipped], common: &Common, progress: &Progress) -> Result<(), Error> {
    if common.json {
        return print(&format!("{:#}", json!({ "skipped": skipped })));
    }
    let mut reasons: IndexMap<&str, Vec<&Skipped>> = IndexMap::new();
    for skip in skipped {
        reasons.entry(&skip.reason).or_default().push(skip);
    }
    // A weight that several layers share is there once.
    let mb = |all: &[&Skipped]| {
        let weights: HashMap<&str, usize> = all.iter().map(|skip| (skip.weight.as_str(), skip.bytes)).collect();
        weights.values().sum::<usize>() as f64 / 1e6
    };
    for (reason, all) in &reasons {
        let names: Vec<String> = all.iter().take(3).map(|skip| format!("{} `{}`", skip.op, skip.node)).collect();
        let more = if all.len() > names.len() { ", ..." } else { "" };
        progress.say(&format!("left: {} ({:.2} MB): {reason}: {}{more}", all.len(), mb(all), names.join(", ")));
    }
    if reasons.len() > 1 {
        let all: Vec<&Skipped> = skipped.iter().collect();
        progress.say(&format!("left: {} ({:.2} MB) in all", all.len(), mb(&all)));
    }
    Ok(())
}

pub(super) fn why_nothing(skipped: &[Skipped], path: &Path, common: &Common) -> String {
    let all = |kind: SkipKind| !skipped.is_empty() && skipped.iter().all(|s| s.kind == kind);
    if skipped.is_empty() {
        format!("{} has no layers with constant weights", path.display())
    } else if skipped.iter().any(|s| s.kind == SkipKind::Quantized)
        && skipped.iter().all(|s| matches!(s.kind, SkipKind::Quantized | SkipKind::NotLinear | SkipKind::Asked))
    {
        format!("{} is already quantized; start from the original model", path.display())
    } else if all(SkipKind::NotLinear) {
        format!("{} has weights, but no linear layers", path.display())
    } else {
        let reasons = match (common.json, common.quiet) {
            (true, _) => "; the document tells why",
            (false, true) => "; without --quiet the reasons are listed",
            (false, false) => ", for the reasons listed above",
        };
        format!("every linear layer of {} is left alone{reasons}", path.display())
    }
}
