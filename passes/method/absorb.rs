//! What becomes of the constants that absorb 1/s, as they will be stored.

use crate::facts::groups::Group;
use crate::facts::sites::Survey;
use crate::ir::{DType, Graph, Tensor, ValueId};
use crate::plan::ScaleRule;

/// The constants that a group's fold divides, without the weights of layers that are quantized: those are rounded after
/// they have been divided, so nothing is rounded in between.
#[derive(Clone, Debug, Default)]
pub(super) struct Absorbers {
    all: Vec<Absorber>,
    /// Whether candidates are judged with the constants as stored, or with an exact 1/s.
    as_stored: bool,
}

#[derive(Clone, Debug)]
struct Absorber {
    dtype: DType,
    /// By channel: its element, or the largest absolute value where there are many.
    values: Vec<f32>,
    role: Role,
}

/// What a constant does to the group's input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// Multiplies it.
    Gain,
    /// Is added to it.
    Shift,
    /// Something else: a layer's weight, or a bias behind which computed values are multiplied.
    Other,
}

/// The group's input as a candidate makes it, seen without the scale: `inverse * s * (x + shift)`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Effect {
    /// What 1/s becomes, by channel.
    pub(super) inverse: Vec<f32>,
    /// What rounded biases add, by channel; `None` when nothing.
    pub(super) shift: Option<Vec<f32>>,
}

impl Absorbers {
    /// Those of a group. `quantized` are the names of the weights that will be quantized.
    pub(super) fn of(
        graph: &Graph,
        group: &Group,
        survey: &Survey,
        quantized: &[&str],
        scales: ScaleRule,
    ) -> Absorbers {
        let Ok(fold) = &group.fold else { return Absorbers::default() };
        let as_stored = scales == ScaleRule::Stored;
        if fold.mul {
            // The constant that will hold 1/s is a gain of one that absorbs s.
            let dtype = survey.sites[group.sites[0]].weight.read_as;
            return Absorbers {
                all: vec![Absorber { dtype, values: vec![1.0; group.k], role: Role::Gain }],
                as_stored,
            };
        }
        let mut all = Vec::new();
        let additive = added_directly(graph, group);
        for (index, divided) in fold.divided.iter().enumerate() {
            let tensor = graph.find(&divided.constant).and_then(|v| graph.shown_constant(v));
            let Some(tensor) = tensor.filter(|_| !quantized.contains(&divided.constant.as_str())) else { continue };
            let Some(entries) = by_entry(tensor, divided.axis) else { continue };
            let role = match (index, fold.site) {
                (0, None) => Role::Gain,
                _ if additive && tensor.len() == entries.len() => Role::Shift,
                _ => Role::Other,
            };
            let feeds = |&channel: &usize| entries.get(channel).copied();
            let Some(values) = divided.channels.iter().map(feeds).collect() else { continue };
            all.push(Absorber { dtype: tensor.dtype, values, role });
        }
        Absorbers { all, as_stored }
    }

    /// What a candidate scale makes of the group's input. `None` when it takes a constant out of its type's range: an entry
    /// becomes infinite, or one that was not zero becomes zero (of a weight: all entries of a channel).
    pub(super) fn effect(&self, s: &[f32]) -> Option<Effect> {
        let mut inverse: Vec<f32> = s.iter().map(|s| 1.0 / s).collect();
        let mut shift: Option<Vec<f32>> = None;
        for absorber in &self.all {
            let stored = absorber.divided(s)?;
            if absorber.role == Role::Gain && self.as_stored {
                let each = absorber.values.iter().zip(stored).zip(&mut inverse);
                each.filter(|((gain, _), _)| **gain != 0.0)
                    .for_each(|((gain, stored), inverse)| *inverse = stored / gain);
            }
        }
        // Rounding a bias that is stored in f32 is no more than rounding the arithmetic.
        let half = |absorber: &&Absorber| matches!(absorber.dtype, DType::F16 | DType::BF16) && self.as_stored;
        for absorber in self.all.iter().filter(|absorber| absorber.role == Role::Shift).filter(half) {
            let moved = shift.get_or_insert_with(|| vec![0.0; s.len()]);
            for (((moved, stored), bias), inverse) in
                moved.iter_mut().zip(absorber.divided(s)?).zip(&absorber.values).zip(&inverse)
            {
                *moved += stored / inverse - bias;
            }
        }
        Some(Effect { inverse, shift: shift.filter(|shift| shift.iter().any(|v| *v != 0.0)) })
    }
}

