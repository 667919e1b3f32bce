//! Where the channels of a linear layer or a gain are, after views, transposes and selections.

use crate::ir::{Attr, Graph, Node, NodeId, Type, ValueId};

/// Why channels cannot be followed through a node; follows its name in a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unclear(pub(super) &'static str);

impl std::fmt::Display for Unclear {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0)
    }
}

/// The axes of a value and what runs along them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    /// Per axis the number of channels along it, or `None` for tokens, batches and everything else.
    axes: Vec<Option<usize>>,
    /// The producer's channel at every place, row-major over the axes that carry channels.
    tags: Vec<usize>,
    /// More axes without channels may stand before the first.
    open: bool,
}

impl Layout {
    /// What a layer or norm gives: `channels` along the last axis of a value of this rank, if it is known.
    pub(super) fn of_output(channels: usize, rank: Option<usize>) -> Layout {
        let mut axes = vec![None; rank.unwrap_or(1).saturating_sub(1)];
        axes.push(Some(channels));
        Layout { axes, tags: (0..channels).collect(), open: rank.is_none() }
    }

    /// The channels along the last axis, when they are nowhere else.
    pub(super) fn last(&self) -> Option<Vec<usize>> {
        let (last, before) = self.axes.split_last()?;
        (last.is_some() && before.iter().all(Option::is_none)).then(|| self.tags.clone())
    }

