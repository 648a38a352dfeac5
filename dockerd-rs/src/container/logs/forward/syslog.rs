//! Syslog: the driver's options, and the messages in each of its formats.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::wire::{Address, Tls};
use super::{About, Entry};
use crate::container::logs::options::parse_bool;
use crate::container::logs::record::Source;
use crate::error::{Error, Result, sys_text};

/// Option names of the driver's own.
pub const NAMES: [&str; 12] = [
    "env",
    "env-regex",
    "labels",
    "labels-regex",
    "tag",
    "syslog-address",
    "syslog-facility",
    "syslog-format",
    "syslog-tls-ca-cert",
    "syslog-tls-cert",
    "syslog-tls-key",
    "syslog-tls-skip-verify",
];
/// The facilities by number. 12 to 15 have numbers only.
const FACILITIES: [&str; 24] = [
    "kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp", "",
    "", "", "", "local0", "local1", "local2", "local3", "local4", "local5", "local6", "local7",
];
const DAEMON: u8 = 3;
const PORT: &str = "514";

/// The driver's options.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Syslog {
    /// Where messages go.
    pub address: Address,
    facility: u8,
    format: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    /// Time and tag, as `syslog(3)` writes to the local daemon.
    Local,
    Rfc3164,
    /// RFC 5424 with seconds.
    Rfc5424,
    /// RFC 5424 with microseconds.
    Rfc5424Micro,
}

impl Syslog {
    /// Reads them.
    ///
    /// # Errors
    /// A value that is none, in Docker's words.
    pub fn read(options: &BTreeMap<String, String>) -> Result<Self> {
        let option = |name: &str| options.get(name).map(String::as_str).unwrap_or_default();
        let path = |name: &str| Some(option(name)).filter(|path| !path.is_empty()).map(PathBuf::from);
        let tls = || Tls {
            ca: path("syslog-tls-ca-cert"),
            cert: path("syslog-tls-cert"),
            key: path("syslog-tls-key"),
            // Docker's driver looks only whether it is there.
            skip_verify: parse_bool(option("syslog-tls-skip-verify"))
                .unwrap_or(!option("syslog-tls-skip-verify").is_empty()),
        };
        let address = option("syslog-address");
        let address = match address.split_once("://") {
            None if address.is_empty() => Address::LocalSyslog,
            Some(("unix", path)) => Address::Unix(path.into()),
            Some(("unixgram", path)) => Address::Unixgram(path.into()),
            Some(("tcp", host)) => Address::Tcp(with_port(host, PORT)),
            Some(("udp", host)) => Address::Udp(with_port(host, PORT)),
            Some(("tcp+tls", host)) => Address::Tls(with_port(host, PORT), tls()),
            other => {
                let scheme = other.map_or("", |(scheme, _)| scheme);
                return Err(Error::invalid(format!("unsupported scheme: '{scheme}'")));
            }
        };
        let facility = match option("syslog-facility") {
            "" => DAEMON,
            text => facility(text).ok_or_else(|| Error::invalid("invalid syslog facility"))?,
        };
        let format = match option("syslog-format") {
            "" => Format::Local,
            "rfc3164" => Format::Rfc3164,
            "rfc5424" => Format::Rfc5424,
            "rfc5424micro" => Format::Rfc5424Micro,
            _ => return Err(Error::invalid("Invalid syslog format")),
        };
        Ok(Self { address, facility, format })
    }

    /// What is looked at only when a container is created: a local socket has to be there.
    ///
    /// # Errors
    /// It is not, in Docker's words.
    pub fn check_socket(&self) -> Result<()> {
        let check = |path: &Path| match std::fs::metadata(path) {
            Ok(_) => Ok(()),
            Err(err) => Err(Error::invalid(format!("stat {}: {}", path.display(), sys_text(&err)))),
        };
        match &self.address {
            Address::Unix(path) | Address::Unixgram(path) => check(path),
            Address::LocalSyslog | Address::Tcp(_) | Address::Tls(..) | Address::Udp(_) => Ok(()),
        }
    }

    /// Appends the message for `entry`; false when there is none, because the line is empty.
    pub fn encode(&self, entry: &Entry<'_>, about: &About, out: &mut Vec<u8>) -> bool {
        if entry.line.is_empty() {
            return false;
        }
        let severity = match entry.source {
            Source::Stdout => 6,
            Source::Stderr => 3,
        };
        let priority = (self.facility << 3) | severity;
        let About { tag, host, pid, zone, .. } = about;
        let head = match self.format {
            Format::Local => format!("<{priority}>{} {tag}[{pid}]: ", classic(entry.nanos, zone)),
            Format::Rfc3164 => format!("<{priority}>{} {host} {tag}[{pid}]: ", classic(entry.nanos, zone)),
            Format::Rfc5424 | Format::Rfc5424Micro => {
                let at = iso(entry.nanos, zone, self.format == Format::Rfc5424Micro);
                format!("<{priority}>1 {at} {host} {tag} {pid} {tag} - ")
            }
        };
        let counted = matches!(self.address, Address::Tls(..))
            && matches!(self.format, Format::Rfc5424 | Format::Rfc5424Micro);
        if counted {
            // RFC 5425: the length comes first.
            out.extend_from_slice(format!("{} ", head.len() + entry.line.len() + 1).as_bytes());
        }
        out.extend_from_slice(head.as_bytes());
        out.extend_from_slice(entry.line);
        out.push(b'\n');
        true
    }
}

