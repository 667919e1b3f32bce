//! The search over groups, a piece of the model at a time: all samples stand at the piece's frontier, its groups are
//! searched one after the other, and the samples move on to the next frontier.

use std::collections::HashMap;

use mbqc_kernels::Spec;
use mbqc_kernels::affine::ScaleType;

use crate::array::Array;
use crate::facts::groups::{Group, constant_alone};
use crate::facts::modality::Class;
use crate::facts::sites::Survey;
use crate::ir::{Graph, NodeId, ValueId, walk};
use crate::plan::{DividedPlan, GroupPlan, ScaleRule};
use crate::run::{Feeds, RunError};
use crate::stream::{Stream, over};
use crate::weights::scale_type;

use super::Rows as RowWeights;
use super::absorb::Absorbers;
use super::candidates::{Found, Search};
use super::driver::{Calibration, Error, matrix};

/// A group where it is searched.
#[derive(Clone)]
struct Place {
    /// Index of the group.
    group: usize,
    /// What its judging is fed besides weights, its input first.
    feeds: Vec<ValueId>,
}

/// Samples on their way through the pieces.
struct Samples {
    sides: Vec<Feeds>,
    frontiers: Vec<Option<(ValueId, Array)>>,
    classes: Vec<Vec<Class>>,
}

