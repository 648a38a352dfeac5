//! Times and durations in parameters.

use jiff::{SignedDuration, Timestamp};

/// Seconds since the epoch with up to nine decimals (`1700000000.5`), as Docker's clients send them. `None` for anything else.
pub fn unix(text: &str) -> Option<Timestamp> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = seconds.parse().ok()?;
    if fraction.len() > 9 && !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let nanos = if fraction.is_empty() {
        0
    } else {
        let digits: String = fraction.chars().chain(std::iter::repeat('0')).take(9).collect();
        digits.parse::<i32>().ok()?
    };
    Timestamp::new(seconds, nanos).ok()
}

/// A moment: Unix seconds, a duration before now (`10m`, `1h30m`), or a date as people write it.
pub fn moment(text: &str) -> Option<Timestamp> {
    if let Some(duration) = duration(text) {
        return Timestamp::now().checked_sub(duration).ok();
    }
    if let Some(at) = unix(text) {
        return Some(at);
    }
    if let Ok(at) = text.parse::<Timestamp>() {
        return Some(at);
    }
    // Without a zone the machine's is meant.
    let zone = jiff::tz::TimeZone::system();
    if let Ok(at) = text.parse::<jiff::civil::DateTime>() {
        return at.to_zoned(zone).ok().map(|at| at.timestamp());
    }
    text.parse::<jiff::civil::Date>().ok().and_then(|date| date.to_zoned(zone).ok()).map(|at| at.timestamp())
}

/// Go's durations: numbers with units, one after the other.
pub fn duration(text: &str) -> Option<SignedDuration> {
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(SignedDuration::ZERO);
    }
    if rest.is_empty() {
        return None;
    }
    let mut total = 0.0_f64;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..end].parse().ok()?;
        rest = &rest[end..];
        let end = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let unit = match &rest[..end] {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        total += number * unit;
        rest = &rest[end..];
    }
    SignedDuration::try_from_secs_f64(if negative { -total } else { total }).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_as_clients_send_them() {
        assert_eq!(unix("1700000000.5").unwrap().as_nanosecond(), 1_700_000_000_500_000_000);
        assert_eq!(unix("0").unwrap(), Timestamp::UNIX_EPOCH);
        for bad in ["", "bogus", "1s", "2020-01-01T00:00:00Z", "1.x"] {
            assert_eq!(unix(bad), None, "{bad}");
        }
        assert_eq!(duration("1h30m"), Some(SignedDuration::from_secs(5400)));
        assert_eq!(duration("1.5s"), Some(SignedDuration::from_millis(1500)));
        assert_eq!(duration("bogus"), None);
        assert!(
            moment("2020-01-01T00:00:00Z").is_some()
                && moment("2020-01-01").is_some()
                && moment("10m").is_some()
        );
        assert_eq!(moment("bogus"), None);
    }
}