fn facility(text: &str) -> Option<u8> {
    let named = FACILITIES.iter().position(|name| *name == text && !name.is_empty());
    let number = named.or_else(|| text.parse().ok().filter(|number| *number < FACILITIES.len()));
    u8::try_from(number?).ok()
}

/// `host` with `port` if it names none.
pub fn with_port(host: &str, port: &str) -> String {
    let after_brackets = host.rfind(']').map_or(0, |at| at + 1);
    if host[after_brackets..].contains(':') { host.to_owned() } else { format!("{host}:{port}") }
}

/// `Jan  2 15:04:05`.
fn classic(nanos: i64, zone: &TimeZone) -> String {
    moment(nanos).to_zoned(zone.clone()).strftime("%b %e %H:%M:%S").to_string()
}

/// `2006-01-02T15:04:05Z`, or with the offset of the zone.
fn iso(nanos: i64, zone: &TimeZone, micros: bool) -> String {
    let at = moment(nanos).to_zoned(zone.clone());
    let utc = at.offset().seconds() == 0;
    let format = match (micros, utc) {
        (false, true) => "%Y-%m-%dT%H:%M:%SZ",
        (false, false) => "%Y-%m-%dT%H:%M:%S%:z",
        (true, true) => "%Y-%m-%dT%H:%M:%S%.6fZ",
        (true, false) => "%Y-%m-%dT%H:%M:%S%.6f%:z",
    };
    at.strftime(format).to_string()
}

/// A record's time. What no clock shows is the beginning.
pub fn moment(nanos: i64) -> Timestamp {
    Timestamp::from_nanosecond(i128::from(nanos)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::super::tests::{about, entry};
    use super::*;

    fn read(options: &[(&str, &str)]) -> Result<Syslog> {
        Syslog::read(&options.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect())
    }

    /// Recorded from the real engine 28.5.
    #[test]
    fn the_messages_of_the_real_engine() {
        let shown = |options: &[(&str, &str)], zone: &str| {
            let mut about = about();
            about.zone = TimeZone::posix(zone).unwrap();
            let mut out = Vec::new();
            let mut err = entry(b"a\tb\r");
            assert!(read(options).unwrap().encode(&err, &about, &mut out));
            err.source = Source::Stderr;
            assert!(read(options).unwrap().encode(&err, &about, &mut out));
            err.line = b"";
            assert!(!read(options).unwrap().encode(&err, &about, &mut out));
            String::from_utf8(out).unwrap()
        };
        let local3 = ("syslog-facility", "local3");
        assert_eq!(
            shown(&[local3], "UTC0"),
            "<158>Dec  1 16:05:11 0123456789ab[8656]: a\tb\r\n<155>Dec  1 16:05:11 0123456789ab[8656]: a\tb\r\n"
        );
        let first = |options: &[(&str, &str)], zone: &str| {
            shown(options, zone).split_inclusive('\n').next().unwrap().to_owned()
        };
        assert_eq!(
            first(&[("syslog-format", "rfc3164")], "UTC0"),
            "<30>Dec  1 16:05:11 vm 0123456789ab[8656]: a\tb\r\n"
        );
        assert_eq!(
            first(&[("syslog-format", "rfc5424")], "UTC0"),
            "<30>1 2026-12-01T16:05:11Z vm 0123456789ab 8656 0123456789ab - a\tb\r\n"
        );
        assert_eq!(
            first(&[("syslog-format", "rfc5424micro")], "UTC0"),
            "<30>1 2026-12-01T16:05:11.674992Z vm 0123456789ab 8656 0123456789ab - a\tb\r\n"
        );
        assert_eq!(
            first(&[("syslog-format", "rfc5424")], "XXX-5:30"),
            "<30>1 2026-12-01T21:35:11+05:30 vm 0123456789ab 8656 0123456789ab - a\tb\r\n"
        );
        let tls = [("syslog-format", "rfc5424"), ("syslog-address", "tcp+tls://h")];
        assert_eq!(
            first(&tls, "UTC0"),
            "68 <30>1 2026-12-01T16:05:11Z vm 0123456789ab 8656 0123456789ab - a\tb\r\n"
        );
    }

    #[test]
    fn options() {
        let address = |text: &str| read(&[("syslog-address", text)]).unwrap().address;
        assert_eq!(address(""), Address::LocalSyslog);
        assert_eq!(address("tcp://127.0.0.1"), Address::Tcp("127.0.0.1:514".into()));
        assert_eq!(address("udp://[::1]"), Address::Udp("[::1]:514".into()));
        assert_eq!(address("udp://[::1]:5"), Address::Udp("[::1]:5".into()));
        assert_eq!(read(&[("syslog-facility", "3")]).unwrap().facility, DAEMON);
        let text = |key: &str, value: &str| read(&[(key, value)]).unwrap_err().message().to_owned();
        assert_eq!(text("syslog-address", "foo"), "unsupported scheme: ''");
        assert_eq!(text("syslog-address", "foo://x"), "unsupported scheme: 'foo'");
        for bad in ["odd", "24", "-1"] {
            assert_eq!(text("syslog-facility", bad), "invalid syslog facility");
        }
        assert_eq!(text("syslog-format", "odd"), "Invalid syslog format");
        let gone = read(&[("syslog-address", "unix:///nonexist")]).unwrap();
        assert_eq!(gone.check_socket().unwrap_err().message(), "stat /nonexist: no such file or directory");
    }
}
