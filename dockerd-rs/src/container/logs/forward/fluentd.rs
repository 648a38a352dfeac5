//! Fluentd's forward protocol: the driver's options, and messages in MessagePack.

use std::collections::BTreeMap;
use std::time::Duration;

use super::syslog::with_port;
use super::wire::{Address, Tls};
use super::{About, Entry};
use crate::api::params::quote;
use crate::api::times;
use crate::container::logs::options::{parse_bool, parse_size};
use crate::error::{Error, Result};

/// Option names of the driver's own.
pub const NAMES: [&str; 14] = [
    "env",
    "env-regex",
    "labels",
    "labels-regex",
    "tag",
    "fluentd-address",
    "fluentd-async",
    "fluentd-async-reconnect-interval",
    "fluentd-buffer-limit",
    "fluentd-max-retries",
    "fluentd-request-ack",
    "fluentd-retry-wait",
    "fluentd-sub-second-precision",
    "fluentd-write-timeout",
];
const ADDRESS: &str = "tcp://127.0.0.1:24224";
const PORT: &str = "24224";

/// The driver's options. The cache on disk is the buffer, and retries end with the container: `fluentd-buffer-limit` and
/// `fluentd-max-retries` are checked and change nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fluentd {
    /// Where messages go.
    pub address: Address,
    /// Whether a container starts without the target being there.
    pub asynchronous: bool,
    /// Whether the target confirms what it has taken.
    pub acks: bool,
    /// The first pause after a failure.
    pub retry_wait: Option<Duration>,
    /// After which a connection is made anew.
    pub reconnect_interval: Option<Duration>,
    /// How long a write may take.
    pub write_timeout: Option<Duration>,
    nanos: bool,
}

impl Fluentd {
    /// Reads them.
    ///
    /// # Errors
    /// A value that is none, in Docker's words.
    pub fn read(options: &BTreeMap<String, String>) -> Result<Self> {
        let option = |name: &str| options.get(name).map(String::as_str).filter(|text| !text.is_empty());
        let boolean = |name: &str| match option(name) {
            None => Ok(false),
            Some(text) => parse_bool(text).ok_or_else(|| {
                Error::invalid(format!("strconv.ParseBool: parsing {}: invalid syntax", quote(text)))
            }),
        };
        let duration = |name: &str| match option(name) {
            None => Ok(None),
            Some(text) => times::duration(text)
                .and_then(|duration| Duration::try_from(duration).ok())
                .map(Some)
                .ok_or_else(|| Error::invalid(format!("time: invalid duration {}", quote(text)))),
        };
        let address = address(option("fluentd-address").unwrap_or(ADDRESS)).map_err(|why| {
            let given = option("fluentd-address").unwrap_or_default();
            Error::invalid(format!("invalid fluentd-address ({given}): {why}"))
        })?;
        if let Some(text) = option("fluentd-buffer-limit")
            && parse_size(text).is_none()
        {
            return Err(Error::invalid(format!("invalid size: '{text}'")));
        }
        let retry_wait = duration("fluentd-retry-wait")?;
        if let Some(text) = option("fluentd-max-retries")
            && text.parse::<u64>().is_err()
        {
            return Err(Error::invalid(format!(
                "strconv.ParseUint: parsing {}: invalid syntax",
                quote(text)
            )));
        }
        let asynchronous = boolean("fluentd-async")?;
        let context = "invalid value for fluentd-async-reconnect-interval";
        let reconnect_interval =
            duration("fluentd-async-reconnect-interval").map_err(|err| err.context(context))?;
        if let (Some(interval), Some(text)) = (reconnect_interval, option("fluentd-async-reconnect-interval"))
            && !(Duration::from_millis(100)..=Duration::from_secs(10)).contains(&interval)
        {
            return Err(Error::invalid(format!(
                "{context}: value ({}) must be between 100ms and 10s",
                quote(text)
            )));
        }
        let nanos = boolean("fluentd-sub-second-precision")?;
        let acks = boolean("fluentd-request-ack")?;
        let write_timeout = duration("fluentd-write-timeout").map_err(|err| {
            err.context("invalid value for fluentd-write-timeout: value must be a duration")
        })?;
        let write_timeout = write_timeout.filter(|timeout| !timeout.is_zero());
        Ok(Self { address, asynchronous, acks, retry_wait, reconnect_interval, write_timeout, nanos })
    }

