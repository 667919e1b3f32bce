//! Characters to words.

use crate::ir::DType;

/// A text that is not a model.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {message}")]
pub struct ParseError {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// What was found and what was expected.
    pub message: String,
}

/// A number as it stands in the text.
#[derive(Clone, Copy, Debug)]
pub(super) struct Number<'a> {
    pub(super) text: &'a str,
    /// It has a decimal point, an exponent, or is not finite.
    pub(super) is_float: bool,
}

/// A position in a text.
#[derive(Clone, Debug)]
pub(super) struct Scanner<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Scanner<'a> {
    pub(super) fn new(text: &'a str) -> Scanner<'a> {
        Scanner { text, at: 0 }
    }

    fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or("")
    }

    /// Skips spaces and comments.
    fn skip(&mut self) {
        loop {
            let rest = self.rest();
            self.at += rest.len() - rest.trim_ascii_start().len();
            if !self.rest().starts_with('#') {
                return;
            }
            self.at = self.rest().find('\n').map_or(self.text.len(), |end| self.at + end);
        }
    }

    /// The next character that counts.
    pub(super) fn peek(&mut self) -> Option<char> {
        self.skip();
        self.rest().chars().next()
    }

    pub(super) fn is_end(&mut self) -> bool {
        self.peek().is_none()
    }

    /// Takes a character if it comes next.
    pub(super) fn matches(&mut self, wanted: char) -> bool {
        let found = self.peek() == Some(wanted);
        if found {
            self.at += wanted.len_utf8();
        }
        found
    }

    /// Takes one character.
    pub(super) fn take(&mut self) {
        self.at += self.peek().map_or(0, char::len_utf8);
    }

    pub(super) fn expect(&mut self, wanted: char) -> Result<(), ParseError> {
        if self.matches(wanted) { Ok(()) } else { Err(self.expected(&format!("`{wanted}`"))) }
    }

    /// Takes `=>`.
    pub(super) fn expect_arrow(&mut self) -> Result<(), ParseError> {
        self.skip();
        if self.rest().starts_with("=>") {
            self.at += 2;
            return Ok(());
        }
        Err(self.expected("`=>`"))
    }

    /// Takes an identifier if one comes next.
    pub(super) fn identifier(&mut self) -> Option<&'a str> {
        self.skip();
        let rest = self.rest();
        let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(rest.len());
        let word = rest.get(..end).filter(|word| is_identifier(word))?;
        self.at += end;
        Some(word)
    }

    /// The identifier that comes next, left where it is.
    pub(super) fn peek_identifier(&mut self) -> Option<&'a str> {
        let start = self.at;
        let word = self.identifier();
        self.at = start;
        word
    }

    /// Takes an identifier or a quoted name if one comes next.
    pub(super) fn optional_name(&mut self) -> Result<Option<String>, ParseError> {
        match self.peek() {
            Some('"') => self.text().map(Some),
            _ => Ok(self.identifier().map(str::to_owned)),
        }
    }

    pub(super) fn name(&mut self) -> Result<String, ParseError> {
        self.optional_name()?.ok_or_else(|| self.expected("a name"))
    }

    /// A quoted string of UTF-8.
    pub(super) fn text(&mut self) -> Result<String, ParseError> {
        let bytes = self.string()?;
        String::from_utf8(bytes).map_err(|_| self.error("the string before this is not UTF-8".to_owned()))
    }

    /// A quoted string.
    pub(super) fn string(&mut self) -> Result<Vec<u8>, ParseError> {
        self.expect('"').map_err(|_| self.expected("a quoted string"))?;
        let open = self.at;
        let mut bytes = Vec::new();
        loop {
            let rest = self.rest();
            let plain = rest.find(['"', '\\']).unwrap_or(rest.len());
            bytes.extend_from_slice(&rest.as_bytes()[..plain]);
            self.at += plain;
            let mut after = self.rest().chars();
            match (after.next(), after.next()) {
                (Some('"'), _) => {
                    self.at += 1;
                    return Ok(bytes);
                }
                (Some(_), Some(escaped)) => {
                    let hex = self.rest().get(2..4).and_then(|hex| u8::from_str_radix(hex, 16).ok());
                    if let ('x', Some(byte)) = (escaped, hex) {
                        bytes.push(byte);
                        self.at += 4;
                    } else {
                        bytes.extend_from_slice(escaped.encode_utf8(&mut [0; 4]).as_bytes());
                        self.at += 1 + escaped.len_utf8();
                    }
                }
                _ => {
                    self.at = open;
                    return Err(self.error("this string has no end".to_owned()));
                }
            }
        }
    }

    /// A number.
    pub(super) fn number(&mut self) -> Result<Number<'a>, ParseError> {
        self.skip();
        let rest = self.rest();
        let digits = rest.strip_prefix('-').unwrap_or(rest);
        let sign = rest.len() - digits.len();
        let word = digits.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(digits.len());
        if is_special(&digits[..word]) {
            self.at += sign + word;
            return Ok(Number { text: &rest[..sign + word], is_float: true });
        }
        let run = |text: &str| text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let mut end = run(digits);
        let mut is_float = false;
        if end > 0 && digits[end..].starts_with('.') {
            is_float = true;
            end += 1 + run(&digits[end + 1..]);
        }
        if end > 0 && digits[end..].starts_with(['e', 'E']) {
            is_float = true;
            let signed = digits[end + 1..].starts_with(['+', '-']);
            end += 1 + usize::from(signed);
            end += run(&digits[end..]);
        }
        if end == 0 {
            return Err(self.expected("a number"));
        }
        self.at += sign + end;
        Ok(Number { text: &rest[..sign + end], is_float })
    }

    /// A whole number.
    pub(super) fn integer(&mut self) -> Result<i64, ParseError> {
        let before = self.clone();
        let number = self.number()?;
        number.text.parse().map_err(|_| before.error(format!("found `{}`, expected a whole number", number.text)))
    }

    /// An error here: this was expected, and something else found.
    pub(super) fn expected(&mut self, what: &str) -> ParseError {
        let found = match self.peek() {
            Some(_) => {
                let rest = self.rest();
                let word: String = rest.chars().take_while(|c| !c.is_whitespace()).take(20).collect();
                format!("`{word}`")
            }
            None => "the end of the text".to_owned(),
        };
        self.error(format!("found {found}, expected {what}"))
    }

    /// An error here.
    pub(super) fn error(&self, message: String) -> ParseError {
        let before = self.text.get(..self.at).unwrap_or(self.text);
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().map_or(0, |last| last.chars().count()) + 1;
        ParseError { line, column, message }
    }
}

