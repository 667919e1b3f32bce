//! Kernels that serve every weight format: they go through `unpack`.

use crate::affine::{Codes, dequantize};
use crate::dense::{Accumulate, Mat, Tiles, gemm_tile};
use crate::error::{Error, check_length};
use crate::format::{Format, Stored};
use crate::pool::Pool;

/// Output channels per panel. It depends on nothing, so that neither does the result; 64 rows of 4096 f32 are 1 MiB.
const PANEL: usize = 64;

/// What [`reference`] is, for a kernel's `about`.
pub(crate) const ABOUT_REFERENCE: &str = "the formula, one output at a time; what the other kernels are judged by";

/// What [`panels`] is, for a kernel's `about`.
pub(crate) const ABOUT_PANELS: &str =
    "unpacks 64 output channels at a time to f32 and calls the dense product; for many rows";

/// The reference: `y = sum_g s_g * (sum_k q * x - z_g * sum_k x) + bias`, in f32, one output at a time.
///
/// `x: [rows, k]`, `w: [n, k]` stored, `bias: [n]`, `y: [rows, n]`. Never optimised: it says what the others must compute.
pub(crate) fn reference(
    format: &Format,
    x: &[f32],
    rows: usize,
    w: &Stored<'_>,
    bias: Option<&[f32]>,
    y: &mut [f32],
) -> Result<(), Error> {
    check(x, rows, w, bias, y)?;
    let Codes { n, k, group, codes, scales, zero_points, .. } = (format.unpack)(w)?;
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
            y[row * n + channel] = sum + bias.map_or(0.0, |bias| bias[channel]);
        }
    }
    Ok(())
}

/// Panels: unpacks [`PANEL`] output channels to f32, multiplies by them with a dense product, and goes on to the next.
///
/// The unpacking is paid once per call, so it wins from a few rows on and nearly reaches the dense product with many.
/// Panels go to threads; `x: [rows, k]`, `w: [n, k]` stored, `bias: [n]`, `y: [rows, n]`.
pub(crate) fn panels(
    format: &Format,
    x: &[f32],
    rows: usize,
    w: &Stored<'_>,
    bias: Option<&[f32]>,
    y: &mut [f32],
    pool: &Pool,
) -> Result<(), Error> {
    check(x, rows, w, bias, y)?;
    // Cheap, and says at once what is wrong with the whole: a panel's lengths are fractions of it.
    w.check(format)?;
    let (n, k) = (w.n, w.k);
    if rows == 0 || n == 0 {
        return Ok(());
    }
    for row in y.chunks_mut(n) {
        match bias {
            Some(bias) => row.copy_from_slice(bias),
            None => row.fill(0.0),
        }
    }
    if k == 0 {
        return Ok(());
    }
    let y = Tiles::new(y, n);
    let panels = pool.map(n.div_ceil(PANEL), |panel| {
        let channels = panel * PANEL..n.min((panel + 1) * PANEL);
        let panel = dequantize(&(format.unpack)(&w.rows(channels.clone()))?);
        let (x, panel) = (Mat::rows(x, k), Mat::rows(&panel, k));
        #[expect(unsafe_code, reason = "threads write disjoint columns of one slice")]
        // SAFETY: panels are disjoint ranges of columns, and no panel is handed out twice.
        unsafe {
            gemm_tile(rows, channels.len(), k, x, panel.t(), &y, (0, channels.start), Accumulate::Add);
        }
        Ok(())
    });
    panels.into_iter().enumerate().try_for_each(|(panel, done)| done.map_err(|error| at_panel(error, panel * PANEL)))
}

/// Moves an error from a panel's rows to the weight's.
fn at_panel(error: Error, start: usize) -> Error {
    match error {
        Error::ZeroPoint { row, group, value, bits } => Error::ZeroPoint { row: row + start, group, value, bits },
        other => other,
    }
}

fn check(x: &[f32], rows: usize, w: &Stored<'_>, bias: Option<&[f32]>, y: &[f32]) -> Result<(), Error> {
    check_length("x", x.len(), rows * w.k)?;
    check_length("y", y.len(), rows * w.n)?;
    bias.map_or(Ok(()), |bias| check_length("the bias", bias.len(), w.n))
}
