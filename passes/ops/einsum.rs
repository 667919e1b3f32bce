//! Sums of products over named axes.

use super::carrier::{Outputs, Real, by_precision, floats};
use super::linear::product;
use super::rules::{Gradients, gradient, wanted};
use super::{Call, Flow, FlowCall, Input, OpDef, OpError, Rows, Sample, SampleAttr, Vjp, VjpCall};
use crate::ir::{Attr, Node};
use crate::rewrite::tape::Tape;

/// The operators of this family.
pub(super) const ROWS: &[OpDef] = &[OpDef {
    name: "Einsum",
    domain: "",
    about: "Sums of products over the axes that an equation names (without ellipsis).",
    eval: |c| by_precision(c, einsum::<f32>, einsum::<f64>),
    flow: Flow::Rule(flow),
    vjp: Vjp::Rule(d_einsum),
    samples: &[
        Sample::new("outer product", &[Input::uniform(&[3]), Input::uniform(&[4])])
            .attrs(&[("equation", SampleAttr::Str("i,j->ij"))])
            .grads(&[0, 1]),
        Sample::new("batched product", &[Input::uniform(&[2, 3, 4]), Input::uniform(&[2, 5, 4])])
            .attrs(&[("equation", SampleAttr::Str("bik, bjk -> jbi"))])
            .grads(&[0, 1]),
        Sample::new("heads", &[Input::uniform(&[1, 3, 2, 2]), Input::uniform(&[1, 4, 2, 2])])
            .attrs(&[("equation", SampleAttr::Str("bqhd,bkhd->bhqk"))])
            .grads(&[0, 1]),
        Sample::new("implied output", &[Input::uniform(&[2, 3]), Input::uniform(&[3, 2])])
            .attrs(&[("equation", SampleAttr::Str("ij,jk"))])
            .grads(&[0, 1]),
        Sample::new("three", &[Input::uniform(&[2]), Input::uniform(&[2, 3]), Input::uniform(&[3])])
            .attrs(&[("equation", SampleAttr::Str("i,ij,j->i"))])
            .grads(&[0, 1, 2]),
        Sample::new("diagonal", &[Input::uniform(&[3, 3])]).attrs(&[("equation", SampleAttr::Str("ii->i"))]),
        Sample::new("summed alone", &[Input::uniform(&[2, 3]), Input::uniform(&[2])])
            .attrs(&[("equation", SampleAttr::Str("ij,i->i"))]),
    ],
}];

/// The letters of every operand and of the output.
struct Equation {
    terms: Vec<Vec<char>>,
    output: Vec<char>,
}

impl Equation {
    fn of(node: &Node) -> Result<Equation, String> {
        let text: String = node.string("equation").unwrap_or("").chars().filter(|c| !c.is_whitespace()).collect();
        let (left, right) = text.split_once("->").map_or((text.as_str(), None), |(left, right)| (left, Some(right)));
        let terms: Vec<Vec<char>> = left.split(',').map(|term| term.chars().collect()).collect();
        let output = match right {
            Some(right) => right.chars().collect(),
            None => {
                let all: Vec<char> = terms.iter().flatten().copied().collect();
                let mut once: Vec<char> =
                    all.iter().copied().filter(|c| all.iter().filter(|d| *d == c).count() == 1).collect();
                once.sort_unstable();
                once
            }
        };
        let letters = terms.iter().flatten().chain(&output).all(|c| c.is_ascii_alphabetic());
        let known = output.iter().all(|c| terms.iter().flatten().any(|d| d == c));
        if !letters || !known || !distinct(&output) {
            return Err(format!("Einsum equation `{text}` (letters only, each once in the output)"));
        }
        Ok(Equation { terms, output })
    }
}

fn distinct(term: &[char]) -> bool {
    term.iter().enumerate().all(|(i, c)| !term[..i].contains(c))
}

/// An operand with its axes named.
struct Operand<'a, T> {
    term: &'a [char],
    shape: &'a [usize],
    data: &'a [T],
}

