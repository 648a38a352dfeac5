//! Signals as clients name them.

/// A signal's number on Linux.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signal(pub u32);

impl Signal {
    /// Cannot be caught.
    pub const KILL: Self = Self(9);
    /// What `stop` sends unless the container says otherwise.
    pub const TERM: Self = Self(15);
    /// Lets a frozen process that is to be killed go on.
    pub const CONT: Self = Self(18);
}

/// Why a name is no signal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BadSignal {
    /// Neither a name nor a number, or zero.
    Invalid(String),
    /// A number Linux does not have.
    Unsupported(u32),
}

impl std::fmt::Display for BadSignal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Invalid(name) => write!(f, "invalid signal: {name}"),
            Self::Unsupported(number) => write!(f, "the linux daemon does not support signal {number}"),
        }
    }
}

const MAX: u32 = 64;
const NAMES: [(&str, u32); 35] = [
    ("ABRT", 6),
    ("ALRM", 14),
    ("BUS", 7),
    ("CHLD", 17),
    ("CLD", 17),
    ("CONT", 18),
    ("FPE", 8),
    ("HUP", 1),
    ("ILL", 4),
    ("INT", 2),
    ("IO", 29),
    ("IOT", 6),
    ("KILL", 9),
    ("PIPE", 13),
    ("POLL", 29),
    ("PROF", 27),
    ("PWR", 30),
    ("QUIT", 3),
    ("SEGV", 11),
    ("STKFLT", 16),
    ("STOP", 19),
    ("SYS", 31),
    ("TERM", 15),
    ("TRAP", 5),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("USR1", 10),
    ("USR2", 12),
    ("VTALRM", 26),
    ("WINCH", 28),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("RTMIN", 34),
];

/// Reads `SIGTERM`, `term` or `15`.
///
/// # Errors
/// It is none; zero is none either.
pub fn parse(text: &str) -> Result<Signal, BadSignal> {
    let invalid = || BadSignal::Invalid(text.to_owned());
    if let Ok(number) = text.parse::<i64>() {
        return match u32::try_from(number) {
            Ok(0) | Err(_) => Err(invalid()),
            Ok(number) if number > MAX => Err(BadSignal::Unsupported(number)),
            Ok(number) => Ok(Signal(number)),
        };
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    named(name).map(Signal).ok_or_else(invalid)
}

fn named(name: &str) -> Option<u32> {
    if let Some((_, number)) = NAMES.iter().find(|(known, _)| *known == name) {
        return Some(*number);
    }
    // RTMIN+1 … RTMIN+15, RTMAX-14 … RTMAX.
    if let Some(offset) = name.strip_prefix("RTMIN+") {
        return offset
            .parse::<u32>()
            .ok()
            .filter(|offset| (1..=15).contains(offset))
            .map(|offset| 34 + offset);
    }
    if name == "RTMAX" {
        return Some(MAX);
    }
    let offset = name.strip_prefix("RTMAX-")?;
    offset.parse::<u32>().ok().filter(|offset| (1..=14).contains(offset)).map(|offset| MAX - offset)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        for (text, number) in [
            ("SIGWINCH", 28),
            ("winch", 28),
            ("28", 28),
            ("sigKill", 9),
            ("RTMIN+3", 37),
            ("SIGRTMAX-1", 63),
            ("64", 64),
        ] {
            assert_eq!(parse(text), Ok(Signal(number)), "{text}");
        }
    }

    #[test]
    fn refusals_in_dockers_words() {
        let text = |name: &str| parse(name).unwrap_err().to_string();
        assert_eq!(text("BOGUS"), "invalid signal: BOGUS");
        assert_eq!(text("0"), "invalid signal: 0");
        assert_eq!(text("-9"), "invalid signal: -9");
        assert_eq!(text("RTMIN+16"), "invalid signal: RTMIN+16");
        assert_eq!(text("999"), "the linux daemon does not support signal 999");
    }
}
