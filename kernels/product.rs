//! Kernels that serve every weight format: they go through `unpack`.

use crate::affine::{Codes, dequantize};
use crate::dense::{Accumulate, Mat, Tiles, gemm_tile};
use crate::error::Error;
use crate::format::{Format, Product};
use crate::pool::Pool;

/// Output channels per panel. It depends on nothing, so that neither does the result; 64 rows of 4096 f32 are 1 MiB.
const PANEL: usize = 64;

/// The reference: `y = sum_g s_g * (sum_k q * x - z_g * sum_k x) + bias`, in f32, one output at a time.
///
/// Never optimised: it says what the others must compute.
pub(crate) fn reference(format: &Format, product: &Product<'_>, y: &mut [f32]) -> Result<(), Error> {
    let &Product { x, rows, w, .. } = product;
    let mut v = check(product, y)?;
    let x = x.to_f32();
    let Codes { n, k, group, codes, scales, zero_points, .. } = (format.unpack)(&w)?;
    let groups = k.div_ceil(group);
    for row in 0..rows {
        for channel in 0..n {
            let mut sum = 0.0f32;
            for g in 0..groups {
                let (mut sum_qx, mut sum_x) = (0.0f32, 0.0f32);
                for i in g * group..k.min((g + 1) * group) {
                    let x = x[row * k + i];
                    sum_qx += f32::from(codes[channel * k + i]) * x;
                    sum_x += x;
                }
                let place = channel * groups + g;
                sum += scales[place] * (sum_qx - f32::from(zero_points[place]) * sum_x);
            }
            v[row * n + channel] = sum;
        }
    }
    product.epilogue.apply(&v, rows, n, y)
}

/// Panels: unpacks [`PANEL`] output channels to f32, multiplies by them with a dense product, and goes on to the next.
///
/// The unpacking is paid once per call, so it nearly reaches the dense product with many rows and is slow with few. Panels go
/// to threads.
pub(crate) fn panels(format: &Format, product: &Product<'_>, y: &mut [f32], pool: &Pool) -> Result<(), Error> {
    let &Product { x, rows, w, .. } = product;
    let mut v = check(product, y)?;
    // Cheap, and says at once what is wrong with the whole: a panel's lengths are fractions of it.
    w.check(format)?;
    let (n, k) = (w.n, w.k);
    if rows != 0 && n != 0 && k != 0 {
        let x = &*x.to_f32();
        let v = Tiles::new(&mut v, n);
        let panels = pool.map(n.div_ceil(PANEL), |panel| {
            let channels = panel * PANEL..n.min((panel + 1) * PANEL);
            let panel = dequantize(&(format.unpack)(&w.rows(channels.clone()))?);
            let (x, panel) = (Mat::rows(x, k), Mat::rows(&panel, k));
            #[expect(unsafe_code, reason = "threads write disjoint columns of one slice")]
            // SAFETY: panels are disjoint ranges of columns, and no panel is handed out twice.
            unsafe {
                gemm_tile(rows, channels.len(), k, x, panel.t(), &v, (0, channels.start), Accumulate::Replace);
            }
            Ok(())
        });
        let at = |(panel, done): (usize, Result<(), Error>)| done.map_err(|error| error.below(panel * PANEL));
        panels.into_iter().enumerate().try_for_each(at)?;
    }
    product.epilogue.apply(&v, rows, n, y)
}

/// Checks the lengths of all but the weight's parts, and answers room for `[rows, n]`.
fn check(product: &Product<'_>, y: &[f32]) -> Result<Vec<f32>, Error> {
    let Product { x, rows, w, epilogue } = product;
    x.check(*rows, w.k)?;
    epilogue.outputs(*rows, w.n, y.len())?;
    Ok(vec![0.0; rows * w.n])
}

/// The kernels of a weight-only format: those of this file, and the two of integers for group sizes that `$decode` maps to a
/// type.
macro_rules! kernels {
    ($format:ident, $($group:pat => $decode:ty),+ $(,)?) => {{
        fn fits(k: usize, group: usize) -> bool {
            match group {
                $($group => crate::integer::fits::<$decode>(k, group),)+
                #[allow(unreachable_patterns, reason = "one type may serve every group size")]
                _ => false,
            }
        }
        fn integer(levels: Levels, product: &Product<'_>, y: &mut [f32], pool: &Pool) -> Result<(), Error> {
            match product.w.group {
                $($group => crate::integer::product::<$decode>(&$format, levels, product, y, pool),)+
                #[allow(unreachable_patterns, reason = "one type may serve every group size")]
                group => Err(Error::Group { group }),
            }
        }
        &[
            Kernel {
                name: "reference",
                about: "the formula, one output at a time; what the other kernels are judged by",
                accuracy: Accuracy::Single,
                fits: |_, _| true,
                run: |product, y, _| product::reference(&$format, product, y),
            },
            Kernel {
                name: "panels",
                about: "unpacks 64 output channels at a time to f32 and calls the dense product",
                accuracy: Accuracy::Single,
                fits: |_, _| true,
                run: |product, y, pool| product::panels(&$format, product, y, pool),
            },
            Kernel {
                name: "int16",
                about: "activations of 16 bits as two signed bytes, and a third for outliers; codes are multiplied as they are stored",
                accuracy: Accuracy::Int16,
                fits,
                run: |product, y, pool| integer(Levels::Int16, product, y, pool),
            },
            Kernel {
                name: "int8",
                about: "activations of 8 bits; codes are multiplied as they are stored",
                accuracy: Accuracy::Int8,
                fits,
                run: |product, y, pool| integer(Levels::Int8, product, y, pool),
            },
        ]
    }};
}
pub(crate) use kernels;
