//! Decoders of any size with made-up weights, shaped like a Qwen2 that was exported with `torch.export`: grouped-query
//! attention, biases on q, k and v, decomposed RMSNorm, rotary positions, SwiGLU, caches in and out.
//!
//! A weight is a function of the seed, its name and the place in it. Long ones are made while the file is written, so
//! that a model of any size takes the memory of its structure.

use half::f16;
use mbqc_passes::ir::{Attr, DType, Dim, Error, Graph, GraphBuilder, Lazy, Model, NewNode, Sink, Tensor, Type};

/// The measures of a decoder.
#[derive(Clone, Debug)]
pub(crate) struct Decoder {
    /// Transformer blocks.
    pub(crate) layers: usize,
    /// Width of the residual stream.
    pub(crate) hidden: usize,
    /// Query heads; they share the width evenly.
    pub(crate) heads: usize,
    /// Key and value heads; each serves the same number of query heads.
    pub(crate) kv_heads: usize,
    /// Width of the MLP.
    pub(crate) intermediate: usize,
    /// Tokens in the vocabulary.
    pub(crate) vocab: usize,
    /// What the weights are drawn from.
    pub(crate) seed: u64,
    /// Type of weights and activations, `F16` or `F32`.
    pub(crate) dtype: DType,
}

/// Two blocks, small enough to run in a test.
pub(crate) const TINY: Decoder =
    Decoder { layers: 2, hidden: 64, heads: 4, kv_heads: 2, intermediate: 160, vocab: 256, seed: 1, dtype: DType::F32 };

impl Decoder {
    /// Width of a head.
    pub(crate) fn head_dim(&self) -> usize {
        self.hidden / self.heads
    }

    /// What is wrong with the measures, if anything.
    fn check(&self) -> Result<(), String> {
        let sizes = [self.layers, self.hidden, self.heads, self.kv_heads, self.intermediate, self.vocab];
        if sizes.contains(&0) {
            return Err("every measure is at least 1".to_owned());
        }
        if !self.hidden.is_multiple_of(2 * self.heads) {
            return Err(format!("{} heads do not share {} channels in even parts", self.heads, self.hidden));
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            return Err(format!("{} key heads do not serve {} query heads evenly", self.kv_heads, self.heads));
        }
        if !matches!(self.dtype, DType::F16 | DType::F32) {
            return Err(format!("weights of type {} are not made", self.dtype));
        }
        Ok(())
    }

    /// The model, or what is wrong with the measures.
    pub(crate) fn model(&self) -> Result<Model, String> {
        self.check()?;
        let graph = Build::new(self).decoder().map_err(|error| error.to_string())?;
        Ok(Model {
            ir_version: 8,
            opsets: vec![(String::new(), 17)],
            graph,
            producer: "make_decoder".to_owned(),
            ..Model::default()
        })
    }
}

/// Payloads from this size on are made while the file is written.
const LAZY: usize = 1 << 16;

/// The least float that masks in f16 as well as in f32.
const MASKED: f32 = -65504.0;

struct Build<'a> {
    of: &'a Decoder,
    graph: GraphBuilder,
}

