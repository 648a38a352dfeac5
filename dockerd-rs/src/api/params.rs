//! Query and form parameters, read the way Docker reads them.

use crate::error::{Error, Result};

/// Parameters of a request: the form body's first, then the query's, so that the body wins (Go's `ParseForm`).
#[derive(Clone, Debug, Default)]
pub struct Params(Vec<(String, String)>);

impl Params {
    /// Parses `a=b&c`. A `;` or a bad escape is refused in Go's words.
    pub fn parse(text: &str) -> Result<Self> {
        let mut pairs = Vec::new();
        for pair in text.split('&') {
            if pair.contains(';') {
                return Err(Error::invalid("invalid semicolon separator in query"));
            }
            if pair.is_empty() {
                continue;
            }
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            pairs.push((unescape(key)?, unescape(value)?));
        }
        Ok(Self(pairs))
    }

    /// These parameters with `others` behind them.
    #[must_use]
    pub fn then(mut self, others: Self) -> Self {
        self.0.extend(others.0);
        self
    }

    /// The first value of `key`.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// The first value of `key`, or the empty string.
    pub fn text(&self, key: &str) -> &str {
        self.get(key).unwrap_or_default()
    }

    /// All values of `key`, in order.
    pub fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// Whether `key` was given, even without a value.
    pub fn has(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    /// Docker's booleans: empty, `0`, `no`, `false` and `none` are false, everything else is true.
    pub fn bool(&self, key: &str) -> bool {
        let value = self.text(key).trim().to_ascii_lowercase();
        !matches!(value.as_str(), "" | "0" | "no" | "false" | "none")
    }

    /// As [`Params::bool`], with an answer for a parameter that was not given.
    pub fn bool_or(&self, key: &str, default: bool) -> bool {
        if self.has(key) { self.bool(key) } else { default }
    }

    /// A whole number, refused in the words of Go's `strconv.Atoi`. Empty or missing is `None`.
    pub fn int(&self, key: &str) -> Result<Option<i64>> {
        match self.text(key) {
            "" => Ok(None),
            text => atoi(text).map(Some),
        }
    }
}

/// Go's `strconv.Atoi`, with its error texts as 400.
pub fn atoi(text: &str) -> Result<i64> {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(Error::invalid(format!("strconv.Atoi: parsing {}: invalid syntax", quote(text))));
    }
    text.parse()
        .map_err(|_| Error::invalid(format!("strconv.Atoi: parsing {}: value out of range", quote(text))))
}

/// A string in Go's `%q` form.
pub fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if (c as u32) < 0x20 || c as u32 == 0x7f => out.push_str(&format!("\\x{:02x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

fn unescape(text: &str) -> Result<String> {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'+' => out.push(b' '),
            b'%' => {
                let hex = bytes.get(at + 1..at + 3).and_then(|hex| {
                    let hex = std::str::from_utf8(hex).ok()?;
                    hex.bytes().all(|b| b.is_ascii_hexdigit()).then_some(())?;
                    u8::from_str_radix(hex, 16).ok()
                });
                let Some(byte) = hex else {
                    let end = text.len().min(at + 3);
                    let shown = String::from_utf8_lossy(&bytes[at..end]);
                    return Err(Error::invalid(format!("invalid URL escape {}", quote(&shown))));
                };
                out.push(byte);
                at += 2;
            }
            byte => out.push(byte),
        }
        at += 1;
    }
    Ok(String::from_utf8_lossy(&out).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn booleans_are_true_unless_they_say_no() {
        let params = Params::parse("a=yes&b=0&c=None&d&e=2&f=%20false+").unwrap();
        let read: Vec<bool> =
            ["a", "b", "c", "d", "e", "f", "g"].iter().map(|key| params.bool(key)).collect();
        assert_eq!(read, [true, false, false, false, true, false, false]);
    }

    #[test]
    fn bad_queries_are_refused_in_gos_words() {
        let message = |text: &str| Params::parse(text).unwrap_err().message().to_owned();
        assert_eq!(message("a=1;b=2"), "invalid semicolon separator in query");
        assert_eq!(message("a=%zz"), "invalid URL escape \"%zz\"");
        assert_eq!(atoi("abc").unwrap_err().message(), "strconv.Atoi: parsing \"abc\": invalid syntax");
        assert_eq!(
            atoi("99999999999999999999").unwrap_err().message(),
            "strconv.Atoi: parsing \"99999999999999999999\": value out of range"
        );
    }
}
