//! A look at all samples before time is spent on them.

use std::collections::{BTreeSet, HashMap};

use mbqc_passes::array::{Array, Buf};
use mbqc_passes::facts::modality::{Merge, find_merge};
use mbqc_passes::ir::{ValueId, walk};
use mbqc_passes::run::Segment;

use super::DataSamples;
use super::image::{image_places, token_places};
use super::table::{Table, features, tables, vocabulary};
use crate::Error;
use crate::data::loss::IGNORED;
use crate::data::{Error as DataError, Sample, other_name};

/// Arrays that have a meaning whatever the graph reads.
const KNOWN: &[&str] = &[
    "input_ids",
    "attention_mask",
    "labels",
    "answer_mask",
    "vision_mask",
    "images",
    "pixel_values",
    "inputs_embeds",
    "kind",
];

/// What a data set holds.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct Census {
    /// Samples.
    pub samples: usize,
    /// Samples without image tokens.
    pub without_vision: usize,
    /// Samples without supervised tokens.
    pub without_answer: usize,
    /// Rows by class: vision, answer, prompt, padding.
    pub rows: [usize; 4],
    /// What is odd, but can be used.
    pub warnings: Vec<String>,
}

/// Supervised labels beside the token ids.
#[derive(Default)]
struct Aligned {
    labels: usize,
    equal: usize,
    /// Equal to the token after.
    ahead: usize,
}

/// Tokens at which the vision mask and the image token disagree.
#[derive(Default)]
struct Masks {
    tokens: usize,
    differ: usize,
    samples: usize,
}

/// Counts the image features that a single graph computes.
struct FeatureCount {
    merge: Merge,
    width: usize,
    segment: Segment,
    /// The inputs that decide about the count.
    inputs: Vec<String>,
    /// Counts by shapes and whole numbers of those inputs.
    known: HashMap<String, usize>,
}

impl DataSamples<'_> {
    /// Counts over all samples, and whether they can be used: ids within their tables, labels within the vocabulary and
    /// in line with the tokens, finite floats, as many image placeholders as image features.
    pub fn census(&self) -> Result<Census, Error> {
        let mut census = Census { samples: self.limit, ..Census::default() };
        let graph = &self.model.graph;
        let mut all_tables = tables(graph);
        all_tables.extend(self.frontend.tables());
        let vocabulary = self.logits.and_then(|logits| vocabulary(graph, logits));
        let mut counter = FeatureCount::of(self)?;
        let (mut aligned, mut masks) = (Aligned::default(), Masks::default());
        let mut unread = BTreeSet::new();
        for index in 0..self.limit {
            let sample = self.set.sample(index)?;
            unread.extend(sample.arrays.keys().filter(|name| !self.reads(name)).cloned());
            check_ids(&sample, &all_tables)?;
            check_finite(&sample)?;
            check_labels(&sample, vocabulary, &mut aligned)?;
            if let (Some(mask), Some(tokens)) = (&sample.vision, token_places(&sample, self.image)) {
                let differ = mask.iter().zip(&tokens).filter(|(a, b)| a != b).count();
                masks.tokens += mask.len();
                masks.differ += differ;
                masks.samples += usize::from(differ > 0);
            }
            if let Some(counter) = &mut counter {
                counter.check(self, &sample)?;
            }
            let places = image_places(&sample, self.image, self.classes)?;
            census.without_vision += usize::from(!places.contains(&true));
            census.without_answer += usize::from(sample.supervised() == 0);
            for class in sample.classes(&places, self.shift)? {
                census.rows[class as usize] += 1;
            }
        }
        if !unread.is_empty() {
            let unread: Vec<String> = unread.iter().map(|name| format!("`{name}`")).collect();
            let inputs: Vec<&str> = self.inputs.iter().map(|input| input.name.as_str()).collect();
            census.warnings.push(format!(
                "nothing reads the array{} {} of the data; names that are read: {}, and the inputs of the graph ({})",
                if unread.len() > 1 { "s" } else { "" },
                unread.join(", "),
                KNOWN.join(", "),
                inputs.join(", ")
            ));
        }
        self.judge_labels(&aligned, &mut census)?;
        if let (true, Some(token)) = (masks.differ > 0, self.image) {
            census.warnings.push(format!(
                "`vision_mask` is not where `input_ids` is the image token {} (from {}): {} of {} tokens differ, in {} of \
                 {} samples; the mask decides which rows count as vision",
                token.id, token.from, masks.differ, masks.tokens, masks.samples, census.samples
            ));
        }
        Ok(census)
    }

    /// Whether anything reads an array of this name.
    fn reads(&self, name: &str) -> bool {
        let input = |name: &str| self.inputs.iter().any(|input| input.name == name) || self.frontend.reads(name);
        KNOWN.contains(&name) || input(name) || other_name(name).is_some_and(input)
    }

    /// Labels that are not the tokens at their places: already shifted, or just different.
    fn judge_labels(&self, aligned: &Aligned, census: &mut Census) -> Result<(), Error> {
        let Aligned { labels, equal, ahead } = *aligned;
        if 2 * equal < labels && 2 * ahead > labels {
            let reason = format!(
                "{ahead} of {labels} labels are the token after their place, {equal} the token at it: they were shifted \
                 already. Labels are aligned with the tokens; the loss shifts them. Save labels[t] = input_ids[t] where \
                 token t belongs to the answer, {IGNORED} elsewhere"
            );
            return Err(DataError::Set { path: self.set.path().to_owned(), reason }.into());
        }
        if equal < labels {
            census.warnings.push(format!(
                "{} of {labels} labels are not the token at their place in `input_ids`; labels are aligned with the tokens, \
                 and the loss shifts them",
                labels - equal
            ));
        }
        Ok(())
    }
}