    /// All channels that are still there.
    pub(super) fn tags(&self) -> impl Iterator<Item = usize> + '_ {
        self.tags.iter().copied()
    }

    /// The layout of an output of `node`, which reads a value of this layout at `slot`.
    pub(super) fn after(&self, graph: &Graph, id: NodeId, slot: usize, output: usize) -> Result<Layout, Unclear> {
        let node = graph.node(id);
        match node.op.as_str() {
            "Identity" | "Cast" | "Dropout" | "Relu" | "LeakyRelu" | "Mul" => Ok(self.clone()),
            "Div" if slot == 0 => Ok(self.clone()),
            "MatMul" if slot == 1 => match self.axes[..] {
                [.., None, Some(_)] => Ok(self.clone()),
                [Some(_)] if self.open => Ok(self.clone()),
                _ => Err(Unclear("sums over channels")),
            },
            "Transpose" => self.transposed(node),
            "Squeeze" | "Unsqueeze" => self.squeezed(graph, node),
            "Reshape" => self.reshaped(graph, node),
            "Split" | "Slice" | "Gather" if slot == 0 => self.select(graph, id, output),
            _ => Err(Unclear("cannot absorb a scale per channel")),
        }
    }

    /// What an output of a Split, Slice or Gather takes.
    pub(super) fn select(&self, graph: &Graph, id: NodeId, output: usize) -> Result<Layout, Unclear> {
        let node = graph.node(id);
        const COMPUTED: Unclear = Unclear("takes channels that are computed");
        if node.is("Gather") {
            let axis = self.axis(node.int("axis", 0))?;
            let Some(size) = self.axes[axis] else {
                return if axis + 1 == self.axes.len() {
                    Err(COMPUTED)
                } else {
                    Ok(self.without_free(graph, node, axis))
                };
            };
            let indices = node.input(1).and_then(|v| ints(graph, v)).ok_or(COMPUTED)?;
            let scalar = node.input(1).and_then(|v| dims(graph, v)).is_some_and(|d| d.is_empty());
            let wrap = |i: i64| usize::try_from(if i < 0 { i + size as i64 } else { i }).ok().filter(|&i| i < size);
            let picked: Option<Vec<usize>> = indices.into_iter().map(wrap).collect();
            let mut picked = self.pick(axis, &picked.ok_or(COMPUTED)?);
            if scalar {
                picked.axes.remove(axis);
            }
            return Ok(picked);
        }
        if node.is("Split") {
            let axis = self.axis(node.int("axis", 0))?;
            let Some(size) = self.axes[axis] else { return Ok(self.clone()) };
            let count = node.outputs.len();
            let lengths = match node.ints("split") {
                Some(given) => Some(given.to_vec()),
                None => match node.input(1) {
                    Some(value) => ints(graph, value),
                    None => Some(vec![size.div_ceil(count) as i64; count]),
                },
            };
            let lengths: Vec<usize> = lengths.ok_or(COMPUTED)?.iter().map(|&l| l.max(0) as usize).collect();
            let start: usize = lengths.iter().take(output).sum();
            let end = (start + lengths.get(output).copied().unwrap_or(0)).min(size);
            return Ok(self.pick(axis, &(start.min(end)..end).collect::<Vec<_>>()));
        }
        if node.is("Slice") {
            let list = |slot: usize, name: &str| match node.ints(name) {
                Some(given) => Some(given.to_vec()),
                None => node.input(slot).and_then(|v| ints(graph, v)),
            };
            let computed_or = |slot: usize, name: &str, default: Vec<i64>| {
                let given = node.input(slot).is_some() || node.ints(name).is_some();
                if given { list(slot, name).ok_or(COMPUTED) } else { Ok(default) }
            };
            let count = match (list(1, "starts"), list(2, "ends")) {
                (Some(starts), Some(_)) => starts.len(),
                _ => 1,
            };
            let axes = computed_or(3, "axes", (0..count as i64).collect())?;
            let steps = computed_or(4, "steps", vec![1; count])?;
            let mut result = self.clone();
            for (i, &axis) in axes.iter().enumerate() {
                let axis = self.axis(axis)?;
                let Some(size) = self.axes[axis] else { continue };
                let bounds = (list(1, "starts"), list(2, "ends"), steps.get(i));
                let (Some(starts), Some(ends), Some(1)) = bounds else { return Err(COMPUTED) };
                let bound = |v: Option<&i64>| {
                    v.map(|&v| (if v < 0 { v.saturating_add(size as i64) } else { v }).clamp(0, size as i64) as usize)
                };
                let (start, end) = (bound(starts.get(i)).ok_or(COMPUTED)?, bound(ends.get(i)).ok_or(COMPUTED)?);
                result = result.pick(axis, &(start.min(end)..end).collect::<Vec<_>>());
            }
            return Ok(result);
        }
        Err(Unclear("is no selection of channels"))
    }

    fn without_free(&self, graph: &Graph, node: &Node, axis: usize) -> Layout {
        let mut result = self.clone();
        if node.input(1).and_then(|v| dims(graph, v)).is_some_and(|d| d.is_empty()) {
            result.axes.remove(axis);
        }
        result
    }

    fn axis(&self, axis: i64) -> Result<usize, Unclear> {
        let rank = self.axes.len() as i64;
        let at = if axis < 0 { axis + rank } else { axis };
        if (self.open && axis >= 0) || !(0..rank).contains(&at) {
            return Err(Unclear("works on an axis of a value whose rank is not known"));
        }
        Ok(at as usize)
    }

    /// The places `picked` along a channel axis.
    fn pick(&self, axis: usize, picked: &[usize]) -> Layout {
        let inner: usize = self.axes[axis + 1..].iter().flatten().product();
        let size = self.axes[axis].unwrap_or(1);
        let mut tags = Vec::with_capacity(self.tags.len() / size.max(1) * picked.len());
        for block in self.tags.chunks((size * inner).max(1)) {
            for &place in picked {
                tags.extend_from_slice(&block[place * inner..(place + 1) * inner]);
            }
        }
        let mut axes = self.axes.clone();
        axes[axis] = Some(picked.len());
        Layout { axes, tags, open: self.open }
    }

    fn transposed(&self, node: &Node) -> Result<Layout, Unclear> {
        let mut axes = self.axes.clone();
        let perm: Vec<usize> = match node.ints("perm") {
            Some(perm) => perm.iter().map(|&p| usize::try_from(p).unwrap_or(usize::MAX)).collect(),
            None if !self.open => (0..axes.len()).rev().collect(),
            None => return Err(Unclear("turns a value whose rank is not known")),
        };
        if self.open && axes.len() < perm.len() {
            axes.splice(0..0, vec![None; perm.len() - axes.len()]);
        }
        if axes.len() != perm.len() || perm.iter().any(|&p| p >= perm.len()) {
            return Err(Unclear("turns a value of another rank"));
        }
        // Strides of the tags, axis by axis, to read them in the new order.
        let mut strides = vec![0; axes.len()];
        let mut stride = 1;
        for (axis, size) in axes.iter().enumerate().rev() {
            strides[axis] = stride;
            stride *= size.unwrap_or(1);
        }
        let mut offsets = vec![0];
        for &axis in perm.iter().filter(|&&axis| axes[axis].is_some()) {
            let size = axes[axis].unwrap_or(1);
            offsets = offsets
                .iter()
                .flat_map(|&o| (0..size).map(move |i| (o, i)))
                .map(|(o, i)| o + i * strides[axis])
                .collect();
        }
        let tags = offsets.into_iter().map(|o| self.tags[o]).collect();
        Ok(Layout { axes: perm.iter().map(|&p| axes[p]).collect(), tags, open: false })
    }

    fn squeezed(&self, graph: &Graph, node: &Node) -> Result<Layout, Unclear> {
        let given = match node.ints("axes") {
            Some(axes) => Some(axes.to_vec()),
            None => node.input(1).and_then(|v| ints(graph, v)),
        };
        let given = given.ok_or(Unclear("works on axes that are computed"))?;
        let mut result = self.clone();
        if node.is("Squeeze") {
            let mut axes = given.iter().map(|&a| self.axis(a)).collect::<Result<Vec<_>, _>>()?;
            axes.sort_unstable();
            for axis in axes.into_iter().rev() {
                if result.axes.remove(axis).is_some() {
                    return Err(Unclear("removes an axis of channels"));
                }
            }
            return Ok(result);
        }
        if self.open {
            return Err(Unclear("adds an axis to a value whose rank is not known"));
        }
        let rank = (self.axes.len() + given.len()) as i64;
        let mut axes: Vec<i64> = given.iter().map(|&a| if a < 0 { a + rank } else { a }).collect();
        axes.sort_unstable();
        for axis in axes {
            let at = usize::try_from(axis).ok().filter(|&at| at <= result.axes.len());
            result.axes.insert(at.ok_or(Unclear("adds an axis out of range"))?, None);
        }
        Ok(result)
    }

    /// Channels have to lie together at the end, before and after: a row-major block keeps its order whatever happens to the
    /// axes before it.
    fn reshaped(&self, graph: &Graph, node: &Node) -> Result<Layout, Unclear> {
        const MIXED: Unclear = Unclear("mixes channels with other axes, or its shape is computed");
        let first = self.axes.iter().position(Option::is_some).ok_or(MIXED)?;
        if self.axes[first..].iter().any(Option::is_none) {
            return Err(MIXED);
        }
        let total = self.tags.len();
        let declared = node.output(0).and_then(|v| declared(graph, v));
        let shape = node.input(1).map(|v| shape(graph, v)).ok_or(MIXED)?;
        let sizes: Vec<Option<usize>> = match &declared {
            Some(dims) => dims.clone(),
            None => shape.dims.iter().map(Dim::size).collect(),
        };
        let mut product = 1;
        for (taken, size) in sizes.iter().rev().enumerate() {
            let Some(size) = size else { break };
            product *= size;
            if product == total {
                let (before, block) = sizes.split_at(sizes.len() - taken - 1);
                let mut axes = vec![None; before.len()];
                axes.extend(block.iter().copied());
                let open = declared.is_none() && shape.open;
                return Ok(Layout { axes, tags: self.tags.clone(), open });
            }
        }
        // `[0, 0, -1]`, `[0, 0, -1, 64]` and their like: the axes before are kept, so the rest is what it was.
        let (before, block) = shape.dims.split_at_checked(first).ok_or(MIXED)?;
        let known: Option<Vec<usize>> = block.iter().skip(1).map(Dim::size).collect();
        let kept = !shape.open && !self.open && before.iter().all(|dim| *dim == Dim::Kept);
        match (known, block.first()) {
            (Some(sizes), Some(Dim::Rest)) if kept && total.is_multiple_of(sizes.iter().product::<usize>().max(1)) => {
                let rest = total / sizes.iter().product::<usize>().max(1);
                let mut axes = vec![None; first];
                axes.extend([rest].into_iter().chain(sizes).map(Some));
                Ok(Layout { axes, tags: self.tags.clone(), open: false })
            }
            _ => Err(MIXED),
        }
    }
}

