//! JSON as Go's `encoding/json` reads it: keys of structures match case-insensitively, the last of two equal keys wins, unknown
//! keys are ignored, invalid UTF-8 becomes U+FFFD, and exactly one document is allowed.

use std::borrow::Cow;
use std::fmt;

use serde::de::{self, DeserializeOwned, DeserializeSeed, IntoDeserializer, Unexpected, Visitor};
use serde_json::Value;

/// How deep a document may nest. Go's limit is 10 000; ours keeps the parser's stack small and is far above what any client sends.
const MAX_DEPTH: usize = 512;
const TRAILING: &str = "unexpected content after JSON";

/// A document that cannot be read, in the words a client of Docker sees.
#[derive(Debug)]
pub struct Error {
    field: String,
    text: String,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Docker checks for this one outside its decoder.
        if self.text == TRAILING {
            return f.write_str(TRAILING);
        }
        f.write_str("invalid JSON: ")?;
        match self.text.strip_prefix("json: cannot unmarshal ") {
            Some(rest) if !self.field.is_empty() => match rest.split_once(" into Go value of type ") {
                Some((what, kind)) => {
                    write!(
                        f,
                        "json: cannot unmarshal {what} into Go struct field {} of type {kind}",
                        self.field
                    )
                }
                None => f.write_str(&self.text),
            },
            _ => f.write_str(&self.text),
        }
    }
}

impl std::error::Error for Error {}

impl de::Error for Error {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self { field: String::new(), text: message.to_string() }
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        let found = match found {
            Unexpected::Bool(_) => "bool",
            Unexpected::Unsigned(_) | Unexpected::Signed(_) | Unexpected::Float(_) => "number",
            Unexpected::Str(_) | Unexpected::Bytes(_) | Unexpected::Char(_) => "string",
            Unexpected::Seq => "array",
            Unexpected::Map => "object",
            _ => "null",
        };
        Self::custom(format!(
            "json: cannot unmarshal {found} into Go value of type {}",
            go_type(&expected.to_string())
        ))
    }
}

/// Rust's description of what was expected, as Go would name the type.
fn go_type(expected: &str) -> String {
    match expected {
        "a string" => "string".into(),
        "a boolean" => "bool".into(),
        "i64" => "int64".into(),
        "i32" => "int".into(),
        "u64" => "uint64".into(),
        "u16" => "uint16".into(),
        "a sequence" => "[]string".into(),
        "a map" => "map[string]string".into(),
        "i128" | "usize" => "int".into(),
        other => {
            other.strip_prefix("struct ").map_or_else(|| other.to_owned(), |name| format!("container.{name}"))
        }
    }
}

/// Reads one document.
///
/// # Errors
/// The text is not one JSON document, or not of the shape of `T`.
pub fn from_slice<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Error> {
    from_value(value(bytes)?)
}

/// Reads a value that was parsed already.
///
/// # Errors
/// The value is not of the shape of `T`.
pub fn from_value<T: DeserializeOwned>(value: Value) -> Result<T, Error> {
    T::deserialize(Loose(value))
}

/// The names of a structure's fields.
pub fn fields_of<T: DeserializeOwned>() -> &'static [&'static str] {
    let mut fields = &[][..];
    // The probe ends the reading as soon as it has been told the names.
    let _ = T::deserialize(Probe(&mut fields));
    fields
}

struct Probe<'a>(&'a mut &'static [&'static str]);