fn check_ids(sample: &Sample, tables: &[Table]) -> Result<(), DataError> {
    for table in tables {
        let Some(Ok(ids)) = sample.arrays.get(&table.input).map(Array::to_i64s) else { continue };
        let outside = |id: i64| usize::try_from(id).ok().is_none_or(|id| id >= table.rows);
        if let Some((token, id)) = ids.iter().enumerate().find(|(_, id)| outside(**id)) {
            return Err(sample.error(format!(
                "`{}` holds {id} at token {token}, expected 0 to {}: the ids of the table `{}`; check that the data was \
                 made with this model's tokenizer",
                table.input,
                table.rows.saturating_sub(1),
                table.name
            )));
        }
    }
    Ok(())
}

fn check_finite(sample: &Sample) -> Result<(), DataError> {
    for (name, array) in &sample.arrays {
        let bad = match &array.buf {
            Buf::F32(all) => all.iter().position(|x| !x.is_finite()).map(|at| (at, f64::from(all[at]))),
            Buf::F64(all) => all.iter().position(|x| !x.is_finite()).map(|at| (at, all[at])),
            Buf::I64(_) | Buf::Bool(_) | Buf::Bytes(_) => None,
        };
        if let Some((at, value)) = bad {
            return Err(sample.error(format!("`{name}` holds {value} at element {at}, expected finite numbers")));
        }
    }
    Ok(())
}

fn check_labels(sample: &Sample, vocabulary: Option<usize>, aligned: &mut Aligned) -> Result<(), DataError> {
    let Some(labels) = &sample.labels else { return Ok(()) };
    let ids = sample.arrays.get("input_ids").and_then(|ids| ids.to_i64s().ok());
    for (token, &label) in labels.iter().enumerate().skip(1).filter(|(_, label)| **label != IGNORED) {
        let inside = |id: usize| vocabulary.is_none_or(|size| id < size);
        if !usize::try_from(label).is_ok_and(inside) {
            let size =
                vocabulary.map_or_else(|| "a token id".to_owned(), |v| format!("an id below the vocabulary of {v}"));
            return Err(sample.error(format!("label {label} of token {token} is neither {IGNORED} nor {size}")));
        }
        if let Some(ids) = &ids {
            aligned.labels += 1;
            aligned.equal += usize::from(ids.get(token) == Some(&label));
            aligned.ahead += usize::from(ids.get(token + 1) == Some(&label));
        }
    }
    Ok(())
}

impl FeatureCount {
    /// `None` where the graph has no merge, or does not show how wide a feature is.
    fn of(samples: &DataSamples<'_>) -> Result<Option<FeatureCount>, Error> {
        let law = |source| Error::Law { pass: "reading", source };
        let graph = &samples.model.graph;
        let Some(merge) = find_merge(graph).map_err(law)? else { return Ok(None) };
        let values = features(graph, &merge).map_err(law)?;
        let table = tables(graph).into_iter().find(|table| table.input == graph.name(merge.ids));
        let (Some(table), false) = (table, values.is_empty()) else { return Ok(None) };
        let needed = walk::ancestors_of(graph, &values);
        let given: Vec<ValueId> =
            graph.inputs().iter().copied().filter(|&v| needed[v.0 as usize] && graph.constant(v).is_none()).collect();
        let inputs = given.iter().map(|&v| graph.name(v).to_owned()).collect();
        // What cannot be run is told where it has to be.
        let Ok(segment) = samples.runner.prepare(samples.model, &given, &values) else { return Ok(None) };
        Ok(Some(FeatureCount { merge, width: table.width, segment, inputs, known: HashMap::new() }))
    }

    fn check(&mut self, samples: &DataSamples<'_>, sample: &Sample) -> Result<(), Error> {
        let graph = &samples.model.graph;
        let ids = graph.name(self.merge.ids);
        let Some(Ok(all)) = sample.arrays.get(ids).map(Array::to_i64s) else { return Ok(()) };
        let places = all.iter().filter(|&&id| id == self.merge.image_token).count();
        let bound = samples.bound(sample)?;
        let deciding = self.inputs.iter().filter_map(|name| Some((name, bound.get(name)?)));
        let mut key = String::new();
        for (name, array) in deciding {
            key += &format!("{name} {:?}", array.shape);
            if !matches!(array.buf, Buf::F32(_) | Buf::F64(_)) {
                key += &format!(" {:?}", array.to_i64s());
            }
        }
        // A text may come with a picture that nothing refers to.
        if places == 0 || self.known.get(&key) == Some(&places) {
            return Ok(());
        }
        let mut feeds = super::by_value(graph, &bound);
        feeds.retain(|value, _| self.segment.fed().contains(value));
        let Ok(found) = samples.runner.run(samples.model, &self.segment, feeds, None) else { return Ok(()) };
        let floats = found.iter().filter(|array| matches!(array.buf, Buf::F32(_)));
        let mut counts: Vec<usize> =
            floats.filter(|a| a.len() % self.width == 0).map(|a| a.len() / self.width).collect();
        counts.dedup();
        let &[count] = counts.as_slice() else { return Ok(()) };
        self.known.insert(key, count);
        if count != places {
            let reason = format!(
                "found {places} image placeholders (`{ids}` is {}), expected {count}: one for every image feature that \
                 the graph computes from the pictures; expand the placeholder as the model's processor does",
                self.merge.image_token
            );
            return Err(sample.error(reason).into());
        }
        Ok(())
    }
}
