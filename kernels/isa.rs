//! Instruction sets: what this machine has, and which one the kernels use.

use crate::error::Error;
use std::cell::Cell;
use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;

/// The environment variable that forces an instruction set.
pub const VARIABLE: &str = "MBQC_ISA";

/// An instruction set that the kernels are compiled for. On x86-64 each includes AVX2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Isa {
    /// What every machine of the architecture has: SSE2 on x86-64, NEON on aarch64 as far as the compiler sees fit.
    Scalar,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// [`Isa::Avx2`] with AVX-VNNI, the dot product of bytes in 256-bit registers.
    AvxVnni,
    /// [`Isa::Avx512`] with VBMI: permutations of bytes bring the planes of 3-bit weights together. Not slower than without
    /// on paper, 5 % slower where it was measured (AMD family 25), so it is only used when it is forced.
    Avx512Vbmi,
    /// x86-64 with AVX-512 F, BW, DQ, VL and VNNI.
    Avx512,
}

impl Isa {
    /// Every set, the best last.
    pub const ALL: [Isa; 5] = [Isa::Scalar, Isa::Avx2, Isa::AvxVnni, Isa::Avx512Vbmi, Isa::Avx512];

    /// The name, as [`VARIABLE`] takes it.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "scalar",
            Isa::Avx2 => "avx2",
            Isa::AvxVnni => "avx-vnni",
            Isa::Avx512 => "avx512",
            Isa::Avx512Vbmi => "avx512-vbmi",
        }
    }

    /// The sets that this machine has, the best last.
    pub fn available() -> impl Iterator<Item = Isa> {
        Isa::ALL.into_iter().filter(|isa| isa.is_available())
    }

    /// Whether this machine has it.
    pub fn is_available(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 =
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
            let avx512 = || {
                is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512vnni")
            };
            match self {
                Isa::Scalar => true,
                Isa::Avx2 => avx2,
                Isa::AvxVnni => avx2 && is_x86_feature_detected!("avxvnni"),
                Isa::Avx512 => avx2 && avx512(),
                Isa::Avx512Vbmi => avx2 && avx512() && is_x86_feature_detected!("avx512vbmi"),
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            self == Isa::Scalar
        }
    }

    /// What [`VARIABLE`] says, if it is set.
    ///
    /// # Errors
    ///
    /// If it names no set, or one that this machine lacks.
    pub fn from_environment() -> Result<Option<Isa>, Error> {
        let Some(value) = std::env::var_os(VARIABLE).filter(|value| !value.is_empty()) else { return Ok(None) };
        value.to_string_lossy().parse().map(Some)
    }

    /// Runs `f` with this set on the calling thread, and on the threads that kernels called by it use.
    ///
    /// # Errors
    ///
    /// If this machine lacks it.
    pub fn with<T>(self, f: impl FnOnce() -> T) -> Result<T, Error> {
        /// Puts the former choice back, also when `f` panics.
        struct Former(Option<Isa>);
        impl Drop for Former {
            fn drop(&mut self) {
                CHOSEN.set(self.0);
            }
        }
        if !self.is_available() {
            return Err(unavailable(self.name()));
        }
        let _former = Former(CHOSEN.replace(Some(self)));
        Ok(f())
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Isa {
    type Err = Error;

    fn from_str(name: &str) -> Result<Isa, Error> {
        Isa::available().find(|isa| isa.name() == name).ok_or_else(|| unavailable(name))
    }
}

fn unavailable(name: &str) -> Error {
    let available: Vec<&str> = Isa::available().map(Isa::name).collect();
    let known = Isa::ALL.iter().any(|isa| isa.name() == name);
    Error::Isa { name: name.to_owned(), known, available: available.join(", ") }
}

thread_local! {
    /// What [`Isa::with`] has chosen.
    static CHOSEN: Cell<Option<Isa>> = const { Cell::new(None) };
}

/// The set that kernels use: what [`Isa::with`] has chosen, else what [`VARIABLE`] names if the machine has it, else the
/// best that the machine has. The variable is read once.
#[inline]
pub fn isa() -> Isa {
    static DEFAULT: OnceLock<Isa> = OnceLock::new();
    CHOSEN.get().unwrap_or_else(|| {
        *DEFAULT.get_or_init(|| {
            let forced = Isa::from_environment().ok().flatten();
            forced.or_else(|| Isa::available().last()).unwrap_or(Isa::Scalar)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_choice_holds_for_as_long_as_it_is_made() {
        let before = isa();
        let within = Isa::Scalar.with(|| (isa(), Isa::available().last().map(|best| best.with(isa))));
        let (scalar, best) = within.expect("every machine has the plain one");
        assert_eq!(scalar, Isa::Scalar);
        assert_eq!(best.and_then(Result::ok), Isa::available().last());
        assert_eq!(isa(), before);
        let panicked = std::panic::catch_unwind(|| Isa::Scalar.with(|| panic!("inside")));
        assert!(panicked.is_err());
        assert_eq!(isa(), before, "the choice ends with a panic, too");
    }

    #[test]
    fn names_read_back_and_others_tell_what_there_is() {
        for isa in Isa::available() {
            assert_eq!(isa.name().parse::<Isa>().ok(), Some(isa));
        }
        let error = "sse9".parse::<Isa>().expect_err("no such set").to_string();
        assert!(error.contains("`sse9`") && error.contains("scalar"), "{error}");
        for isa in Isa::ALL.into_iter().filter(|isa| !isa.is_available()) {
            let error = isa.with(|| ()).expect_err("this machine lacks it").to_string();
            assert!(error.contains(isa.name()) && error.contains("this machine"), "{error}");
        }
    }
}
