//! A container's state in words for people.

use jiff::Timestamp;

use crate::container::record::{Record, State};

/// `Up 2 minutes (healthy)`, `Exited (0) 3 hours ago`.
pub fn status(record: &Record, now: Timestamp) -> String {
    let life = &record.life;
    let since = |at: Option<Timestamp>| {
        human_duration(at.map_or(0, |at| now.as_second().saturating_sub(at.as_second())))
    };
    match &life.state {
        State::Running(_) => {
            let up = format!("Up {}", since(life.started_at));
            match record.health.as_ref().map(|health| health.status.as_str()) {
                Some("starting") => format!("{up} (health: starting)"),
                Some("none") | None => up,
                Some(word) => format!("{up} ({word})"),
            }
        }
        State::Paused(_) => format!("Up {} (Paused)", since(life.started_at)),
        State::Restarting => format!("Restarting ({}) {} ago", life.exit_code, since(life.finished_at)),
        State::Removing => "Removal In Progress".into(),
        State::Dead => "Dead".into(),
        State::Created => "Created".into(),
        State::Exited if life.started_at.is_none() => "Created".into(),
        State::Exited => format!("Exited ({}) {} ago", life.exit_code, since(life.finished_at)),
    }
}

/// A duration in words, as Docker rounds it.
pub fn human_duration(secs: i64) -> String {
    let minutes = secs / 60;
    // To the nearest hour.
    let hours = (secs + 1800) / 3600;
    match secs {
        ..1 => "Less than a second".into(),
        1 => "1 second".into(),
        2..60 => format!("{secs} seconds"),
        _ if minutes == 1 => "About a minute".into(),
        _ if minutes < 60 => format!("{minutes} minutes"),
        _ if hours == 1 => "About an hour".into(),
        _ if hours < 48 => format!("{hours} hours"),
        _ if hours < 24 * 7 * 2 => format!("{} days", hours / 24),
        _ if hours < 24 * 30 * 2 => format!("{} weeks", hours / 24 / 7),
        _ if hours < 24 * 365 * 2 => format!("{} months", hours / 24 / 30),
        _ => format!("{} years", hours / 24 / 365),
    }
}

#[cfg(test)]
mod tests {
    use super::human_duration;

    #[test]
    fn durations() {
        for (secs, words) in [
            (0, "Less than a second"),
            (1, "1 second"),
            (59, "59 seconds"),
            (60, "About a minute"),
            (3599, "59 minutes"),
            (3600, "About an hour"),
            (5400, "2 hours"),
            (47 * 3600, "47 hours"),
            (48 * 3600, "2 days"),
            (15 * 86400, "2 weeks"),
            (61 * 86400, "2 months"),
            (800 * 86400, "2 years"),
        ] {
            assert_eq!(human_duration(secs), words, "{secs}");
        }
    }
}
