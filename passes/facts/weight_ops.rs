//! The operators that carry weights, and the operators behind which a constant is still the same weight.

use crate::ir::{DType, Node, Tensor};
use crate::plan::SkipKind;

/// An operator that carries weights.
#[derive(Debug, PartialEq)]
pub(super) struct WeightOp {
    /// Domain; empty for the standard one.
    pub(super) domain: &'static str,
    /// Name.
    pub(super) op: &'static str,
    /// Input slots where weights may stand.
    pub(super) slots: &'static [usize],
    /// Why it is no site, and what kind of reason that is; `None` for those that can be sites.
    pub(super) left: Option<(SkipKind, &'static str)>,
}

const CONV: Option<(SkipKind, &str)> = Some((SkipKind::NotLinear, "a convolution; only linear layers are quantized"));
const TABLE: Option<(SkipKind, &str)> = Some((SkipKind::NotLinear, "an embedding table; kept as it is"));
const CELL: Option<(SkipKind, &str)> =
    Some((SkipKind::Unsupported, "a recurrent layer; only linear layers are quantized"));
const DONE: Option<(SkipKind, &str)> = Some((SkipKind::Quantized, "already quantized"));
const FUSED: Option<(SkipKind, &str)> = Some((
    SkipKind::Unsupported,
    "a fused operator of onnxruntime's optimizer; compile the graph as exported, before optimization",
));
const PACKED: Option<(SkipKind, &str)> = Some((
    SkipKind::Unsupported,
    "a packed qkv weight inside a fused operator; compile the graph as exported, before optimization",
));
const EXPERTS: Option<(SkipKind, &str)> =
    Some((SkipKind::Unsupported, "a mixture of experts inside one operator; only MatMul and Gemm are quantized"));
const EINSUM: Option<(SkipKind, &str)> =
    Some((SkipKind::Unsupported, "an Einsum with a constant operand; only MatMul and Gemm are quantized"));

const MS: &str = "com.microsoft";

const fn row(
    domain: &'static str,
    op: &'static str,
    slots: &'static [usize],
    left: Option<(SkipKind, &'static str)>,
) -> WeightOp {
    WeightOp { domain, op, slots, left }
}

#[rustfmt::skip]
static WEIGHT_OPS: &[WeightOp] = &[
    row("", "MatMul",                       &[0, 1],       None),
    row("", "Gemm",                         &[0, 1],       None),
    row("", "Conv",                         &[1],          CONV),
    row("", "ConvTranspose",                &[1],          CONV),
    row("", "DeformConv",                   &[1],          CONV),
    row("", "Gather",                       &[0],          TABLE),
    row("", "Einsum",                       &[0, 1, 2, 3], EINSUM),
    row("", "LSTM",                         &[1, 2],       CELL),
    row("", "GRU",                          &[1, 2],       CELL),
    row("", "RNN",                          &[1, 2],       CELL),
    row("", "MatMulInteger",                &[0, 1],       DONE),
    row("", "QLinearMatMul",                &[3],          DONE),
    row("", "QLinearConv",                  &[3],          DONE),
    row("", "ConvInteger",                  &[1],          DONE),
    row(MS, "FusedMatMul",                  &[0, 1],       FUSED),
    row(MS, "FusedMatMulActivation",        &[0, 1],       FUSED),
    row(MS, "TransposeMatMul",              &[0, 1],       FUSED),
    row(MS, "FusedGemm",                    &[0, 1],       FUSED),
    row(MS, "FusedConv",                    &[1],          CONV),
    row(MS, "NhwcFusedConv",                &[1],          CONV),
    row(MS, "Attention",                    &[1],          PACKED),
    row(MS, "PackedAttention",              &[1],          PACKED),
    row(MS, "EmbedLayerNormalization",      &[2, 3, 4],    TABLE),
    row(MS, "MoE",                          &[2, 4, 6],    EXPERTS),
    row(MS, "MatMulNBits",                  &[1],          DONE),
    row(MS, "MatMulBnb4",                   &[1],          DONE),
    row(MS, "GatherBlockQuantized",         &[0],          DONE),
    row(MS, "DynamicQuantizeMatMul",        &[1],          DONE),
    row(MS, "MatMulIntegerToFloat",         &[1],          DONE),
    row(MS, "QAttention",                   &[1],          DONE),
    row(MS, "QGemm",                        &[3],          DONE),
    row(MS, "QMoE",                         &[2, 5, 8],    DONE),
    row("ai.mbqc", "MbqMatMulW3",           &[1],          DONE),
    row("ai.mbqc", "MbqMatMulW4A8",         &[1],          DONE),
    row("ai.mbqc", "MbqMatMulW8A8",         &[1],          DONE),
];

impl WeightOp {
    /// The operator of a node, when it carries weights.
    pub(super) fn of(node: &Node) -> Option<&'static WeightOp> {
        WEIGHT_OPS
            .iter()
            .find(|row| row.op == node.op && (row.domain == node.domain || node.is(row.op) && row.domain.is_empty()))
    }

    /// True for those that can be sites.
    pub(super) fn is_linear(&self) -> bool {
        self.left.is_none()
    }

    /// True for those whose weights are quantized.
    pub(super) fn is_quantized(&self) -> bool {
        self.left == DONE
    }

    /// True for those that look rows of a table up by index.
    pub(super) fn is_lookup(&self) -> bool {
        matches!(self.op, "Gather" | "GatherBlockQuantized")
    }
}

/// A slot of scales, zero points and the like: what stands there belongs to a quantized weight.
pub(super) fn is_parameter(node: &Node, slot: usize) -> bool {
    if is_dequantize(node) || node.is("QuantizeLinear") {
        return slot > 0;
    }
    WeightOp::of(node).is_some_and(|row| row.is_quantized() && slot > row.slots[0] && !row.slots.contains(&slot))
}

/// True for DequantizeLinear, standard or contributed.
pub(super) fn is_dequantize(node: &Node) -> bool {
    node.op == "DequantizeLinear" && (node.is("DequantizeLinear") || node.domain == MS)
}

/// Operators that answer their first input in another form, even where their other inputs are computed.
const CARRIERS: &[&str] = &[
    "Cast",
    "CastLike",
    "DepthToSpace",
    "Dropout",
    "Expand",
    "Flatten",
    "GatherElements",
    "Identity",
    "Pad",
    "Reshape",
    "Resize",
    "Slice",
    "SpaceToDepth",
    "Split",
    "Squeeze",
    "Tile",
    "Transpose",
    "Unsqueeze",
    "Upsample",
];

/// True for an operator that answers its first input in another form.
pub(super) fn is_carrier(node: &Node) -> bool {
    is_dequantize(node) || CARRIERS.iter().any(|op| node.is(op))
}

/// Elements that a table must have to be listed, and a vector to be looked at.
pub(super) const LEAST: usize = 256;

/// A float type, or one in which quantized weights are stored: whole numbers of up to 16 bits. Wider ones are shapes,
/// indices and biases.
pub(super) fn holds_weights(dtype: DType) -> bool {
    use DType::{Bool, C64, C128, I32, I64, String, U32, U64};
    !matches!(dtype, Bool | C64 | C128 | I32 | I64 | String | U32 | U64)
}

/// Two dimensions, one of them one: what a layer of one output channel has as its weight.
pub(super) fn is_column(tensor: &Tensor) -> bool {
    tensor.dims.len() == 2 && tensor.len() > 1 && !is_matrix(tensor)
}

/// At least two dimensions larger than one.
pub(super) fn is_matrix(tensor: &Tensor) -> bool {
    tensor.dims.iter().filter(|&&d| d > 1).count() >= 2
}

#[cfg(test)]
mod tests {
    use super::WEIGHT_OPS;
    use mbqc_kernels::FORMATS;

    #[test]
    fn what_carries_a_format_is_quantized() {
        for schema in FORMATS.iter().map(|format| &format.schema) {
            let row = WEIGHT_OPS.iter().find(|row| (row.domain, row.op) == (schema.domain, schema.op));
            assert!(row.is_some_and(|row| row.is_quantized()), "{}", schema.op);
            assert_eq!(schema.slot("B"), Some(1));
        }
    }
}
