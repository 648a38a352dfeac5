//! A container's log driver and its options, read and checked.
//!
//! Limits are on by default: a log has at most five files of 20 MB unless the client says otherwise.

use std::collections::BTreeMap;
use std::path::Path;

use regex_lite::Regex;

use super::LogPlace;
use super::files::Form;
use super::forward::fluentd::{self, Fluentd};
use super::forward::syslog::{self, Syslog};
use super::forward::{Target, journald};
use crate::api::params::quote;
use crate::container::record::Record;
use crate::error::{Error, Result};

/// What one file of a log may grow to, in bytes, unless said otherwise.
const MAX_SIZE: i64 = 20 << 20;
/// How many files a log has, the live one included, unless said otherwise.
const MAX_FILE: u32 = 5;
/// What the non-blocking mode holds back, in bytes, unless said otherwise.
const MAX_BUFFER: u64 = 1 << 20;

/// Where a container's output goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    /// JSON lines: Docker's default.
    JsonFile,
    /// The compact form.
    Local,
    /// Nowhere.
    None,
    /// Elsewhere, over a bounded log that is kept here for that and for reading.
    Elsewhere,
}

/// The options, with defaults filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogOptions {
    /// Where the output goes.
    pub driver: Driver,
    /// Bytes in a file; -1 is no limit.
    pub max_size: i64,
    /// Files, the live one included.
    pub max_file: u32,
    /// Whether files that are full are compressed.
    pub compress: bool,
    /// Whether the container goes on when its log does not.
    pub non_blocking: bool,
    /// Bytes held back for a log that does not go on.
    pub max_buffer_size: u64,
    /// Where it is sent.
    pub target: Option<Target>,
    /// Whether what is kept here of a log that is sent elsewhere cannot be read.
    pub cache_disabled: bool,
    labels: Vec<String>,
    env: Vec<String>,
    /// Patterns of names, checked.
    labels_regex: String,
    env_regex: String,
    tag: Tag,
}

/// Options every driver takes.
const COMMON: [&str; 6] =
    ["mode", "max-buffer-size", "cache-disabled", "cache-max-size", "cache-max-file", "cache-compress"];
const JSON_FILE: [&str; 8] =
    ["max-file", "max-size", "compress", "labels", "labels-regex", "env", "env-regex", "tag"];
const LOCAL: [&str; 3] = ["max-file", "max-size", "compress"];

impl LogOptions {
    /// Those of a container.
    ///
    /// # Errors
    /// A value that is none, in Docker's words.
    pub fn of(record: &Record) -> Result<Self> {
        let log = &record.host_config.log_config;
        let empty = BTreeMap::new();
        Self::read(&log.kind, log.config.as_ref().unwrap_or(&empty))
    }

    /// Those of a driver of this name; an empty name is the default driver.
    ///
    /// # Errors
    /// A value that is none, in Docker's words.
    pub fn read(driver: &str, options: &BTreeMap<String, String>) -> Result<Self> {
        let name = driver;
        let driver = match driver {
            "" | "json-file" => Driver::JsonFile,
            "local" => Driver::Local,
            "none" => Driver::None,
            "syslog" | "fluentd" | "journald" => Driver::Elsewhere,
            other => {
                return Err(Error::invalid(format!(
                    "error looking up logging plugin {other}: plugin {} not found",
                    quote(other)
                )));
            }
        };
        let option = |name: &str| options.get(name).map(String::as_str);
        let list = |name: &str| -> Vec<String> {
            option(name)
                .unwrap_or_default()
                .split(',')
                .filter(|key| !key.is_empty())
                .map(str::to_owned)
                .collect()
        };
        let Cache { max_size, max_file, compress } = Cache::read(driver, options)?;
        let non_blocking = match option("mode") {
            None | Some("" | "blocking") => false,
            Some("non-blocking") => true,
            Some(other) => {
                return Err(Error::invalid(format!("logger: logging mode not supported: {other}")));
            }
        };
        let max_buffer_size = match option("max-buffer-size") {
            None => MAX_BUFFER,
            Some(_) if !non_blocking => {
                return Err(Error::invalid(
                    "logger: max-buffer-size option is only supported with 'mode=non-blocking'",
                ));
            }
            Some(text) => parse_size(text).and_then(|size| u64::try_from(size).ok()).ok_or_else(|| {
                Error::invalid(format!("error parsing option max-buffer-size: invalid size: '{text}'"))
            })?,
        };
        let cache_disabled = match option("cache-disabled") {
            None | Some("") => false,
            Some(text) => parse_bool(text)
                .ok_or_else(|| Error::invalid(format!("invalid value for option cache-disabled: {text}")))?,
        };
        let target = match name {
            "syslog" => Some(Target::Syslog(Syslog::read(options)?)),
            "fluentd" => Some(Target::Fluentd(Fluentd::read(options)?)),
            "journald" => Some(Target::Journald),
            _ => None,
        };
        Ok(Self {
            driver,
            max_size,
            max_file,
            compress,
            non_blocking,
            max_buffer_size,
            target,
            cache_disabled,
            labels: list("labels"),
            env: list("env"),
            labels_regex: pattern(option("labels-regex"))?,
            env_regex: pattern(option("env-regex"))?,
            tag: Tag::parse(option("tag").unwrap_or_default())?,
        })
    }

