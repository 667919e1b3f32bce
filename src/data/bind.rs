//! Gives every input of a graph its array.

use indexmap::IndexMap;
use mbqc_passes::array::{Array, Buf, Compute};
use mbqc_passes::ir::{DType, Dim, Graph, Type, ValueId};

use super::Error;
use super::processor::Processor;
use super::sample::Sample;

/// A declared input of a graph.
#[derive(Clone, Debug, PartialEq)]
pub struct InputSpec {
    /// Name.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Declared shape; `None` when not even the rank is declared.
    pub dims: Option<Vec<Dim>>,
    /// An initializer of the graph stands in where nothing is given.
    pub optional: bool,
}

impl InputSpec {
    /// The inputs of a graph, in order. Inputs without a declared tensor type are an error.
    pub fn of_graph(graph: &Graph) -> Result<Vec<InputSpec>, Error> {
        let each = graph.inputs().iter().map(|&id| {
            InputSpec::of(graph, id).ok_or_else(|| Error::Input {
                sample: "-".to_owned(),
                input: graph.name(id).to_owned(),
                declared: "no tensor type".to_owned(),
                reason: "only tensors can be given".to_owned(),
                holds: "-".to_owned(),
            })
        });
        each.collect()
    }

    /// What is declared about a value; `None` when it is no tensor or nothing is.
    pub fn of(graph: &Graph, id: ValueId) -> Option<InputSpec> {
        match &graph.value(id).ty {
            Some(Type::Tensor(dtype, dims)) => {
                let (name, optional) = (graph.name(id).to_owned(), graph.constant(id).is_some());
                Some(InputSpec { name, dtype: *dtype, dims: dims.clone(), optional })
            }
            Some(Type::Other) | None => None,
        }
    }

    /// Type and shape in words, such as `int64[batch, 8]`.
    pub fn describe(&self) -> String {
        let dim = |dim: &Dim| match dim {
            Dim::Size(size) => size.to_string(),
            Dim::Symbol(name) => name.clone(),
            Dim::Unknown => "?".to_owned(),
        };
        match &self.dims {
            Some(dims) => format!("{}[{}]", self.dtype, dims.iter().map(dim).collect::<Vec<_>>().join(", ")),
            None => format!("{}[..]", self.dtype),
        }
    }
}

/// What helps binding besides the sample.
#[derive(Clone, Copy, Debug, Default)]
pub struct Extras<'a> {
    /// Turns `images` into `pixel_values`.
    pub processor: Option<&'a Processor>,
    /// Arrays that another graph has computed, such as `inputs_embeds`; they win over the sample's.
    pub computed: Option<&'a IndexMap<String, Array>>,
}

/// Gives every input its array, in the order of the inputs, cast to its declared type.
///
/// What the sample lacks is made up where that is clear: `attention_mask` (ones), `position_ids` `[1, T]` (counted over
/// the mask), `cache_position`, empty caches (inputs named `past..` or `..cache..`: batch 1, the symbolic length 0),
/// `use_cache_branch` (false), `num_logits_to_keep` and `logits_to_keep` (0: all), and `pixel_values` from `images`.
/// An input with an initializer is left out where the sample lacks it. Anything else is an error that names the input, what it declares and what the sample holds.
pub fn bind(sample: &Sample, inputs: &[InputSpec], extras: Extras<'_>) -> Result<IndexMap<String, Array>, Error> {
    let given = |input: &&InputSpec| !input.optional || sample.arrays.contains_key(&input.name);
    let each = inputs.iter().filter(given).map(|input| {
        let array = one(sample, input, extras).map_err(|reason| Error::Input {
            sample: sample.name.clone(),
            input: input.name.clone(),
            declared: input.describe(),
            reason,
            holds: sample.describe(),
        })?;
        Ok((input.name.clone(), array))
    });
    each.collect()
}

fn one(sample: &Sample, input: &InputSpec, extras: Extras<'_>) -> Result<Array, String> {
    let computed = extras.computed.and_then(|arrays| arrays.get(&input.name));
    let saved = || sample.arrays.get(&input.name).or_else(|| sample.arrays.get(other_name(&input.name)?));
    let array = match computed.or_else(saved) {
        Some(array) => array.clone(),
        None => made_up(sample, input, extras)?,
    };
    let array = cast(&arranged(array, input), input.dtype)?;
    check_shape(&array, input).map_err(|(reason, axis)| reason + hint(input, &array, axis))?;
    Ok(array)
}

