//! The generic tests of the op table: every row is evaluated against an independent witness, differentiated against
//! finite differences, and its token rows are followed by changing one token at a time.

mod eval;
mod flow;
mod quantized;
mod samples;
mod vjp;