    /// Refuses option names the driver does not know, as create does, and a local socket that is not there.
    ///
    /// # Errors
    /// The first unknown name, in Docker's words.
    pub fn check_names(driver: &str, options: &BTreeMap<String, String>) -> Result<()> {
        let (name, known): (&str, &[&str]) = match driver {
            "" | "json-file" => ("json-file", &JSON_FILE),
            "local" => ("local", &LOCAL),
            "syslog" => ("syslog", &syslog::NAMES),
            "fluentd" => ("fluentd", &fluentd::NAMES),
            "journald" => ("journald", &journald::NAMES),
            _ => return Ok(()),
        };
        let unknown =
            options.keys().find(|key| !known.contains(&key.as_str()) && !COMMON.contains(&key.as_str()));
        match unknown {
            Some(key) if name == "local" => {
                Err(Error::invalid(format!("unknown log opt '{key}' for log driver local")))
            }
            Some(key) => Err(Error::invalid(format!("unknown log opt '{key}' for {name} log driver"))),
            None if name == "syslog" => Syslog::read(options)?.check_socket(),
            None => Ok(()),
        }
    }

    /// Where the log of the container `id` is, if it has one.
    pub fn place(&self, directory: &Path, id: &str) -> Option<LogPlace> {
        match self.driver {
            Driver::JsonFile => {
                Some(LogPlace { path: directory.join(format!("{id}-json.log")), form: Form::JsonFile })
            }
            Driver::Local => {
                Some(LogPlace { path: directory.join("local-logs/container.log"), form: Form::Local })
            }
            Driver::Elsewhere => {
                Some(LogPlace { path: directory.join("container-cached.log"), form: Form::Local })
            }
            Driver::None => None,
        }
    }

    /// The labels, variables and tag that go into each record.
    pub fn attrs(&self, record: &Record) -> BTreeMap<String, String> {
        let mut attrs = self.extra(record);
        let tag = self.tag(record);
        if !tag.is_empty() {
            attrs.insert("tag".into(), tag);
        }
        attrs
    }

    /// What the option `tag` makes of the container.
    pub fn tag(&self, record: &Record) -> String {
        self.tag.of(record)
    }

    /// The labels and variables that were chosen.
    pub fn extra(&self, record: &Record) -> BTreeMap<String, String> {
        // Both were compiled when the container was created.
        let compiled = |text: &str| (!text.is_empty()).then(|| Regex::new(text).ok()).flatten();
        let chosen = |names: &[String], pattern: &Option<Regex>, name: &str| {
            names.iter().any(|wanted| wanted == name) || pattern.as_ref().is_some_and(|p| p.is_match(name))
        };
        let mut attrs = BTreeMap::new();
        let pattern = compiled(&self.labels_regex);
        for (name, value) in record.config.labels.iter().flatten() {
            if chosen(&self.labels, &pattern, name) {
                attrs.insert(name.clone(), value.clone());
            }
        }
        let pattern = compiled(&self.env_regex);
        for pair in record.config.env.iter().flatten() {
            if let Some((name, value)) = pair.split_once('=')
                && chosen(&self.env, &pattern, name)
            {
                attrs.insert(name.to_owned(), value.to_owned());
            }
        }
        attrs
    }
}

/// The limits of what is kept on disk.
struct Cache {
    max_size: i64,
    max_file: u32,
    compress: bool,
}

