//! What the formats of weights and activations share: rows of symmetric codes with one scale, and the product that rounds
//! activations.
//!
//! Codes are stored as they are ([`quantize_symmetric`](crate::affine::quantize_symmetric)), the signed weight plus
//! `2^(bits-1)`: what multiplies unsigned by signed bytes takes them without a step more, and so does a `MatMulInteger` with a
//! zero point.

use crate::affine::Codes;
use crate::error::{Error, length};
use crate::format::{Format, Packed, Product, Stored};
use crate::matmul_nbits::{pack_bits, unpack_bits};
use crate::pool::Pool;
use crate::tokens::{Input, Tokens};

/// The zero point of all rows.
fn zero_point(format: &Format) -> u8 {
    1 << (format.bits - 1)
}

/// Packs rows of codes, the first in the lowest bits; every row starts at a byte.
///
/// # Panics
///
/// If the codes are not of this format, their lengths do not fit, a scale is not that of a row, or they are not symmetric.
pub(crate) fn pack(format: &Format, codes: &Codes) -> Packed {
    let &Codes { n, k, group, bits, .. } = codes;
    let zero = zero_point(format);
    assert_eq!(bits, format.bits, "{} stores codes of {} bits", format.name, format.bits);
    assert_eq!(group, k.max(1), "{} has a scale per output channel", format.name);
    assert!(
        codes.zero_points.iter().all(|&found| found == zero),
        "{} has no other zero point than {zero}",
        format.name
    );
    codes.check().expect("the codes are as long as their shape says");

    let shapes = format.shapes(n, k, group);
    let mut b = vec![0; length(&shapes.b)];
    for (codes, out) in codes.codes.chunks(k.max(1)).zip(b.chunks_mut(shapes.b[1].max(1))) {
        pack_bits(bits, codes, out);
    }
    let scales = if k == 0 { vec![0.0; n] } else { codes.scales.clone() };
    Packed { shapes, b, zero_points: Vec::new(), scales }
}

/// Unpacks rows of codes.
///
/// # Errors
///
/// If the lengths do not fit.
pub(crate) fn unpack(format: &Format, stored: &Stored<'_>) -> Result<Codes, Error> {
    stored.check(format)?;
    let &Stored { n, k, group, .. } = stored;
    let bits = format.bits;
    if k == 0 {
        let (codes, scales, zero_points) = (Vec::new(), Vec::new(), Vec::new());
        return Ok(Codes { n, k, group, bits, codes, scales, zero_points });
    }
    let mut codes = vec![0; n * k];
    for (codes, packed) in codes.chunks_mut(k).zip(stored.b.chunks(format.shapes(n, k, group).b[1])) {
        unpack_bits(bits, packed, codes);
    }
    Ok(Codes { n, k, group, bits, codes, scales: stored.scales.to_f32(), zero_points: vec![zero_point(format); n] })
}

/// The reference: [`Scheme::WeightActivation`](crate::format::Scheme::WeightActivation), one output at a time, with exact
/// sums.
///
/// Never optimised: it says what the others must compute.
pub(crate) fn reference(format: &Format, product: &Product<'_>, y: &mut [f32]) -> Result<(), Error> {
    let &Product { x, rows, w, epilogue } = product;
    x.check(rows, w.k)?;
    epilogue.outputs(rows, w.n, y.len())?;
    let Codes { n, k, codes, scales, zero_points, .. } = unpack(format, &w)?;
    let own;
    let tokens = match x {
        Input::Tokens(tokens) => tokens,
        Input::F32(x) => {
            own = Tokens::new(x, k, &Pool::single());
            &own
        }
    };
    let mut v = vec![0.0; rows * n];
    let rounded = tokens.codes().chunks(k.max(1)).zip(tokens.scales());
    for ((rounded, scale), v) in rounded.zip(v.chunks_mut(n.max(1))) {
        let weights = codes.chunks(k.max(1)).zip(scales.iter().zip(&zero_points));
        for (v, (codes, (own, &zero))) in v.iter_mut().zip(weights) {
            let term = |(&code, &p): (&u8, &i8)| (i64::from(code) - i64::from(zero)) * i64::from(p);
            let sum: i64 = codes.iter().zip(rounded).map(term).sum();
            *v = sum as f32 * (own * scale);
        }
    }
    epilogue.apply(&v, rows, n, y)
}

/// The kernels of a format of weights and activations, decoded by `$decode`.
macro_rules! kernels {
    ($format:ident, $decode:ty) => {
        &[
            Kernel {
                name: "reference",
                about: "the formula, one output at a time; what the other kernel is judged by",
                accuracy: Accuracy::Single,
                fits: |_, _| true,
                run: |product, y, _| symmetric::reference(&$format, product, y),
            },
            Kernel {
                name: "int8",
                about: "exact sums of products of signed bytes; codes are multiplied as they are stored",
                accuracy: Accuracy::Single,
                fits: |k, group| k == group && integer::fits::<$decode>(k, group),
                run: |product, y, pool| integer::product::<$decode>(&$format, Levels::Token, product, y, pool),
            },
        ]
    };
}
pub(crate) use kernels;