/// The number of axes of a value, where its declaration or its producers tell.
pub(super) fn rank(graph: &Graph, value: ValueId) -> Option<usize> {
    rank_within(graph, value, 16)
}

fn rank_within(graph: &Graph, value: ValueId, steps: usize) -> Option<usize> {
    if let Some(rank) = graph.rank(value).or_else(|| graph.constant(value).map(|t| t.dims.len())) {
        return Some(rank);
    }
    let steps = steps.checked_sub(1)?;
    let (producer, _) = graph.producer(value)?;
    let node = graph.node(producer);
    let of = |slot: usize| node.input(slot).and_then(|v| rank_within(graph, v, steps));
    match node.op.as_str() {
        op if !node.is(op) => None,
        "Gemm" => Some(2),
        "Add" | "Sub" | "Mul" | "Div" => of(0).zip(of(1)).map(|(a, b)| a.max(b)),
        // With one axis, the other operand's would be gone.
        "MatMul" => of(0).zip(of(1)).filter(|&(a, b)| a.min(b) > 1).map(|(a, b)| a.max(b)),
        "Reshape" => node.input(1).map(|v| shape(graph, v)).filter(|shape| !shape.open).map(|shape| shape.dims.len()),
        "Transpose" => node.ints("perm").map(<[i64]>::len).or_else(|| of(0)),
        "LayerNormalization" | "RMSNormalization" | "Cast" | "Identity" | "Dropout" | "Relu" | "LeakyRelu"
        | "Sigmoid" | "Tanh" | "Gelu" | "Softmax" | "Split" | "Slice" => of(0),
        _ => None,
    }
}

/// One entry of a shape that Reshape is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dim {
    Size(usize),
    /// As it is: 0, or taken out of the shape of a value.
    Kept,
    /// -1
    Rest,
    /// Computed.
    Unknown,
}

