//! Small values that several types share: ports, addresses, times, and how Go leaves out what is zero.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// What Go prints for a time that was never set.
pub const ZERO_TIME: &str = "0001-01-01T00:00:00Z";

/// Whether a field is at its zero value: the condition of Go's `omitempty`.
pub fn is_zero<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Whether a list or map is missing or empty: `omitempty` on a slice or map.
pub fn is_empty<T: IsEmpty>(value: &Option<T>) -> bool {
    value.as_ref().is_none_or(IsEmpty::is_empty)
}

/// Collections [`is_empty`] can ask.
pub trait IsEmpty {
    /// Whether there is nothing in it.
    fn is_empty(&self) -> bool;
}

impl<T> IsEmpty for Vec<T> {
    fn is_empty(&self) -> bool {
        self.is_empty()
    }
}

impl<K, V> IsEmpty for std::collections::BTreeMap<K, V> {
    fn is_empty(&self) -> bool {
        self.is_empty()
    }
}

/// The `{}` of sets (`ExposedPorts`, `Volumes`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Empty;

impl Serialize for Empty {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeMap;
        serializer.serialize_map(Some(0))?.end()
    }
}

impl<'de> Deserialize<'de> for Empty {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        de::IgnoredAny::deserialize(deserializer).map(|_| Self)
    }
}

/// A container port and its protocol: `80/tcp`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Port {
    /// The number. 0 asks for any.
    pub number: u16,
    /// The protocol in lower case: `tcp`, `udp`, `sctp`; others can be recorded but not published.
    pub proto: String,
}

impl Port {
    /// A port of protocol `proto`.
    pub fn new(number: u16, proto: &str) -> Self {
        Self { number, proto: proto.to_ascii_lowercase() }
    }
}

impl FromStr for Port {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("invalid port: value is empty".into());
        }
        let (number, proto) = text.split_once('/').unwrap_or((text, "tcp"));
        let proto = if proto.is_empty() { "tcp" } else { proto };
        if number.is_empty() || !number.bytes().all(|b| b.is_ascii_digit()) {
            return Err(format!("invalid port '{number}': invalid syntax"));
        }
        let number = number.parse().map_err(|_| format!("invalid port '{number}': value out of range"))?;
        Ok(Self::new(number, proto))
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.number, self.proto)
    }
}

/// An IP address that may be absent, which is the empty string (Go's `netip.Addr`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Addr(pub Option<IpAddr>);

impl Addr {
    /// Whether there is none.
    pub fn is_none(&self) -> bool {
        self.0.is_none()
    }
}

impl From<IpAddr> for Addr {
    fn from(address: IpAddr) -> Self {
        Self(Some(address))
    }
}

impl FromStr for Addr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Ok(Self(None));
        }
        // A zone is the interface's business, not the engine's: it is cut off.
        let bare = if text.contains(':') { text.split('%').next().unwrap_or(text) } else { text };
        bare.parse().map(|address| Self(Some(address))).map_err(|_| {
            let quoted = format!("{text:?}");
            format!("ParseAddr({quoted}): {}", why_no_address(text))
        })
    }
}

/// The reason Go's `netip.ParseAddr` gives.
fn why_no_address(text: &str) -> String {
    match text.find(['.', ':', '%']).map(|at| text.as_bytes()[at]) {
        Some(b'.') => why_no_v4(text),
        Some(b':') => "unable to parse IP".into(),
        Some(_) => "missing IPv6 address".into(),
        None => "unable to parse IP".into(),
    }
}

fn why_no_v4(text: &str) -> String {
    if let Some(at) = text.find(|c: char| !c.is_ascii_digit() && c != '.') {
        return format!("unexpected character (at {:?})", &text[at..]);
    }
    let fields: Vec<&str> = text.split('.').collect();
    for (nth, field) in fields.iter().enumerate() {
        if nth > 3 {
            return "IPv4 address too long".into();
        }
        if field.is_empty() {
            let rest = fields[nth..].join(".");
            return format!("IPv4 field must have at least one digit (at {rest:?})");
        }
        if field.len() > 1 && field.starts_with('0') {
            return "IPv4 field has octet with leading zero".into();
        }
        if field.parse::<u8>().is_err() {
            return "IPv4 field has value >255".into();
        }
    }
    "IPv4 address too short".into()
}

impl fmt::Display for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(address) => address.fmt(f),
            None => Ok(()),
        }
    }
}

