//! A format and a group size, as written on a command line: `w3g128`, `w8a8`.

use crate::error::Error;
use crate::format::{FORMATS, Format, Scheme};
use std::fmt;
use std::str::FromStr;

/// The group sizes that every weight-only format can store.
pub const GROUPS: &[usize] = &[16, 32, 64, 128, 256];

/// A weight format with its group size.
#[derive(Clone, Copy, Debug)]
pub struct Spec {
    /// How weights are stored.
    pub format: &'static Format,
    /// Weights per group along k, one of [`GROUPS`]; `None` for formats with a scale per output channel.
    pub group: Option<usize>,
}

impl Spec {
    /// Weights per group of a weight with `k` input channels.
    pub fn group(&self, k: usize) -> usize {
        self.group.unwrap_or(k.max(1))
    }
}

impl PartialEq for Spec {
    fn eq(&self, other: &Spec) -> bool {
        (self.format.name, self.group) == (other.format.name, other.group)
    }
}

impl Eq for Spec {}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.format.name)?;
        self.group.map_or(Ok(()), |group| write!(f, "g{group}"))
    }
}

impl FromStr for Spec {
    type Err = Error;

    fn from_str(text: &str) -> Result<Spec, Error> {
        let of_name = |scheme, name| FORMATS.iter().copied().find(|f| f.scheme == scheme && f.name == name);
        let grouped = || {
            let (name, group) = text.split_once('g')?;
            let group = GROUPS.iter().copied().find(|size| size.to_string() == group)?;
            Some(Spec { format: of_name(Scheme::WeightOnly, name)?, group: Some(group) })
        };
        let whole = || Some(Spec { format: of_name(Scheme::WeightActivation, text)?, group: None });
        grouped().or_else(whole).ok_or_else(|| Error::Spec { text: text.to_owned() })
    }
}

/// The names of the formats of a scheme: `w2, w3, w4, w8`.
pub(crate) fn names(scheme: Scheme) -> String {
    let of_scheme = FORMATS.iter().filter(|format| format.scheme == scheme);
    of_scheme.map(|format| format.name).collect::<Vec<_>>().join(", ")
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
        let grouped = |format: &Format| GROUPS.iter().map(|g| (format!("{}g{g}", format.name), Some(*g))).collect();
        for format in FORMATS {
            let names: Vec<_> = match format.scheme {
                Scheme::WeightOnly => grouped(format),
                Scheme::WeightActivation => vec![(format.name.to_owned(), None)],
            };
            for (text, group) in names {
                let spec: Spec = text.parse().expect("a format of the list");
                assert_eq!((spec.format.name, spec.group, spec.to_string()), (format.name, group, text));
                assert_eq!(spec.group(700), group.unwrap_or(700));
            }
        }
    }

    #[test]
    fn anything_else_names_what_is_possible() {
        for text in ["", "w3", "w3g", "g128", "w5g128", "w3g100", "w3g128 ", "W3g128", "w3g0128", "w3g+128", "w8a8g128"]
        {
            let error = text.parse::<Spec>().expect_err(text);
            assert_eq!(
                error.to_string(),
                format!(
                    "`{text}` is not a weight format; write one of w2, w3, w4, w8 with a group size of 16, 32, 64, 128, 256 \
                     (w3g128), or one of w4a8, w8a8"
                )
            );
        }
    }
}
