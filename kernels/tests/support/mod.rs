//! Numbers for tests.

#![allow(dead_code, unreachable_pub, reason = "each test file uses a part")]

use half::f16;
use mbqc_kernels::affine::Codes;
use mbqc_kernels::{Format, Scheme};

/// xorshift64*: the same numbers for the same seed.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    /// In -1..1.
    pub fn signed(&mut self) -> f32 {
        self.next() as f32 / (1u64 << 47) as f32 - 1.0
    }
}

/// [`codes`] that a format can store: where it has a scale per output channel, `group` plays no part.
pub fn codes_of(format: &Format, n: usize, k: usize, group: usize, seed: u64) -> Codes {
    match format.scheme {
        Scheme::WeightOnly => codes(n, k, group, format.bits, seed),
        Scheme::WeightActivation => {
            let mut codes = codes(n, k, k.max(1), format.bits, seed);
            codes.zero_points.fill(1 << (format.bits - 1));
            codes
        }
    }
}

/// Codes of every value, zero points with 0 and the largest among them, scales over four decades that f16 holds exactly.
pub fn codes(n: usize, k: usize, group: usize, bits: u32, seed: u64) -> Codes {
    let mut random = Random(seed * 2 + 1);
    let groups = n * k.div_ceil(group);
    let top = (1u64 << bits) - 1;
    Codes {
        n,
        k,
        group,
        bits,
        codes: (0..n * k).map(|_| (random.next() & top) as u8).collect(),
        scales: (0..groups).map(|_| f16::from_f32(10f32.powf(random.signed() * 2.0 - 2.0)).to_f32()).collect(),
        zero_points: (0..groups)
            .map(|_| match random.next() % 4 {
                0 => 0,
                1 => top as u8,
                _ => (random.next() & top) as u8,
            })
            .collect(),
    }
}
