//! The driver all methods run through: facts in, a plan out. The graph is not edited.

use std::collections::HashMap;

use mbqc_kernels::Spec;
use serde_json::json;

use crate::facts::groups::{self, Group, Kind};
use crate::facts::modality::{Class, trace_rows};
use crate::facts::segments::{Cuts, cut};
use crate::facts::sites::{Site, Survey};
use crate::ir::{Model, ValueId};
use crate::plan::{DividedPlan, GroupPlan, Plan, Recipe, ScaleRule, Skipped, VERSION, site_key};
use crate::rewrite::reverse::ReverseError;
use crate::run::{RunError, Runner};
use crate::weights::{Matrix, WeightError, scale_type};

use super::candidates::Search;
use super::measure::{GradientReport, RowMap, Samples, Sensitivity, sensitivities};
use super::stream::{Stream, judging_feeds};
use super::{Floor, Method, Transforms};

/// Why no plan could be made.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// An evaluation failed.
    #[error(transparent)]
    Run(#[from] RunError),
    /// No gradient can be had.
    #[error(transparent)]
    Reverse(#[from] ReverseError),
    /// A weight cannot be quantized.
    #[error(transparent)]
    Weight(#[from] WeightError),
    /// The graph breaks a law.
    #[error(transparent)]
    Law(#[from] crate::ir::Error),
    /// The calibration data does not fit.
    #[error("calibration data: {0}")]
    Data(String),
    /// A defect of this compiler.
    #[error("internal error: {0}")]
    Internal(String),
}

/// A layer that is to be quantized.
#[derive(Clone, Debug)]
pub struct Chosen {
    /// Index into the survey's sites.
    pub site: usize,
    /// In which format.
    pub spec: Spec,
}

/// What the driver is asked.
pub struct Request<'a> {
    /// The model.
    pub model: &'a Model,
    /// Its weight-bearing nodes.
    pub survey: &'a Survey,
    /// The layers to quantize.
    pub chosen: Vec<Chosen>,
    /// The rest, with reasons.
    pub skipped: Vec<Skipped>,
    /// The method.
    pub method: &'a Method,
    /// The output whose cross-entropy matters.
    pub logits: ValueId,
    /// Executes.
    pub runner: &'a dyn Runner,
    /// Calibration data, where the method needs it.
    pub samples: Option<&'a dyn Samples>,
    /// At most this many samples in the gradient pass.
    pub gradient_samples: usize,
    /// At most this many samples in the search.
    pub search_samples: usize,
    /// Told what is being done: stage, how much of it, of how much.
    pub progress: &'a dyn Fn(&str, usize, usize),
}

/// A plan and what was measured on the way.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// The plan; source and calibration hashes are left for the caller to fill in.
    pub plan: Plan,
    /// Sensitivity by name of value: judging points and layer outputs.
    pub sensitivities: Vec<(String, Sensitivity)>,
    /// Counts of the gradient pass.
    pub gradients: Option<GradientReport>,
}

/// Decides what to do at every chosen layer.
pub fn decide(request: &Request<'_>) -> Result<Prepared, Error> {
    let method = request.method;
    let graph = &request.model.graph;
    let mut plan = Plan {
        version: VERSION,
        method: method.name.to_owned(),
        source: String::new(),
        calibration: None,
        settings: json!({ "range": method.range, "scales": method.scales }),
        recipes: Vec::new(),
        groups: Vec::new(),
        skipped: request.skipped.clone(),
    };
    let spec_of: HashMap<usize, Spec> = request.chosen.iter().map(|c| (c.site, c.spec)).collect();
    let mut prepared = Prepared { plan: plan.clone(), sensitivities: Vec::new(), gradients: None };
    let mut group_of: HashMap<usize, usize> = HashMap::new();
    if method.transforms == Transforms::Ladder && method.needs_data() {
        let samples = request.samples.filter(|s| !s.is_empty()).ok_or_else(|| {
            Error::Data(format!("method {} needs calibration samples and got none; pass --calib", method.name))
        })?;
        let mut found = groups::groups(graph, request.survey, &[request.logits])?;
        found.retain(|g| g.sites.iter().any(|s| spec_of.contains_key(s)));
        for group in &mut found {
            if let Some(left) = group.sites.iter().find(|s| !spec_of.contains_key(s)) {
                let name = &request.survey.sites[*left].name;
                group.fold = Err(format!("`{name}` reads the same value and is not quantized"));
            }
        }
        let calibration = Calibration::new(request, samples, found)?;
        let (weights, report) = calibration.gradients()?;
        if let Some((sensitivity, report)) = report {
            prepared.sensitivities = sensitivity;
            plan.settings["gradients"] = json!(report);
            prepared.gradients = Some(report);
        }
        plan.settings["search_samples"] = json!(samples.len().min(request.search_samples));
        plan.settings["answer_rows"] = json!(method.shift);
        plan.settings["floor"] = json!(method.floor);
        for (index, entry) in calibration.search(&weights, &spec_of)?.into_iter().enumerate() {
            for site in &calibration.groups[index].sites {
                group_of.insert(*site, index);
            }
            plan.groups.push(entry);
        }
    }
    for chosen in &request.chosen {
        let site = &request.survey.sites[chosen.site];
        plan.recipes.push(Recipe {
            site: site_key(request.model, site),
            name: site.name.clone(),
            weight: site.weight.name.clone(),
            n: site.n,
            k: site.k,
            format: chosen.spec.to_string(),
            range: method.range,
            scales: method.scales,
            group: group_of.get(&chosen.site).copied(),
        });
    }
    prepared.plan = plan;
    Ok(prepared)
}

struct Calibration<'a> {
    request: &'a Request<'a>,
    samples: &'a dyn Samples,
    groups: Vec<Group>,
    cuts: Cuts,
    rows: RowMap,
}