impl<'de> de::Deserializer<'de> for Probe<'_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Error> {
        Err(de::Error::custom("not a structure"))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, Error> {
        *self.0 = fields;
        Err(de::Error::custom("probed"))
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

/// Reads one document without a shape.
///
/// # Errors
/// The text is not one JSON document.
pub fn value(bytes: &[u8]) -> Result<Value, Error> {
    let text = whole_surrogates(String::from_utf8_lossy(bytes));
    if too_deep(&text) {
        return Err(de::Error::custom("exceeded max depth"));
    }
    let mut documents = serde_json::Deserializer::from_str(&text).into_iter::<Value>();
    let value = match documents.next() {
        Some(Ok(value)) => value,
        Some(Err(err)) => return Err(de::Error::custom(syntax_text(&text, &err))),
        None => return Err(de::Error::custom("unexpected end of JSON input")),
    };
    if text[documents.byte_offset()..].trim().is_empty() {
        Ok(value)
    } else {
        Err(Error { field: String::new(), text: TRAILING.into() })
    }
}

/// Escapes of half a character (`\\ud800` without its other half) become U+FFFD, as in Go; a strict parser refuses them.
fn whole_surrogates(text: Cow<'_, str>) -> Cow<'_, str> {
    if !text.contains("\\ud") && !text.contains("\\uD") {
        return text;
    }
    let unit = |at: usize| -> Option<u32> {
        let escape = text.get(at..at + 6)?.strip_prefix("\\u")?;
        u32::from_str_radix(escape, 16).ok()
    };
    let (mut mended, mut at, mut taken) = (String::new(), 0, 0);
    while let Some(found) = text[at..].find('\\') {
        at += found;
        match (unit(at), unit(at + 6)) {
            (Some(0xd800..=0xdbff), Some(0xdc00..=0xdfff)) => at += 12,
            (Some(0xd800..=0xdfff), _) => {
                mended.push_str(&text[taken..at]);
                mended.push_str("\\ufffd");
                at += 6;
                taken = at;
            }
            // The character behind a backslash is never the beginning of another escape.
            _ => at += 1 + text[at + 1..].chars().next().map_or(0, char::len_utf8),
        }
    }
    mended.push_str(&text[taken..]);
    Cow::Owned(mended)
}

fn syntax_text(text: &str, err: &serde_json::Error) -> String {
    if err.is_eof() {
        return "unexpected EOF".into();
    }
    let line_start =
        text.split_inclusive('\n').take(err.line().saturating_sub(1)).map(str::len).sum::<usize>();
    let at = line_start + err.column().saturating_sub(1);
    match text.get(at..).and_then(|rest| rest.chars().next()) {
        Some(c) => {
            let before = text[..at].trim_end().chars().next_back();
            let wanted = match before {
                Some('{') if c != '}' => "looking for beginning of object key string",
                _ => "looking for beginning of value",
            };
            format!("invalid character '{c}' {wanted}")
        }
        None => "unexpected EOF".into(),
    }
}

fn too_deep(text: &str) -> bool {
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    for byte in text.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'[' | b'{' if !in_string => {
                depth += 1;
                if depth > MAX_DEPTH {
                    return true;
                }
            }
            b']' | b'}' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    false
}

macro_rules! numbers {
    ($($method:ident)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            self.or_zero(Value::from(0), visitor)
        }
    )*};
}

/// A value whose structures take their keys in any case, and whose `null` is the zero value of whatever is expected.
struct Loose(Value);

impl Loose {
    /// Reads `null` as `zero`.
    fn or_zero<'de, V: Visitor<'de>>(self, zero: Value, visitor: V) -> Result<V::Value, Error> {
        let value = if self.0.is_null() { zero } else { self.0 };
        de::Deserializer::deserialize_any(Self(value), visitor)
    }
}