/// An array as an input declares it: cast to its type where nothing is lost, its shape checked.
pub fn fit(array: &Array, input: &InputSpec) -> Result<Array, String> {
    let array = cast(array, input.dtype)?;
    check_shape(&array, input).map_err(|(reason, _)| reason)?;
    Ok(array)
}

/// The other name under which exporters know an input.
pub fn other_name(name: &str) -> Option<&'static str> {
    match name {
        "grid_thw" => Some("image_grid_thw"),
        "image_grid_thw" => Some("grid_thw"),
        _ => None,
    }
}

fn made_up(sample: &Sample, input: &InputSpec, extras: Extras<'_>) -> Result<Array, String> {
    let tokens = sample.tokens();
    let rank = input.dims.as_ref().map(Vec::len);
    let without_tokens = || "cannot be made up: the sample has no token sequence (no `input_ids`)".to_owned();
    let row = |values: Vec<i64>| if tokens == 0 { Err(without_tokens()) } else { Ok(Array::i64([1, tokens], values)) };
    match input.name.as_str() {
        "attention_mask" if rank.is_none_or(|rank| rank == 2) => {
            row(sample.valid.iter().map(|&v| i64::from(v)).collect())
        }
        "position_ids" if rank.is_none_or(|rank| rank == 2) => row(positions(&sample.valid)),
        "position_ids" => {
            Err("positions along several axes cannot be made up; save `position_ids` as the runtime computes them"
                .into())
        }
        "cache_position" => row((0..tokens as i64).collect())?.reshaped([tokens]).map_err(|e| e.to_string()),
        "use_cache_branch" => Ok(Array::bool(scalar_shape(input), vec![false])),
        "num_logits_to_keep" | "logits_to_keep" => Ok(Array::i64(scalar_shape(input), vec![0])),
        "pixel_values" => pixels(sample, extras),
        name if name.starts_with("past") || name.contains("cache") => empty_cache(input),
        _ => Err(format!("the data set has no array `{}`; save one under this name, one entry per sample", input.name)),
    }
}

/// Position of every token among the valid ones; padding in between counts as position 1, as common runtimes have it.
fn positions(valid: &[bool]) -> Vec<i64> {
    let mut next = 0;
    let each = valid.iter().map(|&valid| {
        if !valid {
            return 1;
        }
        next += 1;
        next - 1
    });
    each.collect()
}

/// The shape of a one-element input.
fn scalar_shape(input: &InputSpec) -> Vec<usize> {
    vec![1; input.dims.as_ref().map_or(0, Vec::len)]
}

fn pixels(sample: &Sample, extras: Extras<'_>) -> Result<Array, String> {
    let Some(images) = sample.arrays.get("images") else {
        return Err("the data set has neither `pixel_values` nor `images`".to_owned());
    };
    let Some(processor) = extras.processor else {
        return Err(
            "`images` need an image processor, but the model's folder has no preprocessor_config.json; put it \
                    there or save `pixel_values` instead"
                .to_owned(),
        );
    };
    processor.pixel_values(images).map_err(|e| e.to_string())
}

/// Zeros of the declared shape: leading symbol 1, the one other symbol 0.
fn empty_cache(input: &InputSpec) -> Result<Array, String> {
    let shape = input.dims.as_deref().filter(|dims| dims.len() >= 3).and_then(|dims| {
        let symbols = dims.iter().skip(1).filter(|dim| !matches!(dim, Dim::Size(_))).count();
        let size = |(axis, dim): (usize, &Dim)| match dim {
            Dim::Size(size) => *size,
            Dim::Symbol(_) | Dim::Unknown => usize::from(axis == 0),
        };
        (symbols <= 1).then(|| dims.iter().enumerate().map(size).collect::<Vec<usize>>())
    });
    let Some(shape) = shape.filter(|_| input.dtype.is_float()) else {
        return Err("no empty cache has this shape: a float tensor with at most one symbolic dimension besides the \
                    batch is needed; save the array in the data set or export the model without cache inputs"
            .to_owned());
    };
    let needed = shape.iter().try_fold(1_usize, |product, &dim| product.checked_mul(dim));
    let count = needed.filter(|&count| count <= 1 << 28).ok_or("the declared shape is too large")?;
    Ok(Array::f32(shape, vec![0.0; count]))
}

