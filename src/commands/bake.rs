//! `mbqc bake`: 3-bit layers to 4-bit containers of the same codes.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use mbqc_passes::ir::{Attr, Data, Edit, GraphPath, Lazy, Model, NewNode, Tensor, fresh_name};
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
    let (result, count) = bake_layers(&file.model, model)?;
    if count == 0 {
        return Err(Error::Nothing(format!("{} has no 3-bit layers", model.display())));
    }
    mbqc_passes::ir::verify::verify(&result).map_err(|source| Error::Law { pass: "bake", source })?;
    let progress = Progress::new(common.quiet);
    let published = stage::write_model(Some(&file.source), &result, output, &progress)?;
    published.note.iter().for_each(|note| progress.say(note));
    let written = &published.written;
    progress.say(&format!("baked {count} layers; {}", Sizes::of(&file, written).sentence(written)));
    if common.json {
        return print(&format!("{:#}", json!({ "layers": count, "written": written_json(written) })));
    }
    Ok(())
}

/// The baked model and how many layers were. `file` is for messages.
fn bake_layers(model: &Model, file: &Path) -> Result<(Model, usize), Error> {
    let content = |reason: String| Error::Content { file: file.to_owned(), reason };
    let mut result = model.clone();
    // By graph: what is edited, what is added, and what goes when nobody reads it any more.
    let mut edits: BTreeMap<GraphPath, [Vec<Edit>; 3]> = BTreeMap::new();
    let mut baked: HashMap<(GraphPath, String), String> = HashMap::new();
    let mut taken = model.names();
    let mut count = 0;
    for path in model.graph_paths() {
        let Some(graph) = model.graph_at(&path) else { continue };
        for (id, node) in graph.nodes().filter(|(_, n)| n.domain == "ai.mbqc" && n.op == "MbqMatMulW3") {
            let mut inputs: Vec<String> =
                node.inputs.iter().map(|v| v.map_or_else(String::new, |v| graph.name(v).to_owned())).collect();
            let codes = inputs.get(1).cloned().unwrap_or_default();
            let (owner, tensor) = find_constant(model, &path, &codes)
                .ok_or_else(|| content(format!("node `{}`: input B `{codes}` is not a constant", graph.label(id))))?;
            let name = match baked.entry((owner.clone(), codes.clone())) {
                Entry::Occupied(known) => known.get().clone(),
                Entry::Vacant(new) => {
                    let name = fresh_name(&mut taken, &format!("{codes}.nibbles"));
                    let add = Edit::AddConst(name.clone(), nibbles(&tensor, file)?);
                    edits.entry(owner.clone()).or_default()[0].push(add);
                    new.insert(name).clone()
                }
            };
            inputs[1] = name;
            if inputs.len() > 4 {
                // MatMulNBits has g_idx between zero points and bias.
                inputs.insert(4, String::new());
            }
            let mut replacement = NewNode { inputs, ..NewNode::new("MatMulNBits", &[], &[]).domain("com.microsoft") };
            replacement.name.clone_from(&node.name);
            replacement.metadata.clone_from(&node.metadata);
            replacement.outputs = node.outputs.iter().flatten().map(|v| graph.name(*v).to_owned()).collect();
            replacement.attrs.clone_from(&node.attrs);
            let replacement = replacement.attr("bits", Attr::Int(4));
            edits.entry(path.clone()).or_default()[1].push(Edit::ReplaceNode(id, replacement));
            for depth in owner.len()..=path.len() {
                edits.entry(path[..depth].to_vec()).or_default()[2].push(Edit::DropUnread(codes.clone()));
            }
            count += 1;
        }
    }
    // Outer graphs first: subgraphs name their new constants. What nobody reads any more goes last, inner graphs first.
    let mut drops = Vec::new();
    let law = |source| Error::Law { pass: "bake", source };
    for (path, [added, replaced, dropped]) in edits {
        if let Some(graph) = result.graph_at_mut(&path) {
            graph.apply(added.into_iter().chain(replaced)).map_err(law)?;
        }
        drops.push((path, dropped));
    }
    drops.sort_by_key(|(path, _)| std::cmp::Reverse(path.len()));
    for (path, dropped) in drops {
        if let Some(graph) = result.graph_at_mut(&path) {
            graph.apply(dropped).map_err(law)?;
        }
    }
    result.functions.retain(|f| !(f.domain == "ai.mbqc" && f.name == "MbqMatMulW3"));
    // Layers of other formats may stay.
    let of_ours = |path: &GraphPath| {
        result.graph_at(path).is_some_and(|graph| graph.nodes().any(|(_, node)| node.domain == "ai.mbqc"))
    };
    if !result.graph_paths().iter().any(of_ours) {
        result.opsets.retain(|(domain, _)| domain != "ai.mbqc");
    }
    result.import("com.microsoft", 1);
    Ok((result, count))
}

/// The constant with this name, here or in a surrounding graph, and the graph that owns it.
fn find_constant(model: &Model, path: &GraphPath, name: &str) -> Option<(GraphPath, Tensor)> {
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
