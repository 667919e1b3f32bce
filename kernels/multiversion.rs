//! One body, compiled for several instruction sets, chosen when the program runs.

/// Defines a function whose body is compiled for baseline x86-64, AVX2 and AVX-512; the best one that the machine has is
/// called. On other architectures there is the plain body only.
///
/// The versions give identical results: none of the feature lists contains `fma`, rustc never contracts `a * b + c` on its
/// own, and bodies fix the order of their sums (arrays of lanes), so only the width of the instructions differs.
/// Functions that the body calls must be `#[inline(always)]`, or they stay at baseline.
macro_rules! multiversion {
    ($(#[$attr:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$attr])*
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn body($($arg: $ty),*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            #[expect(unsafe_code, reason = "a function with target features may be called once the machine is known to have them")]
            {
                #[target_feature(enable = "avx2")]
                fn avx2($($arg: $ty),*) $(-> $ret)? {
                    body($($arg),*)
                }
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
                fn avx512($($arg: $ty),*) $(-> $ret)? {
                    body($($arg),*)
                }
                if is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                {
                    // SAFETY: the four features of `avx512` were detected on the line above.
                    return unsafe { avx512($($arg),*) };
                }
                if is_x86_feature_detected!("avx2") {
                    // SAFETY: the feature of `avx2` was detected on the line above.
                    return unsafe { avx2($($arg),*) };
                }
            }
            body($($arg),*)
        }
    };
}