impl<'a> Build<'a> {
    fn new(of: &'a Decoder) -> Build<'a> {
        Build { of, graph: GraphBuilder::new("main_graph") }
    }

    fn decoder(mut self) -> Result<Graph, Error> {
        let Decoder { layers, hidden, vocab, .. } = *self.of;
        let sizes = [Ok("batch"), Ok("sequence"), Err(hidden)];
        self.graph.input("inputs_embeds", Some(tensor(self.of.dtype, &sizes)))?;
        self.graph.input("attention_mask", Some(tensor(DType::I64, &[Ok("batch"), Ok("total")])))?;
        self.graph.input("position_ids", Some(tensor(DType::I64, &[Ok("batch"), Ok("sequence")])))?;
        let cache = |steps| [Ok("batch"), Err(self.of.kv_heads), Ok(steps), Err(self.of.head_dim())];
        let (past, total) = (tensor(self.of.dtype, &cache("past")), tensor(self.of.dtype, &cache("total")));
        for layer in 0..layers {
            for part in ["key", "value"] {
                self.graph.input(&format!("past_key_values.{layer}.{part}"), Some(past.clone()))?;
            }
        }
        let (cos, sin) = self.rotary()?;
        let mask = self.mask()?;
        let mut x = "inputs_embeds".to_owned();
        for layer in 0..layers {
            x = self.block(layer, &x, &cos, &sin, &mask)?;
        }
        let x = self.norm("/model/norm", "model.norm.weight", &x)?;
        let weight = self.weight("lm_head.weight", hidden, vocab)?;
        self.put("/lm_head/MatMul", NewNode::new("MatMul", &[&x, &weight], &["logits"]))?;
        self.graph.output("logits", Some(tensor(self.of.dtype, &[Ok("batch"), Ok("sequence"), Err(vocab)])));
        for layer in 0..layers {
            for part in ["key", "value"] {
                self.graph.output(&format!("present.{layer}.{part}"), Some(total.clone()));
            }
        }
        Ok(self.graph.finish())
    }

    fn block(&mut self, layer: usize, x: &str, cos: &str, sin: &str, mask: &str) -> Result<String, Error> {
        let path = format!("/model/layers.{layer}");
        let name = format!("model.layers.{layer}");
        let normed = self.norm(&format!("{path}/input_layernorm"), &format!("{name}.input_layernorm.weight"), x)?;
        let mixed = self.attention(layer, &normed, cos, sin, mask)?;
        let x = self.op(&format!("{path}/Add"), "Add", &[x, &mixed])?;
        let after = "post_attention_layernorm";
        let normed = self.norm(&format!("{path}/{after}"), &format!("{name}.{after}.weight"), &x)?;
        let Decoder { hidden, intermediate, .. } = *self.of;
        let gate = self.linear(&format!("{name}.mlp.gate_proj"), &normed, hidden, intermediate)?;
        let up = self.linear(&format!("{name}.mlp.up_proj"), &normed, hidden, intermediate)?;
        let sigmoid = self.op(&format!("{path}/mlp/act_fn/Sigmoid"), "Sigmoid", &[&gate])?;
        let silu = self.op(&format!("{path}/mlp/act_fn/Mul"), "Mul", &[&gate, &sigmoid])?;
        let product = self.op(&format!("{path}/mlp/Mul"), "Mul", &[&silu, &up])?;
        let down = self.linear(&format!("{name}.mlp.down_proj"), &product, intermediate, hidden)?;
        self.op(&format!("{path}/Add_1"), "Add", &[&x, &down])
    }

    fn attention(&mut self, layer: usize, x: &str, cos: &str, sin: &str, mask: &str) -> Result<String, Error> {
        let Decoder { hidden, heads, kv_heads, .. } = *self.of;
        let dim = self.of.head_dim();
        let path = format!("/model/layers.{layer}/self_attn");
        let name = format!("model.layers.{layer}.self_attn");
        let at = |step: &str| format!("{path}/{step}");
        let mut parts = Vec::new();
        for (part, count) in [("q", heads), ("k", kv_heads), ("v", kv_heads)] {
            let y = self.linear(&format!("{name}.{part}_proj"), x, hidden, count * dim)?;
            let bias = self.vector(&format!("{name}.{part}_proj.bias"), count * dim, 0.0, 0.02)?;
            let y = self.op(&at(&format!("{part}_proj/Add")), "Add", &[&bias, &y])?;
            let y = self.reshape(&at(&format!("{part}/Reshape")), &y, &[0, 0, count as i64, dim as i64])?;
            parts.push(self.transpose(&at(&format!("{part}/Transpose")), &y, &[0, 2, 1, 3])?);
        }
        let q = self.rotate(&at("q/rotary"), &parts[0], cos, sin)?;
        let k = self.rotate(&at("k/rotary"), &parts[1], cos, sin)?;
        let k = self.cached(layer, "key", &k)?;
        let v = self.cached(layer, "value", &parts[2])?;
        let k = self.repeat(&at("k/repeat"), &k)?;
        let v = self.repeat(&at("v/repeat"), &v)?;
        let k = self.transpose(&at("k/Transpose_1"), &k, &[0, 1, 3, 2])?;
        let scale = self.scalar("attention_scale", 1.0 / (dim as f32).sqrt().sqrt())?;
        let q = self.op(&at("Mul"), "Mul", &[&q, &scale])?;
        let k = self.op(&at("Mul_1"), "Mul", &[&k, &scale])?;
        let scores = self.op(&at("MatMul"), "MatMul", &[&q, &k])?;
        let scores = self.op(&at("Add"), "Add", &[&scores, mask])?;
        let shares = self.with(&at("Softmax"), "Softmax", &[&scores], &[("axis", Attr::Int(-1))])?;
        let mixed = self.op(&at("MatMul_1"), "MatMul", &[&shares, &v])?;
        let mixed = self.transpose(&at("Transpose"), &mixed, &[0, 2, 1, 3])?;
        let mixed = self.reshape(&at("Reshape"), &mixed, &[0, 0, hidden as i64])?;
        self.linear(&format!("{name}.o_proj"), &mixed, hidden, hidden)
    }

    /// The cache with the new entries behind the old ones.
    fn cached(&mut self, layer: usize, part: &str, new: &str) -> Result<String, Error> {
        let (past, present) = (format!("past_key_values.{layer}.{part}"), format!("present.{layer}.{part}"));
        let node = NewNode::new("Concat", &[&past, new], &[&present]).attr("axis", Attr::Int(2));
        self.put(&format!("/model/layers.{layer}/self_attn/Concat_{part}"), node)?;
        Ok(present)
    }

    /// Every key or value head as often as query heads share it.
    fn repeat(&mut self, path: &str, x: &str) -> Result<String, Error> {
        let Decoder { heads, kv_heads, .. } = *self.of;
        if heads == kv_heads {
            return Ok(x.to_owned());
        }
        let axis = self.ints("repeat_axis", &[2])?;
        let x = self.op(&format!("{path}/Unsqueeze"), "Unsqueeze", &[x, &axis])?;
        let times = self.ints("repeat_times", &[1, 1, (heads / kv_heads) as i64, 1, 1])?;
        let x = self.op(&format!("{path}/Expand"), "Expand", &[&x, &times])?;
        self.reshape(&format!("{path}/Reshape"), &x, &[0, heads as i64, -1, self.of.head_dim() as i64])
    }

    /// `x cos + turned(x) sin`, with `turned` the second half negated before the first.
    fn rotate(&mut self, path: &str, x: &str, cos: &str, sin: &str) -> Result<String, Error> {
        let half = (self.of.head_dim() / 2) as i64;
        let axis = self.ints("rotary_axis", &[-1])?;
        let (start, middle, end) = (
            self.ints("rotary_start", &[0])?,
            self.ints("rotary_middle", &[half])?,
            self.ints("rotary_end", &[i64::MAX])?,
        );
        let first = self.op(&format!("{path}/Slice"), "Slice", &[x, &start, &middle, &axis])?;
        let second = self.op(&format!("{path}/Slice_1"), "Slice", &[x, &middle, &end, &axis])?;
        let negated = self.op(&format!("{path}/Neg"), "Neg", &[&second])?;
        let turned = self.with(&format!("{path}/Concat"), "Concat", &[&negated, &first], &[("axis", Attr::Int(-1))])?;
        let straight = self.op(&format!("{path}/Mul"), "Mul", &[x, cos])?;
        let turned = self.op(&format!("{path}/Mul_1"), "Mul", &[&turned, sin])?;
        self.op(&format!("{path}/Add"), "Add", &[&straight, &turned])
    }

    /// Cosines and sines of the positions, `[batch, 1, sequence, head]`.
    fn rotary(&mut self) -> Result<(String, String), Error> {
        let at = |step: &str| format!("/model/rotary_emb/{step}");
        let dim = self.of.head_dim();
        let powers: Vec<f32> = (0..dim / 2).map(|i| 1e6f32.powf(-2.0 * i as f32 / dim as f32)).collect();
        let frequencies = self.fixed("inv_freq", Tensor::f32s([1, dim / 2, 1], &powers))?;
        let axis = self.ints("head_axis", &[1])?;
        let positions = self.op(&at("Unsqueeze"), "Unsqueeze", &["position_ids", &axis])?;
        let positions = self.cast(&at("Cast"), &positions, (DType::I64, DType::F32))?;
        let angles = self.op(&at("MatMul"), "MatMul", &[&frequencies, &positions])?;
        let angles = self.transpose(&at("Transpose"), &angles, &[0, 2, 1])?;
        let angles = self.with(&at("Concat"), "Concat", &[&angles, &angles], &[("axis", Attr::Int(-1))])?;
        let mut both = Vec::new();
        for op in ["Cos", "Sin"] {
            let y = self.op(&at(op), op, &[&angles])?;
            let y = self.cast(&at(&format!("{op}_Cast")), &y, (DType::F32, self.of.dtype))?;
            both.push(self.op(&at(&format!("{op}_Unsqueeze")), "Unsqueeze", &[&y, &axis])?);
        }
        Ok((both.remove(0), both.remove(0)))
    }

    /// 0 where a query sees a key and a large negative number elsewhere, `[batch, 1, sequence, total]`.
    fn mask(&mut self) -> Result<String, Error> {
        let at = |step: &str| format!("/model/mask/{step}");
        let (zero, one) = (self.ints("zero", &[])?, self.fixed("one", Tensor::i64s([], &[1]))?);
        let mut sizes = Vec::new();
        for input in ["inputs_embeds", "attention_mask"] {
            let shape = self.op(&at(&format!("Shape_{input}")), "Shape", &[input])?;
            sizes.push(self.op(&at(&format!("Gather_{input}")), "Gather", &[&shape, &one])?);
        }
        let past = self.op(&at("Sub"), "Sub", &[&sizes[1], &sizes[0]])?;
        let keys = self.op(&at("Range"), "Range", &[&zero, &sizes[1], &one])?;
        let queries = self.op(&at("Range_1"), "Range", &[&past, &sizes[1], &one])?;
        let axis = self.ints("column_axis", &[1])?;
        let queries = self.op(&at("Unsqueeze"), "Unsqueeze", &[&queries, &axis])?;
        let causal = self.op(&at("LessOrEqual"), "LessOrEqual", &[&keys, &queries])?;
        let seen = self.cast(&at("Cast"), "attention_mask", (DType::I64, DType::Bool))?;
        let axes = self.ints("mask_axes", &[1, 2])?;
        let seen = self.op(&at("Unsqueeze_1"), "Unsqueeze", &[&seen, &axes])?;
        let seen = self.op(&at("And"), "And", &[&seen, &causal])?;
        let (open, closed) = (self.scalar("open", 0.0)?, self.scalar("masked", MASKED)?);
        self.op(&at("Where"), "Where", &[&seen, &open, &closed])
    }

    /// RMSNorm, in f32 whatever the type of the model.
    fn norm(&mut self, path: &str, weight: &str, x: &str) -> Result<String, Error> {
        let at = |step: &str| format!("{path}/{step}");
        let two = self.fixed("norm_exponent", Tensor::f32s([], &[2.0]))?;
        let epsilon = self.fixed("norm_epsilon", Tensor::f32s([], &[1e-6]))?;
        let wide = self.cast(&at("Cast"), x, (self.of.dtype, DType::F32))?;
        let squares = self.op(&at("Pow"), "Pow", &[&wide, &two])?;
        let mean = self.with(
            &at("ReduceMean"),
            "ReduceMean",
            &[&squares],
            &[("axes", Attr::Ints(vec![-1])), ("keepdims", Attr::Int(1))],
        )?;
        let mean = self.op(&at("Add"), "Add", &[&mean, &epsilon])?;
        let root = self.op(&at("Sqrt"), "Sqrt", &[&mean])?;
        let inverse = self.op(&at("Reciprocal"), "Reciprocal", &[&root])?;
        let normed = self.op(&at("Mul"), "Mul", &[&wide, &inverse])?;
        let normed = self.cast(&at("Cast_1"), &normed, (DType::F32, self.of.dtype))?;
        let gain = self.vector(weight, self.of.hidden, 1.0, 0.1)?;
        self.op(&at("Mul_1"), "Mul", &[&gain, &normed])
    }

    /// `x W` for a weight `<name>.weight: [k, n]`.
    fn linear(&mut self, name: &str, x: &str, k: usize, n: usize) -> Result<String, Error> {
        let weight = self.weight(&format!("{name}.weight"), k, n)?;
        let path = name.replace("layers.", "layers\0").replace('.', "/").replace('\0', ".");
        self.op(&format!("/{path}/MatMul"), "MatMul", &[x, &weight])
    }

    fn reshape(&mut self, path: &str, x: &str, shape: &[i64]) -> Result<String, Error> {
        let name: Vec<String> = shape.iter().map(i64::to_string).collect();
        let shape = self.ints(&format!("shape_{}", name.join("_")), shape)?;
        self.op(path, "Reshape", &[x, &shape])
    }

    fn transpose(&mut self, path: &str, x: &str, perm: &[i64]) -> Result<String, Error> {
        self.with(path, "Transpose", &[x], &[("perm", Attr::Ints(perm.to_vec()))])
    }

    /// `x`, which is of type `from`, as `to`; no node where that changes nothing.
    fn cast(&mut self, path: &str, x: &str, (from, to): (DType, DType)) -> Result<String, Error> {
        if from == to {
            return Ok(x.to_owned());
        }
        self.with(path, "Cast", &[x], &[("to", Attr::Int(i64::from(to.onnx())))])
    }

    fn op(&mut self, path: &str, op: &str, inputs: &[&str]) -> Result<String, Error> {
        self.with(path, op, inputs, &[])
    }

    /// A node named `path` with one output.
    fn with(&mut self, path: &str, op: &str, inputs: &[&str], attrs: &[(&str, Attr)]) -> Result<String, Error> {
        let output = format!("{path}_output_0");
        let mut node = NewNode::new(op, inputs, &[&output]);
        for (name, value) in attrs {
            node = node.attr(name, value.clone());
        }
        self.put(path, node)?;
        Ok(output)
    }

    fn put(&mut self, path: &str, node: NewNode) -> Result<(), Error> {
        self.graph.node(node.named(path), None).map(drop)
    }

    // --- constants -----------------------------------------------------------------------------------------------

    /// A constant that several nodes may share: the second one of a name is the first.
    fn fixed(&mut self, name: &str, tensor: Tensor) -> Result<String, Error> {
        match self.graph.constant(name, tensor, None) {
            Ok(_) | Err(Error::Duplicate(_)) => Ok(name.to_owned()),
            Err(error) => Err(error),
        }
    }

    fn ints(&mut self, name: &str, values: &[i64]) -> Result<String, Error> {
        match values {
            [] => self.fixed(name, Tensor::i64s([], &[0])),
            _ => self.fixed(name, Tensor::i64s([values.len()], values)),
        }
    }

    fn scalar(&mut self, name: &str, value: f32) -> Result<String, Error> {
        let tensor = Tensor::floats(self.of.dtype, [], &[value]).unwrap_or_else(|| Tensor::f32s([], &[value]));
        self.fixed(name, tensor)
    }

    fn vector(&mut self, name: &str, len: usize, mean: f32, deviation: f32) -> Result<String, Error> {
        self.random(name, &[len], mean, deviation)
    }

    fn weight(&mut self, name: &str, k: usize, n: usize) -> Result<String, Error> {
        self.random(name, &[k, n], 0.0, 1.0 / (k as f32).sqrt())
    }

    fn random(&mut self, name: &str, dims: &[usize], mean: f32, deviation: f32) -> Result<String, Error> {
        let draw = Draw { seed: self.of.seed ^ hash(name), mean, deviation, dtype: self.of.dtype };
        let count: usize = dims.iter().product();
        let len = self.of.dtype.bytes_for(count).unwrap_or(0);
        let lazy = Lazy::in_pieces(len, move |sink| draw.write(count, sink));
        let made = if len < LAZY { lazy.produce().ok() } else { None };
        let tensor = match made {
            Some(bytes) => Tensor::raw(self.of.dtype, dims, bytes),
            None => Tensor::lazy(self.of.dtype, dims, lazy),
        };
        self.fixed(name, tensor)
    }
}

fn tensor(dtype: DType, dims: &[Result<&str, usize>]) -> Type {
    let dim = |dim: &Result<&str, usize>| match *dim {
        Ok(symbol) => Dim::Symbol(symbol.to_owned()),
        Err(size) => Dim::Size(size),
    };
    Type::Tensor(dtype, Some(dims.iter().map(dim).collect()))
}

/// Where the entries of a weight come from.
#[derive(Clone, Copy)]
struct Draw {
    seed: u64,
    mean: f32,
    deviation: f32,
    dtype: DType,
}

/// Entries that are made at a time.
const PIECE: usize = 1 << 16;

impl Draw {
    fn write(self, count: usize, sink: &mut Sink<'_>) -> Result<(), String> {
        let mut bytes = Vec::with_capacity(4 * PIECE);
        for start in (0..count).step_by(PIECE) {
            bytes.clear();
            for place in start..count.min(start + PIECE) {
                let value = self.at(place as u64);
                match self.dtype {
                    DType::F16 => bytes.extend_from_slice(&f16::from_f32(value).to_le_bytes()),
                    _ => bytes.extend_from_slice(&value.to_le_bytes()),
                }
            }
            sink(&bytes)?;
        }
        Ok(())
    }

    /// The entry at a place: the sum of four uniform numbers, which is nearly normal and the same on every machine.
    fn at(self, place: u64) -> f32 {
        let bits = mix(self.seed.wrapping_add(place.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
        let sum: u32 = (0..4).map(|part| (bits >> (16 * part)) as u32 & 0xffff).sum();
        // A uniform number of 0..65536 has the variance 65536^2 / 12, four of them 65536^2 / 3.
        let normal = (sum as f32 - 131_070.0) / 37_837.2;
        self.mean + self.deviation * normal
    }
}

/// The finaliser of SplitMix64.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// FNV-1a.
fn hash(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}
