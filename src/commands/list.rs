//! `mbqc list` and `mbqc explain`: the four lists.

use std::fmt::Write;

use mbqc_kernels::{FORMATS, GROUPS};
use mbqc_models::FAMILIES;
use mbqc_passes::method::{Floor, Judge, METHODS, MaskShift, Method, Round, Rows, Scheme, Transforms};
use mbqc_passes::ops::{OPS, OpDef, Vjp};
use mbqc_passes::plan::ScaleRule;

use crate::Error;
use crate::cli::ListArg;
use crate::report::print;

/// `mbqc list`.
pub fn list(what: Option<ListArg>) -> Result<(), Error> {
    let Some(what) = what else {
        let ops: usize = OPS.iter().map(|family| family.len()).sum();
        let lists = [
            ("ops", ops, "operators that can be evaluated"),
            ("formats", FORMATS.len(), "weight formats"),
            ("methods", METHODS.len(), "methods"),
            ("families", FAMILIES.len(), "model families"),
        ];
        let lines = lists.map(|(list, count, what)| format!("mbqc list {list:<9} {count:>3} {what}"));
        return print(&lines.join("\n"));
    };
    print(table(what).trim_end())
}

/// A list as a table.
pub fn table(what: ListArg) -> String {
    let mut text = String::new();
    match what {
        ListArg::Ops => {
            for op in OPS.iter().flat_map(|family| family.iter()) {
                let _ = writeln!(text, "{:<42} {:<8} {}", qualified(op), gradient(op), op.about);
            }
        }
        ListArg::Formats => {
            let groups: Vec<String> = GROUPS.iter().map(usize::to_string).collect();
            for format in FORMATS {
                let _ = writeln!(text, "{}g{{{}}}  {}", format.name, groups.join(","), format.about);
            }
        }
        ListArg::Methods => {
            for method in METHODS {
                let data = if method.needs_data() { "needs data" } else { "data-free" };
                let _ = writeln!(text, "{:<10} {data:<10} {}", method.name, method.about);
            }
        }
        ListArg::Families => {
            for family in FAMILIES {
                let _ = writeln!(text, "{:<16} {}", family.name, family.about);
            }
        }
    }
    text
}

fn qualified(op: &OpDef) -> String {
    if op.domain.is_empty() { op.name.to_owned() } else { format!("{}::{}", op.domain, op.name) }
}

fn gradient(op: &OpDef) -> &'static str {
    match op.vjp {
        Vjp::Rule(_) => "gradient",
        Vjp::Zero => "zero",
        Vjp::Stop(_) => "stops",
        Vjp::Missing => "-",
    }
}

/// `mbqc explain`.
pub fn explain(name: &str) -> Result<(), Error> {
    let mut found = Vec::new();
    for op in OPS.iter().flat_map(|family| family.iter()).filter(|op| op.name == name || qualified(op) == name) {
        let reverse = match op.vjp {
            Vjp::Rule(_) => "It has a gradient rule.".to_owned(),
            Vjp::Zero => "Its outputs do not depend on float inputs in a differentiable way.".to_owned(),
            Vjp::Stop(reason) => format!("No gradient passes it: {reason}."),
            Vjp::Missing => "No gradient rule has been written for it.".to_owned(),
        };
        found.push(format!("operator {}\n\n{}\n{reverse}", qualified(op), op.about));
    }
    let format_name = name.split('g').next().unwrap_or(name);
    for format in FORMATS.iter().filter(|f| f.name == name || f.name == format_name) {
        let schema = &format.schema;
        found.push(format!("format {}\n\n{}\nCarried by {}::{}.", format.name, format.about, schema.domain, schema.op));
    }
    for method in METHODS.iter().filter(|m| m.name == name) {
        found.push(format!("method {}\n\n{}\n{}", method.name, method.about, choices(method).join("\n")));
    }
    for family in FAMILIES.iter().filter(|f| f.name == name) {
        found.push(format!("family {}\n\n{}", family.name, family.about));
    }
    if found.is_empty() {
        return Err(Error::Usage(format!("nothing is called `{name}`; see `mbqc list ops|formats|methods|families`")));
    }
    print(&found.join("\n\n"))
}

/// What a method chooses, in words.
fn choices(method: &Method) -> Vec<String> {
    let rows = match method.rows {
        Rows::Uniform => "all rows count alike",
        Rows::Modality => "answer rows count 1, vision rows count rho, others nothing",
    };
    let tried = match method.transforms {
        Transforms::Identity => "no scales are tried",
        Transforms::Ladder => "20 scales per group are tried",
    };
    let judged = match method.judge {
        Judge::None => "nothing is judged",
        Judge::Squared => "judged by the squared error",
        Judge::Absolute => "judged by the absolute error",
    };
    let range = match method.round {
        Round::RangeSearch => "ranges are searched for every group of weights (--range)",
        Round::MinMax => "ranges are from the smallest to the largest weight (--range)",
        Round::Nearest => "ranges are extended to contain zero (--range)",
    };
    let scales = match method.scales {
        ScaleRule::Stored => "scales are rounded to their stored type before codes are made (--scales)",
        ScaleRule::F32 => "scales stay in f32 until they are stored (--scales)",
    };
    let mut all = vec![rows.to_owned(), format!("{tried}, {judged}"), range.to_owned(), scales.to_owned()];
    if method.needs_gradients() {
        all.push(match method.shift {
            MaskShift::Shifted => "answer rows are those whose logits are supervised (--answer-rows)".to_owned(),
            MaskShift::Unshifted => "answer rows are those that carry an answer token (--answer-rows)".to_owned(),
        });
        all.push(match method.scheme {
            Scheme::Reference => "rho is measured where a group's error is judged (--rho)".to_owned(),
            Scheme::Paper => "rho is measured at the outputs of a group's layers (--rho)".to_owned(),
        });
        all.push(match method.floor {
            Floor::None => "rho is taken as measured (--floor)".to_owned(),
            Floor::Median => "rho is at least the median over all layers of its kind (--floor)".to_owned(),
            Floor::MedianLive => {
                "rho is at least the median over the layers of its kind that vision rows can reach (--floor)".to_owned()
            }
        });
    }
    all.iter().map(|line| format!("- {line}")).collect()
}
