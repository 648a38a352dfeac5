//! `--security-opt`: what the words mean.

use crate::error::{Error, Result};

/// What a container's security options ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SecurityOptions {
    /// The system call filter.
    pub seccomp: Seccomp,
    /// Whether exec may give privileges; `None` leaves it to the engine.
    pub no_new_privileges: Option<bool>,
    /// An AppArmor profile; the machine decides whether it means anything.
    pub apparmor: Option<String>,
    /// SELinux labels, as given.
    pub labels: Vec<String>,
    /// Whether nothing below /proc and /sys is hidden or read-only.
    pub systempaths_unconfined: bool,
    /// Whether the cgroup file system can be written.
    pub writable_cgroups: bool,
}

/// A system call filter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Seccomp {
    /// The engine's.
    #[default]
    Default,
    /// None.
    Unconfined,
    /// The profile in this JSON text.
    Profile(String),
}

impl SecurityOptions {
    /// Reads the words.
    ///
    /// # Errors
    /// One has no meaning. Docker answers 500 to that, we 400: it is the caller's mistake.
    pub fn parse(words: &[String]) -> Result<Self> {
        let mut options = Self::default();
        for word in words {
            match word.as_str() {
                "no-new-privileges" => {
                    options.no_new_privileges = Some(true);
                    continue;
                }
                "disable" => {
                    options.labels.push("disable".into());
                    continue;
                }
                "writable-cgroups" => {
                    options.writable_cgroups = true;
                    continue;
                }
                _ => {}
            }
            // `label:x` is the older spelling of `label=x`.
            let Some((name, value)) = word.split_once('=').or_else(|| word.split_once(':')) else {
                return Err(Error::invalid(format!("invalid --security-opt 1: {word:?}")));
            };
            let second = || Error::invalid(format!("invalid --security-opt 2: {word:?}"));
            match name {
                "label" => options.labels.push(value.to_owned()),
                "apparmor" => options.apparmor = Some(value.to_owned()),
                "seccomp" => {
                    options.seccomp = match value {
                        "unconfined" => Seccomp::Unconfined,
                        "builtin" => Seccomp::Default,
                        profile => Seccomp::Profile(profile.to_owned()),
                    };
                }
                "no-new-privileges" => options.no_new_privileges = Some(go_bool(value).ok_or_else(second)?),
                "writable-cgroups" => options.writable_cgroups = go_bool(value).ok_or_else(second)?,
                "systempaths" if value == "unconfined" => options.systempaths_unconfined = true,
                _ => return Err(second()),
            }
        }
        Ok(options)
    }
}

/// A truth value as Go's `strconv.ParseBool` takes it.
fn go_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<SecurityOptions> {
        SecurityOptions::parse(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn words() {
        let read =
            parse(&["no-new-privileges:true", "seccomp=unconfined", "label=disable", "apparmor=x"]).unwrap();
        assert_eq!(read.no_new_privileges, Some(true));
        assert_eq!(read.seccomp, Seccomp::Unconfined);
        assert_eq!(
            (read.labels.as_slice(), read.apparmor.as_deref()),
            (&["disable".to_owned()][..], Some("x"))
        );
        assert_eq!(parse(&["seccomp={\"a\":1}"]).unwrap().seccomp, Seccomp::Profile("{\"a\":1}".into()));
        for (word, text) in [
            ("bogus", "invalid --security-opt 1: \"bogus\""),
            ("bogus=1", "invalid --security-opt 2: \"bogus=1\""),
            ("no-new-privileges=maybe", "invalid --security-opt 2: \"no-new-privileges=maybe\""),
        ] {
            assert_eq!(parse(&[word]).unwrap_err().message(), text);
        }
    }
}