type Measured = Option<(Vec<(String, Sensitivity)>, GradientReport)>;

impl<'a> Calibration<'a> {
    fn new(request: &'a Request<'a>, samples: &'a dyn Samples, groups: Vec<Group>) -> Result<Self, Error> {
        let graph = &request.model.graph;
        let cuts = cut(graph, &[request.logits])?;
        let first = samples.sample(0).map_err(Error::Data)?;
        let wanted = [request.logits];
        let traced = trace_rows(request.runner, request.model, first.feeds, &wanted, first.classes.len())?;
        let rows: RowMap = traced.into_iter().map(|(value, (rows, _))| (value, rows)).collect();
        Ok(Calibration { request, samples, groups, cuts, rows })
    }

    /// rho per group, and everything measured on the way to it.
    fn gradients(&self) -> Result<(Vec<Option<f64>>, Measured), Error> {
        let request = self.request;
        if !request.method.needs_gradients() {
            return Ok((vec![None; self.groups.len()], None));
        }
        let mut values: Vec<ValueId> = Vec::new();
        for group in &self.groups {
            let outs = group.sites.iter().map(|&s| request.survey.sites[s].out);
            for value in std::iter::once(group.judge).chain(outs) {
                if !values.contains(&value) {
                    values.push(value);
                }
            }
        }
        let (found, report) = sensitivities(
            request.runner,
            request.model,
            &self.cuts,
            request.logits,
            &values,
            &self.rows,
            self.samples,
            request.gradient_samples,
            request.progress,
        )?;
        let at: HashMap<ValueId, usize> = values.iter().enumerate().map(|(i, v)| (*v, i)).collect();
        let ratios: Vec<f64> = self
            .groups
            .iter()
            .map(|group| {
                let abs = found[at[&group.judge]].abs;
                if abs.answer > 0.0 { abs.vision / abs.answer } else { 0.0 }
            })
            .collect();
        let named = values.iter().map(|v| request.model.graph.name(*v).to_owned()).zip(found).collect();
        Ok((
            floored(&self.groups, &ratios, request.method.floor).into_iter().map(Some).collect(),
            Some((named, report)),
        ))
    }

