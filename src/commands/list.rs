//! `mbqc list` and `mbqc explain`: the four lists.

use std::fmt::Write;

use mbqc_kernels::{FORMATS, Format, GROUPS, Scheme, Spec};
use mbqc_models::FAMILIES;
use mbqc_passes::method::{Floor, Judge, METHODS, MaskShift, Method, RhoScheme, Round, Rows, Transforms, Unfolded};
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
            for format in FORMATS {
                let _ = writeln!(text, "{:<22} {}", format!("{}{}", format.name, groups(format)), format.about);
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

/// What follows a format's name on a command line: `g{16,32,64,128,256}`, or nothing.
fn groups(format: &Format) -> String {
    let sizes: Vec<String> = GROUPS.iter().map(usize::to_string).collect();
    match format.scheme {
        Scheme::WeightOnly => format!("g{{{}}}", sizes.join(",")),
        Scheme::WeightActivation => String::new(),
    }
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
    let exact = entries(|other| other == name, name);
    let found = if exact.is_empty() { entries(|other| other.eq_ignore_ascii_case(name), name) } else { exact };
    if found.is_empty() {
        return Err(Error::Usage(format!("nothing is called `{name}`; see `mbqc list ops|formats|methods|families`")));
    }
    print(&found.join("\n\n"))
}

/// What the lists say of the entries that `is` picks by their names; `name` may be a format with its group size.
fn entries(is: impl Fn(&str) -> bool, name: &str) -> Vec<String> {
    let mut found = Vec::new();
    for op in OPS.iter().flat_map(|family| family.iter()).filter(|op| is(op.name) || is(&qualified(op))) {
        let reverse = match op.vjp {
            Vjp::Rule(_) => "It has a gradient rule.".to_owned(),
            Vjp::Zero => "Its outputs do not depend on float inputs in a differentiable way.".to_owned(),
            Vjp::Stop(reason) => format!("No gradient passes it: {reason}."),
            Vjp::Missing => "No gradient rule has been written for it.".to_owned(),
        };
        found.push(format!("operator {}\n\n{}\n{reverse}", qualified(op), op.about));
    }
    let spec = name.to_ascii_lowercase().parse::<Spec>();
    for format in FORMATS.iter().filter(|f| is(f.name) || spec.as_ref().is_ok_and(|spec| spec.format.name == f.name)) {
        let schema = &format.schema;
        let sizes = match format.scheme {
            Scheme::WeightOnly => {
                let groups: Vec<String> = GROUPS.iter().map(usize::to_string).collect();
                let group = spec.as_ref().ok().and_then(|spec| spec.group).unwrap_or(128);
                // A scale of 16 bits and a zero point to every group.
                let bits = f64::from(format.bits) + f64::from(16 + format.zero_point_bits) / group as f64;
                let groups = groups.join(", ");
                format!("Group sizes {groups}; {bits:.3} bits per weight with groups of {group} and f16 scales.")
            }
            Scheme::WeightActivation => format!(
                "{} bits per weight, and a scale per output channel. Activations are rounded when the model runs: nothing of \
                 them is stored.",
                format.bits
            ),
        };
        found.push(format!(
            "format {}\n\n{}\nCarried by {}::{}. {sizes}",
            format.name, format.about, schema.domain, schema.op,
        ));
    }
    for method in METHODS.iter().filter(|m| is(m.name)) {
        found.push(format!("method {}\n\n{}\n{}", method.name, method.about, choices(method).join("\n")));
    }
    for family in FAMILIES.iter().filter(|f| is(f.name)) {
        found.push(format!("family {}\n\n{}", family.name, family.about));
    }
    found
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
    if method.transforms == Transforms::Ladder {
        all.push(match method.unfolded {
            Unfolded::Leave => "where no constant can absorb a scale it stays one (--unfolded)".to_owned(),
            Unfolded::Mul => {
                "where no constant can absorb a scale, a Mul before the layers does (--unfolded)".to_owned()
            }
        });
    }
    if method.needs_gradients() {
        all.push(match method.shift {
            MaskShift::Shifted => "answer rows are those whose logits are supervised (--answer-rows)".to_owned(),
            MaskShift::Unshifted => "answer rows are those that carry an answer token (--answer-rows)".to_owned(),
        });
        all.push(match method.scheme {
            RhoScheme::Reference => "rho is measured where a group's error is judged (--rho)".to_owned(),
            RhoScheme::Paper => "rho is measured at the outputs of a group's layers (--rho)".to_owned(),
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
