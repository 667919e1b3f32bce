//! One sequence of a set.

use std::ops::Range;

use indexmap::IndexMap;
use mbqc_passes::array::{Array, ArrayError, Buf};

use super::classes::{Class, MaskShift, classes};
use super::loss::IGNORED;
use super::npy::{Elem, Npy};
use super::{Error, npy::NpyError};

/// Fields that are not inputs of a graph.
const FIELDS: &[&str] = &["labels", "answer_mask", "vision_mask", "kind"];
/// Fields with one entry per token, `[1, T]`, in the order in which the number of tokens is looked up.
const TOKEN_FIELDS: &[&str] = &["attention_mask", "input_ids", "labels", "answer_mask", "vision_mask"];

/// One sequence with its masks. `T` is the number of tokens after padding on the left or right is cut off.
#[derive(Clone, Debug)]
pub struct Sample {
    /// File or index, for messages.
    pub name: String,
    /// Arrays by name, leading axis 1 kept; without labels, answer mask, vision mask and kind.
    pub arrays: IndexMap<String, Array>,
    /// One per token, [`IGNORED`] where nothing is supervised; aligned with the tokens (the loss shifts).
    pub labels: Option<Vec<i64>>,
    /// One per token: is part of the answer.
    pub answer: Vec<bool>,
    /// One per token: is an image token; `None` when the set does not say.
    pub vision: Option<Vec<bool>>,
    /// One per token: is not padding.
    pub valid: Vec<bool>,
    /// What kind of sample it is, such as `caption`.
    pub kind: Option<String>,
}

impl Sample {
    /// Number of tokens; 0 when the sample has no token sequence.
    pub fn tokens(&self) -> usize {
        self.valid.len()
    }

    /// Number of targets that the loss sees.
    pub fn supervised(&self) -> usize {
        self.labels.as_deref().map_or(0, mbqc_passes::method::loss::supervised)
    }

    /// The class of every token row; `vision_mask` has one entry per token.
    pub fn classes(&self, vision_mask: &[bool], shift: MaskShift) -> Result<Vec<Class>, Error> {
        let result = classes(&self.answer, vision_mask, &self.valid, shift);
        result.map_err(|error| self.error(error.to_string()))
    }

    /// Names, types and shapes of the arrays.
    pub fn describe(&self) -> String {
        let each = self.arrays.iter().map(|(name, array)| format!("{name} {}{:?}", array.dtype, array.shape));
        let each: Vec<String> = each.collect();
        if each.is_empty() { "no arrays".to_owned() } else { each.join(", ") }
    }

    pub(crate) fn error(&self, reason: String) -> Error {
        Error::Sample { sample: self.name.clone(), reason }
    }

    /// Reads the fields and cuts padding off. Every array has its leading axis.
    pub(super) fn new(name: String, stored: &IndexMap<String, Npy>) -> Result<Sample, Error> {
        let fail = |reason: String| Error::Sample { sample: name.clone(), reason };
        let of = |field: &str| {
            let field = field.to_owned();
            let name = name.clone();
            move |e: NpyError| Error::Sample { sample: name, reason: format!("`{field}`: {e}") }
        };
        let mut arrays = IndexMap::new();
        let mut kind = None;
        for (field, npy) in stored {
            match npy.elem {
                Elem::Number(_) => {
                    arrays.insert(field.clone(), npy.to_array().map_err(of(field))?);
                }
                Elem::Unicode(_) | Elem::Ascii(_) if field == "kind" => {
                    kind = npy.strings().map_err(of(field))?.into_iter().next();
                }
                Elem::Unicode(_) | Elem::Ascii(_) => {}
            }
        }
        if let Some(number) = arrays.get("kind") {
            kind = number.to_i64s().ok().and_then(|all| all.first().map(i64::to_string));
        }
        let tokens = token_count(&arrays).map_err(&fail)?;
        let ints = |field: &str| match arrays.get(field) {
            Some(array) => array.to_i64s().map(Some).map_err(|e| fail(format!("`{field}`: {e}"))),
            None => Ok(None),
        };
        let mask = |field: &str| Ok(ints(field)?.map(|all| all.into_iter().map(|v| v != 0).collect::<Vec<bool>>()));
        let attended = match arrays.get("attention_mask") {
            Some(array) if array.rank() == 2 => mask("attention_mask")?,
            _ => None,
        };
        let valid = attended.unwrap_or_else(|| vec![true; tokens]);
        let (mut labels, answer) = (ints("labels")?, mask("answer_mask")?);
        if labels.is_none()
            && let (Some(answer), Some(ids)) = (&answer, ints("input_ids")?)
        {
            labels = Some(ids.iter().zip(answer).map(|(&id, &is)| if is { id } else { IGNORED }).collect());
        }
        if let Some(labels) = &mut labels {
            labels.iter_mut().zip(&valid).filter(|(_, valid)| !**valid).for_each(|(label, _)| *label = IGNORED);
        }
        let answer = answer.or_else(|| labels.as_ref().map(|all| all.iter().map(|&l| l != IGNORED).collect()));
        let mut answer = answer.unwrap_or_else(|| vec![false; tokens]);
        answer.iter_mut().zip(&valid).for_each(|(answer, valid)| *answer &= valid);
        let vision = mask("vision_mask")?;
        let keep = kept(&valid).map_err(&fail)?;
        arrays.retain(|field, _| !FIELDS.contains(&field.as_str()));
        for (field, array) in &mut arrays {
            if let Some(axis) = token_axis(field, array, tokens) {
                *array = cut(array, axis, &keep).map_err(|e| fail(format!("`{field}`: {e}")))?;
            }
        }
        Ok(Sample {
            arrays,
            labels: labels.map(|all| all[keep.clone()].to_vec()),
            answer: answer[keep.clone()].to_vec(),
            vision: vision.map(|all| all[keep.clone()].to_vec()),
            valid: valid[keep].to_vec(),
            kind,
            name,
        })
    }
}