    /// Appends the message for `entry`: its tag, its time, the record, and no options.
    pub fn encode(&self, entry: &Entry<'_>, about: &About, out: &mut Vec<u8>) {
        out.push(0x94);
        string(out, about.tag.as_bytes());
        self.time(entry.nanos, out);
        let mut fields: Vec<(&str, &[u8])> = vec![
            ("container_id", about.id.as_bytes()),
            ("container_name", about.slashed_name.as_bytes()),
            ("source", entry.source.name().as_bytes()),
            ("log", entry.line),
        ];
        for (name, value) in &about.extra {
            // As in a map of Go's, a label of the same name stands for what it names.
            match fields.iter_mut().find(|(known, _)| known == name) {
                Some((_, known)) => *known = value.as_bytes(),
                None => fields.push((name, value.as_bytes())),
            }
        }
        let ordinal = entry.part.map(|part| part.ordinal.to_string()).unwrap_or_default();
        if let Some(part) = entry.part {
            fields.push(("partial_message", b"true"));
            fields.push(("partial_id", part.id.as_bytes()));
            fields.push(("partial_ordinal", ordinal.as_bytes()));
            fields.push(("partial_last", if part.last { b"true" } else { b"false" }));
        }
        map(out, fields.len());
        for (name, value) in fields {
            string(out, name.as_bytes());
            string(out, value);
        }
        map(out, 0);
    }

    fn time(&self, nanos: i64, out: &mut Vec<u8>) {
        let (seconds, rest) = (nanos.div_euclid(1_000_000_000), nanos.rem_euclid(1_000_000_000));
        if self.nanos {
            // EventTime: an extension of type 0 and 8 bytes.
            out.extend_from_slice(&[0xd7, 0x00]);
            out.extend_from_slice(&u32::try_from(seconds).unwrap_or(u32::MAX).to_be_bytes());
            out.extend_from_slice(&u32::try_from(rest).unwrap_or(0).to_be_bytes());
        } else if let Ok(seconds) = i32::try_from(seconds) {
            out.push(0xd2);
            out.extend_from_slice(&seconds.to_be_bytes());
        } else {
            out.push(0xd3);
            out.extend_from_slice(&seconds.to_be_bytes());
        }
    }
}

/// Makes the last message of `out` one that the target confirms with `chunk`. It confirms in order, so those before it are confirmed too.
pub fn ask_for_ack(out: &mut Vec<u8>, chunk: &str) {
    // In place of the empty options that end it.
    if out.pop().is_some() {
        map(out, 1);
        string(out, b"chunk");
        string(out, chunk.as_bytes());
    }
}

/// A string, with bytes as the process wrote them.
fn string(out: &mut Vec<u8>, bytes: &[u8]) {
    let length = bytes.len();
    match (u8::try_from(length), u16::try_from(length)) {
        (Ok(short), _) if short < 32 => out.push(0xa0 | short),
        (Ok(short), _) => out.extend_from_slice(&[0xd9, short]),
        (_, Ok(length)) => {
            out.push(0xda);
            out.extend_from_slice(&length.to_be_bytes());
        }
        // Larger than anything a container's record can hold is cut by nobody: 4 GiB is out of reach.
        _ => {
            out.push(0xdb);
            out.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
        }
    }
    out.extend_from_slice(bytes);
}

