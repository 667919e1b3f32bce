//! `mbqc bake`: 3-bit layers to 4-bit containers of the same codes.

use std::path::Path;

use mbqc_passes::ir::{Data, Edit, Lazy, NewNode, Tensor};
use serde_json::json;

use crate::cli::Common;
use crate::pipeline::{self, Sizes, written_json};
use crate::places::{Places, probe_file};
use crate::report::print;
use crate::report::progress::Progress;
use crate::{Error, stage};

/// Rewrites every `ai.mbqc::MbqMatMulW3` of a model into `com.microsoft::MatMulNBits` with 4 bits.
pub fn bake(model: &Path, output: &Path, common: &Common) -> Result<(), Error> {
    let mut places = Places::new();
    places.model("the model", model)?;
    places.model_output("-o", output)?;
    probe_file("-o", output)?;
    let file = pipeline::read_at(model, &mut places, common)?;
    let mut result = file.model.clone();
    let mut count = 0;
    let paths = result.graph_paths();
    let mut baked: std::collections::HashMap<String, String> = std::collections::HashMap::new();
    for path in paths {
        let Some(graph) = result.graph_at(&path) else { continue };
        let mut edits = Vec::new();
        let mut drops = Vec::new();
        let mut outer = Vec::new();
        for (id, node) in graph.nodes().filter(|(_, n)| n.domain == "ai.mbqc" && n.op == "MbqMatMulW3") {
            let names: Vec<String> =
                node.inputs.iter().map(|v| v.map_or_else(String::new, |v| graph.name(v).to_owned())).collect();
            let codes = names.get(1).cloned().unwrap_or_default();
            if !baked.contains_key(&codes) {
                let tensor = find_constant(&result, &path, &codes).ok_or_else(|| Error::Content {
                    file: model.to_owned(),
                    reason: format!("node `{}`: input B `{codes}` is not a constant", graph.label(id)),
                })?;
                let name = format!("{codes}.nibbles");
                outer.push((codes.clone(), name.clone(), nibbles(&tensor.1, model)?, tensor.0));
                baked.insert(codes.clone(), name);
            }
            let mut inputs = names.clone();
            inputs[1].clone_from(&baked[&codes]);
            if inputs.len() > 4 {
                // MatMulNBits has g_idx between zero points and bias.
                inputs.insert(4, String::new());
            }
            let outputs = node.outputs.iter().flatten().map(|v| graph.name(*v).to_owned()).collect();
            let mut attrs = node.attrs.clone();
            attrs.push(("bits".to_owned(), mbqc_passes::ir::Attr::Int(4)));
            edits.push(Edit::ReplaceNode(
                id,
                NewNode {
                    name: node.name.clone(),
                    domain: "com.microsoft".to_owned(),
                    op: "MatMulNBits".to_owned(),
                    inputs,
                    outputs,
                    attrs,
                    metadata: node.metadata.clone(),
                    ..NewNode::default()
                },
            ));
            drops.push(codes);
            count += 1;
        }
        for (_, name, tensor, owner) in outer {
            edit(&mut result, &owner, vec![Edit::AddConst(name, tensor)])?;
        }
        edit(&mut result, &path, edits)?;
        for name in drops {
            for place in result.graph_paths() {
                edit(&mut result, &place, vec![Edit::DropUnread(name.clone())])?;
            }
        }
    }
    if count == 0 {
        return Err(Error::Nothing(format!("{} has no 3-bit layers", model.display())));
    }
    result.functions.retain(|f| !(f.domain == "ai.mbqc" && f.name == "MbqMatMulW3"));
    result.opsets.retain(|(domain, _)| domain != "ai.mbqc");
    result.import("com.microsoft", 1);
    mbqc_passes::ir::verify::verify(&result).map_err(|source| Error::Law { pass: "bake", source })?;
    let progress = Progress::new(common.quiet);
    progress.busy(&format!("writing {}", output.display()));
    let published = stage::write_model(Some(&file.source), &result, output)?;
    published.note.iter().for_each(|note| progress.say(note));
    let written = &published.written;
    progress.say(&format!("baked {count} layers; {}", Sizes::of(&file, written).sentence(written)));
    if common.json {
        return print(&format!("{:#}", json!({ "layers": count, "written": written_json(written) })));
    }
    Ok(())
}

fn edit(model: &mut mbqc_passes::ir::Model, path: &mbqc_passes::ir::GraphPath, edits: Vec<Edit>) -> Result<(), Error> {
    match model.graph_at_mut(path) {
        Some(graph) => graph.apply(edits).map_err(|source| Error::Law { pass: "bake", source }),
        None => Ok(()),
    }
}

/// The constant with this name, here or in a surrounding graph, and the graph that owns it.
fn find_constant(
    model: &mbqc_passes::ir::Model,
    path: &mbqc_passes::ir::GraphPath,
    name: &str,
) -> Option<(mbqc_passes::ir::GraphPath, Tensor)> {
    let mut path = path.clone();
    loop {
        let graph = model.graph_at(&path)?;
        if let Some(tensor) = graph.find(name).and_then(|v| graph.constant(v)) {
            return Some((path, tensor.clone()));
        }
        path.pop()?;
    }
}

/// Thirds `[n, k/g, 3g/8]` to nibbles `[n, k/g, g/2]`, made when the writer asks.
fn nibbles(thirds: &Tensor, model: &Path) -> Result<Tensor, Error> {
    let [n, groups, block] = thirds.dims[..] else {
        return Err(Error::Content {
            file: model.to_owned(),
            reason: format!("3-bit codes have shape {:?}, expected three dimensions", thirds.dims),
        });
    };
    let Data::Raw(bytes) = thirds.data.clone() else {
        return Err(Error::Content { file: model.to_owned(), reason: "3-bit codes are not raw bytes".to_owned() });
    };
    let len = n * groups * block / 3 * 4;
    let group = block / 3 * 8;
    let make = move || mbqc_kernels::thirds_to_nibbles(&bytes, group).map(Into::into).map_err(|e| e.to_string());
    Ok(Tensor::lazy(thirds.dtype, vec![n, groups, block / 3 * 4], Lazy::new(len, make)))
}
