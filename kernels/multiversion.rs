//! One body, compiled for several instruction sets, chosen when the program runs.

use crate::isa::{Isa, isa};

/// The instruction sets that bodies are compiled for, each including those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    /// What every machine of the architecture has.
    Baseline,
    /// x86-64 with AVX2.
    Avx2,
    /// x86-64 with AVX-512 F, BW, DQ and VL.
    Avx512,
}

/// The level of the instruction set that kernels use.
#[inline]
pub(crate) fn level() -> Level {
    match isa() {
        Isa::Scalar => Level::Baseline,
        Isa::Avx2 | Isa::AvxVnni => Level::Avx2,
        Isa::Avx512 | Isa::Avx512Vbmi => Level::Avx512,
    }
}

/// Defines a function whose body is compiled for every [`Level`]; the one that [`level`] names is called.
///
/// The versions give identical results: rustc never contracts `a * b + c` on its own, whatever the features, and bodies fix the order of their sums (arrays of lanes), so only the width of the instructions differs.
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
                use crate::multiversion::{Level, level};
                #[target_feature(enable = "avx2")]
                fn avx2($($arg: $ty),*) $(-> $ret)? {
                    body($($arg),*)
                }
                #[target_feature(enable = "avx2,avx512f,avx512bw,avx512dq,avx512vl")]
                fn avx512($($arg: $ty),*) $(-> $ret)? {
                    body($($arg),*)
                }
                match level() {
                    // SAFETY: `level` names an instruction set only if the machine has all of its features.
                    Level::Avx512 => return unsafe { avx512($($arg),*) },
                    // SAFETY: as above.
                    Level::Avx2 => return unsafe { avx2($($arg),*) },
                    Level::Baseline => {}
                }
            }
            body($($arg),*)
        }
    };
}
