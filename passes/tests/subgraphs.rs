//! What an `If` takes from the graph around it counts as what it reads.

use mbqc_passes::facts::segments::cut;
use mbqc_passes::ir::text::parse;
use mbqc_passes::ir::{Model, ValueId};
use mbqc_passes::rewrite::reverse::{ReverseError, reverse};

fn model(nodes: &str) -> Model {
    let text = format!(
        "<ir_version: 10, opset_import: [\"\": 20]>
         main (float[N,16] x, float[N,16] m, bool c) => (y)
         <float[16,16] w = [\"seed\": \"1\"], float[16,16] v = [\"seed\": \"2\"]> {{ {nodes} }}"
    );
    parse(&text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

fn value(model: &Model, name: &str) -> ValueId {
    model.graph.find(name).unwrap_or_else(|| panic!("no value {name}"))
}

/// An `If` one of whose branches computes `branch`, which may read anything.
fn choice(out: &str, branch: &str) -> String {
    format!(
        "[choice] {out} = If <then_branch = t () => (r) {{ {branch} }}, else_branch = e () => (s) {{ s = Identity (m) }}> (c)"
    )
}

#[test]
fn a_gradient_does_not_pass_an_if_unseen() {
    for branch in [
        "r = Identity (h)",
        "[deeper] r = If <then_branch = t2 () => (r2) { r2 = Relu (h) }, else_branch = e2 () => (r3) { r3 = Identity (m) }> (c)",
    ] {
        let model = model(&format!("[up] h = MatMul (x, w) {} [out] y = Add (z, h)", choice("z", branch)));
        match reverse(&model, &[value(&model, "y")], &[value(&model, "h")]) {
            Err(ReverseError::NoRule { node, op, value, .. }) => {
                assert_eq!((node.as_str(), op.as_str(), value.as_str()), ("choice", "If", "h"));
            }
            other => panic!("the gradient of h lacks what the If passes on: {other:?}"),
        }
    }
}

#[test]
fn an_if_beside_the_way_of_a_gradient_is_none_of_its_business() {
    let model = model(&format!("[up] h = MatMul (x, w) {} [out] y = Add (z, h)", choice("z", "r = Relu (m)")));
    let backward = reverse(&model, &[value(&model, "y")], &[value(&model, "h")]).expect("Add has a rule");
    assert!(backward.gradients[0].is_some());
    // Behind it, but nothing of the loss depends on it.
    let aside = self::model(&format!("[up] h = MatMul (x, w) {} [out] y = Relu (h)", choice("z", "r = Relu (h)")));
    assert!(reverse(&aside, &[value(&aside, "y")], &[value(&aside, "h")]).is_ok());
}

#[test]
fn what_depends_on_weights_through_an_if_is_no_side_value() {
    for (branch, weights) in [
        ("r = Relu (m)", false),
        ("r = Relu (h)", true),
        ("[p] r = MatMul (m, v)", true),
        ("[t] t = Transpose (v) [p] r = MatMul (m, t)", true),
        ("o = Constant <value: tensor = float[2,2] {1, 2, 3, 4}> () [p] r = MatMul (m, o)", true),
        ("r = Add (m, v)", false),
        (
            "[d] r = If <then_branch = t2 () => (r2) { r2 = MatMul (m, v) }, else_branch = e2 () => (r3) { r3 = Relu (m) }> (c)",
            true,
        ),
    ] {
        let model = model(&format!(
            "[up] h = MatMul (x, w) {} [next] z2 = Relu (z) [out] y = Add (z2, h)",
            choice("z", branch)
        ));
        let cuts = cut(&model.graph, &[value(&model, "y")]).expect("sorted");
        for name in ["z", "z2"] {
            assert_eq!(!cuts.side[value(&model, name).0 as usize], weights, "{name} with {branch}");
        }
        assert!(!cuts.side[value(&model, "h").0 as usize], "{branch}");
    }
}

#[test]
fn only_weights_in_their_slots_make_a_value_depend_on_weights() {
    // A weight behind a Slice is one; a table of whole numbers and an index are none.
    for (node, weights) in [
        ("s = Slice (w, i, j, i) h = MatMul (x, s)", true),
        ("h = MatMul (x, column)", true),
        ("h = Gather (numbers, ids)", false),
        ("h = Gather (x, numbers)", false),
        ("h = Gather (w, ids)", true),
        ("h = acme.MatMul (x, w)", false),
    ] {
        let text = format!(
            "<ir_version: 10, opset_import: [\"\": 20, \"acme\": 1]> main (float[N,16] x, int64[N] ids) => (y)
             <float[16,16] w = [\"seed\": \"1\"], float[16,1] column = [\"seed\": \"1\"], int64[2,2] numbers = {{0, 1, 1, 0}},
              int64[1] i = {{0}}, int64[1] j = {{16}}> {{ {node} y = Relu (h) }}"
        );
        let model = parse(&text).unwrap_or_else(|error| panic!("{error}\n{text}"));
        let cuts = cut(&model.graph, &[value(&model, "y")]).expect("sorted");
        assert_eq!(!cuts.side[value(&model, "h").0 as usize], weights, "{node}");
    }
}