/// A hardware address that may be absent, which is the empty string.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddress(pub Option<[u8; 6]>);

impl MacAddress {
    /// Whether there is none.
    pub fn is_none(&self) -> bool {
        self.0.is_none()
    }
}

impl FromStr for MacAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Ok(Self(None));
        }
        let invalid = || format!("address {text}: invalid MAC address");
        let digits: String = if text.contains('.') && text.len() == 14 {
            text.split('.').collect()
        } else {
            let separator = if text.contains('-') { '-' } else { ':' };
            let parts: Vec<&str> = text.split(separator).collect();
            if parts.len() != 6 || parts.iter().any(|part| part.len() != 2) {
                return Err(invalid());
            }
            parts.concat()
        };
        let mut octets = [0_u8; 6];
        if digits.len() != 12 || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(invalid());
        }
        for (nth, octet) in octets.iter_mut().enumerate() {
            *octet = u8::from_str_radix(&digits[nth * 2..nth * 2 + 2], 16).map_err(|_| invalid())?;
        }
        Ok(Self(Some(octets)))
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some([a, b, c, d, e, g]) = self.0 else { return Ok(()) };
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

macro_rules! as_text {
    ($($kind:ty),*) => {$(
        impl Serialize for $kind {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $kind {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
            }
        }
    )*};
}
as_text!(Port, Addr, MacAddress);

/// A time that may never have been: absent is Go's zero time. For `#[serde(with = "docker_api::common::time")]`.
pub mod time {
    use super::{Deserialize, Deserializer, Serializer, Timestamp, ZERO_TIME, de};

    /// Writes the time, or Go's zero time.
    ///
    /// # Errors
    /// The serializer's.
    pub fn serialize<S: Serializer>(time: &Option<Timestamp>, serializer: S) -> Result<S::Ok, S::Error> {
        match time {
            Some(time) => serializer.collect_str(time),
            None => serializer.serialize_str(ZERO_TIME),
        }
    }

    /// Reads a time; the empty string and Go's zero time are absent.
    ///
    /// # Errors
    /// The text is no RFC 3339 time.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Timestamp>, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text.is_empty() || text == ZERO_TIME {
            return Ok(None);
        }
        text.parse().map(Some).map_err(de::Error::custom)
    }
}

/// Any form of a list of words: `null`, a list, or (as engines up to 28 took it) a single word.
pub mod words {
    use std::fmt;

    use super::{Deserializer, de};

    /// Reads the list.
    ///
    /// # Errors
    /// The value is neither.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<String>>, D::Error> {
        deserializer.deserialize_any(Words)
    }

    struct Words;

    impl<'de> de::Visitor<'de> for Words {
        type Value = Option<Vec<String>>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a sequence")
        }

        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_none<E>(self) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_str<E: de::Error>(self, word: &str) -> Result<Self::Value, E> {
            Ok(Some(vec![word.to_owned()]))
        }

        fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
            let mut words = Vec::new();
            while let Some(word) = seq.next_element()? {
                words.push(word);
            }
            Ok(Some(words))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read_as_go_reads_them() {
        assert_eq!("80".parse(), Ok(Port::new(80, "tcp")));
        assert_eq!("53/UDP".parse(), Ok(Port::new(53, "udp")));
        assert_eq!("80-82/tcp".parse::<Port>().unwrap_err(), "invalid port '80-82': invalid syntax");
        assert_eq!("99999/tcp".parse::<Port>().unwrap_err(), "invalid port '99999': value out of range");
    }

    #[test]
    fn addresses_fail_in_gos_words() {
        let why = |text: &str| text.parse::<Addr>().unwrap_err();
        assert_eq!(why("notanip"), "ParseAddr(\"notanip\"): unable to parse IP");
        assert_eq!(why("1.2.3"), "ParseAddr(\"1.2.3\"): IPv4 address too short");
        assert_eq!(why("1.2.3.400"), "ParseAddr(\"1.2.3.400\"): IPv4 field has value >255");
        assert_eq!("".parse(), Ok(Addr(None)));
        assert_eq!("fe80::1%eth0".parse::<Addr>().unwrap().to_string(), "fe80::1");
    }

    #[test]
    fn hardware_addresses_are_normalised() {
        assert_eq!("02-42-AC-11-00-01".parse::<MacAddress>().unwrap().to_string(), "02:42:ac:11:00:01");
        assert_eq!("zz".parse::<MacAddress>().unwrap_err(), "address zz: invalid MAC address");
    }
}