impl<T: Real> Operand<'_, T> {
    /// The step that moving along a letter makes in this operand's elements.
    fn stride(&self, letter: char) -> usize {
        let steps = (0..self.term.len()).filter(|&i| self.term[i] == letter);
        steps.map(|i| self.shape[i + 1..].iter().product::<usize>()).sum()
    }
}

fn size(letter: char, operands: &[Operand<'_, impl Real>]) -> usize {
    let of = |o: &Operand<'_, _>| o.term.iter().position(|&c| c == letter).map(|i| o.shape[i]);
    operands.iter().find_map(of).unwrap_or(1)
}

/// Visits all positions along `letters`, the last one fastest: the offsets into every operand.
fn visit<T: Real>(letters: &[char], operands: &[Operand<'_, T>], from: &[usize], f: &mut dyn FnMut(&[usize])) {
    let Some((&letter, rest)) = letters.split_first() else { return f(from) };
    let mut at = from.to_vec();
    for _ in 0..size(letter, operands) {
        visit(rest, operands, &at, f);
        for (at, operand) in at.iter_mut().zip(operands) {
            *at += operand.stride(letter);
        }
    }
}

/// An operand's elements with its axes in another order.
fn arranged<T: Real>(letters: &[char], operand: Operand<'_, T>) -> Vec<T> {
    let mut out = Vec::with_capacity(operand.data.len());
    let data = operand.data;
    visit(letters, &[operand], &[0], &mut |at| out.push(data[at[0]]));
    out
}

fn einsum<T: Real>(call: &Call<'_>) -> Outputs {
    let equation = Equation::of(call.node).map_err(OpError::Unsupported)?;
    let arrays = (0..call.inputs.len()).map(|slot| call.input(slot)).collect::<Result<Vec<_>, _>>()?;
    if arrays.len() != equation.terms.len() {
        return Err(OpError::Shape(format!("Einsum with {} terms and {} inputs", equation.terms.len(), arrays.len())));
    }
    let data = arrays.iter().map(|array| T::read(array)).collect::<Result<Vec<_>, _>>()?;
    let mut operands = Vec::with_capacity(arrays.len());
    for ((term, array), data) in equation.terms.iter().zip(&arrays).zip(&data) {
        if term.len() != array.rank() {
            return Err(OpError::Shape(format!("Einsum names {} axes of shape {:?}", term.len(), array.shape)));
        }
        operands.push(Operand { term, shape: &array.shape, data });
    }
    for operand in &operands {
        if operand.term.iter().zip(operand.shape).any(|(&c, &dim)| dim != size(c, &operands)) {
            let shapes: Vec<_> = arrays.iter().map(|array| &array.shape).collect();
            return Err(OpError::Shape(format!("Einsum of shapes {shapes:?}: a letter stands for two sizes")));
        }
    }
    let shape: Vec<usize> = equation.output.iter().map(|&c| size(c, &operands)).collect();
    let out = match pairwise(&equation, &operands) {
        Some(roles) => as_product(call, &equation, operands, &roles)?,
        None => summed(&equation, &operands),
    };
    Ok(vec![floats(arrays[0].dtype, shape, out)])
}

/// Any equation, by the definition.
fn summed<T: Real>(equation: &Equation, operands: &[Operand<'_, T>]) -> Vec<T> {
    let mut gone: Vec<char> = Vec::new();
    for &c in equation.terms.iter().flatten() {
        if !equation.output.contains(&c) && !gone.contains(&c) {
            gone.push(c);
        }
    }
    let mut out = Vec::new();
    visit(&equation.output, operands, &vec![0; operands.len()], &mut |start| {
        let mut sum = T::ZERO;
        visit(&gone, operands, start, &mut |at| {
            sum += operands.iter().zip(at).fold(T::ONE, |product, (operand, &at)| product * operand.data[at]);
        });
        out.push(sum);
    });
    out
}

/// The parts that the letters of two operands play in a batched matrix product.
struct Roles {
    batch: Vec<char>,
    left: Vec<char>,
    right: Vec<char>,
    shared: Vec<char>,
}

/// An equation that is a batched matrix product.
fn pairwise<T>(equation: &Equation, operands: &[Operand<'_, T>]) -> Option<Roles> {
    let [a, b] = operands else { return None };
    let pick = |term: &[char], other: bool, output: bool, of: &[char]| -> Vec<char> {
        let fits = |c: &&char| of.contains(c) == other && equation.output.contains(c) == output;
        term.iter().filter(fits).copied().collect()
    };
    let alone = !pick(a.term, false, false, b.term).is_empty() || !pick(b.term, false, false, a.term).is_empty();
    if alone || !distinct(a.term) || !distinct(b.term) {
        return None;
    }
    Some(Roles {
        batch: pick(a.term, true, true, b.term),
        left: pick(a.term, false, true, b.term),
        right: pick(b.term, false, true, a.term),
        shared: pick(a.term, true, false, b.term),
    })
}

fn as_product<T: Real>(
    call: &Call<'_>,
    equation: &Equation,
    operands: Vec<Operand<'_, T>>,
    roles: &Roles,
) -> Result<Vec<T>, OpError> {
    let total = |letters: &[char]| letters.iter().map(|&c| size(c, &operands)).product::<usize>();
    let (batch, m, n, k) = (total(&roles.batch), total(&roles.left), total(&roles.right), total(&roles.shared));
    let made = [roles.batch.as_slice(), &roles.left, &roles.right].concat();
    let made_shape: Vec<usize> = made.iter().map(|&c| size(c, &operands)).collect();
    let mut both = operands.into_iter();
    let (Some(a), Some(b)) = (both.next(), both.next()) else { return Ok(Vec::new()) };
    let a = arranged(&[roles.batch.as_slice(), &roles.left, &roles.shared].concat(), a);
    let b = arranged(&[roles.batch.as_slice(), &roles.right, &roles.shared].concat(), b);
    let (_, out) = product(call.pool, (&[batch, m, k], &a), (&[batch, n, k], &b), [false, true])?;
    Ok(arranged(&equation.output, Operand { term: &made, shape: &made_shape, data: &out }))
}

/// The token axis goes where its letter goes.
fn flow(call: &FlowCall<'_>) -> Vec<Option<Rows>> {
    let answer = || {
        let equation = Equation::of(call.node).ok()?;
        let out = &call.outputs.first()?.shape;
        (0..call.inputs.len()).find_map(|slot| {
            let (space, axis) = call.axis(slot)?;
            let letter = equation.terms.get(slot)?.get(axis)?;
            let to = equation.output.iter().position(|c| c == letter)?;
            Some(Rows::along(space, out, to))
        })
    };
    vec![answer()]
}

/// The equation with the operand's term and the output's exchanged.
fn d_einsum(t: &mut Tape<'_>, c: &VjpCall<'_>) -> Gradients {
    let g = gradient(c)?;
    let equation = Equation::of(c.node)?;
    let text = |term: &[char]| term.iter().collect::<String>();
    let mut grads = vec![None; c.inputs.len()];
    for slot in 0..c.inputs.len() {
        if !wanted(c, slot) {
            continue;
        }
        let term = equation.terms.get(slot).ok_or("its equation has fewer terms than inputs")?;
        let others: Vec<usize> = (0..equation.terms.len()).filter(|&other| other != slot).collect();
        let known = |c: &char| equation.output.contains(c) || others.iter().any(|&o| equation.terms[o].contains(c));
        if !distinct(term) || !term.iter().all(known) {
            return Err(format!("the term `{}` repeats a letter or sums one alone", text(term)));
        }
        let mut left = vec![text(&equation.output)];
        left.extend(others.iter().map(|&o| text(&equation.terms[o])));
        let mut inputs = vec![g];
        inputs.extend(others.iter().map(|&o| c.inputs[o].as_str()));
        let turned = format!("{}->{}", left.join(","), text(term));
        grads[slot] = Some(t.op_with("Einsum", &inputs, &[("equation", Attr::str(&turned))]));
    }
    Ok(grads)
}
