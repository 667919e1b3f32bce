//! rho: how much a vision row counts beside an answer row.

use std::collections::HashMap;

use crate::facts::groups::{Group, Kind};
use crate::facts::sites::{Survey, Tower};
use crate::ir::ValueId;

use super::measure::{ByClass, Sensitivity};
use super::{Floor, RhoScheme};

/// rho of every group, from the sensitivities measured at judging points and layer outputs.
///
/// [`RhoScheme::Reference`] takes mean |g| at the judging point, vision over answer, and bounds it below: `max(r, median)`, the
/// median over the judging points of one kind. Only blocks of the text tower are bounded and counted, as in the reference
/// code, which knows no others: at a head, whose vision rows are never judged, and in a vision tower, which has no answer
/// rows, a ratio of decoder layers means nothing. [`RhoScheme::Paper`] takes mean |g| at the outputs of the group's own layers,
/// without a bound.
pub(super) fn rho(
    groups: &[Group],
    survey: &Survey,
    found: &HashMap<ValueId, Sensitivity>,
    scheme: RhoScheme,
    floor: Floor,
) -> Vec<f64> {
    let abs = |value: ValueId| found.get(&value).map_or_else(ByClass::default, |s| s.abs);
    match scheme {
        RhoScheme::Reference => {
            let ratios: Vec<f64> = groups.iter().map(|g| ratio(abs(g.judge).vision, abs(g.judge).answer)).collect();
            let in_block: Vec<bool> = groups.iter().map(|group| is_text_block(group, survey)).collect();
            floored(groups, &ratios, &in_block, floor)
        }
        RhoScheme::Paper => {
            let sum = |group: &Group, of: fn(ByClass) -> f64| -> f64 {
                group.sites.iter().map(|&site| of(abs(survey.sites[site].out))).sum()
            };
            groups.iter().map(|group| ratio(sum(group, |abs| abs.vision), sum(group, |abs| abs.answer))).collect()
        }
    }
}

fn ratio(vision: f64, answer: f64) -> f64 {
    if answer > 0.0 { vision / answer } else { 0.0 }
}

/// A group of a block that sees tokens.
fn is_text_block(group: &Group, survey: &Survey) -> bool {
    group.sites.iter().all(|&site| !survey.sites[site].head && survey.sites[site].tower != Tower::Vision)
}

/// Ratios with their lower bound: the median over those of one kind, one per judging point.
fn floored(groups: &[Group], ratios: &[f64], in_block: &[bool], floor: Floor) -> Vec<f64> {
    let median_of = |kind: Kind| {
        let mut seen: Vec<ValueId> = Vec::new();
        let mut all: Vec<f64> = Vec::new();
        for ((group, &ratio), _) in groups.iter().zip(ratios).zip(in_block).filter(|(_, counts)| **counts) {
            let live = floor != Floor::MedianLive || ratio > 0.0;
            if group.kind == kind && live && !seen.contains(&group.judge) {
                seen.push(group.judge);
                all.push(ratio);
            }
        }
        median(all).unwrap_or(0.0)
    };
    let medians = [median_of(Kind::Attention), median_of(Kind::Mlp)];
    let each = groups.iter().zip(ratios).zip(in_block).map(|((group, &ratio), &bounded)| match floor {
        Floor::Median | Floor::MedianLive if bounded => ratio.max(medians[usize::from(group.kind == Kind::Mlp)]),
        Floor::Median | Floor::MedianLive | Floor::None => ratio,
    });
    each.collect()
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::fold::Declined;

    #[test]
    fn medians() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![0.4, 0.05, 0.1]), Some(0.1));
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }

    fn mlp(judge: u32) -> Group {
        let (sites, input, fold) =
            (Vec::new(), ValueId(100 + judge), Err(Declined { reason: String::new(), mul: false }));
        Group { sites, input, k: 1, fold, judge: ValueId(judge), kind: Kind::Mlp }
    }

    /// Algorithm note, hand-checkable vector: r = [0.05, 0.1, 0.4] gives [0.1, 0.1, 0.4].
    #[test]
    fn ratios_below_the_median_are_raised() {
        let groups = [mlp(0), mlp(1), mlp(2)];
        let blocks = [true; 3];
        assert_eq!(floored(&groups, &[0.05, 0.1, 0.4], &blocks, Floor::Median), [0.1, 0.1, 0.4]);
        assert_eq!(floored(&groups, &[0.05, 0.1, 0.4], &blocks, Floor::None), [0.05, 0.1, 0.4]);
        // A layer that vision rows cannot reach is bounded, and counts for one of the two medians.
        assert_eq!(floored(&groups, &[0.0, 0.1, 0.4], &blocks, Floor::MedianLive), [0.25, 0.25, 0.4]);
        assert_eq!(floored(&groups, &[0.0, 0.1, 0.4], &blocks, Floor::Median), [0.1, 0.1, 0.4]);
    }

    #[test]
    fn heads_and_vision_towers_play_no_part_in_the_median() {
        let groups = [mlp(0), mlp(1), mlp(2), mlp(3)];
        let ratios = [0.0, 0.1, 0.4, 7.0];
        let blocks = [false, true, true, false];
        for floor in [Floor::Median, Floor::MedianLive] {
            assert_eq!(floored(&groups, &ratios, &blocks, floor), [0.0, 0.25, 0.4, 7.0]);
        }
    }
}