impl Cache {
    fn read(driver: Driver, options: &BTreeMap<String, String>) -> Result<Self> {
        let option = |name: &str| options.get(name).map(String::as_str);
        if driver == Driver::Elsewhere {
            // Docker starts the container whatever these are, and keeps nothing when they are none. Here a value that is none is the default.
            let max_size = option("cache-max-size").and_then(parse_size).filter(|size| *size > 0);
            let max_file = option("cache-max-file").and_then(|text| text.parse().ok());
            return Ok(Self {
                max_size: max_size.unwrap_or(MAX_SIZE),
                max_file: max_file.filter(|count| *count > 0).unwrap_or(MAX_FILE),
                compress: option("cache-compress").and_then(parse_bool).unwrap_or(true),
            });
        }
        let max_size = match option("max-size") {
            None => MAX_SIZE,
            Some("-1") => -1,
            Some(text) => match parse_size(text) {
                Some(size) if size > 0 => size,
                Some(_) => return Err(Error::invalid("max-size must be a positive number")),
                None => return Err(Error::invalid(format!("invalid size: '{text}'"))),
            },
        };
        let max_file = match option("max-file") {
            None => MAX_FILE,
            Some(text) => {
                let count = crate::api::params::atoi(text)?;
                u32::try_from(count)
                    .ok()
                    .filter(|count| *count > 0)
                    .ok_or_else(|| Error::invalid("max-file cannot be less than 1"))?
            }
        };
        let compress = match option("compress") {
            None => driver == Driver::Local,
            Some(text) => parse_bool(text).ok_or_else(|| {
                Error::invalid(format!("strconv.ParseBool: parsing {}: invalid syntax", quote(text)))
            })?,
        };
        Ok(Self { max_size, max_file, compress })
    }
}

fn pattern(text: Option<&str>) -> Result<String> {
    let text = text.unwrap_or_default();
    match Regex::new(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(err) => Err(Error::invalid(format!("error parsing regexp: {err}: {}", quote(text)))),
    }
}

/// The `tag` option: text with fields of the container, `{{.Name}}/{{.ID}}`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Tag(Vec<Piece>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    Field(Field),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    Id,
    FullId,
    Name,
    ImageId,
    ImageFullId,
    ImageName,
    DaemonName,
    Command,
}

impl Tag {
    /// Fields only: templates have no conditions or functions here.
    fn parse(text: &str) -> Result<Self> {
        let mut pieces = Vec::new();
        let mut rest = text;
        while let Some((before, more)) = rest.split_once("{{") {
            let (name, after) = more.split_once("}}").unwrap_or((more, ""));
            let field = match name.trim() {
                ".ID" => Field::Id,
                ".FullID" => Field::FullId,
                ".Name" => Field::Name,
                ".ImageID" => Field::ImageId,
                ".ImageFullID" => Field::ImageFullId,
                ".ImageName" => Field::ImageName,
                ".DaemonName" => Field::DaemonName,
                ".Command" => Field::Command,
                other => {
                    return Err(Error::invalid(format!("invalid log tag {}: no field {other}", quote(text))));
                }
            };
            pieces.push(Piece::Text(before.to_owned()));
            pieces.push(Piece::Field(field));
            rest = after;
        }
        pieces.push(Piece::Text(rest.to_owned()));
        Ok(Self(pieces))
    }

    fn of(&self, record: &Record) -> String {
        let short = |id: &str| id.get(..12).unwrap_or(id).to_owned();
        let image = record.image.as_ref().map(|image| image.id.as_str()).unwrap_or_default();
        let field = |field: Field| match field {
            Field::Id => short(&record.id),
            Field::FullId => record.id.clone(),
            Field::Name => record.name.clone(),
            Field::ImageId => short(image.strip_prefix("sha256:").unwrap_or(image)),
            Field::ImageFullId => image.to_owned(),
            Field::ImageName => record.config.image.clone(),
            Field::DaemonName => "docker".to_owned(),
            Field::Command => {
                let (path, args) = record.argv();
                std::iter::once(path).chain(args).collect::<Vec<_>>().join(" ")
            }
        };
        let pieces = self.0.iter().map(|piece| match piece {
            Piece::Text(text) => text.clone(),
            Piece::Field(name) => field(*name),
        });
        pieces.collect()
    }
}