/// Arrangements that differ only in axes of size 1: pictures with or without an axis for several of them, positions along
/// several axes, `[1, 3, T]` in a data set, `[3, 1, T]` in a graph, and in general an axis for the sample where the graph
/// has none (the patches of one sample, `[1, patches, width]`), or none where the graph has one for the batch.
fn arranged(array: Array, input: &InputSpec) -> Array {
    let Some(dims) = &input.dims else { return array };
    let shape = array.shape.as_slice();
    let shape = match (input.name.as_str(), dims.len(), shape) {
        ("pixel_values", 5, [_, _, _, _]) => std::iter::once(1).chain(shape.iter().copied()).collect(),
        ("pixel_values", 4, [1, rest @ ..]) if rest.len() == 4 => rest.to_vec(),
        ("position_ids", 3, [1, axes, tokens] | [axes, tokens]) if *axes > 1 => vec![*axes, 1, *tokens],
        (_, 0, [1]) => vec![],
        (_, 1, []) => vec![1],
        (_, rank, [1, rest @ ..]) if rest.len() == rank => rest.to_vec(),
        (_, rank, [first, ..])
            if *first != 1 && rank == shape.len() + 1 && !matches!(dims[0], Dim::Size(size) if size != 1) =>
        {
            std::iter::once(1).chain(shape.iter().copied()).collect()
        }
        _ => return array,
    };
    array.reshaped(shape).unwrap_or(array)
}

/// What is wrong with a shape, and along which axis.
fn check_shape(array: &Array, input: &InputSpec) -> Result<(), (String, Option<usize>)> {
    let Some(dims) = &input.dims else { return Ok(()) };
    let found = &array.shape;
    if dims.len() != found.len() {
        return Err((format!("found shape {found:?} of rank {}, expected rank {}", found.len(), dims.len()), None));
    }
    for (axis, (dim, &size)) in dims.iter().zip(found).enumerate() {
        if let Dim::Size(expected) = dim
            && *expected != size
        {
            return Err((format!("found shape {found:?}, expected {expected} along axis {axis}"), Some(axis)));
        }
    }
    Ok(())
}

/// The way out for a sample of a data set.
fn hint(input: &InputSpec, array: &Array, axis: Option<usize>) -> &'static str {
    match (input.name.as_str(), axis) {
        ("pixel_values", Some(axis)) if axis + 2 >= array.rank() => {
            "; the pictures must have the size the model was exported for"
        }
        ("input_ids" | "inputs_embeds" | "attention_mask" | "position_ids", Some(1)) => {
            "; the model is exported for this number of tokens: export it with a symbolic length"
        }
        (_, Some(0)) => "; samples are given one at a time: export the model with a symbolic batch or 1",
        _ => "",
    }
}

