//! A product of integers allocates nothing once its buffers have their size, on no thread.

mod support;

use mbqc_kernels::{Epilogue, FORMATS, Pool, Product, Tokens};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};
use support::{Random, codes_of};

/// The system's allocator, counted.
struct Counted;

static COUNT: AtomicUsize = AtomicUsize::new(0);

#[expect(unsafe_code, reason = "an allocator that hands everything on to another")]
// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counted {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller vouches for the layout.
        unsafe { System.alloc(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        COUNT.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller vouches for the block, its layout and the size.
        unsafe { System.realloc(at, layout, size) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller vouches for the block and its layout.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counted = Counted;

#[test]
fn products_allocate_nothing_in_the_steady_state() {
    let (n, k, most_rows) = (200, 512, 24);
    let pool = Pool::new(2);
    let mut random = Random(3);
    let x: Vec<f32> = (0..most_rows * k).map(|_| random.signed()).collect();
    let mut y = vec![0.0; most_rows * n];
    let bias = vec![1.0; n];
    for format in FORMATS {
        let codes = codes_of(format, n, k, 128, 1);
        let packed = (format.pack)(&codes);
        for kernel in format.kernels.iter().filter(|kernel| kernel.name.starts_with("int")) {
            let mut run = |rows: usize| {
                let w = packed.stored(k, codes.group);
                let x = x[..rows * k].into();
                let product = Product { x, rows, w, epilogue: Epilogue::bias(Some(&bias)) };
                (kernel.run)(&product, &mut y[..rows * n], &pool).expect("lengths fit");
            };
            let mut turn = || {
                let before = COUNT.load(Ordering::Relaxed);
                for rows in [1, most_rows, 8, 1, 16, most_rows] {
                    run(rows);
                }
                COUNT.load(Ordering::Relaxed) != before
            };
            turn();
            // Threads take rows to round as they come: the second may get its first ones, and buffers for them, late.
            let allocating = (0..40).filter(|_| turn()).count();
            assert!(allocating <= 1, "{} {}: {allocating} turns of 40", format.name, kernel.name);
        }
    }
    // The count is one of something.
    let before = COUNT.load(Ordering::Relaxed);
    let tokens = Tokens::new(&x, k, &pool);
    assert!(COUNT.load(Ordering::Relaxed) > before && tokens.rows() == most_rows);
}
