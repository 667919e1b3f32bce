//! The driver all methods run through: facts in, a plan out. The graph is not edited.

use std::collections::HashMap;

use mbqc_kernels::affine::ScaleType;
use mbqc_kernels::{Scheme, Spec};
use serde_json::json;

use crate::facts::fold::{Declined, Fold};
use crate::facts::groups::{self, Group};
use crate::facts::modality::{Trace, trace_rows};
use crate::facts::segments::{Cuts, cut};
use crate::facts::sites::{Site, Survey};
use crate::ir::{Model, ValueId};
use crate::plan::{Plan, RangeRule, Recipe, Skipped, VERSION, site_key};
use crate::rewrite::reverse::ReverseError;
use crate::run::{RunError, Runner};
use crate::weights::{Matrix, Scaling, WeightError};

use super::gradients::Gradients;
use super::loss::LossError;
use super::measure::{GradientReport, Samples, Sensitivity};
use super::rho::rho;
use super::{Method, Transforms, Unfolded};

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
    /// A sample has no loss.
    #[error("calibration data: sample {sample}: {source}")]
    Loss {
        /// Its name.
        sample: String,
        /// Why.
        source: LossError,
    },
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
    /// Bytes of activations that are held at a time, besides one frontier per sample in the search. Where samples need more,
    /// they pass in chunks, and weights are read again for each; the plan is the same.
    pub held_bytes: usize,
    /// Told what is being done: stage, how much of it, of how much.
    pub progress: &'a dyn Fn(&str, usize, usize),
}

impl<'a> Request<'a> {
    /// A request for a method that needs no data, with nothing chosen yet.
    ///
    /// # Errors
    ///
    /// If the model has no outputs.
    pub fn without_data(
        model: &'a Model,
        survey: &'a Survey,
        method: &'a Method,
        runner: &'a dyn Runner,
    ) -> Result<Request<'a>, Error> {
        let output = model.graph.outputs().first();
        Ok(Request {
            model,
            survey,
            chosen: Vec::new(),
            skipped: Vec::new(),
            method,
            logits: *output.ok_or_else(|| Error::Data("the model has no outputs".to_owned()))?,
            runner,
            samples: None,
            gradient_samples: 0,
            search_samples: 0,
            held_bytes: 0,
            progress: &|_, _, _| (),
        })
    }
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
        settings: json!({ "range": method.round.rule(), "scales": method.scales }),
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
                let reason =
                    format!("`{}` reads the same value and is not quantized", request.survey.sites[*left].name);
                let mul = group.fold.as_ref().map_or_else(|declined| declined.mul, |_| true);
                group.fold = Err(Declined { reason, mul });
            }
            if let (Unfolded::Mul, Err(Declined { reason, mul: true })) = (method.unfolded, &group.fold) {
                group.fold = Ok(Fold::by_mul(reason));
                group.sites.retain(|site| spec_of.contains_key(site));
            }
        }
        let calibration = Calibration::new(request, samples, found)?;
        let (weights, report) = calibration.gradients().map_err(|error| {
            let overflow = matches!(error, Error::Loss { source: LossError::NotFinite { .. }, .. });
            if overflow { broken_weight(request).unwrap_or(error) } else { error }
        })?;
        if let Some((sensitivity, report)) = report {
            prepared.sensitivities = sensitivity;
            plan.settings["gradients"] = json!(report);
            prepared.gradients = Some(report);
        }
        plan.settings["search_samples"] = json!(samples.len().min(request.search_samples));
        plan.settings["answer_rows"] = json!(method.shift);
        plan.settings["rho"] = json!(method.scheme);
        plan.settings["floor"] = json!(method.floor);
        plan.settings["unfolded"] = json!(method.unfolded);
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
            // Symmetric codes have one range, that of the largest magnitude.
            range: match chosen.spec.format.scheme {
                Scheme::WeightOnly => method.round.rule(),
                Scheme::WeightActivation => RangeRule::MinMax,
            },
            scales: method.scales,
            group: group_of.get(&chosen.site).copied(),
        });
    }
    prepared.plan = plan;
    Ok(prepared)
}

/// What is wrong with the first chosen weight that holds values without codes: the likely cause of logits that are no
/// numbers.
fn broken_weight(request: &Request<'_>) -> Option<Error> {
    let (plain, pool) = (Scaling::default(), request.runner.pool());
    request.chosen.iter().find_map(|chosen| {
        let matrix = matrix(&request.survey.sites[chosen.site]);
        let mut blocks =
            matrix.quantize_blocks(&plain, chosen.spec, RangeRule::IncludeZero, ScaleType::F32, pool, |_| ());
        blocks.find_map(Result::err).map(Error::Weight)
    })
}

/// A search in progress: what the graph and one sample show of it.
pub(super) struct Calibration<'a> {
    pub(super) request: &'a Request<'a>,
    pub(super) samples: &'a dyn Samples,
    pub(super) groups: Vec<Group>,
    pub(super) cuts: Cuts,
    pub(super) trace: Trace,
}

type Measured = Option<(Vec<(String, Sensitivity)>, GradientReport)>;

impl<'a> Calibration<'a> {
    fn new(request: &'a Request<'a>, samples: &'a dyn Samples, groups: Vec<Group>) -> Result<Self, Error> {
        let wanted = [request.logits];
        let cuts = cut(&request.model.graph, &wanted)?;
        let first = samples.sample(0).map_err(Error::Data)?;
        let trace = trace_rows(request.runner, request.model, first.feeds, &wanted, first.classes.len())?;
        Ok(Calibration { request, samples, groups, cuts, trace })
    }

    /// rho per group, and everything measured on the way to it.
    fn gradients(&self) -> Result<(Vec<Option<f64>>, Measured), Error> {
        let request = self.request;
        let method = request.method;
        if !method.needs_gradients() {
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
        let pass = Gradients {
            runner: request.runner,
            model: request.model,
            cuts: &self.cuts,
            logits: request.logits,
            values: &values,
            trace: &self.trace,
            samples: self.samples,
            limit: request.gradient_samples,
            held_bytes: request.held_bytes,
        };
        let (found, report) = pass.run(request.progress)?;
        let named = values.iter().map(|v| request.model.graph.name(*v).to_owned()).zip(found.iter().copied()).collect();
        let found: HashMap<ValueId, Sensitivity> = values.into_iter().zip(found).collect();
        let rho = rho(&self.groups, request.survey, &found, method.scheme, method.floor);
        Ok((rho.into_iter().map(Some).collect(), Some((named, report))))
    }
}

/// The weight of a site with its size.
pub fn matrix(site: &Site) -> Matrix {
    Matrix { weight: site.weight.clone(), n: site.n, k: site.k }
}
