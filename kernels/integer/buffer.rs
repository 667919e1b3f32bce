//! Memory that starts at a cache line and is used again.

use std::marker::PhantomData;
use std::slice;

/// A cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// Numbers for which every pattern of bits is one.
///
/// # Safety
///
/// The type has no padding, no invalid pattern of bits, and an alignment of at most 64.
#[expect(unsafe_code, reason = "a promise about the types that implement it")]
pub(crate) unsafe trait Plain: Copy {}

#[expect(unsafe_code, reason = "numbers")]
// SAFETY: a number, alignment 1.
unsafe impl Plain for i8 {}
#[expect(unsafe_code, reason = "numbers")]
// SAFETY: a number, alignment 1.
unsafe impl Plain for u8 {}
#[expect(unsafe_code, reason = "numbers")]
// SAFETY: a number, alignment 4.
unsafe impl Plain for f32 {}

/// A vector of numbers whose first lies at a multiple of 64 bytes. It grows and never shrinks.
#[derive(Default)]
pub(crate) struct Buffer<T> {
    lines: Vec<Line>,
    length: usize,
    numbers: PhantomData<T>,
}

impl<T: Plain> Buffer<T> {
    /// `length` zeros.
    pub(crate) fn zeroed(&mut self, length: usize) -> &mut [T] {
        self.lines.clear();
        self.sized(length)
    }

    /// `length` numbers: what was there before, then zeros.
    pub(crate) fn sized(&mut self, length: usize) -> &mut [T] {
        let lines = (length * size_of::<T>()).div_ceil(64);
        self.lines.resize(self.lines.len().max(lines), Line([0; 64]));
        self.length = length;
        self.as_mut_slice()
    }

    /// The numbers.
    pub(crate) fn as_slice(&self) -> &[T] {
        #[expect(unsafe_code, reason = "bytes seen as numbers")]
        // SAFETY: `sized` made as many lines as `length` numbers need, all initialised; any bits are a number, and a line is
        // aligned for it.
        unsafe {
            slice::from_raw_parts(self.lines.as_ptr().cast(), self.length)
        }
    }

    /// The numbers.
    pub(crate) fn as_mut_slice(&mut self) -> &mut [T] {
        #[expect(unsafe_code, reason = "bytes seen as numbers")]
        // SAFETY: as in `as_slice`; the borrow is exclusive, and any bits that are written are bytes.
        unsafe {
            slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.length)
        }
    }
}
