//! How fast memory is read: what a product by a weight that no cache holds cannot beat.

use crate::pool::Pool;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes that are read together: independent of one another, and more than a register of any instruction set.
const TOGETHER: usize = 256;

/// Reads all of `bytes` once, a contiguous part on each thread, and answers a number that depends on every one of them: the
/// exclusive or of all that have the same place modulo 256, in eights.
pub fn read_all(bytes: &[u8], pool: &Pool) -> u64 {
    let (whole, rest) = bytes.as_chunks::<TOGETHER>();
    let mut last = [0; TOGETHER];
    last[..rest.len()].copy_from_slice(rest);
    let all = AtomicU64::new(fold(&last));
    pool.split(whole.len(), 1, 256, |range| {
        let mut lanes = [0; TOGETHER];
        xor(&whole[range], &mut lanes);
        all.fetch_xor(fold(&lanes), Ordering::Relaxed);
    });
    all.into_inner()
}

multiversion! {
    fn xor(chunks: &[[u8; TOGETHER]], lanes: &mut [u8; TOGETHER]) {
        let mut own = *lanes;
        for chunk in chunks {
            for (lane, &byte) in own.iter_mut().zip(chunk) {
                *lane ^= byte;
            }
        }
        *lanes = own;
    }
}

/// The exclusive or of all eights.
fn fold(lanes: &[u8; TOGETHER]) -> u64 {
    lanes.as_chunks::<8>().0.iter().fold(0, |all, &word| all ^ u64::from_ne_bytes(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_is_read() {
        for threads in [1, 3] {
            for length in [0, 1, 255, 256, 1000, 300_001] {
                let mut bytes = vec![0u8; length];
                assert_eq!(read_all(&bytes, &Pool::new(threads)), 0);
                for place in [0, length / 2, length.saturating_sub(1)] {
                    if place < length {
                        bytes[place] ^= 1;
                        let mut word = [0; 8];
                        word[place % 8] = 1;
                        assert_eq!(read_all(&bytes, &Pool::new(threads)), u64::from_ne_bytes(word));
                        bytes[place] ^= 1;
                    }
                }
            }
        }
    }
}
