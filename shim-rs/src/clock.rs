//! Times on the wire and on disk.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prost_types::Timestamp;

/// A wall-clock instant with nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Instant {
    /// Since 1970-01-01T00:00:00Z.
    pub seconds: i64,
    /// Below one second.
    pub nanos: u32,
}

impl Instant {
    /// The current time. Before 1970 counts as 1970.
    pub fn now() -> Instant {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        Instant { seconds: since.as_secs() as i64, nanos: since.subsec_nanos() }
    }

    /// Nanoseconds since 1970.
    pub fn unix_nanos(self) -> i64 {
        self.seconds.saturating_mul(1_000_000_000).saturating_add(i64::from(self.nanos))
    }

    /// As a protobuf message.
    pub fn timestamp(self) -> Timestamp {
        Timestamp { seconds: self.seconds, nanos: self.nanos as i32 }
    }

    /// RFC 3339 in UTC with as many digits of the second as are not zero, as Go's `RFC3339Nano` prints.
    pub fn rfc3339(self) -> String {
        let mut text = String::with_capacity(30);
        self.write_rfc3339(&mut text);
        text
    }

    /// Appends [`Instant::rfc3339`].
    pub fn write_rfc3339(self, out: &mut String) {
        use std::fmt::Write;
        let days = self.seconds.div_euclid(86_400);
        let second_of_day = self.seconds.rem_euclid(86_400);
        let (year, month, day) = civil(days);
        let (hour, minute, second) = (second_of_day / 3600, second_of_day / 60 % 60, second_of_day % 60);
        let _ = write!(out, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}");
        if self.nanos != 0 {
            let _ = write!(out, ".{:09}", self.nanos);
            out.truncate(out.trim_end_matches('0').len());
        }
        out.push('Z');
    }
}

/// Year, month and day of a day counted from 1970-01-01, in the proleptic Gregorian calendar.
fn civil(days: i64) -> (i64, i64, i64) {
    // Years that begin in March have their leap day last, which makes month lengths a linear formula.
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_as_go_does() {
        for (seconds, nanos, text) in [
            (0, 0, "1970-01-01T00:00:00Z"),
            (951_782_400, 1, "2000-02-29T00:00:00.000000001Z"),
            (1_767_323_045, 123_456_789, "2026-01-02T03:04:05.123456789Z"),
            (1_767_323_045, 120_000_000, "2026-01-02T03:04:05.12Z"),
            (4_102_444_799, 0, "2099-12-31T23:59:59Z"),
            (1_709_164_800, 0, "2024-02-29T00:00:00Z"),
            (1_709_251_200, 0, "2024-03-01T00:00:00Z"),
        ] {
            assert_eq!(Instant { seconds, nanos }.rfc3339(), text);
        }
    }

    #[test]
    fn days_follow_each_other() {
        let mut previous = civil(-1);
        for day in 0..200_000 {
            let (year, month, date) = civil(day);
            let follows = (year, month, date) == (previous.0, previous.1, previous.2 + 1)
                || (date == 1 && (year, month) == (previous.0, previous.1 + 1))
                || (date == 1
                    && month == 1
                    && year == previous.0 + 1
                    && previous.1 == 12
                    && previous.2 == 31);
            assert!(follows, "{previous:?} then {:?}", (year, month, date));
            previous = (year, month, date);
        }
    }
}
