//! Facts for people.

use std::fmt::Write;

use super::facts::Facts;

/// The report on a graph.
pub(super) fn render(facts: &Facts) -> String {
    let mut out = String::new();
    head(&mut out, facts);
    layers(&mut out, facts);
    groups(&mut out, facts);
    coverage(&mut out, facts);
    if let Some(merge) = &facts.merge {
        let _ =
            writeln!(out, "merge: images enter at `{}`, where `{}` is {}", merge.value, merge.ids, merge.image_token);
    }
    out
}

fn mb(bytes: usize) -> f64 {
    bytes as f64 / 1e6
}

fn head(out: &mut String, facts: &Facts) {
    let data: Vec<String> =
        facts.data.iter().map(|d| format!(" + {} ({:.2} MB)", d.file.display(), mb(d.bytes))).collect();
    let _ = writeln!(out, "{}: {} ({:.2} MB){}", facts.role, facts.file.display(), mb(facts.bytes), data.concat());
    let opsets: Vec<String> = facts.opsets.iter().map(|(domain, version)| format!("{domain} {version}")).collect();
    let producer = if facts.producer.is_empty() { "unknown" } else { &facts.producer };
    let _ = writeln!(out, "  IR {}; operator sets {}; producer {producer}", facts.ir_version, opsets.join(", "));
    for (key, value) in &facts.metadata {
        let _ = writeln!(out, "  {key} = {value}");
    }
    for (what, list) in [("inputs", &facts.inputs), ("outputs", &facts.outputs)] {
        let _ = writeln!(out, "  {what}: {}", if list.is_empty() { "none".to_owned() } else { list.join("; ") });
    }
    if !facts.functions.is_empty() {
        let _ = writeln!(out, "  functions: {}", facts.functions.join(", "));
    }
    for (domain, ops) in &facts.ops {
        let each: Vec<String> = ops.iter().map(|(op, count)| format!("{op} {count}")).collect();
        let _ = writeln!(out, "  {} nodes of {domain}: {}", ops.values().sum::<usize>(), each.join(", "));
    }
}

fn layers(out: &mut String, facts: &Facts) {
    if !facts.layers.is_empty() {
        let mut rows = vec![cells(["linear layer", "node", "form", "[n, k]", "type", "MB", "tower"])];
        for layer in &facts.layers {
            let tower = if layer.head { "head" } else { layer.tower };
            let node = if layer.node == layer.name { "=" } else { &layer.node };
            let size = format!("[{}, {}]", layer.n, layer.k);
            let mut row =
                cells([&layer.name, node, &layer.form, &size, &layer.dtype, &format!("{:.2}", mb(layer.bytes)), tower]);
            row.extend(layer.obstacle.as_ref().map(|reason| format!("cannot be quantized: {reason}")));
            rows.push(row);
        }
        align(out, &rows);
    }
    if !facts.quantized.is_empty() {
        let mut rows = vec![cells(["quantized layer", "operator", "[n, k]", "format", "MB"])];
        for layer in &facts.quantized {
            let size = match (layer.n, layer.k) {
                (Some(n), Some(k)) => format!("[{n}, {k}]"),
                _ => "-".to_owned(),
            };
            let format = layer.format.as_deref().unwrap_or("-");
            rows.push(cells([&layer.node, &layer.op, &size, format, &format!("{:.2}", mb(layer.bytes))]));
        }
        align(out, &rows);
    }
}

fn groups(out: &mut String, facts: &Facts) {
    for group in &facts.groups {
        let kind = match group.kind {
            mbqc_passes::facts::groups::Kind::Attention => "attention",
            mbqc_passes::facts::groups::Kind::Mlp => "mlp",
        };
        let _ = writeln!(
            out,
            "group at `{}` (k = {}, {kind}): {}; judged at `{}`",
            group.input,
            group.k,
            group.layers.join(", "),
            group.judge
        );
        let fold = match (&group.producer, &group.declined) {
            (Some(producer), _) => format!("scale absorbed by {producer}"),
            (None, Some(reason)) => format!("no scale: {reason}"),
            (None, None) => "no scale".to_owned(),
        };
        let _ = writeln!(out, "  {fold}");
    }
}

fn coverage(out: &mut String, facts: &Facts) {
    match &facts.logits {
        Some(logits) => {
            let _ = writeln!(out, "streamed in {} segments up to `{logits}`", facts.segments());
        }
        None => out.push_str("no float output, so there is nothing to judge groups by\n"),
    }
    let coverage = &facts.coverage;
    let _ = writeln!(out, "weights: {} linear layers, {:.2} MB", coverage.linear.nodes, mb(coverage.linear.bytes));
    if coverage.quantized.nodes > 0 {
        let _ = writeln!(
            out,
            "         {} quantized layers, {:.2} MB",
            coverage.quantized.nodes,
            mb(coverage.quantized.bytes)
        );
    }
    for (reason, count) in &coverage.others {
        let _ = writeln!(out, "         {} left alone, {:.2} MB: {reason}", count.nodes, mb(count.bytes));
    }
}

fn cells<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(str::to_owned).to_vec()
}

/// Columns as wide as their widest cell.
fn align(out: &mut String, rows: &[Vec<String>]) {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|c| c.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    for row in rows {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let width = widths.get(column).copied().unwrap_or(0);
            let _ = write!(line, "{cell:<width$}  ");
        }
        let _ = writeln!(out, "{}", line.trim_end());
    }
}