impl Calibration<'_> {
    /// Searches every group that something can absorb a scale for. The plans are in the order of the groups.
    pub(super) fn search(&self, rho: &[Option<f64>], spec_of: &HashMap<usize, Spec>) -> Result<Vec<GroupPlan>, Error> {
        let request = self.request;
        let runner = request.runner;
        let stream = Stream::new(runner, request.model, &self.cuts, &[request.logits])?;
        let mut plans: Vec<GroupPlan> =
            self.groups.iter().zip(rho).map(|(g, r)| group_plan(&request.model.graph, request.survey, g, *r)).collect();
        let places = self.places(&stream, &mut plans)?;
        // What lies behind the last group is never computed: the logits of all samples would be larger than all the rest.
        let Some(last) = places.iter().rposition(|groups| !groups.is_empty()) else { return Ok(plans) };
        let searched = places.iter().map(Vec::len).sum();
        let mut done = 0;
        (request.progress)("search", done, searched);
        let mut samples = self.load(&stream)?;
        for piece in 0..=last {
            for place in &places[piece] {
                let index = place.group;
                match self.search_group(place, rho[index], spec_of, &stream, piece, &samples)? {
                    Ok(found) => plans[index].take(found),
                    Err(reason) => plans[index].declined = Some(reason),
                }
                done += 1;
                (request.progress)("search", done, searched);
            }
            if piece < last {
                self.advance(&stream, piece, &mut samples)?;
                let kept: Vec<ValueId> =
                    places[piece + 1..].iter().flatten().flat_map(|place| place.feeds.clone()).collect();
                samples.sides.iter_mut().for_each(|sides| stream.forget(sides, piece + 1, &kept));
            }
        }
        Ok(plans)
    }

    /// By piece the groups that are searched in it, each in exactly one, with what their judging is fed. Why others are not
    /// searched goes into their plans.
    fn places(&self, stream: &Stream<'_>, plans: &mut [GroupPlan]) -> Result<Vec<Vec<Place>>, Error> {
        let graph = &self.request.model.graph;
        let mut places = vec![Vec::new(); stream.pieces()];
        for (index, group) in self.groups.iter().enumerate().filter(|(_, group)| group.fold.is_ok()) {
            let weighted = self.request.method.rows == RowWeights::Modality;
            if weighted && !self.trace.rows.contains_key(&group.judge) {
                plans[index].declined = Some(format!("the rows of `{}` cannot be told apart", graph.name(group.judge)));
                continue;
            }
            let feeds = judging_feeds(graph, group.input, group.judge)?;
            match stream.place(&feeds) {
                Some(piece) => places[piece].push(Place { group: index, feeds }),
                None => {
                    let (input, logits) = (graph.name(group.input), graph.name(self.request.logits));
                    plans[index].declined = Some(format!("`{logits}` does not depend on what reads `{input}`"));
                }
            }
        }
        Ok(places)
    }

    fn load(&self, stream: &Stream<'_>) -> Result<Samples, Error> {
        let count = self.samples.len().min(self.request.search_samples);
        let loaded = self.request.runner.pool().map(count, |i| -> Result<_, Error> {
            let sample = self.samples.sample(i).map_err(Error::Data)?;
            Ok((stream.sides(&sample.feeds, None)?, sample.classes))
        });
        let mut samples = Samples {
            sides: Vec::with_capacity(count),
            frontiers: vec![None; count],
            classes: Vec::with_capacity(count),
        };
        for sample in loaded {
            let (sides, classes) = sample?;
            samples.sides.push(sides);
            samples.classes.push(classes);
        }
        Ok(samples)
    }

    /// All samples to the frontier after a piece, some at a time, so that a frontier is dropped soon after it was used.
    fn advance(&self, stream: &Stream<'_>, piece: usize, samples: &mut Samples) -> Result<(), RunError> {
        let ends = stream.ends(piece);
        let prepared = stream.prepare(piece, &ends)?;
        let pool = self.request.runner.pool();
        let at_once = pool.threads() * 4;
        for (frontiers, sides) in samples.frontiers.chunks_mut(at_once).zip(samples.sides.chunks(at_once)) {
            let arrays = over(pool, sides.len(), |i| stream.run(&prepared, &sides[i], frontiers[i].clone()));
            for (frontier, arrays) in frontiers.iter_mut().zip(arrays) {
                *frontier = ends.first().copied().zip(arrays?.pop());
            }
        }
        Ok(())
    }

    fn search_group(
        &self,
        place: &Place,
        rho: Option<f64>,
        spec_of: &HashMap<usize, Spec>,
        stream: &Stream<'_>,
        piece: usize,
        samples: &Samples,
    ) -> Result<Result<Found, String>, Error> {
        let request = self.request;
        let (group, feeds) = (&self.groups[place.group], &place.feeds);
        let graph = &request.model.graph;
        let mut weights = Vec::with_capacity(group.sites.len());
        for &index in &group.sites {
            let site = &request.survey.sites[index];
            let constant = graph
                .find(&site.weight.name)
                .ok_or_else(|| Error::Internal(format!("weight `{}` is not in the main graph", site.weight.name)))?;
            let scale = match request.method.scales {
                ScaleRule::Stored => scale_type(site.weight.read_as),
                ScaleRule::F32 => ScaleType::F32,
            };
            weights.push((constant, matrix(site), spec_of[&index], scale));
        }
        let quantized: Vec<&str> = spec_of.keys().map(|&s| request.survey.sites[s].weight.name.as_str()).collect();
        // The values of this group alone, computed when a sample is taken up.
        let tapped: Vec<ValueId> = feeds.iter().copied().filter(|v| !stream.gives(piece, *v)).collect();
        let prepared = if tapped.is_empty() { None } else { Some(stream.prepare(piece, &tapped)?) };
        let taps = |sample: usize| -> Result<Vec<Array>, Error> {
            let (sides, frontier) = (&samples.sides[sample], &samples.frontiers[sample]);
            let mut at_hand: Feeds = frontier.iter().cloned().collect();
            if let Some(prepared) = &prepared {
                at_hand.extend(tapped.iter().copied().zip(stream.run(prepared, sides, frontier.clone())?));
            }
            let each = feeds.iter().map(|v| at_hand.get(v).or_else(|| sides.get(v)).cloned());
            each.collect::<Option<_>>().ok_or_else(|| Error::Internal("a judging input was not computed".to_owned()))
        };
        let rows = |value: ValueId| self.trace.rows.get(&value).map(|(rows, _)| *rows);
        let search = Search {
            runner: request.runner,
            model: request.model,
            method: request.method,
            feeds,
            judge: group.judge,
            taps: &taps,
            classes: &samples.classes,
            input_rows: rows(group.input),
            judge_rows: rows(group.judge),
            rho: rho.unwrap_or(0.0),
            weights,
            absorbers: Absorbers::of(graph, group, request.survey, &quantized, request.method.scales),
            held_bytes: request.held_bytes,
        };
        match search.rounds_activations().then(|| self.unrounded(&search, group)).flatten() {
            Some(reason) => Ok(Err(reason)),
            None => search.run(),
        }
    }

    /// Why the error of rounding a group's input cannot be told, if so.
    fn unrounded(&self, search: &Search<'_>, group: &Group) -> Option<String> {
        let graph = &self.request.model.graph;
        let name = graph.name(group.input);
        if search.mixed() {
            return Some(format!(
                "some layers that read `{name}` have formats with 8-bit activations, and some have not"
            ));
        }
        if search.input_rows.is_none_or(|rows| rows.inner != group.k) {
            return Some(format!(
                "`{name}` is no sequence of rows of {} channels, each with a scale of its own",
                group.k
            ));
        }
        // Where constants absorb the inverse, nobody else reads the input.
        if group.fold.as_ref().is_ok_and(|fold| !fold.mul) {
            return None;
        }
        let layers = group.sites.iter().map(|&index| self.request.survey.sites[index].node);
        let (layers, uses) = (layers.collect::<Vec<_>>(), graph.uses());
        let other = uses.of(group.input).iter().map(|&(reader, _)| reader).find(|reader| !layers.contains(reader));
        other.map(|other| {
            let other = graph.label(other);
            format!(
                "`{other}` reads `{name}`, too: the error of rounding it to 8 bits for the layers cannot be told apart"
            )
        })
    }
}

