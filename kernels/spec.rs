//! A format and a group size, as written on a command line: `w3g128`.

use crate::error::Error;
use crate::format::{FORMATS, Format};
use std::fmt;
use std::str::FromStr;

/// The group sizes that every format can store.
pub const GROUPS: &[usize] = &[16, 32, 64, 128, 256];

/// A weight format with its group size.
#[derive(Clone, Copy, Debug)]
pub struct Spec {
    /// How weights are stored.
    pub format: &'static Format,
    /// Weights per group along k, one of [`GROUPS`].
    pub group: usize,
}

impl PartialEq for Spec {
    fn eq(&self, other: &Spec) -> bool {
        (self.format.name, self.group) == (other.format.name, other.group)
    }
}

impl Eq for Spec {}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}g{}", self.format.name, self.group)
    }
}

impl FromStr for Spec {
    type Err = Error;

    fn from_str(text: &str) -> Result<Spec, Error> {
        let parse = || {
            let (name, group) = text.split_once('g')?;
            let format = FORMATS.iter().find(|format| format.name == name)?;
            let group = GROUPS.iter().find(|size| size.to_string() == group)?;
            Some(Spec { format, group: *group })
        };
        parse().ok_or_else(|| Error::Spec { text: text.to_owned() })
    }
}

/// The formats' names: `w2, w3, w4, w8`.
pub(crate) fn names() -> String {
    FORMATS.iter().map(|format| format.name).collect::<Vec<_>>().join(", ")
}

/// The group sizes: `16, 32, 64, 128, 256`.
pub(crate) fn groups() -> String {
    GROUPS.iter().map(usize::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_format_and_group_reads_back() {
        for format in FORMATS {
            for &group in GROUPS {
                let text = format!("{}g{group}", format.name);
                let spec: Spec = text.parse().expect("a format of the list");
                assert_eq!((spec.format.name, spec.group, spec.to_string()), (format.name, group, text));
            }
        }
    }

    #[test]
    fn anything_else_names_what_is_possible() {
        for text in ["", "w3", "w3g", "g128", "w5g128", "w3g100", "w3g128 ", "W3g128", "w3g0128", "w3g+128"] {
            let error = text.parse::<Spec>().expect_err(text);
            assert_eq!(
                error.to_string(),
                format!(
                    "`{text}` is not a weight format; write one of w2, w3, w4, w8, \
                     with a group size of 16, 32, 64, 128, 256: w3g128"
                )
            );
        }
    }
}
