//! One body, compiled for several instruction sets, chosen when the program runs.

/// The instruction sets that bodies are compiled for, each including those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Isa {
    /// What every machine of the architecture has.
    Baseline,
    /// x86-64 with AVX2.
    Avx2,
    /// x86-64 with AVX-512 F, BW, DQ and VL.
    Avx512,
}

/// The best instruction set of this machine.
#[inline]
pub(crate) fn isa() -> Isa {
    #[cfg(test)]
    if let Some(forced) = forced::get() {
        return forced.min(detected());
    }
    detected()
}

#[inline]
fn detected() -> Isa {
    #[cfg(target_arch = "x86_64")]
    {
        let avx512 = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl");
        if avx512 && is_x86_feature_detected!("avx2") {
            return Isa::Avx512;
        }
        if is_x86_feature_detected!("avx2") {
            return Isa::Avx2;
        }
    }
    Isa::Baseline
}

/// Defines a function whose body is compiled for every [`Isa`]; the one that [`isa`] names is called.
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
                use crate::multiversion::{Isa, isa};
                #[target_feature(enable = "avx2")]
                fn avx2($($arg: $ty),*) $(-> $ret)? {
                    body($($arg),*)
                }
                #[target_feature(enable = "avx2,avx512f,avx512bw,avx512dq,avx512vl")]
                fn avx512($($arg: $ty),*) $(-> $ret)? {
                    body($($arg),*)
                }
                match isa() {
                    // SAFETY: `isa` names an instruction set only if the machine has all of its features.
                    Isa::Avx512 => return unsafe { avx512($($arg),*) },
                    // SAFETY: as above.
                    Isa::Avx2 => return unsafe { avx2($($arg),*) },
                    Isa::Baseline => {}
                }
            }
            body($($arg),*)
        }
    };
}

/// Lets a test run the versions that the machine would not choose.
#[cfg(test)]
pub(crate) mod forced {
    use super::Isa;
    use std::cell::Cell;

    thread_local! {
        static FORCED: Cell<Option<Isa>> = const { Cell::new(None) };
    }

    pub(super) fn get() -> Option<Isa> {
        FORCED.get()
    }

    /// What `f` answers with each instruction set (capped at what the machine has) on this thread; the first is baseline.
    pub(crate) fn each<T>(f: impl Fn() -> T) -> Vec<(Isa, T)> {
        let run = |isa| {
            FORCED.set(Some(isa));
            let answer = f();
            FORCED.set(None);
            (isa, answer)
        };
        [Isa::Baseline, Isa::Avx2, Isa::Avx512].map(run).into()
    }
}
