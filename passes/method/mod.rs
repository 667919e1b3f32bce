//! Methods: one choice on each axis. All of them run through one driver ([`driver`]).

mod absorb;
mod candidates;
pub mod driver;
mod gradients;
pub mod loss;
pub mod measure;
mod rho;
mod rows;
mod search;

pub use driver::{Prepared, Request, decide};
pub use measure::{CalibrationSample, Samples, Sensitivity};
pub use rows::class_of;
pub use search::group_plan;

use crate::plan::{RangeRule, ScaleRule};

/// How much a token row counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rows {
    /// All rows alike, padding left out.
    Uniform,
    /// Answer rows 1, vision rows rho, others 0 (MBQ).
    Modality,
}

/// What is tried before rounding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transforms {
    /// Nothing.
    Identity,
    /// `s = max(m^t, 1e-4)`, normalised by the geometric mean of its extremes, for 20 exponents t = 0, 0.05 .. 0.95,
    /// with m the mean |x| per channel (AWQ, section 3 of its reference code; MBQ keeps it).
    Ladder,
}

/// How an error at the judging point is summed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judge {
    /// Not at all: nothing is searched.
    None,
    /// Sum of squares.
    Squared,
    /// Sum of absolute values.
    Absolute,
}

/// How weights become codes: to nearest, in a range per group of weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Round {
    /// The range is that of the weights, as in the reference code.
    MinMax,
    /// The range is that of the weights, extended to contain zero.
    Nearest,
    /// The range is searched for without data.
    RangeSearch,
}

impl Round {
    /// The rule that recipes carry. Candidates are judged by the rule by which codes are made.
    pub fn rule(self) -> RangeRule {
        match self {
            Round::MinMax => RangeRule::MinMax,
            Round::Nearest => RangeRule::IncludeZero,
            Round::RangeSearch => RangeRule::Search,
        }
    }
}

/// Which rows count as answer rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MaskShift {
    /// Rows whose logits are supervised: row `t` when token `t + 1` is an answer token. The row before the first answer
    /// token is in, the last answer token, which predicts nothing, is out.
    #[default]
    Shifted,
    /// Rows that carry an answer token (reference code).
    Unshifted,
}

/// Where rho is taken from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RhoScheme {
    /// Gradients at the value at which a group's error is judged, with a lower bound ([`Floor`]), as in the reference code.
    #[default]
    Reference,
    /// Gradients at the outputs of the group's own layers, without a bound, as the paper writes it.
    Paper,
}

/// Lower bound of rho in blocks of the text tower; heads and vision towers have none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Floor {
    /// The ratio as measured.
    None,
    /// Median over all judging points of a kind in blocks of the text tower (reference code).
    Median,
    /// The same over those that vision rows can reach: in the last block they have no gradient at most places.
    MedianLive,
}

/// What is done where no constant absorbs the inverse of a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unfolded {
    /// The scale stays one, as in the reference code.
    Leave,
    /// A `Mul` is put before the layers where the search finds that a scale helps.
    Mul,
}

/// A method: one choice on each axis, and the switches that set the paper and its code apart.
#[derive(Clone, Debug)]
pub struct Method {
    /// Name on the command line.
    pub name: &'static str,
    /// What it does, when to use it, and where it comes from.
    pub about: &'static str,
    /// How much a row counts.
    pub rows: Rows,
    /// What is tried.
    pub transforms: Transforms,
    /// How errors are summed.
    pub judge: Judge,
    /// How weights become codes.
    pub round: Round,
    /// Which rows are answer rows.
    pub shift: MaskShift,
    /// Where rho is taken from.
    pub scheme: RhoScheme,
    /// Lower bound of rho.
    pub floor: Floor,
    /// Precision of scales, and of the producers that absorb their inverse, while candidates are judged and codes made.
    pub scales: ScaleRule,
    /// What is done where no constant absorbs the inverse of a scale.
    pub unfolded: Unfolded,
}

impl Method {
    /// True when calibration data is needed.
    pub fn needs_data(&self) -> bool {
        self.judge != Judge::None
    }

    /// True when gradients are needed.
    pub fn needs_gradients(&self) -> bool {
        self.rows == Rows::Modality && self.needs_data()
    }
}

const PLAIN: Method = Method {
    name: "rtn",
    about: "Round to nearest, nothing searched; no data needed. The baseline every other method starts from.",
    rows: Rows::Uniform,
    transforms: Transforms::Identity,
    judge: Judge::None,
    round: Round::Nearest,
    shift: MaskShift::Shifted,
    scheme: RhoScheme::Reference,
    floor: Floor::None,
    scales: ScaleRule::Stored,
    unfolded: Unfolded::Leave,
};

/// All methods.
pub const METHODS: &[Method] = &[
    PLAIN,
    Method {
        name: "range",
        about: "Round to nearest in a range that is searched for every group of weights so that the weight error \
                (power 2.4) is smallest; no data needed. What a bare command does without calibration data.",
        round: Round::RangeSearch,
        ..PLAIN
    },
    Method {
        name: "awq",
        about: "Activation-aware equalisation (AWQ, MLSys 2024): 20 exponents on mean |x|, squared error of the \
                module's output over all tokens alike.",
        transforms: Transforms::Ladder,
        judge: Judge::Squared,
        ..PLAIN
    },
    Method {
        name: "mbq",
        about: "Modality-balanced equalisation (MBQ, CVPR 2025): the same ladder, judged by the absolute error of the \
                answer rows plus rho times that of the vision rows, rho from gradients of the answer cross-entropy. \
                Answer rows are those whose logits are supervised; rho is bounded below by the median over the layers \
                that vision rows can reach. Ranges are searched, for candidates as for what is written.",
        rows: Rows::Modality,
        transforms: Transforms::Ladder,
        judge: Judge::Absolute,
        round: Round::RangeSearch,
        floor: Floor::MedianLive,
        unfolded: Unfolded::Mul,
        ..PLAIN
    },
    Method {
        name: "mbq-ref",
        about: "MBQ as its reference code computes it: answer rows unshifted, median over all layers of the decoder's \
                blocks, ranges not extended to zero, everything in f32. For comparison with published numbers.",
        rows: Rows::Modality,
        transforms: Transforms::Ladder,
        judge: Judge::Absolute,
        shift: MaskShift::Unshifted,
        floor: Floor::Median,
        round: Round::MinMax,
        scales: ScaleRule::F32,
        ..PLAIN
    },
];

/// The method with this name.
pub fn find(name: &str) -> Option<&'static Method> {
    METHODS.iter().find(|method| method.name == name)
}
