//! Short ways to write samples down.

use super::{Fill, Input, Sample, SampleAttr};

impl Sample {
    /// A sample with these inputs, one output, no attributes, operator set 17 and no gradient to check.
    pub const fn new(name: &'static str, inputs: &'static [Input]) -> Sample {
        Sample { name, inputs, attrs: &[], outputs: 1, opset: 17, grads: &[] }
    }

    /// The same sample with these attributes.
    pub const fn attrs(mut self, attrs: &'static [(&'static str, SampleAttr)]) -> Sample {
        self.attrs = attrs;
        self
    }

    /// The same sample with this many outputs.
    pub const fn outputs(mut self, outputs: usize) -> Sample {
        self.outputs = outputs;
        self
    }

    /// The same sample in this version of the operator set.
    pub const fn opset(mut self, opset: i64) -> Sample {
        self.opset = opset;
        self
    }

    /// The same sample, with the gradients of these inputs checked.
    pub const fn grads(mut self, grads: &'static [usize]) -> Sample {
        self.grads = grads;
        self
    }
}

impl Input {
    /// An optional input left out.
    pub const ABSENT: Input = Input { shape: &[], fill: Fill::Absent };

    /// Floats in (-2, 2).
    pub const fn uniform(shape: &'static [usize]) -> Input {
        Input { shape, fill: Fill::Uniform }
    }

    /// Floats in (0.5, 2).
    pub const fn positive(shape: &'static [usize]) -> Input {
        Input { shape, fill: Fill::Positive }
    }

    /// These floats, repeated.
    pub const fn floats(shape: &'static [usize], values: &'static [f32]) -> Input {
        Input { shape, fill: Fill::Floats(values) }
    }

    /// These `int64`s, repeated.
    pub const fn ints(shape: &'static [usize], values: &'static [i64]) -> Input {
        Input { shape, fill: Fill::Ints(values) }
    }

    /// These `int32`s, repeated.
    pub const fn int32s(shape: &'static [usize], values: &'static [i64]) -> Input {
        Input { shape, fill: Fill::Int32s(values) }
    }

    /// These truth values, repeated.
    pub const fn bools(shape: &'static [usize], values: &'static [bool]) -> Input {
        Input { shape, fill: Fill::Bools(values) }
    }
}
