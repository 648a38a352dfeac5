//! Reading the filter language: a cursor over characters, one function per rule of the grammar.

use std::fmt;

use containerd_api::error::quote;
use regex_lite::Regex;

use super::{Filter, Selector, Test};

/// Where and why a filter stops making sense.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParseError {
    text: String,
    /// Where the offending piece begins and ends.
    at: std::ops::Range<usize>,
    why: &'static str,
    /// Whether the piece is worth repeating.
    named: bool,
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (before, piece, after) =
            (&self.text[..self.at.start], &self.text[self.at.clone()], &self.text[self.at.end..]);
        if piece.is_empty() {
            return write!(f, "parse error: [{before}]: {}", self.why);
        }
        write!(f, "parse error: [{before} >|{piece}|< {after}]: {}", self.why)?;
        if self.named { write!(f, " {}", quote(piece)) } else { Ok(()) }
    }
}

impl std::error::Error for ParseError {}

/// Which quotes may enclose a value.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Quotes {
    Double,
    /// Also `/` and `|`, which expressions are easier to read in.
    Expression,
}

pub(super) fn filter(text: &str) -> Result<Filter, ParseError> {
    let mut cursor = Cursor { text, at: 0 };
    let mut selectors = Vec::new();
    cursor.skip_space();
    if cursor.peek().is_none() {
        return Ok(Filter(selectors));
    }
    loop {
        selectors.push(selector(&mut cursor)?);
        cursor.skip_space();
        match cursor.peek() {
            None => return Ok(Filter(selectors)),
            Some(',') => cursor.bump(),
            Some(_) => return Err(cursor.fail("expected ',' or the end")),
        }
    }
}

fn selector(cursor: &mut Cursor<'_>) -> Result<Selector, ParseError> {
    let path = path(cursor)?;
    cursor.skip_space();
    let test = match cursor.peek() {
        None | Some(',') => Test::Present,
        Some(_) => match operator(cursor)? {
            "==" => Test::Equal(value(cursor, Quotes::Double)?),
            "!=" => Test::NotEqual(value(cursor, Quotes::Double)?),
            _ => match Regex::new(&value(cursor, Quotes::Expression)?) {
                Ok(expression) => Test::Matches(expression),
                Err(_) => Test::Never,
            },
        },
    };
    Ok(Selector { path, test })
}

fn path(cursor: &mut Cursor<'_>) -> Result<Vec<String>, ParseError> {
    let mut path = vec![field(cursor)?];
    loop {
        cursor.skip_space();
        if cursor.peek() != Some('.') {
            return Ok(path);
        }
        cursor.bump();
        path.push(field(cursor)?);
    }
}

fn field(cursor: &mut Cursor<'_>) -> Result<String, ParseError> {
    cursor.skip_space();
    match cursor.peek() {
        Some('"') => quoted(cursor),
        _ => {
            let name = cursor.take_while(|c| c.is_ascii_alphanumeric() || c == '_');
            if name.is_empty() { Err(cursor.fail("expected field or quoted")) } else { Ok(name.to_owned()) }
        }
    }
}

fn operator<'a>(cursor: &mut Cursor<'a>) -> Result<&'a str, ParseError> {
    let start = cursor.clone();
    let operator = cursor.take_while(|c| matches!(c, '=' | '!' | '~'));
    match operator {
        "==" | "!=" | "~=" => Ok(operator),
        "" => Err(start.fail("expected an operator")),
        _ => Err(ParseError { at: start.at..cursor.at, named: true, ..start.fail("unsupported operator") }),
    }
}

fn value(cursor: &mut Cursor<'_>, quotes: Quotes) -> Result<String, ParseError> {
    cursor.skip_space();
    match cursor.peek() {
        Some('"') => quoted(cursor),
        Some(quote @ ('/' | '|')) if quotes == Quotes::Expression => expression(cursor, quote),
        Some('/' | '|') => Err(cursor.fail("these quotes are for expressions")),
        _ => {
            let value = cursor.take_while(|c| c != ',' && !c.is_whitespace() && !c.is_control());
            if value.is_empty() { Err(cursor.fail("expected value or quoted")) } else { Ok(value.to_owned()) }
        }
    }
}

