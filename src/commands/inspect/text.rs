//! Graphs as text, with facts as comments, and their differences.

use std::collections::HashMap;
use std::time::Duration;

use indexmap::IndexMap;
use mbqc_passes::facts::sites::{Site, survey};
use mbqc_passes::ir::text::{DumpOptions, Subject, dump, dump_with};
use mbqc_passes::ir::{Graph, NodeId, ValueId};
use mbqc_passes::ops::{Rows, Space};
use serde::Serialize;
use similar::{Algorithm, TextDiff};

use crate::Error;
use crate::onnx::File;

/// What the first sample of a data set shows about a graph.
pub(super) struct Traced {
    /// Rows and concrete shape of every value that has rows.
    pub(super) rows: HashMap<ValueId, (Rows, Vec<usize>)>,
    /// Counts of its rows.
    pub(super) census: Census,
}

/// Rows of a sample by class.
#[derive(Serialize)]
pub(super) struct Census {
    pub(super) data: String,
    pub(super) rows: usize,
    pub(super) by_class: IndexMap<&'static str, usize>,
}

impl Census {
    /// In words.
    pub(super) fn sentence(&self) -> String {
        let each: Vec<String> = self.by_class.iter().map(|(class, count)| format!("{count} {class}")).collect();
        format!("first sample of {}: {} rows: {}", self.data, self.rows, each.join(", "))
    }
}

/// The text of a graph: ONNX's own syntax, with sites and rows as comments.
pub(super) fn graph_text(role: &str, file: &File, traced: Option<&Traced>) -> Result<String, Error> {
    let model = &file.model;
    let found = survey(model).map_err(|source| Error::Law { pass: "reading", source })?;
    let mut sites: HashMap<(*const Graph, NodeId), &Site> = HashMap::new();
    for site in &found.sites {
        if let Some(graph) = model.graph_at(&site.path) {
            sites.insert((std::ptr::from_ref(graph), site.node), site);
        }
    }
    let main = &model.graph;
    let rows_of = |graph: &Graph, value: ValueId| {
        let (rows, shape) = traced.filter(|_| std::ptr::eq(graph, main))?.rows.get(&value)?;
        Some(rows_text(*rows, shape))
    };
    let note = |subject: Subject<'_>| match subject {
        Subject::Value(graph, value) => rows_of(graph, value).map(|rows| format!("rows: {rows}")),
        Subject::Node(graph, id) => {
            let mut notes = Vec::new();
            if let Some(site) = sites.get(&(std::ptr::from_ref(graph), id)) {
                notes.push(format!("site {}", site.name));
            }
            let outputs = &graph.node(id).outputs;
            for &value in outputs.iter().flatten() {
                if let Some(rows) = rows_of(graph, value) {
                    let name = if outputs.len() > 1 { format!(" of {}", graph.name(value)) } else { String::new() };
                    notes.push(format!("rows{name}: {rows}"));
                }
            }
            (!notes.is_empty()).then(|| notes.join("; "))
        }
    };
    let mut text = format!("# {role} {}\n", file.source.path().display());
    match traced {
        Some(traced) => {
            text += &format!("# rows as in the {}\n", traced.census.sentence());
            for &input in main.inputs() {
                if let Some(rows) = rows_of(main, input) {
                    text += &format!("# rows of {}: {rows}\n", main.name(input));
                }
            }
        }
        None => text += "# facts of the structure only; pass --calib DATA to see rows by modality\n",
    }
    text += &dump_with(model, &DumpOptions { note: &note, ..DumpOptions::default() });
    Ok(text)
}

/// `tokens axis 1`, or the stride where no axis has the rows alone.
fn rows_text(rows: Rows, shape: &[usize]) -> String {
    let space = match rows.space {
        Space::Tokens => "tokens",
        Space::Vision => "vision",
    };
    match rows.axis(shape) {
        Some(axis) => format!("{space} axis {axis}"),
        None => format!("{space}, {} of {} elements each", rows.len, rows.inner),
    }
}

/// Line by line, in the form of `diff -u`; empty when the texts are the same.
pub(super) fn unified_diff(a: Option<&File>, b: Option<&File>) -> String {
    let side = |file: Option<&File>| match file {
        Some(file) => (file.source.path().display().to_string(), dump(&file.model)),
        None => ("/dev/null".to_owned(), String::new()),
    };
    let ((old_name, old), (new_name, new)) = (side(a), side(b));
    let mut config = TextDiff::configure();
    // Graphs that have nothing in common would take minutes; what is found by then is a valid, longer difference.
    config.algorithm(Algorithm::Myers).timeout(Duration::from_secs(20));
    config.diff_lines(&old, &new).unified_diff().context_radius(3).header(&old_name, &new_name).to_string()
}
