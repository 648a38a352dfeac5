//! What a client asks of a log: the parameters of `GET /containers/{id}/logs`, checked.

use jiff::Timestamp;

use super::record::Stamp;
use crate::api::params::{Params, quote};
use crate::error::{Error, Result};

/// The parameters.
#[derive(Clone, Default)]
pub struct Query {
    /// Standard output is wanted.
    pub stdout: bool,
    /// Standard error is wanted.
    pub stderr: bool,
    /// Nothing older.
    pub since: Option<Stamp>,
    /// Nothing younger, and the end of following.
    pub until: Option<(Stamp, Timestamp)>,
    /// Only the last records; `None` is all.
    pub tail: Option<u64>,
    /// Each line begins with its time.
    pub timestamps: bool,
    /// Each line begins with the log's labels and variables.
    pub details: bool,
    /// Go on with what is written later.
    pub follow: bool,
}

impl Query {
    /// Reads the parameters.
    ///
    /// # Errors
    /// No stream was chosen, or a time is none.
    pub fn of(params: &Params) -> Result<Self> {
        let (stdout, stderr) = (params.bool("stdout"), params.bool("stderr"));
        if !stdout && !stderr {
            return Err(Error::invalid("must specify at least one of 'stdout' or 'stderr'"));
        }
        let time = |key: &str| {
            parse_time(params.text(key))
                .map_err(|err| err.context(format_args!("invalid value for {}", quote(key))))
        };
        let since = time("since")?.map(Stamp::of);
        let until = time("until")?.map(|at| (Stamp::of(at), at));
        // Anything that is no number means everything, as `all` does.
        let tail = params.text("tail").parse::<i64>().ok().and_then(|tail| u64::try_from(tail).ok());
        Ok(Self {
            stdout,
            stderr,
            since,
            until,
            tail,
            timestamps: params.bool("timestamps"),
            details: params.bool("details"),
            follow: params.bool("follow"),
        })
    }
}

/// Docker's times in queries: seconds since 1970, with up to nine digits of a fraction. Empty and zero mean none.
///
/// # Errors
/// Anything else, in the words of Docker.
pub fn parse_time(text: &str) -> Result<Option<Timestamp>> {
    if text.is_empty() {
        return Ok(None);
    }
    let bad = |part: &str, digits: &str| {
        Error::invalid(format!(
            "invalid timestamp {}: invalid {part} {}: invalid syntax",
            quote(text),
            quote(digits)
        ))
    };
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = seconds.parse().map_err(|_| bad("seconds", seconds))?;
    let nanos = if fraction.is_empty() {
        0
    } else {
        if !fraction.bytes().all(|b| b.is_ascii_digit()) {
            return Err(bad("nanoseconds", fraction));
        }
        let nine: String = fraction.chars().chain("000000000".chars()).take(9).collect();
        nine.parse::<i32>().map_err(|_| bad("nanoseconds", fraction))?
    };
    if seconds == 0 && nanos == 0 {
        return Ok(None);
    }
    let clamped = seconds.clamp(Timestamp::MIN.as_second(), Timestamp::MAX.as_second() - 1);
    Ok(Timestamp::new(clamped, if clamped == seconds { nanos } else { 0 }).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters() {
        let read = |text: &str| Query::of(&Params::parse(text).unwrap());
        assert!(read("follow=1").err().unwrap().message().starts_with("must specify"));
        let query = read("stdout=1&tail=5&since=1.5").unwrap();
        assert_eq!((query.tail, query.stderr), (Some(5), false));
        assert_eq!(query.since.unwrap().as_bytes(), b"1970-01-01T00:00:01.500000000Z");
        for all in ["all", "-1", "", "x"] {
            assert_eq!(read(&format!("stdout=1&tail={all}")).unwrap().tail, None);
        }
        assert_eq!(
            read("stdout=1&since=bogus").err().unwrap().message(),
            r#"invalid value for "since": invalid timestamp "bogus": invalid seconds "bogus": invalid syntax"#
        );
        assert!(read("stdout=1&since=99999999999999999").unwrap().since.is_some());
    }
}
