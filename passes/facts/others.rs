//! Constants that are no weight of a site, in words.

use crate::ir::Node;
use crate::plan::SkipKind;

use super::linear::NoSite;
use super::places::{Places, Source};
use super::reach::{End, Role};
use super::sites::{Other, Tower};

const IN_FUNCTION: &str = "it stands in the body of a model-local function, which is kept as it is";
const DEQUANTIZED: &str = "already quantized (the weight comes from DequantizeLinear)";

/// A constant that is no weight of a site where it ends; without an end where no node reads it. `why` is the reason that a linear
/// layer is no site although its weight could be read. The tower is left for the caller.
pub(super) fn other(places: &Places<'_>, source: &Source<'_>, end: Option<&End>, why: Option<NoSite>) -> Other {
    let place = places.at(end.map_or(source.place, |end| end.place));
    let node = end.map_or(source.node, |end| end.node);
    let reader = node.map(|id| place.graph.node(id));
    let (kind, reason) = match end {
        Some(end) => {
            let called = reader.is_some_and(|node| places.called(node).is_some());
            in_words(end, reader.map(|node| (node, called)), place.function.is_some(), why)
        }
        None if source.value.is_none() => (SkipKind::NotLinear, "a table in an attribute; kept as it is".to_owned()),
        None => (SkipKind::NotLinear, "nothing computes with it; kept as it is".to_owned()),
    };
    let output = end.filter(|_| node.is_none()).and_then(|end| place.graph.outputs().get(end.slot));
    Other {
        path: place.path.clone(),
        function: place.function.map(|f| format!("{}::{}", f.domain, f.name)),
        label: match (node, output) {
            (Some(id), _) => place.graph.label(id),
            (None, Some(&value)) => place.graph.name(value).to_owned(),
            (None, None) => source.name.clone(),
        },
        op: reader.map_or_else(|| if output.is_some() { "output" } else { "constant" }.to_owned(), Node::qualified_op),
        weight: source.name.clone(),
        bytes: source.tensor.stored_bytes(),
        reason,
        kind,
        tower: Tower::Only,
    }
}

fn in_words(end: &End, reader: Option<(&Node, bool)>, in_function: bool, why: Option<NoSite>) -> (SkipKind, String) {
    match end.role {
        Role::Weight(_) | Role::Called(_) if end.is_dequantized() => (SkipKind::Quantized, DEQUANTIZED.to_owned()),
        Role::Weight(row) => match (row.left, why) {
            (Some((kind, reason)), _) => (kind, reason.to_owned()),
            (None, _) if in_function => (SkipKind::Unsupported, IN_FUNCTION.to_owned()),
            (None, Some(NoSite { kind, reason })) => (kind, reason),
            (None, None) => (
                SkipKind::Unsupported,
                format!(
                    "its weight reaches the {} through {}; only matrices behind Transpose, Cast or Identity are quantized",
                    row.op,
                    end.way()
                ),
            ),
        },
        Role::Called(row) => match row.left {
            Some((SkipKind::Quantized, reason)) => (SkipKind::Quantized, reason.to_owned()),
            left => (
                left.map_or(SkipKind::Unsupported, |(kind, _)| kind),
                format!("a weight of the {} inside a model-local function, which is kept as it is", row.op),
            ),
        },
        Role::Parameter | Role::Table | Role::Output => (SkipKind::NotLinear, table(reader)),
    }
}

/// The reader comes with whether it is a call of a local function.
fn table(reader: Option<(&Node, bool)>) -> String {
    let Some((node, called)) = reader else { return "a constant that is a graph output; kept as it is".to_owned() };
    match node.op.as_str() {
        op if called && !KNOWN.contains(&node.domain.as_str()) => {
            format!("a table that the model-local function {op} reads; kept as it is")
        }
        "Add" | "Sub" | "SkipLayerNormalization" => "a table that is added; kept as it is".to_owned(),
        "Mul" | "Div" => "a table of factors; kept as it is".to_owned(),
        "Concat" => "a table that is put beside computed values; kept as it is".to_owned(),
        op if KNOWN.contains(&node.domain.as_str()) => format!("a table that {op} reads; kept as it is"),
        _ => format!("an operand of {}, an operator that is not known; kept as it is", node.qualified_op()),
    }
}

/// Domains whose operators are listed by name where they carry weights.
const KNOWN: &[&str] = &["", "ai.onnx", "com.microsoft", "ai.mbqc"];