/// The array under another type. Whole numbers must fit; floats are rounded to 16 bits where declared.
fn cast(array: &Array, dtype: DType) -> Result<Array, String> {
    if array.dtype == dtype {
        return Ok(array.clone());
    }
    let refuse = || format!("found {}, which does not become {dtype} without loss", array.dtype);
    let shape = array.shape.clone();
    if dtype.is_float() {
        let floats = match &array.buf {
            Buf::F32(_) => array.buf.clone(),
            _ => Buf::F32(array.to_f64s().into_iter().map(|x| x as f32).collect::<Vec<_>>().into()),
        };
        let wide = Array { dtype, shape, buf: floats };
        if !matches!(dtype, DType::F16 | DType::BF16) {
            return Ok(wide);
        }
        let rounded = wide.to_tensor().and_then(|tensor| Array::from_tensor(&tensor, Compute::F32));
        return rounded.map_err(|e| e.to_string());
    }
    if dtype == DType::Bool {
        let bools = array.to_bools().map_err(|_| refuse())?;
        return Ok(Array { dtype, shape, buf: Buf::Bool(bools.into()) });
    }
    let bits = dtype.bits().filter(|_| dtype.is_int()).ok_or_else(refuse)?;
    let ints = array.to_i64s().map_err(|_| refuse())?;
    let unsigned = matches!(dtype, DType::U8 | DType::U16 | DType::U32 | DType::U64);
    let fits = |value: i64| match (unsigned, bits) {
        (true, 64..) => value >= 0,
        (true, bits) => (0..1 << bits).contains(&value),
        (false, 64..) => true,
        (false, bits) => (-(1 << (bits - 1))..1 << (bits - 1)).contains(&value),
    };
    if let Some(value) = ints.iter().find(|&&value| !fits(value)) {
        return Err(format!("the value {value} does not fit into {dtype}"));
    }
    let buf = match dtype {
        DType::U8 | DType::I8 => {
            Buf::Bytes(ints.iter().map(|&value| value.to_le_bytes()[0]).collect::<Vec<u8>>().into())
        }
        _ => Buf::I64(ints.into()),
    };
    Ok(Array { dtype, shape, buf })
}

#[cfg(test)]
mod tests {
    use super::super::npy::Npy;
    use super::super::processor::Size;
    use super::*;

    fn sample(arrays: &[(&str, Array)]) -> Sample {
        let stored = arrays.iter().map(|(name, array)| ((*name).to_owned(), Npy::from_array(array).unwrap()));
        Sample::new("0".to_owned(), &stored.collect()).unwrap()
    }

    /// `float16[batch, 8, ?]` as in the messages.
    fn spec(name: &str, declared: &str) -> InputSpec {
        let (dtype, dims) = declared.trim_end_matches(']').split_once('[').unwrap();
        let dim = |text: &str| match text.trim() {
            "?" => Dim::Unknown,
            text => text.parse().map_or_else(|_| Dim::Symbol(text.to_owned()), Dim::Size),
        };
        let dims = dims.split(',').filter(|text| !text.is_empty()).map(dim).collect();
        InputSpec { name: name.to_owned(), dtype: DType::from_name(dtype).unwrap(), dims: Some(dims), optional: false }
    }

    fn check(arrays: &[(&str, Array)], name: &str, declared: &str, expected: Result<Array, &str>) {
        let processor = Processor { size: Size::Any, rescale: Some(0.5), normalize: None };
        let extras = Extras { processor: Some(&processor), computed: None };
        let found = bind(&sample(arrays), &[spec(name, declared)], extras).map(|bound| bound[name].clone());
        match (found, expected) {
            (Ok(found), Ok(expected)) => assert_eq!(found, expected, "{name}"),
            (Err(found), Err(expected)) => {
                let found = found.to_string();
                assert!(found.contains(expected), "{found}");
                assert!(found.contains(&format!("`{name}` ({declared})")), "{found}");
            }
            (found, _) => panic!("{name}: {found:?}"),
        }
    }

    #[test]
    fn casts_to_the_declared_type() {
        let ids = |dtype| Array::i64([1, 2], vec![3, 300]).with_dtype(dtype);
        let check_ids = |declared, expected| check(&[("input_ids", ids(DType::I32))], "input_ids", declared, expected);
        check_ids("int64[batch, tokens]", Ok(ids(DType::I64)));
        check_ids("float16[batch, tokens]", Ok(Array::f32([1, 2], vec![3.0, 300.0]).with_dtype(DType::F16)));
        check_ids("bool[batch, tokens]", Ok(Array::bool([1, 2], vec![true, true])));
        check_ids("int8[batch, tokens]", Err("300 does not fit into int8"));
        check_ids("string[batch, tokens]", Err("without loss"));
        let x = Array::f32([1, 1], vec![1.0 + 1.0 / 4096.0]);
        check(&[("x", x.clone())], "x", "float16[1, 1]", Ok(Array::f32([1, 1], vec![1.0]).with_dtype(DType::F16)));
        check(&[("x", x)], "x", "int64[1, 1]", Err("without loss"));
    }