/// The head of a map of so many pairs.
fn map(out: &mut Vec<u8>, pairs: usize) {
    match u8::try_from(pairs) {
        Ok(few) if few < 16 => out.push(0x80 | few),
        _ => {
            out.push(0xde);
            out.extend_from_slice(&u16::try_from(pairs).unwrap_or(u16::MAX).to_be_bytes());
        }
    }
}

/// An address as the option has it, or what is wrong with it.
fn address(text: &str) -> Result<Address, String> {
    let whole = if text.contains("://") { text.to_owned() } else { format!("tcp://{text}") };
    let (scheme, rest) = whole.split_once("://").unwrap_or_default();
    if let Some(at) = rest.find('%')
        && rest[at + 1..].chars().take(2).filter(char::is_ascii_hexdigit).count() != 2
    {
        let escape: String = rest[at..].chars().take(3).collect();
        return Err(format!("parse {}: invalid URL escape {}", quote(&whole), quote(&escape)));
    }
    match scheme {
        "unix" if rest.is_empty() => Err("path is empty".into()),
        "unix" => Ok(Address::Unix(rest.into())),
        "tcp" | "tls" => {
            let (host, path) = rest.split_once('/').map_or((rest, ""), |(host, path)| (host, path));
            let after_brackets = host.rfind(']').map_or(0, |at| at + 1);
            if let Some((_, port)) = host[after_brackets..].rsplit_once(':') {
                if !port.bytes().all(|digit| digit.is_ascii_digit()) {
                    return Err(format!(
                        "parse {}: invalid port {} after host",
                        quote(&whole),
                        quote(&format!(":{port}"))
                    ));
                }
                if !port.is_empty() && port.parse::<u16>().is_err() {
                    return Err(format!(
                        "invalid port: strconv.ParseUint: parsing {}: value out of range",
                        quote(port)
                    ));
                }
            }
            if !path.is_empty() {
                return Err("should not contain a path element".into());
            }
            let host = with_port(host.trim_end_matches(':'), PORT);
            let host = if host.starts_with(':') { format!("127.0.0.1{host}") } else { host };
            Ok(if scheme == "tcp" { Address::Tcp(host) } else { Address::Tls(host, Tls::default()) })
        }
        other => Err(format!("unsupported scheme: '{other}'")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{about, entry};
    use super::*;
    use crate::container::logs::record::Part;

    fn read(options: &[(&str, &str)]) -> Result<Fluentd> {
        Fluentd::read(&options.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect())
    }

    /// Recorded from the real engine 28.5, with another order of the fields, which it draws by lot.
    #[test]
    fn the_bytes_of_the_real_engine() {
        let encoded = |options: &[(&str, &str)], entry: Entry<'_>| {
            let mut about = about();
            about.extra.clear();
            let mut out = Vec::new();
            read(options).unwrap().encode(&entry, &about, &mut out);
            out
        };
        let id = about().id;
        let head = |fields: u8, time: &[u8]| {
            [
                &[0x94, 0xac][..],
                &id.as_bytes()[..12],
                time,
                &[fields],
                b"\xaccontainer_id\xd9@",
                id.as_bytes(),
            ]
            .concat()
        };
        let seconds = 1_796_141_111_u32.to_be_bytes();
        let plain = [&[0xd2][..], &seconds].concat();
        let rest = b"\xaecontainer_name\xa3/c1\xa6source\xa6stdout\xa3log\xa4\xffbin\x80";
        assert_eq!(encoded(&[], entry(b"\xffbin")), [&head(0x84, &plain)[..], rest].concat());
        let precise = [&[0xd7, 0x00][..], &seconds, &674_992_005_u32.to_be_bytes()].concat();
        let options = [("fluentd-sub-second-precision", "true")];
        assert_eq!(encoded(&options, entry(b"\xffbin")), [&head(0x84, &precise)[..], rest].concat());
        let part = Entry { part: Some(Part { id: "p1", ordinal: 2, last: true }), ..entry(b"") };
        let rest = b"\xaecontainer_name\xa3/c1\xa6source\xa6stdout\xa3log\xa0\xafpartial_message\xa4true\xaapartial_id\xa2p1\xafpartial_ordinal\xa12\xacpartial_last\xa4true\x80";
        let mut out = encoded(&[], part);
        assert_eq!(out, [&head(0x88, &plain)[..], rest].concat());
        ask_for_ack(&mut out, "abc");
        assert!(out.ends_with(b"true\x81\xa5chunk\xa3abc"));
        let long = vec![b'x'; 16384];
        let out = encoded(&[], entry(&long));
        assert_eq!(out[out.len() - 16384 - 4..][..3], [0xda, 0x40, 0x00]);
    }

    #[test]
    fn a_label_can_stand_for_a_field_and_none_is_there_twice() {
        let mut about = about();
        about.extra = vec![("source".into(), "mine".into())];
        let mut out = Vec::new();
        read(&[]).unwrap().encode(&entry(b"x"), &about, &mut out);
        let text = String::from_utf8_lossy(&out).into_owned();
        assert!(text.contains("mine") && !text.contains("stdout"));
        assert_eq!(text.matches("source").count(), 1);
    }

    #[test]
    fn options() {
        let address = |text: &str| read(&[("fluentd-address", text)]).unwrap().address;
        assert_eq!(read(&[]).unwrap().address, Address::Tcp("127.0.0.1:24224".into()));
        assert_eq!(address("h"), Address::Tcp("h:24224".into()));
        assert_eq!(address(":5"), Address::Tcp("127.0.0.1:5".into()));
        assert_eq!(address("[::1]:5"), Address::Tcp("[::1]:5".into()));
        assert_eq!(address("unix:///a/b"), Address::Unix("/a/b".into()));
        // All of these are the real engine's answers.
        for (key, value, text) in [
            ("fluentd-address", "foo://x", "invalid fluentd-address (foo://x): unsupported scheme: 'foo'"),
            (
                "fluentd-address",
                "host:x",
                r#"invalid fluentd-address (host:x): parse "tcp://host:x": invalid port ":x" after host"#,
            ),
            (
                "fluentd-address",
                "tcp://h:1/path",
                "invalid fluentd-address (tcp://h:1/path): should not contain a path element",
            ),
            ("fluentd-address", "unix://", "invalid fluentd-address (unix://): path is empty"),
            (
                "fluentd-address",
                "tcp://h:99999",
                r#"invalid fluentd-address (tcp://h:99999): invalid port: strconv.ParseUint: parsing "99999": value out of range"#,
            ),
            (
                "fluentd-address",
                "%zz",
                r#"invalid fluentd-address (%zz): parse "tcp://%zz": invalid URL escape "%zz""#,
            ),
            ("fluentd-async", "odd", r#"strconv.ParseBool: parsing "odd": invalid syntax"#),
            ("fluentd-buffer-limit", "odd", "invalid size: 'odd'"),
            ("fluentd-retry-wait", "odd", r#"time: invalid duration "odd""#),
            ("fluentd-max-retries", "-1", r#"strconv.ParseUint: parsing "-1": invalid syntax"#),
            ("fluentd-sub-second-precision", "odd", r#"strconv.ParseBool: parsing "odd": invalid syntax"#),
            ("fluentd-request-ack", "odd", r#"strconv.ParseBool: parsing "odd": invalid syntax"#),
            (
                "fluentd-async-reconnect-interval",
                "odd",
                r#"invalid value for fluentd-async-reconnect-interval: time: invalid duration "odd""#,
            ),
            (
                "fluentd-async-reconnect-interval",
                "1ms",
                r#"invalid value for fluentd-async-reconnect-interval: value ("1ms") must be between 100ms and 10s"#,
            ),
            (
                "fluentd-write-timeout",
                "odd",
                r#"invalid value for fluentd-write-timeout: value must be a duration: time: invalid duration "odd""#,
            ),
        ] {
            assert_eq!(read(&[(key, value)]).unwrap_err().message(), text);
        }
    }
}
