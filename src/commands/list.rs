//! `mbqc list` and `mbqc explain`: the four lists.

use std::fmt::Write;

use mbqc_kernels::{FORMATS, GROUPS};
use mbqc_models::FAMILIES;
use mbqc_passes::method::METHODS;
use mbqc_passes::ops::{OPS, OpDef, Vjp};

use crate::Error;
use crate::cli::ListArg;
use crate::report::print;

/// `mbqc list`.
pub fn list(what: ListArg) -> Result<(), Error> {
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
        found.push(format!(
            "method {}\n\n{}\nrows {:?}, transforms {:?}, judge {:?}, round {:?}, answer rows {:?}, rho {:?}, floor {:?}, scales {:?}",
            method.name,
            method.about,
            method.rows,
            method.transforms,
            method.judge,
            method.round,
            method.shift,
            method.scheme,
            method.floor,
            method.scales
        ));
    }
    for family in FAMILIES.iter().filter(|f| f.name == name) {
        found.push(format!("family {}\n\n{}", family.name, family.about));
    }
    if found.is_empty() {
        return Err(Error::Usage(format!("nothing is called `{name}`; see `mbqc list ops|formats|methods|families`")));
    }
    print(&found.join("\n\n"))
}