/// `10m`, `1.5GB`, `4096`: bytes, with the units of 1024 that Docker's options mean.
pub(super) fn parse_size(text: &str) -> Option<i64> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let number: f64 = text[..digits].parse().ok()?;
    let unit = text[digits..].trim().to_ascii_lowercase();
    let power = match unit.trim_end_matches('b').trim_end_matches('i') {
        "" => 0,
        "k" => 1,
        "m" => 2,
        "g" => 3,
        "t" => 4,
        "p" => 5,
        _ => return None,
    };
    let bytes = number * 1024_f64.powi(power);
    (bytes <= i64::MAX as f64).then_some(bytes as i64)
}

/// Go's `strconv.ParseBool`.
pub(super) fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(driver: &str, options: &[(&str, &str)]) -> Result<LogOptions> {
        LogOptions::read(driver, &options.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect())
    }

    #[test]
    fn limits_are_on_unless_switched_off() {
        let options = read("", &[]).unwrap();
        assert_eq!((options.max_size, options.max_file, options.compress), (20 << 20, 5, false));
        let options =
            read("json-file", &[("max-size", "-1"), ("max-file", "2"), ("compress", "true")]).unwrap();
        assert_eq!((options.max_size, options.max_file, options.compress), (-1, 2, true));
        assert!(read("local", &[]).unwrap().compress);
    }

    #[test]
    fn sizes() {
        for (text, bytes) in [("10m", 10 << 20), ("1.5k", 1536), ("7", 7), ("2GB", 2 << 30), ("3 KiB", 3072)]
        {
            assert_eq!(parse_size(text), Some(bytes), "{text}");
        }
        assert_eq!((parse_size("xx"), parse_size("1x"), parse_size("")), (None, None, None));
    }

    #[test]
    fn refusals() {
        let text = |driver: &str, key: &str, value: &str| {
            read(driver, &[(key, value)]).unwrap_err().message().to_owned()
        };
        assert_eq!(text("", "max-size", "xx"), "invalid size: 'xx'");
        assert_eq!(text("", "max-file", "0"), "max-file cannot be less than 1");
        assert_eq!(text("", "tag", "{{.Nme}}"), r#"invalid log tag "{{.Nme}}": no field .Nme"#);
        assert!(text("", "env-regex", "(").starts_with("error parsing regexp: "));
        assert_eq!(
            text("gelf", "tag", ""),
            r#"error looking up logging plugin gelf: plugin "gelf" not found"#
        );
        assert_eq!(text("syslog", "cache-disabled", "odd"), "invalid value for option cache-disabled: odd");
        assert_eq!(text("local", "mode", "odd"), "logger: logging mode not supported: odd");
        for (driver, text) in [
            ("json-file", "unknown log opt 'bogus' for json-file log driver"),
            ("local", "unknown log opt 'bogus' for log driver local"),
            ("syslog", "unknown log opt 'bogus' for syslog log driver"),
            ("fluentd", "unknown log opt 'bogus' for fluentd log driver"),
            ("journald", "unknown log opt 'bogus' for journald log driver"),
        ] {
            let names = [("bogus".to_owned(), String::new())].into();
            assert_eq!(LogOptions::check_names(driver, &names).unwrap_err().message(), text);
        }
    }

    #[test]
    fn a_log_that_is_sent_elsewhere_is_kept_within_bounds() {
        let limits = |given: &[(&str, &str)]| {
            let options = read("journald", given).unwrap();
            assert_eq!(options.target, Some(Target::Journald));
            (options.max_size, options.max_file, options.compress, options.cache_disabled)
        };
        assert_eq!(limits(&[]), (20 << 20, 5, true, false));
        let given = [("cache-max-size", "1m"), ("cache-max-file", "2"), ("cache-compress", "false")];
        assert_eq!(limits(&given), (1 << 20, 2, false, false));
        // Docker accepts these.
        let odd = [("cache-max-size", "-1"), ("cache-max-file", "0"), ("cache-compress", "odd")];
        assert_eq!(limits(&odd), (20 << 20, 5, true, false));
        assert!(limits(&[("cache-disabled", "true")]).3);
        let place = read("fluentd", &[]).unwrap().place(Path::new("/c"), "id").unwrap();
        assert_eq!((place.path.as_path(), place.form), (Path::new("/c/container-cached.log"), Form::Local));
    }
}