/// What the plan says of a group before anything was searched: a scale of one.
pub fn group_plan(graph: &Graph, survey: &Survey, group: &Group, rho: Option<f64>) -> GroupPlan {
    let fold = group.fold.as_ref().ok();
    let divided = fold.into_iter().flat_map(|fold| &fold.divided).map(|divided| DividedPlan::of(graph, divided));
    GroupPlan {
        input: graph.name(group.input).to_owned(),
        sites: group.sites.iter().map(|&s| survey.sites[s].name.clone()).collect(),
        producer: fold.map(|f| f.producer.clone()),
        declined: group.fold.as_ref().err().map(|declined| declined.reason.clone()),
        mul: fold.is_some_and(|f| f.mul),
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

impl GroupPlan {
    fn take(&mut self, found: Found) {
        self.exponent = Some(f64::from(found.exponent));
        self.losses = found.losses;
        self.vision_share = found.vision_share;
        if found.exponent > 0.0 {
            self.scale = found.scale;
        }
    }
}

/// What a group's judging needs besides its weights: the values that nodes between `input` and `judge` read and that do
/// not depend on `input`, constants left out; `input` itself first.
fn judging_feeds(graph: &Graph, input: ValueId, judge: ValueId) -> Result<Vec<ValueId>, crate::ir::Error> {
    let reached = walk::reached_from(graph, &[input])?;
    let needed = walk::ancestors_of(graph, &[judge]);
    let mut feeds = vec![input];
    let between = |id: &NodeId| {
        let node = graph.node(*id);
        node.outputs.iter().flatten().any(|v| reached[v.0 as usize] && needed[v.0 as usize] && *v != input)
    };
    for id in walk::topological(graph)?.into_iter().filter(between) {
        for value in graph.reads(id) {
            let computed = !constant_alone(graph, value);
            if !reached[value.0 as usize] && computed && !feeds.contains(&value) {
                feeds.push(value);
            }
        }
    }
    Ok(feeds)
}
