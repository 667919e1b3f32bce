//! The coverage table that ends every compilation: every use of a weight, quantized or skipped with its reason.

use std::fmt::Write;

use indexmap::IndexMap;
use mbqc_kernels::Spec;
use mbqc_passes::plan::{Plan, SkipKind, Skipped};
use serde::Serialize;

/// One line of the table.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Line {
    /// Layers.
    pub layers: usize,
    /// Weights in them.
    pub weights: usize,
    /// Bytes before.
    pub before: usize,
    /// Bytes after.
    pub after: usize,
}

/// What a plan covers.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Coverage {
    /// Quantized layers by format.
    pub quantized: IndexMap<String, Line>,
    /// Uses of weights that are left alone, by reason.
    pub skipped: IndexMap<String, Line>,
    /// Linear layers that were asked for and cannot be quantized.
    pub unsupported: usize,
}

impl Coverage {
    /// Of a plan; `bytes_of` answers the stored size of a weight.
    pub fn of(plan: &Plan, bytes_of: impl Fn(&str) -> usize) -> Coverage {
        let mut coverage = Coverage::default();
        for recipe in &plan.recipes {
            let line = coverage.quantized.entry(recipe.format.clone()).or_default();
            line.layers += 1;
            line.weights += recipe.n * recipe.k;
            line.before += bytes_of(&recipe.weight);
            if let Ok(spec) = recipe.format.parse::<Spec>() {
                line.after += stored_bytes(recipe.n, recipe.k, spec);
            }
        }
        for Skipped { reason, bytes, kind, .. } in &plan.skipped {
            let line = coverage.skipped.entry(reason.clone()).or_default();
            line.layers += 1;
            line.before += bytes;
            line.after += bytes;
            coverage.unsupported += usize::from(*kind == SkipKind::Unsupported);
        }
        coverage
    }

    /// Number of quantized layers.
    pub fn layers(&self) -> usize {
        self.quantized.values().map(|line| line.layers).sum()
    }

    /// The table.
    pub fn table(&self) -> String {
        let mut text = String::new();
        let mb = |bytes: usize| bytes as f64 / 1e6;
        let _ =
            writeln!(text, "{:<10} {:>6} {:>14} {:>10} {:>10}", "format", "layers", "weights", "MB before", "MB after");
        for (format, line) in &self.quantized {
            let _ = writeln!(
                text,
                "{format:<10} {:>6} {:>14} {:>10.2} {:>10.2}",
                line.layers,
                line.weights,
                mb(line.before),
                mb(line.after)
            );
        }
        for (reason, line) in &self.skipped {
            let _ = writeln!(
                text,
                "{:<10} {:>6} {:>14} {:>10.2} {:>10.2}  {reason}",
                "left",
                line.layers,
                "",
                mb(line.before),
                mb(line.after)
            );
        }
        text
    }
}

/// Bytes of a packed weight with f16 scales and packed zero points.
fn stored_bytes(n: usize, k: usize, spec: Spec) -> usize {
    let groups = k.div_ceil(spec.group);
    let bits = spec.format.bits as usize;
    let zero_bits = if bits == 3 { 4 } else { bits };
    n * (groups * spec.group * bits / 8 + groups * 2 + (groups * zero_bits).div_ceil(8))
}
