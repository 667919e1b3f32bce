//! What is measured on, and what is measured: samples, sensitivities.

use crate::facts::modality::Class;
use crate::run::Feeds;

/// One calibration sample, ready to run.
#[derive(Clone, Debug)]
pub struct CalibrationSample {
    /// File or index, for messages.
    pub name: String,
    /// Every graph input.
    pub feeds: Feeds,
    /// Class of every token, `[tokens]`, answer rows as the method defines them.
    pub classes: Vec<Class>,
    /// Labels aligned with the tokens, -100 where nothing is supervised; the loss shifts them by one.
    pub labels: Vec<i64>,
}

/// A source of calibration samples. Asked again and again: samples are not kept.
pub trait Samples: Sync {
    /// How many there are.
    fn len(&self) -> usize;

    /// True when there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The sample with this index.
    fn sample(&self, index: usize) -> Result<CalibrationSample, String>;
}

/// Mean |g| and mean g^2 per class at one value, averaged over samples (each sample counts alike, as in the reference
/// code), where g is the gradient of the sample's mean answer cross-entropy.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct Sensitivity {
    /// Mean |g| by class.
    pub abs: ByClass,
    /// Mean g^2 by class.
    pub square: ByClass,
}

/// A mean per class.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct ByClass {
    /// Over vision rows.
    pub vision: f64,
    /// Over answer rows.
    pub answer: f64,
    /// Over prompt rows.
    pub prompt: f64,
}

impl ByClass {
    pub(super) fn slot(&mut self, class: Class) -> Option<&mut f64> {
        match class {
            Class::Vision => Some(&mut self.vision),
            Class::Answer => Some(&mut self.answer),
            Class::Prompt => Some(&mut self.prompt),
            Class::Padding => None,
        }
    }
}

/// Counts of a gradient pass.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct GradientReport {
    /// Samples that took part.
    pub samples: usize,
    /// Samples without a supervised token, left out.
    pub without_answer: usize,
    /// Samples without vision rows: they count for the text classes only.
    pub without_vision: usize,
    /// Mean over samples of the sample's mean answer cross-entropy, in nats.
    pub cross_entropy: f64,
}
