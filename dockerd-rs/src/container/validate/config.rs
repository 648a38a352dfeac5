//! `Config`.

use docker_api::{Config, HealthConfig};

use crate::error::{Error, Result};

/// The shortest time a health check's durations may have, in nanoseconds.
const MILLISECOND: i64 = 1_000_000;
/// The kernel's longest host name.
const MAX_HOSTNAME: usize = 64;

/// Checks what the container shall be.
///
/// # Errors
/// A refusal.
pub fn check_config(config: &Config) -> Result<()> {
    let dir = config.working_dir.as_str();
    if !dir.is_empty() && !dir.starts_with('/') {
        return Err(Error::invalid(format!(
            "the working directory '{dir}' is invalid, it needs to be an absolute path"
        )));
    }
    for entry in config.env.iter().flatten() {
        if entry.is_empty() || entry.starts_with('=') || entry.contains('\0') {
            return Err(Error::invalid(format!("invalid environment variable: {entry}")));
        }
    }
    for name in [&config.hostname, &config.domainname] {
        if name.len() > MAX_HOSTNAME || name.chars().any(char::is_control) {
            return Err(Error::invalid(format!("invalid hostname: {name:?}")));
        }
    }
    if let Some(health) = &config.healthcheck {
        check_health(health)?;
    }
    if !config.stop_signal.is_empty() && !is_signal(&config.stop_signal) {
        return Err(Error::invalid(format!("invalid signal: {}", config.stop_signal)));
    }
    check_user(&config.user)
}

/// Numbers are checked here; whether a name is known depends on the image's files when the container starts.
fn check_user(user: &str) -> Result<()> {
    for part in user.splitn(2, ':') {
        let digits = part.strip_prefix(['-', '+']).unwrap_or(part);
        let is_number = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
        if is_number && part.parse::<i32>().map_or(true, |id| id < 0) {
            return Err(Error::invalid("uids and gids must be in range 0-2147483647"));
        }
    }
    Ok(())
}

fn check_health(health: &HealthConfig) -> Result<()> {
    let durations = [
        ("Interval", health.interval),
        ("Timeout", health.timeout),
        ("StartPeriod", health.start_period),
        ("StartInterval", health.start_interval),
    ];
    for (name, value) in durations {
        if value != 0 && value < MILLISECOND {
            return Err(Error::invalid(format!("{name} in Healthcheck cannot be less than 1ms")));
        }
    }
    if health.retries < 0 {
        return Err(Error::invalid("Retries in Healthcheck cannot be negative"));
    }
    Ok(())
}

/// Whether the text is a signal: a number from 1 to 64, or a name with or without `SIG` in any case.
fn is_signal(text: &str) -> bool {
    if let Ok(number) = text.parse::<u32>() {
        return (1..=64).contains(&number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    SIGNALS.contains(&name) || real_time(name)
}

/// `RTMIN`, `RTMIN+3`, `RTMAX-14`.
fn real_time(name: &str) -> bool {
    let offset = |rest: &str, sign: char, max: u32| {
        rest.is_empty()
            || rest
                .strip_prefix(sign)
                .and_then(|n| n.parse::<u32>().ok())
                .is_some_and(|n| (1..=max).contains(&n))
    };
    name.strip_prefix("RTMIN").is_some_and(|rest| offset(rest, '+', 15))
        || name.strip_prefix("RTMAX").is_some_and(|rest| offset(rest, '-', 14))
}

#[rustfmt::skip]
const SIGNALS: &[&str] = &[
    "ABRT", "ALRM", "BUS", "CHLD", "CLD", "CONT", "FPE", "HUP", "ILL", "INT", "IO", "IOT", "KILL", "PIPE", "POLL", "PROF", "PWR",
    "QUIT", "SEGV", "STKFLT", "STOP", "SYS", "TERM", "TRAP", "TSTP", "TTIN", "TTOU", "URG", "USR1", "USR2", "VTALRM", "WINCH",
    "XCPU", "XFSZ",
];
