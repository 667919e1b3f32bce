//! Stand-in until the pool arrives.

use mbqc_kernels::pool::Pool;

pub(super) fn for_each_chunk<T: Send>(_pool: &Pool, data: &mut [T], chunk: usize, f: impl Fn(usize, &mut [T]) + Sync) {
    data.chunks_mut(chunk).enumerate().for_each(|(i, part)| f(i, part));
}
