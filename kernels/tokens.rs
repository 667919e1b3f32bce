//! Activations that are rounded before a product sees them.

use crate::affine::{Levels, quantize_group, to_bytes};
use crate::dense::{layer_norm, rms_norm};
use crate::error::{Error, check_length, length};
use crate::pool::Pool;
use std::borrow::Cow;

/// Activations as signed bytes with a scale to each token row: what W8A8 and W4A8 multiply, rounded once for all layers that
/// read them.
///
/// `t = max(max|x|, 1e-5) / 127` of a row, `p = round(x / t)`, half to even: the formula of
/// [`Scheme::WeightActivation`](crate::Scheme::WeightActivation). A row that is not finite has zeros and the scale NaN.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tokens {
    k: usize,
    codes: Vec<i8>,
    scales: Vec<f32>,
}

impl Tokens {
    /// Rounds `x: [rows, k]`.
    ///
    /// # Panics
    ///
    /// If the length of `x` is no multiple of `k`.
    pub fn new(x: &[f32], k: usize, pool: &Pool) -> Tokens {
        Tokens::made(x, k, pool, |x, row| row.copy_from_slice(x))
    }

    /// [`rms_norm`] of `x: [rows, k]`, rounded; `gain: [k]`. A normalised row is rounded where it was computed, in the cache:
    /// only its bytes go to memory. The outcome is that of [`Tokens::new`] on what `rms_norm` answers, bit for bit.
    ///
    /// # Panics
    ///
    /// If the length of `x` is no multiple of that of `gain`.
    pub fn of_rms_norm(x: &[f32], gain: &[f32], eps: f32, pool: &Pool) -> Tokens {
        Tokens::made(x, gain.len(), pool, |x, row| rms_norm(x, gain, eps, row))
    }

    /// [`layer_norm`] of `x: [rows, k]`, rounded as by [`Tokens::of_rms_norm`]; `gain: [k]`, `bias: [k]`.
    ///
    /// # Panics
    ///
    /// If the length of `x` is no multiple of that of `gain`, or the bias has another length than the gain.
    pub fn of_layer_norm(x: &[f32], gain: &[f32], bias: Option<&[f32]>, eps: f32, pool: &Pool) -> Tokens {
        Tokens::made(x, gain.len(), pool, |x, row| layer_norm(x, gain, bias, eps, row))
    }

    /// Rounds what `row` makes of each row of `x`.
    fn made(x: &[f32], k: usize, pool: &Pool, row: impl Fn(&[f32], &mut [f32]) + Sync) -> Tokens {
        assert!(x.is_empty() || (k != 0 && x.len().is_multiple_of(k)), "x is [rows, k]");
        let rows = x.len().checked_div(k).unwrap_or(0);
        let mut tokens = Tokens { k, codes: vec![0; x.len()], scales: vec![0.0; rows] };
        let piece = (ROWS_PER_PIECE * k).max(1);
        let pieces = x.chunks(piece).zip(tokens.codes.chunks_mut(piece)).zip(tokens.scales.chunks_mut(ROWS_PER_PIECE));
        pool.for_each(pieces, |((x, codes), scales)| {
            let (mut floats, mut rounded) = (vec![0.0; k], vec![0.0; k]);
            for ((x, codes), scale) in x.chunks(k).zip(codes.chunks_mut(k)).zip(scales) {
                row(x, &mut floats);
                *scale = quantize_group(&floats, Levels::Token, &mut rounded);
                to_bytes(&rounded, codes);
            }
        });
        tokens
    }

    /// Input channels.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Token rows.
    pub fn rows(&self) -> usize {
        self.scales.len()
    }

    /// `[rows, k]`, each in `-127..=127`.
    pub fn codes(&self) -> &[i8] {
        &self.codes
    }

    /// `[rows]`.
    pub fn scales(&self) -> &[f32] {
        &self.scales
    }

    /// What the integers stand for, `[rows, k]`.
    pub fn to_f32(&self) -> Vec<f32> {
        let rows = self.codes.chunks(self.k.max(1)).zip(&self.scales);
        rows.flat_map(|(codes, &scale)| codes.iter().map(move |&p| scale * f32::from(p))).collect()
    }
}

/// Rows that a thread rounds one after the other.
const ROWS_PER_PIECE: usize = 8;

/// The activations of a product.
#[derive(Clone, Copy, Debug)]
pub enum Input<'a> {
    /// `[rows, k]`.
    F32(&'a [f32]),
    /// Rounded already. Every format multiplies them as they are; for weights alone that is the accuracy of int8 with a scale
    /// per row.
    Tokens(&'a Tokens),
}

impl<'a> Input<'a> {
    /// Numbers: rows times k.
    pub fn len(&self) -> usize {
        match self {
            Input::F32(x) => x.len(),
            Input::Tokens(tokens) => tokens.codes.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// `Ok` if there are so many rows of k.
    pub(crate) fn check(&self, rows: usize, k: usize) -> Result<(), Error> {
        check_length("x", self.len(), length(&[rows, k]))?;
        match self {
            Input::Tokens(tokens) if rows != 0 => check_length("a row of x", tokens.k, k),
            _ => Ok(()),
        }
    }

    /// `[rows, k]`.
    pub fn to_f32(self) -> Cow<'a, [f32]> {
        match self {
            Input::F32(x) => Cow::Borrowed(x),
            Input::Tokens(tokens) => Cow::Owned(tokens.to_f32()),
        }
    }
}

impl<'a> From<&'a [f32]> for Input<'a> {
    fn from(x: &'a [f32]) -> Input<'a> {
        Input::F32(x)
    }
}

impl<'a> From<&'a Vec<f32>> for Input<'a> {
    fn from(x: &'a Vec<f32>) -> Input<'a> {
        Input::F32(x)
    }
}

impl<'a> From<&'a Tokens> for Input<'a> {
    fn from(tokens: &'a Tokens) -> Input<'a> {
        Input::Tokens(tokens)
    }
}