impl Dim {
    fn size(&self) -> Option<usize> {
        match *self {
            Dim::Size(size) => Some(size),
            Dim::Kept | Dim::Rest | Dim::Unknown => None,
        }
    }
}

/// The last entries of a shape; `open` when there may be more before them.
struct Shape {
    dims: Vec<Dim>,
    open: bool,
}

fn shape(graph: &Graph, value: ValueId) -> Shape {
    if let Some(given) = ints(graph, value) {
        let dim = |d: i64| match d {
            0 => Dim::Kept,
            -1 => Dim::Rest,
            d => usize::try_from(d).map_or(Dim::Unknown, Dim::Size),
        };
        return Shape { dims: given.into_iter().map(dim).collect(), open: false };
    }
    let Some((producer, _)) = graph.producer(value) else { return Shape { dims: Vec::new(), open: true } };
    let node = graph.node(producer);
    if node.is("Concat") {
        let mut all = Shape { dims: Vec::new(), open: false };
        for piece in node.inputs.iter().flatten() {
            let piece = shape(graph, *piece);
            if piece.open {
                all = Shape { dims: Vec::new(), open: true };
            }
            all.dims.extend(piece.dims);
        }
        return all;
    }
    if ["Cast", "Identity", "Unsqueeze", "Reshape", "Squeeze"].iter().any(|op| node.is(op)) {
        // One number, seen through views of it.
        if let Some(before) = node.input(0).filter(|v| single(graph, *v)) {
            return shape(graph, before);
        }
    }
    match single(graph, value) {
        true if from_shape(graph, value) => Shape { dims: vec![Dim::Kept], open: false },
        true => Shape { dims: vec![Dim::Unknown], open: false },
        false => Shape { dims: Vec::new(), open: true },
    }
}

/// True for a computed value that surely is one number.
fn single(graph: &Graph, value: ValueId) -> bool {
    let Some((producer, _)) = graph.producer(value) else { return false };
    let node = graph.node(producer);
    if node.is("Gather") {
        return node.input(1).and_then(|v| ints(graph, v)).is_some_and(|indices| indices.len() == 1);
    }
    if node.is("Slice") {
        let bound = |slot| node.input(slot).and_then(|v| ints(graph, v));
        return matches!((bound(1).as_deref(), bound(2).as_deref()), (Some([a]), Some([b])) if b - a == 1);
    }
    let view = ["Cast", "Identity", "Unsqueeze", "Squeeze", "Reshape"].iter().any(|op| node.is(op));
    let arithmetic = ["Mul", "Add", "Sub", "Div"].iter().any(|op| node.is(op));
    (view && node.input(0).is_some_and(|v| single(graph, v)))
        || (arithmetic && node.inputs.iter().flatten().any(|v| single(graph, *v)))
}

/// True when a number is taken out of a shape and nothing is done to it.
fn from_shape(graph: &Graph, value: ValueId) -> bool {
    let Some((producer, _)) = graph.producer(value) else { return false };
    let node = graph.node(producer);
    let passes =
        ["Gather", "Slice", "Cast", "Identity", "Unsqueeze", "Squeeze", "Reshape"].iter().any(|op| node.is(op));
    node.is("Shape") || (passes && node.input(0).is_some_and(|v| from_shape(graph, v)))
}

/// The numbers of a constant, also of a `Constant` node.
fn ints(graph: &Graph, value: ValueId) -> Option<Vec<i64>> {
    if let Some(tensor) = graph.constant(value) {
        return tensor.to_i64();
    }
    let (producer, _) = graph.producer(value)?;
    let node = graph.node(producer);
    if !node.is("Constant") {
        return None;
    }
    match node.attr("value").or(node.attr("value_ints")).or(node.attr("value_int"))? {
        Attr::Tensor(tensor) => tensor.to_i64(),
        Attr::Ints(values) => Some(values.clone()),
        Attr::Int(value) => Some(vec![*value]),
        _ => None,
    }
}

/// The dimensions of a constant, also of a `Constant` node.
fn dims(graph: &Graph, value: ValueId) -> Option<Vec<usize>> {
    if let Some(tensor) = graph.constant(value) {
        return Some(tensor.dims.clone());
    }
    let (producer, _) = graph.producer(value)?;
    match graph.node(producer).attr("value")? {
        Attr::Tensor(tensor) => Some(tensor.dims.clone()),
        _ => None,
    }
}

/// The sizes of a value's declared type that are numbers.
fn declared(graph: &Graph, value: ValueId) -> Option<Vec<Option<usize>>> {
    use crate::ir::Dim;
    match &graph.value(value).ty {
        Some(Type::Tensor(_, Some(dims))) => {
            Some(dims.iter().map(|dim| if let Dim::Size(size) = dim { Some(*size) } else { None }).collect())
        }
        _ => None,
    }
}