impl<'de> de::Deserializer<'de> for Loose {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Null => visitor.visit_unit(),
            Value::Bool(b) => visitor.visit_bool(b),
            Value::Number(n) => {
                if let Some(n) = n.as_u64() {
                    visitor.visit_u64(n)
                } else if let Some(n) = n.as_i64() {
                    visitor.visit_i64(n)
                } else {
                    visitor.visit_f64(n.as_f64().unwrap_or(f64::NAN))
                }
            }
            Value::String(s) => visitor.visit_string(s),
            Value::Array(items) => visitor.visit_seq(Seq(items.into_iter())),
            Value::Object(map) => {
                visitor.visit_map(Map { fields: None, entries: map.into_iter(), value: None })
            }
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.0.is_null() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match self.0 {
            Value::Object(map) => {
                // The last of several spellings wins: earlier ones are dropped, or serde would call them duplicates.
                let mut seen: Vec<(String, Value)> = Vec::with_capacity(map.len());
                for (key, value) in map {
                    let key =
                        fields.iter().find(|f| f.eq_ignore_ascii_case(&key)).map_or(key, |f| (*f).to_owned());
                    match seen.iter_mut().find(|(name, _)| *name == key) {
                        Some(slot) => slot.1 = value,
                        None => seen.push((key, value)),
                    }
                }
                let entries: serde_json::Map<String, Value> = seen.into_iter().collect();
                visitor.visit_map(Map { fields: Some(fields), entries: entries.into_iter(), value: None })
            }
            Value::Null => visitor.visit_map(Map {
                fields: Some(fields),
                entries: serde_json::Map::new().into_iter(),
                value: None,
            }),
            // serde's structures could be read from a list too; JSON's cannot.
            Value::Array(_) => Err(de::Error::invalid_type(Unexpected::Seq, &visitor)),
            other => Self(other).deserialize_any(visitor),
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.or_zero(Value::Bool(false), visitor)
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.or_zero(Value::String(String::new()), visitor)
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.or_zero(Value::String(String::new()), visitor)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.or_zero(Value::Array(Vec::new()), visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.or_zero(Value::Object(serde_json::Map::new()), visitor)
    }

    numbers! {
        deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64
        deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64 deserialize_f32 deserialize_f64
    }

    /// Go fills an array of fixed length as far as the document goes.
    fn deserialize_tuple<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Array(mut items) => {
                items.resize(len, Value::Null);
                visitor.visit_seq(Seq(items.into_iter()))
            }
            other => Self(other).or_zero(Value::Array(vec![Value::Null; len]), visitor),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        de::Deserializer::deserialize_enum(self.0, name, variants, visitor).map_err(de::Error::custom)
    }

    serde::forward_to_deserialize_any! {
        i128 u128 char bytes byte_buf unit unit_struct tuple_struct identifier ignored_any
    }
}

struct Seq(std::vec::IntoIter<Value>);

impl<'de> de::SeqAccess<'de> for Seq {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Error> {
        self.0.next().map(|value| seed.deserialize(Loose(value))).transpose()
    }
}

struct Map {
    fields: Option<&'static [&'static str]>,
    entries: serde_json::map::IntoIter,
    value: Option<(String, Value)>,
}

impl<'de> de::MapAccess<'de> for Map {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        let Some((key, value)) = self.entries.next() else { return Ok(None) };
        self.value = Some((key.clone(), value));
        seed.deserialize(key.into_deserializer()).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        let Some((key, value)) = self.value.take() else {
            return Err(de::Error::custom("value without a key"));
        };
        let known = self.fields.is_some();
        seed.deserialize(Loose(value)).map_err(|mut err| {
            if known {
                err.field = format!(".{key}{}", err.field);
            }
            err
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(rename_all = "PascalCase", default)]
    #[derive(Default)]
    struct Config {
        image: String,
        cmd: Option<Vec<String>>,
        memory: i64,
    }

    #[test]
    fn keys_match_in_any_case_and_the_last_wins() {
        let read: Config = from_slice(br#"{"image":"a","IMAGE":"b","CMD":["x"],"bogus":{"a":[1]}}"#).unwrap();
        assert_eq!(read, Config { image: "b".into(), cmd: Some(vec!["x".into()]), memory: 0 });
    }

    #[test]
    fn errors_read_like_gos() {
        let text = |json: &str| from_slice::<Config>(json.as_bytes()).unwrap_err().to_string();
        assert_eq!(
            text(r#"{"Memory":"x"}"#),
            "invalid JSON: json: cannot unmarshal string into Go struct field .Memory of type int64"
        );
        assert_eq!(text(r#"{"a":1} {"b":2}"#), "unexpected content after JSON");
        assert_eq!(text(r#"{"a":"#), "invalid JSON: unexpected EOF");
        assert_eq!(text(&"[".repeat(20_000)), "invalid JSON: exceeded max depth");
    }

    #[test]
    fn half_a_character_is_replaced() {
        let read = |text: &str| from_slice::<String>(text.as_bytes()).unwrap();
        assert_eq!(read(r#""a\ud800b""#), "a\u{fffd}b");
        assert_eq!(read(r#""\udc00\ud800""#), "\u{fffd}\u{fffd}");
        assert_eq!(read(r#""\uD83D\uDE00""#), "\u{1f600}");
        assert_eq!(read(r#""\\ud800""#), "\\ud800");
        assert!(from_slice::<String>(br#""\ud8""#).is_err());
    }
}