/// Between `/…/` or `|…|`: only the quote itself is escaped.
fn expression(cursor: &mut Cursor<'_>, quote: char) -> Result<String, ParseError> {
    let start = cursor.clone();
    cursor.bump();
    let mut out = String::new();
    loop {
        match cursor.next() {
            None => return Err(start.fail("quoted literal not terminated")),
            Some(c) if c == quote => return Ok(out),
            Some('\\') => match cursor.next() {
                Some(c) if c == quote => out.push(c),
                Some(c) => out.extend(['\\', c]),
                None => return Err(start.fail("quoted literal not terminated")),
            },
            Some(c) => out.push(c),
        }
    }
}

/// A string as Go writes it.
fn quoted(cursor: &mut Cursor<'_>) -> Result<String, ParseError> {
    let start = cursor.clone();
    cursor.bump();
    // Escapes name bytes as well as characters.
    let mut out = Vec::new();
    let push = |out: &mut Vec<u8>, c: char| out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
    loop {
        match cursor.next() {
            None | Some('\n') => return Err(start.fail("quoted literal not terminated")),
            Some('"') => break,
            Some('\\') => {
                let escape = cursor.next().ok_or_else(|| start.fail("quoted literal not terminated"))?;
                match escape {
                    'a' => out.push(0x07),
                    'b' => out.push(0x08),
                    'f' => out.push(0x0c),
                    'n' => out.push(b'\n'),
                    'r' => out.push(b'\r'),
                    't' => out.push(b'\t'),
                    'v' => out.push(0x0b),
                    '\\' | '"' | '\'' | '/' | '|' => push(&mut out, escape),
                    'x' => out.push(cursor.number(2, 16)? as u8),
                    'u' => push(&mut out, cursor.character(4)?),
                    'U' => push(&mut out, cursor.character(8)?),
                    '0'..='3' => {
                        let high = escape as u32 - '0' as u32;
                        out.push((high * 64 + cursor.number(2, 8)?) as u8);
                    }
                    _ => return Err(cursor.fail("illegal escape sequence")),
                }
            }
            Some(c) => push(&mut out, c),
        }
    }
    String::from_utf8(out).map_err(|_| start.fail("quoted literal is not text"))
}

#[derive(Clone)]
struct Cursor<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Cursor<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn bump(&mut self) {
        self.next();
    }

    fn next(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.at += c.len_utf8();
        Some(c)
    }

    fn skip_space(&mut self) {
        self.take_while(char::is_whitespace);
    }

    fn take_while(&mut self, wanted: impl Fn(char) -> bool) -> &'a str {
        let rest = self.rest();
        let end = rest.find(|c| !wanted(c)).unwrap_or(rest.len());
        self.at += end;
        &rest[..end]
    }

    fn number(&mut self, digits: usize, radix: u32) -> Result<u32, ParseError> {
        let mut value = 0u32;
        for _ in 0..digits {
            let digit = self.peek().and_then(|c| c.to_digit(radix));
            let digit = digit.ok_or_else(|| self.fail("illegal digit in escape sequence"))?;
            value = value.wrapping_mul(radix).wrapping_add(digit);
            self.bump();
        }
        Ok(value)
    }

    fn character(&mut self, digits: usize) -> Result<char, ParseError> {
        let value = self.number(digits, 16)?;
        char::from_u32(value).ok_or_else(|| self.fail("escape sequence is no character"))
    }

    fn fail(&self, why: &'static str) -> ParseError {
        let end = self.at + self.peek().map_or(0, char::len_utf8);
        ParseError { text: self.text.to_owned(), at: self.at..end, why, named: false }
    }
}