    fn search(&self, rho: &[Option<f64>], spec_of: &HashMap<usize, Spec>) -> Result<Vec<GroupPlan>, Error> {
        let request = self.request;
        let graph = &request.model.graph;
        let runner = request.runner;
        let count = self.samples.len().min(request.search_samples);
        let stream = Stream::new(runner, request.model, &self.cuts, &[request.logits])?;
        let mut plans: Vec<GroupPlan> =
            self.groups.iter().zip(rho).map(|(g, r)| group_plan(graph, request.survey, g, *r)).collect();

        let loaded = runner.pool().map(count, |i| -> Result<_, Error> {
            let sample = self.samples.sample(i).map_err(Error::Data)?;
            let sides = stream.sides(runner, request.model, &sample.feeds)?;
            Ok((sides, sample.classes))
        });
        let mut sides = Vec::with_capacity(count);
        let mut classes = Vec::with_capacity(count);
        for sample in loaded {
            let (side, class) = sample?;
            sides.push(side);
            classes.push(class);
        }
        let mut frontiers = vec![None; count];
        let mut done = 0;
        let searched = self.groups.iter().filter(|g| g.fold.is_ok()).count();
        (request.progress)("search", 0, searched);
        for segment in 0..stream.segments() {
            let (from, inside) = stream.span(segment);
            let here: Vec<usize> = (0..self.groups.len())
                .filter(|&i| {
                    let input = self.groups[i].input;
                    inside.contains(&input) || from == Some(input) || (segment == 0 && self.cuts.side[input.0 as usize])
                })
                .filter(|&i| self.groups[i].fold.is_ok())
                .collect();
            let ends = stream.ends(segment);
            let mut feeds_of = Vec::with_capacity(here.len());
            let mut wanted = ends.clone();
            for &index in &here {
                let group = &self.groups[index];
                let feeds = judging_feeds(graph, group.input, group.judge)?;
                for value in &feeds {
                    let at_hand = self.cuts.side[value.0 as usize] || from == Some(*value);
                    if !at_hand && !wanted.contains(value) {
                        wanted.push(*value);
                    }
                }
                feeds_of.push(feeds);
            }
            let mut at_hand: Vec<ValueId> = sides.first().map(|s| s.keys().copied().collect()).unwrap_or_default();
            at_hand.extend(from);
            at_hand.sort();
            let fed = super::stream::boundary_of(graph, &at_hand, &wanted);
            let prepared = runner.prepare(request.model, &fed, &wanted)?;
            let outputs = runner.pool().map(count, |i| {
                let mut feeds = sides[i].clone();
                feeds.extend(frontiers[i].clone());
                runner.run(request.model, &prepared, feeds, None)
            });
            let mut taps: Vec<HashMap<ValueId, crate::array::Array>> = Vec::with_capacity(count);
            for (i, arrays) in outputs.into_iter().enumerate() {
                let mut tap: HashMap<_, _> = wanted.iter().copied().zip(arrays?).collect();
                let next = ends.first().and_then(|v| tap.get(v).map(|a| (*v, a.clone())));
                if let Some((neck, array)) = frontiers[i].take() {
                    tap.insert(neck, array);
                }
                taps.push(tap);
                frontiers[i] = next;
            }
            for (&index, feeds) in here.iter().zip(&feeds_of) {
                let samples: Vec<Vec<_>> = (0..count)
                    .map(|i| {
                        let get = |v: &ValueId| taps[i].get(v).or_else(|| sides[i].get(v)).cloned();
                        feeds.iter().map(get).collect::<Option<Vec<_>>>()
                    })
                    .collect::<Option<_>>()
                    .ok_or_else(|| Error::Internal("a judging input was not computed".to_owned()))?;
                let found = self.search_group(index, rho[index], spec_of, feeds, &samples, &classes)?;
                let entry = &mut plans[index];
                entry.exponent = Some(f64::from(found.exponent));
                entry.losses = found.losses;
                entry.vision_share = found.vision_share;
                if found.exponent > 0.0 {
                    entry.scale = found.scale;
                }
                done += 1;
                (request.progress)("search", done, searched);
            }
        }
        Ok(plans)
    }

