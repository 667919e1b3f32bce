//! Bodies that travel with a model, so that runtimes without our kernels execute its quantized operators.

mod body;
mod symmetric;
mod w3;

use crate::ir::{Error, Function};

/// Which body an operator of ours brings along.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fallback {
    /// The one that onnxruntime executes fastest. A 3-bit layer re-arranges its thirds into 4-bit containers and calls
    /// onnxruntime's `MatMulNBits`; constant folding does the re-arranging once at load, so that memory and speed afterwards
    /// are those of a 4-bit model. Layers with 8-bit activations have one body, of standard operators, for both.
    Ort,
    /// Standard operators only. A 3-bit layer unpacks to `uint4`, with a blocked `DequantizeLinear` and a `MatMul`, and needs
    /// opset 21: for runtimes without `MatMulNBits`; onnxruntime loads it from 1.24 on and computes it with int8 activations
    /// unless the session says `session.qdq_matmulnbits_accuracy_level=1`.
    Standard,
    /// No body: only a runtime with our kernels executes the model.
    None,
}

/// How to make the body of an operator.
struct Recipe {
    op: &'static str,
    /// Layers of the operator, in words.
    layers: &'static str,
    /// For [`Fallback::Ort`] and [`Fallback::Standard`] the least standard opset, and the function for an opset.
    bodies: [(i64, Make); 2],
    /// What to do about an opset that is too old.
    way_out: &'static str,
}

type Make = fn(i64) -> Result<Function, Error>;

/// Every operator of ours.
const RECIPES: &[Recipe] = &[
    Recipe {
        op: w3::NAME,
        layers: "3-bit layers",
        bodies: [(14, w3::ort), (21, w3::standard)],
        way_out: "use --target ort, which stores the same codes in 4-bit containers",
    },
    Recipe {
        op: symmetric::W8A8,
        layers: "w8a8 layers",
        bodies: [(symmetric::LEAST_OPSET, symmetric::w8a8); 2],
        way_out: symmetric::WAY_OUT,
    },
    Recipe {
        op: symmetric::W4A8,
        layers: "w4a8 layers",
        bodies: [(symmetric::LEAST_OPSET, symmetric::w4a8); 2],
        way_out: symmetric::WAY_OUT,
    },
];

/// The function of the operator `op` of domain `ai.mbqc`, for a model of this standard opset; `None` where no body is wanted.
///
/// # Errors
///
/// If the opset is too old for the operators that the body needs.
pub fn body(op: &str, fallback: Fallback, opset: i64) -> Result<Option<Function>, String> {
    let recipe = RECIPES.iter().find(|recipe| recipe.op == op).ok_or_else(|| format!("`{op}` has no body"))?;
    let (least, make) = match fallback {
        Fallback::Ort => recipe.bodies[0],
        Fallback::Standard => recipe.bodies[1],
        Fallback::None => return Ok(None),
    };
    if opset < least {
        let Recipe { layers, way_out, .. } = recipe;
        return Err(format!("the model is of opset {opset}, and a body for {layers} needs opset {least}; {way_out}"));
    }
    make(opset).map(Some).map_err(|error| error.to_string())
}

/// Whether a function has the nodes of a body that [`body`] writes for the function's own opset.
pub fn is_body(function: &Function) -> bool {
    let nodes = |function: &Function| -> Vec<(String, String)> {
        function.body.nodes().map(|(_, node)| (node.domain.clone(), node.op.clone())).collect()
    };
    let opset = function.opsets.iter().find(|(domain, _)| domain.is_empty()).map_or(0, |(_, version)| *version);
    let written = [Fallback::Ort, Fallback::Standard].map(|kind| body(&function.name, kind, opset).ok().flatten());
    written.iter().flatten().any(|ours| nodes(ours) == nodes(function))
}

#[cfg(test)]
mod tests {
    use super::RECIPES;
    use mbqc_kernels::FORMATS;

    #[test]
    fn every_format_with_an_operator_of_ours_has_a_body() {
        let ours = FORMATS.iter().map(|format| &format.schema).filter(|schema| schema.domain == "ai.mbqc");
        let ops: Vec<&str> = ours.map(|schema| schema.op).collect();
        assert_eq!(ops.len(), RECIPES.len());
        assert!(RECIPES.iter().all(|recipe| ops.contains(&recipe.op)), "{ops:?}");
    }
}