    #[test]
    fn makes_up_what_is_clear() {
        let ids = ("input_ids", Array::i64([1, 3], vec![1, 2, 3]));
        let holes = [ids.clone(), ("attention_mask", Array::i64([1, 3], vec![1, 0, 1]))];
        let row = |values: &[i64]| Array::i64([1, 3], values.to_vec());
        check(std::slice::from_ref(&ids), "attention_mask", "int64[b, t]", Ok(row(&[1, 1, 1])));
        check(std::slice::from_ref(&ids), "position_ids", "int64[b, t]", Ok(row(&[0, 1, 2])));
        check(&holes, "position_ids", "int64[b, t]", Ok(row(&[0, 1, 1])));
        check(&holes, "cache_position", "int64[t]", Ok(Array::i64([3], vec![0, 1, 2])));
        check(&[], "num_logits_to_keep", "int64[]", Ok(Array::scalar_i64(0)));
        check(&[], "use_cache_branch", "bool[1]", Ok(Array::bool([1], vec![false])));
        let empty = Array::f32([1, 2, 0, 64], vec![]);
        check(&[], "past_key_values.0.key", "float[b, 2, past, 64]", Ok(empty.clone()));
        check(&[], "past_key_values.0.key", "float16[1, 2, ?, 64]", Ok(empty.with_dtype(DType::F16)));
        check(&[], "past_conv.0", "float[b, 2, 3]", Ok(Array::f32([1, 2, 3], vec![0.0; 6])));
        check(&[], "past_key_values.0.key", "float[b, h, past, 64]", Err("at most one symbolic"));
        check(std::slice::from_ref(&ids), "position_ids", "int64[3, b, t]", Err("along several axes"));
        check(&[], "attention_mask", "int64[b, t]", Err("no token sequence"));
        check(&[ids], "token_type_ids", "int64[b, t]", Err("the sample holds input_ids int64[1, 3]"));
    }

    #[test]
    fn pictures_go_through_the_processor() {
        let bytes = Buf::Bytes(vec![2, 4, 6, 8, 10, 12].into());
        let images = [("images", Array { dtype: DType::U8, shape: vec![1, 1, 2, 3], buf: bytes })];
        let values = vec![1.0, 4.0, 2.0, 5.0, 3.0, 6.0];
        check(&images, "pixel_values", "float[b, 3, h, w]", Ok(Array::f32([1, 3, 1, 2], values.clone())));
        check(&images, "pixel_values", "float[b, n, 3, h, w]", Ok(Array::f32([1, 1, 3, 1, 2], values)));
        check(&images, "pixel_values", "float[b, 3, 1, 8]", Err("found shape [1, 3, 1, 2], expected 8 along axis 3"));
        check(&images, "pixel_values", "float[n, 1176]", Err("of rank 4, expected rank 2"));
        check(&[], "pixel_values", "float[b, 3, h, w]", Err("neither `pixel_values` nor `images`"));
        let error = bind(&sample(&images), &[spec("pixel_values", "float[b, 3, h, w]")], Extras::default());
        assert!(error.unwrap_err().to_string().contains("preprocessor_config.json"));
    }

    #[test]
    fn shapes_are_checked() {
        let ids = [("input_ids", Array::i64([1, 3], vec![1, 2, 3]))];
        check(&ids, "input_ids", "int64[1, 4]", Err("export it with a symbolic length"));
        check(&ids, "input_ids", "int64[2, t]", Err("one at a time"));
        check(&ids, "input_ids", "int64[b, t, 1]", Err("expected rank 3"));
        let positions = [("position_ids", Array::i64([1, 3, 2], vec![0, 1, 0, 1, 0, 1]))];
        check(&positions, "position_ids", "int64[3, b, t]", Ok(Array::i64([3, 1, 2], vec![0, 1, 0, 1, 0, 1])));
    }

    #[test]
    fn computed_arrays_win() {
        let given = Array::f32([1, 1, 2], vec![1.0, 2.0]);
        let computed = IndexMap::from([("inputs_embeds".to_owned(), given.clone())]);
        let extras = Extras { processor: None, computed: Some(&computed) };
        let bound = bind(&sample(&[]), &[spec("inputs_embeds", "float[b, t, 2]")], extras).unwrap();
        assert_eq!(bound["inputs_embeds"], given);
    }
}