    fn search_group(
        &self,
        index: usize,
        rho: Option<f64>,
        spec_of: &HashMap<usize, Spec>,
        feeds: &[ValueId],
        samples: &[Vec<crate::array::Array>],
        classes: &[Vec<Class>],
    ) -> Result<super::candidates::Found, Error> {
        let request = self.request;
        let group = &self.groups[index];
        let graph = &request.model.graph;
        let mut weights = Vec::with_capacity(group.sites.len());
        for &index in &group.sites {
            let site = &request.survey.sites[index];
            let constant = graph
                .find(&site.weight.name)
                .ok_or_else(|| Error::Internal(format!("weight `{}` is not in the main graph", site.weight.name)))?;
            let scale = if request.method.scales == ScaleRule::Stored {
                scale_type(site.weight.read_as)
            } else {
                mbqc_kernels::affine::ScaleType::F32
            };
            weights.push((constant, matrix(site), spec_of[&index], scale));
        }
        let gain = if request.method.scales == ScaleRule::Stored { self.stored_gain(group) } else { None };
        Search {
            runner: request.runner,
            model: request.model,
            method: request.method,
            feeds,
            judge: group.judge,
            samples,
            classes,
            input_rows: self.rows.get(&group.input).copied(),
            judge_rows: self.rows.get(&group.judge).copied(),
            rho: rho.unwrap_or(0.0),
            weights,
            gain,
        }
        .run()
    }

    /// The gain of a norm that absorbs 1/s, with the type in which it is stored. A layer that absorbs is quantized after
    /// folding, so nothing is rounded in between.
    fn stored_gain(&self, group: &Group) -> Option<(Vec<f32>, mbqc_kernels::affine::ScaleType)> {
        let fold = group.fold.as_ref().ok()?;
        if fold.site.is_some() {
            return None;
        }
        let graph = &self.request.model.graph;
        let tensor = graph.constant(graph.find(&fold.divided.first()?.constant)?)?;
        let gain = tensor.to_f64()?.into_iter().map(|v| v as f32).collect();
        Some((gain, scale_type(tensor.dtype)))
    }
}

/// What the plan says of a group before anything was searched: a scale of one.
pub fn group_plan(graph: &crate::ir::Graph, survey: &Survey, group: &Group, rho: Option<f64>) -> GroupPlan {
    let fold = group.fold.as_ref().ok();
    let divided = fold.into_iter().flat_map(|fold| &fold.divided).map(|d| DividedPlan {
        constant: d.constant.clone(),
        reader: graph.node(d.node).output(0).map_or("", |v| graph.name(v)).to_owned(),
        slot: d.slot,
        axis: d.axis,
        runs: DividedPlan::runs_of(&d.channels, d.entries),
    });
    GroupPlan {
        input: graph.name(group.input).to_owned(),
        sites: group.sites.iter().map(|&s| survey.sites[s].name.clone()).collect(),
        producer: fold.map(|f| f.producer.clone()),
        declined: group.fold.as_ref().err().cloned(),
        judge: graph.name(group.judge).to_owned(),
        kind: group.kind,
        rho,
        exponent: None,
        losses: Vec::new(),
        vision_share: None,
        scale: Vec::new(),
        divided: divided.collect(),
    }
}

/// rho with its lower bound: the median over the ratios of one kind, one ratio per judging point.
pub(super) fn floored(groups: &[Group], ratios: &[f64], floor: Floor) -> Vec<f64> {
    let median_of = |kind: Kind| {
        let mut seen: Vec<ValueId> = Vec::new();
        let mut all: Vec<f64> = Vec::new();
        for (group, &ratio) in groups.iter().zip(ratios) {
            let live = floor != Floor::MedianLive || ratio > 0.0;
            if group.kind == kind && live && !seen.contains(&group.judge) {
                seen.push(group.judge);
                all.push(ratio);
            }
        }
        median(all)
    };
    let medians = [median_of(Kind::Attention), median_of(Kind::Mlp)];
    groups
        .iter()
        .zip(ratios)
        .map(|(group, &ratio)| match floor {
            Floor::None => ratio,
            Floor::Median | Floor::MedianLive => {
                ratio.max(medians[usize::from(group.kind == Kind::Mlp)].unwrap_or(0.0))
            }
        })
        .collect()
}

/// The median; of an even count the mean of the two middle values.
fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        n if n % 2 == 1 => Some(values[middle]),
        _ => Some((values[middle - 1] + values[middle]) / 2.0),
    }
}

/// The weight of a site with its size.
pub fn matrix(site: &Site) -> Matrix {
    Matrix { weight: site.weight.clone(), n: site.n, k: site.k }
}

#[cfg(test)]
mod tests {
    use super::median;

    #[test]
    fn medians() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![0.4, 0.05, 0.1]), Some(0.1));
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }
}
