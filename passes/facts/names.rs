//! Names that people recognise for layers whose graph names are anonymous.

use crate::ir::Node;

/// A readable name for a layer: from its weight or bias initializer when that keeps the module path, else from the
/// node's name or the exporter's scope note, else the node's own label. For display and globs only; never a key.
pub fn layer_name(node: &Node, weight: &str, bias: Option<&str>, label: &str) -> String {
    let is_path = |name: &str| name.contains('.') && !name.starts_with("onnx::");
    if is_path(weight) {
        return strip(weight).to_owned();
    }
    if let Some(bias) = bias.filter(|name| is_path(name)) {
        return strip(bias).to_owned();
    }
    if node.name.contains('/') {
        let path = node.name.trim_start_matches('/');
        return path.rsplit_once('/').map_or(path, |(module, _)| module).replace('/', ".");
    }
    if let Some(scope) = scope(node) {
        return scope;
    }
    label.to_owned()
}

fn strip(name: &str) -> &str {
    const ENDINGS: &[&str] = &[".bias", ".weight", ".MatMul.weight", ".weight_t", ".Add.bias"];
    let ending = ENDINGS.iter().filter(|e| name.ends_with(**e)).max_by_key(|e| e.len());
    ending.map_or(name, |e| &name[..name.len() - e.len()])
}

/// The innermost dotted entry of the scope list that torch.export leaves in a node's notes.
fn scope(node: &Node) -> Option<String> {
    let (_, scopes) = node.metadata.iter().find(|(key, _)| key == "pkg.torch.onnx.name_scopes")?;
    let entries = scopes.trim_matches(['[', ']']).split("', '").map(|entry| entry.trim_matches('\''));
    let all: Vec<&str> = entries.filter(|entry| !entry.is_empty()).collect();
    let module = all.iter().rev().nth(1).or(all.last())?;
    Some(without_slices(module))
}

/// `layers.slice(None, 4, None).1` is how an iteration over a module list is written; the plain path is `layers.1`.
fn without_slices(module: &str) -> String {
    let mut out = String::new();
    let mut rest = module;
    while let Some(at) = rest.find(".slice(") {
        out.push_str(&rest[..at]);
        rest = rest[at..].find(')').map_or("", |end| &rest[at + end + 1..]);
    }
    out + rest
}

#[cfg(test)]
mod tests {
    #[test]
    fn slices_are_dropped() {
        let found = super::without_slices("model.layers.slice(None, 4, None).1.mlp.gate_proj");
        assert_eq!(found, "model.layers.1.mlp.gate_proj");
    }
}
