//! Which constants the survey finds, as what, and why; on small graphs given as text.

use mbqc_passes::facts::sites::{Tower, survey};
use mbqc_passes::ir::text::parse;

/// A graph over `x`, with matrices of 16 by 16 by name.
fn graph(inputs: &str, outputs: &str, constants: &str, nodes: &str) -> String {
    format!(
        "<ir_version: 10, opset_import: [\"\": 20, \"com.microsoft\": 1, \"acme.ops\": 1]>
         main ({inputs}) => ({outputs}) <{constants}> {{ {nodes} }}"
    )
}

fn one_input(constants: &str, nodes: &str) -> String {
    graph("float[N,16] x", "y", constants, nodes)
}

/// The constant `name`, a matrix of 16 by 16.
fn matrix(name: &str) -> String {
    format!("float[16,16] {name} = [\"seed\": \"1\"]")
}

/// What is found, a line each: sites by node and weight, the rest with operator and reason.
fn found(text: &str) -> Vec<String> {
    let model = parse(text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    let found = survey(&model).expect("the graph is sorted");
    let site = |s: &mbqc_passes::facts::sites::Site| {
        let tower = match s.tower {
            Tower::Vision => ", vision",
            Tower::Text => ", text",
            Tower::Only => "",
        };
        format!("site {} {} [{},{}]{tower}{}", s.label, s.weight.name, s.n, s.k, if s.head { ", head" } else { "" })
    };
    let other = |o: &mbqc_passes::facts::sites::Other| {
        let function = o.function.as_ref().map_or(String::new(), |f| format!("{f}/"));
        format!("{} {function}{} {}: {:?}, {}", o.op, o.label, o.weight, o.kind, o.reason)
    };
    found.sites.iter().map(site).chain(found.others.iter().map(other)).collect()
}

#[track_caller]
fn check(text: &str, expected: &[&str]) {
    assert_eq!(found(text), expected, "{text}");
}

const BEHIND: &str = "only matrices behind Transpose, Cast or Identity are quantized";

#[test]
fn an_operator_is_what_its_domain_says() {
    check(
        &one_input(
            &[matrix("w"), matrix("v"), matrix("u")].join(","),
            "[a] a = acme.ops.MatMul (x, w) [t] t = acme.ops.Transpose (u) [b] b = MatMul (a, t) [c] y = MatMul (b, v)",
        ),
        &[
            "site c v [16,16]",
            "acme.ops::MatMul a w: NotLinear, an operand of acme.ops::MatMul, an operator that is not known; kept as it is",
            &format!("MatMul b u: Unsupported, its weight reaches the MatMul through acme.ops::Transpose; {BEHIND}"),
        ],
    );
    check(
        "<ir_version: 10, opset_import: [\"\": 20]> g (float[N,16] x) => (y) <float[16,16] w = [\"seed\": \"1\"]> \
         { [a] y = ai.onnx.MatMul (x, w) }",
        &["site a w [16,16]"],
    );
}

#[test]
fn a_weight_is_found_behind_whatever_moves_it() {
    let shape = "int64[2] shape = {16, 16}, int64[1] zero = {0}, int64[1] end = {16}, float two = {2.0}";
    let text = one_input(
        &format!(
            "{}, {}, {}, {}, float[16,32] wide = [\"seed\": \"2\"], float[32,8] flat = [\"seed\": \"3\"], {shape}",
            matrix("plain"),
            matrix("scaled"),
            matrix("left"),
            matrix("right")
        ),
        "[id] i = Identity (plain) [tr] t = Transpose <perm = [1, 0]> (i) [p0] a = MatMul (x, t)
         [sc] s = Mul (scaled, two) [p1] b = MatMul (a, s)
         [re] r = Reshape (flat, shape) [p2] c = MatMul (b, r)
         [sl] h = Slice (wide, zero, end, end) [p3] d = MatMul (c, h)
         [sp] h0, h1 = Split <axis = 1, num_outputs = 2> (wide) [p4] e = Gemm (d, h0) [p5] f = Gemm (e, h1)
         [cat] k = Concat <axis = 0> (left, right) [p6] y = Gemm <transB = 1> (f, k)",
    );
    let through = |node: &str, op: &str, weight: &str, way: &str| {
        format!("{op} {node} {weight}: Unsupported, its weight reaches the {op} through {way}; {BEHIND}")
    };
    let expected = [
        "site p0 plain [16,16]".to_owned(),
        through("p1", "MatMul", "scaled", "Mul"),
        through("p2", "MatMul", "flat", "Reshape"),
        through("p3", "MatMul", "wide", "Slice"),
        through("p4", "Gemm", "wide", "Split"),
        through("p5", "Gemm", "wide", "Split"),
        through("p6", "Gemm", "left", "Concat"),
        through("p6", "Gemm", "right", "Concat"),
    ];
    assert_eq!(found(&text), expected);
}

#[test]
fn a_vector_is_a_weight_only_where_it_is_a_matrix_in_disguise() {
    let text = one_input(
        "float[256] flat = [\"seed\": \"1\"], float[256] column = [\"seed\": \"2\"], uint8[1024] bytes = [\"seed\": \"3\"],
         float[256] scales = [\"seed\": \"4\"], float[256] gain = [\"seed\": \"5\"], int64[2] square = {16, 16}, int64[2] tall = {-1, 1},
         float[64] short = [\"seed\": \"6\"], int64[2] small = {8, 8}, int64[1] line = {256}",
        "[f] f = Reshape (flat, square) [a] a = MatMul (x, f) [c] c = Reshape (column, tall) [b] b = MatMul (a, c)
         [g] g = Reshape (gain, line) [m] d = Mul (b, g) [s] s = Reshape (short, small) [e] e = MatMul (d, s)
         [q] y = com.microsoft.MatMulBnb4 <K = 16, N = 128, block_size = 16, quant_type = 1> (e, bytes, scales)",
    );
    check(
        &text,
        &[
            &format!("MatMul a flat: Unsupported, its weight reaches the MatMul through Reshape; {BEHIND}"),
            "com.microsoft::MatMulBnb4 q bytes: Quantized, already quantized",
        ],
    );
}

#[test]
fn a_weight_made_of_constants_is_one_weight_and_no_layer() {
    // A low-rank update that nobody folded in, and a product whose other operand is a constant behind a Reshape.
    let text = one_input(
        &format!(
            "{}, float[16,2] down = [\"seed\": \"2\"], float[2,16] up = [\"seed\": \"3\"], {}, int64[2] shape = {{16, 16}}, {}",
            matrix("base"),
            matrix("rows"),
            matrix("w")
        ),
        "[low] l = MatMul (down, up) [sum] s = Add (base, l) [p] a = MatMul (x, s)
         [re] r = Reshape (rows, shape) [both] b = MatMul (r, w) [add] y = Add (a, b)",
    );
    check(
        &text,
        &[
            &format!("MatMul p base: Unsupported, its weight reaches the MatMul through Add; {BEHIND}"),
            &format!("MatMul p down: Unsupported, its weight reaches the MatMul through MatMul, Add; {BEHIND}"),
            &format!("MatMul p up: Unsupported, its weight reaches the MatMul through MatMul, Add; {BEHIND}"),
            "Add add rows: NotLinear, a table that is added; kept as it is",
            "Add add w: NotLinear, a table that is added; kept as it is",
        ],
    );
}

#[test]
fn a_weight_may_stand_in_a_constant_node_and_in_shapes_that_are_no_matrix() {
    check(
        &one_input(
            "float[1,16,16] batched = [\"seed\": \"1\"], float[16,1] column = [\"seed\": \"2\"], float[16] row = [\"seed\": \"3\"]",
            "[w] w = Constant <value: tensor = float[2,2] {1, 2, 3, 4}> () [a] a = MatMul (x, batched) [b] b = MatMul (a, w)
             [c] c = MatMul (b, column) [d] y = MatMul (c, row)",
        ),
        &["site b w [2,2]", "site c column [1,16]", "MatMul a batched: Unsupported, its weight has shape [1, 16, 16]; only matrices are quantized"],
    );
}

#[test]
fn tables_are_listed_once_and_scales_with_their_weight() {
    let text = graph(
        "float[N,16,16] x, int64[N] n",
        "y, z",
        &format!(
            "{}, {}, {}, {}, {}, {}, float[2,2] small = [\"seed\": \"9\"], {}, {}",
            matrix("positions"),
            matrix("cosines"),
            matrix("queries"),
            matrix("prefix"),
            matrix("z"),
            matrix("unread"),
            matrix("w"),
            matrix("mask"),
        ),
        "[pos] a = Add (x, positions) [cos] b = Mul (a, cosines) [cos2] c = Mul (b, cosines)
         [ex] q = Expand (queries, n) [ask] d = MatMul (q, w) [cat] e = Concat <axis = 0> (d, prefix, c)
         [small] f = Add (e, small) [attend] y = acme.ops.Attend (f, mask)",
    );
    check(
        &text,
        &[
            "site ask w [16,16]",
            "Add pos positions: NotLinear, a table that is added; kept as it is",
            "Mul cos cosines: NotLinear, a table of factors; kept as it is",
            "MatMul ask queries: NotLinear, a table that MatMul reads; kept as it is",
            "Concat cat prefix: NotLinear, a table that is put beside computed values; kept as it is",
            "acme.ops::Attend attend mask: NotLinear, an operand of acme.ops::Attend, an operator that is not known; kept as it is",
            "output z z: NotLinear, a constant that is a graph output; kept as it is",
            "constant unread unread: NotLinear, nothing computes with it; kept as it is",
        ],
    );
}

#[test]
fn tables_in_attributes_are_listed() {
    let numbers = vec!["1"; 256].join(", ");
    check(
        &one_input(
            "float one = {1}",
            &format!(
                "[t] y = acme.ops.Tree <table: tensor = float[16,16] {{{numbers}}}, few: tensor = float[2,2] {{1, 2, 3, 4}}> (x)"
            ),
        ),
        &["acme.ops::Tree t t.table: NotLinear, a table in an attribute; kept as it is"],
    );
}

#[test]
fn quantized_weights_are_listed_without_their_scales() {
    let text = one_input(
        "int8[16,16] q = [\"seed\": \"1\"], float[16,16] scales = [\"seed\": \"2\"], int8[16,16] zeros = [\"seed\": \"3\"],
         uint8[16,1,16] packed = [\"seed\": \"4\"], float[16,16] fine = [\"seed\": \"5\"], int8[16,16] bare = [\"seed\": \"6\"]",
        "[dq] w = DequantizeLinear <axis = 0, block_size = 1> (q, scales, zeros) [tr] t = Transpose (w) [a] a = MatMul (x, t)
         [b] b = com.microsoft.MatMulNBits <K = 16, N = 16, bits = 4, block_size = 16> (a, packed, fine)
         [c] y = MatMul (b, bare)",
    );
    check(
        &text,
        &[
            "MatMul a q: Quantized, already quantized (the weight comes from DequantizeLinear)",
            "com.microsoft::MatMulNBits b packed: Quantized, already quantized",
            "MatMul c bare: Unsupported, its weight is of type int8; float weights are quantized",
        ],
    );
}

const CALLED: &str = "a weight of the MatMul inside a model-local function, which is kept as it is";

#[test]
fn weights_of_local_functions_are_listed() {
    let text = "<ir_version: 10, opset_import: [\"\": 20, \"local\": 1]>
        main (float[N,16] x) => (y)
        <float[16,16] w = [\"seed\": \"1\"], float[16,16] v = [\"seed\": \"2\"], float[16,16] p = [\"seed\": \"3\"], float[16,16] moved = [\"seed\": \"4\"]>
        {
          [a] a = local.Linear (x, w) [b] b = local.Twice (a, v) [c] c = local.Shift (b, p)
          [m] m = local.Turn (moved, x) [d] d = MatMul (c, m) [e] y = local.Own (d)
        }
        <domain: \"local\", opset_import: [\"\": 20]>
        Linear (x, w) => (y) { t = Transpose (w) y = MatMul (x, t) }
        <domain: \"local\", opset_import: [\"\": 20, \"local\": 1]>
        Twice (x, w) => (y) { t = local.Linear (x, w) y = local.Linear (t, w) }
        <domain: \"local\", opset_import: [\"\": 20]>
        Shift (x, w) => (y) { y = Add (x, w) }
        <domain: \"local\", opset_import: [\"\": 20]>
        Turn (w, x) => (t, z) { t = Transpose (w) z = Relu (x) }
        <domain: \"local\", opset_import: [\"\": 20]>
        Own (x) => (y) { w = Constant <value: tensor = float[2,2] {1, 2, 3, 4}> () [inner] y = MatMul (x, w) }";
    check(
        text,
        &[
            &format!("local::Linear a w: Unsupported, {CALLED}"),
            &format!("local::Twice b v: Unsupported, {CALLED}"),
            "local::Shift c p: NotLinear, a table that the model-local function Shift reads; kept as it is",
            &format!("MatMul d moved: Unsupported, its weight reaches the MatMul through local::Turn; {BEHIND}"),
            "MatMul local::Own/inner w: Unsupported, it stands in the body of a model-local function, which is kept as it is",
        ],
    );
}

#[test]
fn a_function_that_calls_itself_ends_the_walk() {
    let text = "<ir_version: 10, opset_import: [\"\": 20, \"local\": 1]>
        main (float[N,16] x) => (y) <float[16,16] w = [\"seed\": \"1\"]> { [a] y = local.Self (x, w) }
        <domain: \"local\", opset_import: [\"\": 20, \"local\": 1]>
        Self (x, w) => (y) { y = local.Self (x, w) }";
    assert_eq!(found(text).len(), 1);
}

#[test]
fn weights_go_into_subgraphs_and_out_of_them() {
    let text = graph(
        "float[N,16] x, bool c, int64 trips",
        "y",
        &[matrix("outer"), matrix("chosen"), matrix("other"), matrix("start"), matrix("halved")].join(","),
        "[if] a = If <then_branch = then () => (r) {
             [deep] r = If <then_branch = t2 () => (r2) { [inner] r2 = MatMul (x, outer) }, else_branch = e2 () => (r3) { r3 = Identity (x) }> (c)
           }, else_branch = other_branch () => (s) <float[16,16] own = [\"seed\": \"7\"]> { [own] s = MatMul (x, own) }> (c)
         [pick] w = If <then_branch = p () => (p1) { p1 = Identity (chosen) }, else_branch = q () => (p2) { p2 = Identity (other) }> (c)
         [picked] b = MatMul (a, w)
         [loop] y = Loop <body: graph = body (int64 i, bool go, float[16,16] state) => (bool on, float[16,16] next) {
             on = Identity (go) [step] next = MatMul (state, halved) }> (trips, c, start)",
    );
    check(
        &text,
        &[
            "site inner outer [16,16]",
            "site own own [16,16]",
            "site step halved [16,16]",
            &format!("MatMul picked chosen: Unsupported, its weight reaches the MatMul through Identity, If; {BEHIND}"),
            &format!("MatMul picked other: Unsupported, its weight reaches the MatMul through Identity, If; {BEHIND}"),
            "MatMul step start: NotLinear, a table that MatMul reads; kept as it is",
        ],
    );
}

#[test]
fn a_weight_that_a_caller_may_override_is_left() {
    let text = "<ir_version: 3, opset_import: [\"\": 11]>
        old (float[1,16] x, float[16,16] w = [\"seed\": \"1\"]) => (y) { [t] t = MatMul (x, w) [tr] v = Transpose (w) [s] y = MatMul (t, v) }";
    let reason = "Unsupported, its weight is also a graph input and may be overridden";
    check(text, &[&format!("MatMul t w: {reason}"), &format!("MatMul s w: {reason}")]);
}

#[test]
fn a_final_projection_is_one_behind_capping_and_selected_rows() {
    for (after, head) in [
        ("[l] y = Identity (h)", true),
        ("[d] d = Div (h, cap) [t] t = Tanh (d) [l] y = Mul (cap, t)", true),
        ("[c] c = Constant <value: tensor = float {2.0}> () [d] d = Sub (h, c) [l] y = LogSoftmax (d)", true),
        ("[g] g = Gather <axis = 0> (h, last) [l] y = Cast <to = 1> (g)", true),
        ("[l] y = Slice (h, last, end, last)", true),
        ("[l] y = Mul (h, h)", false),
        ("[l] y = Div (cap, h)", true),
        ("[l] y = Mul (h, gain)", false),
        ("[l] y = acme.ops.Tanh (h)", false),
        ("[t] t = Tanh (h) [l] y = Concat <axis = 0> (t, t)", false),
    ] {
        let text = one_input(
            "float[16,32] w = [\"seed\": \"1\"], float cap = {30.0}, int64[1] last = {-1}, int64[1] end = {9}, float[32] gain = [\"seed\": \"2\"]",
            &format!("[p] h = MatMul (x, w) {after}"),
        );
        assert_eq!(found(&text), [format!("site p w [32,16]{}", if head { ", head" } else { "" })], "{after}");
    }
    // No wider than its input, but its weight is the embedding table.
    check(
        &graph(
            "int64[N] ids",
            "y",
            &matrix("table"),
            "[e] x = Gather (table, ids) [t] t = Transpose (table) [p] h = MatMul (x, t) [l] y = Tanh (h)",
        ),
        &["site p table [16,16], text, head", "Gather e table: NotLinear, an embedding table; kept as it is"],
    );
}

#[test]
fn towers_are_seen_however_the_embedding_table_is_stored() {
    let constants = format!(
        "{}, {}, float16[16,16] half = [\"seed\": \"1\"], float[16,16] table = [\"seed\": \"2\"],
         uint8[16,16] q = [\"seed\": \"3\"], float[1] scale = {{0.1}}, float[16,1] scales = [\"seed\": \"4\"], int64[2] shape = {{16, 16}}",
        matrix("wv"),
        matrix("wt")
    );
    for (embed, listed) in [
        ("[e] t = Gather (table, ids)", 1),
        ("[v] f = Cast <to = 1> (half) [e] t = Gather (f, ids)", 1),
        ("[v] f = Identity (table) [e] t = Gather (f, ids)", 1),
        ("[v] f = Transpose (table) [e] t = Gather (f, ids)", 1),
        ("[v] f = DequantizeLinear (q, scale) [e] t = Gather (f, ids)", 1),
        ("[e] t = com.microsoft.GatherBlockQuantized <block_size = 16> (q, ids, scales)", 1),
        ("[v] f = Reshape (q, shape) [e] t = com.microsoft.GatherBlockQuantized <block_size = 16> (f, ids, scales)", 1),
    ] {
        let text = graph(
            "int64[N] ids, float[N,16] pixels",
            "y",
            &constants,
            &format!(
                "{embed} [pv] p = MatMul (pixels, wv) [j] j = Add (p, t) [pt] o = MatMul (j, wt) [r] y = Add (o, j)"
            ),
        );
        let found = found(&text);
        assert_eq!(found[..2], ["site pv wv [16,16], vision", "site pt wt [16,16], text"], "{embed}");
        let tables = found.iter().filter(|line| line.contains("Gather")).count();
        assert_eq!(tables, listed, "{embed}: {found:?}");
    }
    // A Gather of another domain is no lookup, and ids of another domain's Cast are no ids.
    for embed in ["[e] t = acme.ops.Gather (table, ids)", "[v] i = acme.ops.Cast (ids) [e] t = Gather (table, i)"] {
        let text = graph(
            "int64[N] ids, float[N,16] pixels",
            "y",
            &constants,
            &format!("{embed} [pv] p = MatMul (pixels, wv) [j] y = Add (p, t)"),
        );
        assert_eq!(found(&text)[0], "site pv wv [16,16]", "{embed}");
    }
}