impl Absorber {
    /// The entries divided by `s`, rounded to the stored type; `None` when one leaves its range.
    fn divided(&self, s: &[f32]) -> Option<Vec<f32>> {
        let exact: Vec<f32> = self.values.iter().zip(s).map(|(v, s)| v / s).collect();
        let stored = Tensor::floats(self.dtype, [exact.len()], &exact)?.to_f64()?;
        let stored: Vec<f32> = stored.into_iter().map(|v| v as f32).collect();
        let fits = stored.iter().zip(&self.values).all(|(new, old)| new.is_finite() && (*new != 0.0 || *old == 0.0));
        fits.then_some(stored)
    }
}

/// By entry along `axis`: the only element, or the largest absolute value of many.
fn by_entry(tensor: &Tensor, axis: usize) -> Option<Vec<f32>> {
    let entries = *tensor.dims.get(axis)?;
    let values = tensor.to_f64()?;
    if values.len() == entries {
        return Some(values.into_iter().map(|v| v as f32).collect());
    }
    let inner: usize = tensor.dims[axis + 1..].iter().product();
    let mut largest = vec![0.0f32; entries];
    for (i, v) in values.into_iter().enumerate() {
        let slot = &mut largest[i / inner.max(1) % entries.max(1)];
        *slot = slot.max((v as f32).abs());
    }
    Some(largest)
}

/// Whether everything that is divided after the first constant is added to the group's input, with nothing but casts and
/// additions behind it.
fn added_directly(graph: &Graph, group: &Group) -> bool {
    let Ok(fold) = &group.fold else { return false };
    let mut value = group.input;
    loop {
        let Some((producer, _)) = graph.producer(value) else { return false };
        if fold.divided.first().is_some_and(|first| first.node == producer) {
            return true;
        }
        let node = graph.node(producer);
        let added = |v: &ValueId| fold.divided.iter().any(|d| d.node == producer && d.constant == graph.name(*v));
        let next = match node.op.as_str() {
            "Identity" | "Cast" | "Dropout" => node.input(0),
            "Add" => node.inputs.iter().flatten().copied().find(|v| !added(v)),
            _ => None,
        };
        match next {
            Some(before) => value = before,
            None => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn absorbers(all: &[(DType, &[f32], Role)]) -> Absorbers {
        let all =
            all.iter().map(|(dtype, values, role)| Absorber { dtype: *dtype, values: values.to_vec(), role: *role });
        Absorbers { all: all.collect(), as_stored: true }
    }

    #[test]
    fn gains_are_judged_as_stored() {
        let third = absorbers(&[(DType::F16, &[1.0, 0.0], Role::Gain)]).effect(&[3.0, 3.0]).unwrap();
        let rounded = half::f16::from_f32(1.0 / 3.0).to_f32();
        assert_eq!(third, Effect { inverse: vec![rounded, 1.0 / 3.0], shift: None });
        let exact = Absorbers { as_stored: false, ..absorbers(&[(DType::F16, &[1.0], Role::Gain)]) };
        assert_eq!(exact.effect(&[3.0]).unwrap().inverse, [1.0 / 3.0]);
    }

    #[test]
    fn biases_are_judged_as_stored() {
        let both = absorbers(&[(DType::F16, &[2.5], Role::Gain), (DType::F16, &[1.0], Role::Shift)]);
        let Effect { inverse, shift } = both.effect(&[3.0]).unwrap();
        let round = |v: f32| half::f16::from_f32(v).to_f32();
        assert_eq!(inverse, [round(2.5 / 3.0) / 2.5]);
        // What the quantized layer sees is inverse * (x + shift): at x = bias it is the bias as stored.
        let seen = inverse[0] * (1.0 + shift.unwrap()[0]);
        assert!((seen - round(1.0 / 3.0)).abs() < 1e-7, "{seen}");
        assert_eq!(both.effect(&[2.0]).unwrap().shift, None, "nothing is rounded");
    }

    #[test]
    fn every_constant_must_stay_in_range() {
        for role in [Role::Gain, Role::Shift, Role::Other] {
            let alone = absorbers(&[(DType::F16, &[1.0, 0.0], role)]);
            assert!(alone.effect(&[1e-5, 1.0]).is_none(), "{role:?}: 1e5 is no f16");
            assert!(alone.effect(&[1e9, 1.0]).is_none(), "{role:?}: 1e-9 is zero in f16");
            assert!(alone.effect(&[1.0, 1e9]).is_some(), "{role:?}: a zero may stay one");
            let wide = absorbers(&[(DType::F32, &[1.0], Role::Gain), (DType::F16, &[-1.0], role)]);
            assert!(wide.effect(&[1e9]).is_none(), "{role:?}: not only the first constant");
            assert!(absorbers(&[(DType::F32, &[1.0], role)]).effect(&[1e9]).is_some(), "{role:?}: f32 is wider");
        }
    }
}