/// The number of tokens on which all fields agree; 0 when there is none.
fn token_count(arrays: &IndexMap<String, Array>) -> Result<usize, String> {
    let mut found: Option<(&str, usize)> = None;
    let named = TOKEN_FIELDS.iter().map(|field| (*field, 2)).chain([("inputs_embeds", 3)]);
    for (field, rank) in named {
        let Some(array) = arrays.get(field) else { continue };
        let &[leading, len, ..] = array.shape.as_slice() else {
            return Err(format!("`{field}` has shape {:?}, expected [1, tokens]", array.shape));
        };
        if field == "attention_mask" && array.rank() > 2 {
            continue;
        }
        if array.rank() != rank || leading != 1 {
            let expected = if rank == 2 { "[1, tokens]" } else { "[1, tokens, width]" };
            return Err(format!("`{field}` has shape {:?}, expected {expected}", array.shape));
        }
        match found {
            Some((other, count)) if count != len => {
                return Err(format!("`{field}` has {len} tokens, `{other}` has {count}"));
            }
            _ => found = Some((field, len)),
        }
    }
    Ok(found.map_or(0, |(_, count)| count))
}

/// The tokens that stay: padding is cut when it is all on the left, all on the right, or both.
fn kept(valid: &[bool]) -> Result<Range<usize>, String> {
    let Some(first) = valid.iter().position(|&v| v) else {
        return if valid.is_empty() { Ok(0..0) } else { Err("attention_mask is zero everywhere".to_owned()) };
    };
    let end = valid.iter().rposition(|&v| v).map_or(first, |last| last + 1);
    let whole = valid[first..end].iter().all(|&v| v);
    Ok(if whole { first..end } else { 0..valid.len() })
}

/// The axis of an array that runs over the tokens.
fn token_axis(name: &str, array: &Array, tokens: usize) -> Option<usize> {
    let axis = match (array.rank(), name) {
        (2, _) => 1,
        (3.., "position_ids") => array.rank() - 1,
        (3, name) if name.contains("embeds") => 1,
        _ => return None,
    };
    (tokens > 0 && array.shape[axis] == tokens).then_some(axis)
}

/// The entries `range` of an axis.
pub(super) fn cut(array: &Array, axis: usize, range: &Range<usize>) -> Result<Array, ArrayError> {
    if range.len() == array.shape[axis] {
        return Ok(array.clone());
    }
    let inner: usize = array.shape[axis + 1..].iter().product();
    let block = array.shape[axis] * inner;
    let outer: usize = array.shape[..axis].iter().product();
    let parts = (0..outer).map(|o| o * block + range.start * inner..o * block + range.end * inner);
    fn gather<T: Clone>(all: &[T], parts: impl Iterator<Item = Range<usize>>) -> Vec<T> {
        parts.flat_map(|part| all[part].iter().cloned()).collect()
    }
    let buf = match &array.buf {
        Buf::F32(all) => Buf::F32(gather(all, parts).into()),
        Buf::F64(all) => Buf::F64(gather(all, parts).into()),
        Buf::I64(all) => Buf::I64(gather(all, parts).into()),
        Buf::Bool(all) => Buf::Bool(gather(all, parts).into()),
        Buf::Bytes(all) => Buf::Bytes(gather(all, parts).into()),
    };
    let mut shape = array.shape.clone();
    shape[axis] = range.len();
    Ok(Array { dtype: array.dtype, shape, buf })
}
