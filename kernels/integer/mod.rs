//! Products of integers: activations are rounded to signed bytes (one to three to a number), weights stay the codes they are,
//! and sums are exact until a group's scale is applied.
//!
//! ```text
//! y = sum_g s_g t_g (sum_k q p - z_g sum_k p),   x ~ t_g p   (t: scales, p: integers of the activations)
//! ```
//!
//! The parts: [`decode`] says how a format's bytes become registers of codes; [`layout`] cuts rows into tiles and blocks of
//! groups; [`activations`] rounds x and brings it into the order of the tiles; [`small`] multiplies up to 16 rows straight
//! from the stored bytes; [`tall`] unpacks a panel of channels once for many rows. Stored bytes are read where they lie:
//! nothing is rearranged at load, so a mapped weight stays a mapped weight.
//!
//! Every output is computed by one thread, in an order that depends on the shape and the instruction set alone.

mod activations;
mod buffer;
mod channel;
mod decode;
mod epilogue;
mod layout;
mod small;
mod tall;

pub(crate) use decode::Decode;
pub use epilogue::Epilogue;
pub(crate) use layout::{Layout, Weight};

use self::activations::Activations;
use crate::affine::Levels;
use crate::error::Error;
use crate::format::{Format, Product};
use crate::pool::Pool;
use crate::simd;
use std::cell::RefCell;

/// Rows that are multiplied straight from the stored bytes: of a product, or of its last block.
pub(crate) const SMALL: usize = 16;

/// Rows that are rounded before they are multiplied; more of them come in blocks of as many, so that what threads keep does
/// not grow with a prompt. Panels of channels are unpacked once for each block.
const BLOCK: usize = 1024;

/// Least output channels to a thread.
const LEAST_CHANNELS: usize = 16;

thread_local! {
    /// Rounded activations of the thread that asked for a product.
    static ACTIVATIONS: RefCell<Activations> = RefCell::default();
}

/// Whether [`product`] can multiply by weights of this shape.
pub(crate) fn fits<D: Decode>(k: usize, group: usize) -> bool {
    Layout::new::<D>(k, group, simd::width()).is_some()
}

/// The product by a weight whose rows are decoded by `D`. See [`Kernel::run`](crate::format::Kernel::run).
pub(crate) fn product<D: Decode>(
    format: &Format,
    levels: Levels,
    product: &Product<'_>,
    y: &mut [f32],
    pool: &Pool,
) -> Result<(), Error> {
    let &Product { x, rows, w, epilogue } = product;
    x.check(rows, w.k)?;
    let Some(weight) = Weight::new::<D>(format, &w, simd::width())? else {
        return Err(Error::Group { group: w.group });
    };
    let outputs = epilogue.outputs(rows, w.n, y.len())?;
    if rows == 0 || outputs == 0 {
        return Ok(());
    }
    ACTIVATIONS.with_borrow_mut(|activations| {
        (0..rows).step_by(BLOCK).zip(y.chunks_mut(BLOCK * outputs)).try_for_each(|(first, y)| {
            let block = first..rows.min(first + BLOCK);
            let residual = epilogue.residual.map(|residual| &residual[first * outputs..][..y.len()]);
            let epilogue = Epilogue { residual, ..epilogue };
            activations.set::<D>(x, block.clone(), &weight.layout, levels, pool);
            let y = epilogue::Output::new(y, block.len(), w.n, epilogue);
            let failed = std::sync::Mutex::new(None);
            let few = block.len() <= SMALL;
            let step = if few { small::CHANNELS } else { tall::CHANNELS };
            pool.split(outputs, step, LEAST_CHANNELS, |channels| {
                let done = match few {
                    true => simd::run(small::Small::<D>::new(&weight, activations, &y, channels)),
                    false => simd::run(tall::Tall::<D>::new(&weight, activations, &y, channels)),
                };
                if let Err(error) = done {
                    let mut failed = failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                    failed.get_or_insert(error);
                }
            });
            failed.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner).map_or(Ok(()), Err)
        })
    })
}