/// True for a word the syntax lets stand without quotes.
pub(super) fn is_identifier(word: &str) -> bool {
    word.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && word.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// True for the words that are floats.
pub(super) fn is_special(word: &str) -> bool {
    ["inf", "infinity", "nan"].iter().any(|special| word.eq_ignore_ascii_case(special))
}

/// True for a word that begins a type.
pub(super) fn is_type_word(word: &str) -> bool {
    matches!(word, "seq" | "map" | "optional" | "sparse_tensor" | "opaque") || dtype(word).is_some()
}

/// The element type a word names.
pub(super) fn dtype(word: &str) -> Option<DType> {
    let other = || word.strip_prefix("undefined")?.parse().ok().map(DType::from_onnx);
    DType::from_name(word).or_else(other)
}

/// A name, in quotes unless it can stand without.
pub(super) fn name(text: &str) -> String {
    if is_identifier(text) && !is_type_word(text) && !is_special(text) {
        text.to_owned()
    } else {
        quoted(text.as_bytes())
    }
}

/// A string in quotes.
pub(super) fn quoted(bytes: &[u8]) -> String {
    let mut out = String::from("\"");
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            if matches!(c, '"' | '\\') {
                out.push('\\');
            }
            out.push(c);
        }
        chunk.invalid().iter().for_each(|byte| out.push_str(&format!("\\x{byte:02x}")));
    }
    out.push('"');
    out
}
