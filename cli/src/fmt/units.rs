//! Sizes and times in words.

use jiff::Timestamp;

/// A size with four significant digits in powers of 1000: `1.23GB` (go-units `HumanSizeWithPrecision(…, 3)`).
pub fn size(bytes: f64) -> String {
    scaled(bytes, 1000.0, &["B", "kB", "MB", "GB", "TB", "PB", "EB"], 3)
}

/// As [`size`] with four significant digits (go-units `HumanSize`).
pub fn size4(bytes: f64) -> String {
    scaled(bytes, 1000.0, &["B", "kB", "MB", "GB", "TB", "PB", "EB"], 4)
}

/// A size with four significant digits in powers of 1024: `1.234MiB` (go-units `BytesSize`).
pub fn bytes(bytes: f64) -> String {
    scaled(bytes, 1024.0, &["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"], 4)
}

fn scaled(mut value: f64, base: f64, units: &[&str], digits: usize) -> String {
    let mut unit = 0;
    while value >= base && unit + 1 < units.len() {
        value /= base;
        unit += 1;
    }
    format!("{}{}", significant(value, digits), units[unit])
}

/// C's `%.{digits}g` for values of ordinary size.
fn significant(value: f64, digits: usize) -> String {
    if value == 0.0 {
        return "0".into();
    }
    let magnitude = value.abs().log10().floor();
    #[allow(clippy::cast_possible_truncation, reason = "a size's magnitude is below 20")]
    let before = (magnitude as i32 + 1).max(0);
    let decimals =
        usize::try_from(i32::try_from(digits).unwrap_or(3) - if magnitude < 0.0 { 0 } else { before })
            .unwrap_or(0);
    let text = format!("{value:.decimals$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// A span of seconds in words (go-units `HumanDuration`).
pub fn span(seconds: i64) -> String {
    let (minutes, hours) = (seconds / 60, (seconds as f64 / 3600.0).round() as i64);
    match () {
        () if seconds < 1 => "Less than a second".into(),
        () if seconds == 1 => "1 second".into(),
        () if seconds < 60 => format!("{seconds} seconds"),
        () if minutes == 1 => "About a minute".into(),
        () if minutes < 60 => format!("{minutes} minutes"),
        () if hours == 1 => "About an hour".into(),
        () if hours < 48 => format!("{hours} hours"),
        () if hours < 24 * 7 * 2 => format!("{} days", hours / 24),
        () if hours < 24 * 30 * 2 => format!("{} weeks", hours / 24 / 7),
        () if hours < 24 * 365 * 2 => format!("{} months", hours / 24 / 30),
        () => format!("{} years", hours / 24 / 365),
    }
}

/// How long ago a Unix time was.
pub fn ago(unix: i64) -> String {
    format!("{} ago", span(Timestamp::now().as_second() - unix))
}

/// A size as people type it: `512m`, `1g`, `1024`.
pub fn parse_bytes(text: &str) -> Option<i64> {
    let text = text.trim();
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic()).trim();
    let unit = text[digits.len()..].trim().to_ascii_lowercase();
    let factor: f64 = match unit.trim_end_matches('b').trim_end_matches('i') {
        "" => 1.0,
        "k" => 1024.0,
        "m" => 1024.0 * 1024.0,
        "g" => 1024.0 * 1024.0 * 1024.0,
        "t" => 1024.0f64.powi(4),
        "p" => 1024.0f64.powi(5),
        _ => return None,
    };
    let value: f64 = digits.parse().ok()?;
    #[allow(clippy::cast_possible_truncation, reason = "sizes are far below 2^63")]
    (value.is_finite()).then_some((value * factor) as i64)
}

/// A Go duration (`1m30s`, `500ms`) in nanoseconds.
pub fn parse_duration(text: &str) -> Option<i64> {
    if text == "0" {
        return Some(0);
    }
    let (sign, mut rest) = text.strip_prefix('-').map_or((1.0, text), |rest| (-1.0, rest));
    let mut total = 0.0;
    while !rest.is_empty() {
        let number = rest.find(|c: char| !c.is_ascii_digit() && c != '.').filter(|at| *at > 0)?;
        let unit = rest[number..]
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .map_or(rest.len(), |at| number + at);
        let factor = match &rest[number..unit] {
            "ns" => 1.0,
            "us" | "µs" => 1e3,
            "ms" => 1e6,
            "s" => 1e9,
            "m" => 60e9,
            "h" => 3600e9,
            _ => return None,
        };
        total += rest[..number].parse::<f64>().ok()? * factor;
        rest = &rest[unit..];
    }
    #[allow(clippy::cast_possible_truncation, reason = "durations are far below 2^63 ns")]
    (!text.is_empty()).then_some((sign * total) as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(size(0.0), "0B");
        assert_eq!(size(4_261_550.0), "4.26MB");
        assert_eq!(size(999.0), "999B");
        assert_eq!(size(123_456_789.0), "123MB");
        assert_eq!(size4(123_456_789.0), "123.5MB");
        assert_eq!(bytes(1_293_942.0), "1.234MiB");
        assert_eq!(parse_bytes("512m"), Some(512 << 20));
        assert_eq!(parse_bytes("1.5g"), Some(1_610_612_736));
        assert_eq!(parse_bytes("x"), None);
    }

    #[test]
    fn spans() {
        assert_eq!(span(0), "Less than a second");
        assert_eq!(span(75), "About a minute");
        assert_eq!(span(7_200), "2 hours");
        assert_eq!(span(86_400 * 20), "2 weeks");
        assert_eq!(parse_duration("1m30s"), Some(90_000_000_000));
        assert_eq!(parse_duration("500ms"), Some(500_000_000));
        assert_eq!(parse_duration("5"), None);
    }
}
