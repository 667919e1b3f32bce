//! The two types that dense operations compute in.

use super::elementary;
use std::fmt::Debug;
use std::iter::Sum;
use std::ops::{Add, AddAssign, Div, DivAssign, Mul, MulAssign, Neg, Sub, SubAssign};

mod sealed {
    /// What is computed for many elements at a time, in single precision by code of our own. Slices are equally long.
    pub trait Elementary: Sized {
        fn exp_all(x: &[Self], y: &mut [Self]);
        fn tanh_all(x: &[Self], y: &mut [Self]);
        fn sigmoid_all(x: &[Self], y: &mut [Self]);
        fn softmax_row(row: &mut [Self]);
    }
}
pub(super) use sealed::Elementary;

impl Elementary for f32 {
    fn exp_all(x: &[f32], y: &mut [f32]) {
        elementary::exp_all(x, y);
    }
    fn tanh_all(x: &[f32], y: &mut [f32]) {
        elementary::tanh_all(x, y);
    }
    fn sigmoid_all(x: &[f32], y: &mut [f32]) {
        elementary::sigmoid_all(x, y);
    }
    fn softmax_row(row: &mut [f32]) {
        elementary::softmax_row(row);
    }
}

impl Elementary for f64 {
    fn exp_all(x: &[f64], y: &mut [f64]) {
        y.iter_mut().zip(x).for_each(|(y, x)| *y = x.exp());
    }
    fn tanh_all(x: &[f64], y: &mut [f64]) {
        y.iter_mut().zip(x).for_each(|(y, x)| *y = x.tanh());
    }
    fn sigmoid_all(x: &[f64], y: &mut [f64]) {
        y.iter_mut().zip(x).for_each(|(y, x)| *y = 1.0 / (1.0 + (-x).exp()));
    }
    fn softmax_row(row: &mut [f64]) {
        let max = row.iter().fold(f64::NEG_INFINITY, |max, &x| if x > max { x } else { max });
        row.iter_mut().for_each(|x| *x = (*x - max).exp());
        let sum: f64 = row.iter().sum();
        row.iter_mut().for_each(|x| *x /= sum);
    }
}

/// f32 or f64.
pub trait Float:
    sealed::Elementary
    + Copy
    + Debug
    + Default
    + PartialEq
    + PartialOrd
    + Send
    + Sync
    + Sum
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
    + SubAssign
    + MulAssign
    + DivAssign
    + 'static
{
    /// 0.
    const ZERO: Self;
    /// 1.
    const ONE: Self;
    /// Minus infinity.
    const NEG_INFINITY: Self;
    /// The nearest value.
    fn from_f64(x: f64) -> Self;
    /// The same value.
    fn to_f64(self) -> f64;
    /// Square root.
    fn sqrt(self) -> Self;
    /// `e^x`.
    fn exp(self) -> Self;
    /// Whether it is not a number.
    fn is_nan(self) -> bool;
}

macro_rules! float {
    ($type:ident) => {
        impl Float for $type {
            const ZERO: Self = 0.0;
            const ONE: Self = 1.0;
            const NEG_INFINITY: Self = $type::NEG_INFINITY;
            #[inline(always)]
            fn from_f64(x: f64) -> Self {
                x as $type
            }
            #[inline(always)]
            fn to_f64(self) -> f64 {
                f64::from(self)
            }
            #[inline(always)]
            fn sqrt(self) -> Self {
                $type::sqrt(self)
            }
            #[inline(always)]
            fn exp(self) -> Self {
                $type::exp(self)
            }
            #[inline(always)]
            fn is_nan(self) -> bool {
                $type::is_nan(self)
            }
        }
    };
}
float!(f32);
float!(f64);
