//! Seccomp: the default profile, profiles of the user's, and what either comes to for one container on this machine.
//!
//! A profile is a list of rules with conditions (capabilities, architecture, kernel); [`resolve`] keeps the rules whose conditions hold.
//! The default profile is a table of our own; its rules follow from what the calls do: what a container's own capabilities guard is
//! allowed with the capability, what reaches the host around namespaces is not allowed at all.

mod table;

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::model::{Arg, Seccomp, Syscall};

/// A profile with its conditions, in the form Docker's `--security-opt seccomp=FILE` takes.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Profile {
    default_action: String,
    default_errno_ret: Option<u32>,
    #[serde(deserialize_with = "list")]
    architectures: Vec<String>,
    #[serde(deserialize_with = "list")]
    arch_map: Vec<ArchMap>,
    #[serde(deserialize_with = "list")]
    syscalls: Vec<Rule>,
    #[serde(deserialize_with = "list")]
    flags: Vec<String>,
    listener_path: String,
    listener_metadata: String,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ArchMap {
    architecture: String,
    #[serde(deserialize_with = "list")]
    sub_architectures: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Rule {
    name: String,
    #[serde(deserialize_with = "list")]
    names: Vec<String>,
    action: String,
    errno_ret: Option<u32>,
    #[serde(deserialize_with = "list")]
    args: Vec<Arg>,
    includes: Option<Filter>,
    excludes: Option<Filter>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Filter {
    #[serde(deserialize_with = "list")]
    caps: Vec<String>,
    #[serde(deserialize_with = "list")]
    arches: Vec<String>,
    min_kernel: Option<String>,
}

/// `null` is an empty list.
fn list<'de, D: serde::Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    Option::<Vec<T>>::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// What a profile is resolved for.
#[derive(Clone, Debug)]
pub struct Target<'a> {
    /// The machine, as Go names it (`amd64`, `arm64`).
    pub arch: &'a str,
    /// The container's bounding set.
    pub capabilities: &'a [String],
    /// The kernel's version, major and minor.
    pub kernel: (u32, u32),
}

/// This machine as Go names it.
pub fn machine() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

/// The kernel's version out of its release text.
pub fn kernel(release: &str) -> (u32, u32) {
    let mut parts = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
}

/// Reads a profile.
///
/// # Errors
/// The text is none; in words after `Decoding seccomp profile failed: `.
pub fn parse(json: &str) -> Result<Profile, String> {
    let profile: Profile = serde_json::from_str(json).map_err(|err| err.to_string())?;
    if !profile.architectures.is_empty() && !profile.arch_map.is_empty() {
        return Err("both 'architectures' and 'archMap' are specified in the seccomp profile, use either 'architectures' or 'archMap'".into());
    }
    for rule in &profile.syscalls {
        if !rule.name.is_empty() && !rule.names.is_empty() {
            return Err(
                "both 'name' and 'names' are specified in the seccomp profile, use either 'name' or 'names'"
                    .into(),
            );
        }
    }
    Ok(profile)
}

/// The default profile.
pub fn default() -> Profile {
    table::profile()
}

/// What a profile comes to. `None` for one that names no action: it filters nothing.
pub fn resolve(profile: &Profile, target: &Target<'_>) -> Option<Seccomp> {
    if profile.default_action.is_empty() {
        return None;
    }
    let mut architectures = profile.architectures.clone();
    let own = native(target.arch);
    if let Some(map) = profile.arch_map.iter().find(|map| Some(map.architecture.as_str()) == own) {
        architectures.push(map.architecture.clone());
        architectures.extend(map.sub_architectures.iter().cloned());
    }
    let syscalls = profile
        .syscalls
        .iter()
        .filter(|rule| {
            rule.includes.as_ref().is_none_or(|filter| filter.holds(target))
                && !rule.excludes.as_ref().is_some_and(|filter| filter.excludes(target))
        })
        .map(|rule| Syscall {
            names: if rule.name.is_empty() { rule.names.clone() } else { vec![rule.name.clone()] },
            action: rule.action.clone(),
            errno_ret: rule.errno_ret,
            args: rule.args.clone(),
        })
        .collect();
    Some(Seccomp {
        default_action: profile.default_action.clone(),
        default_errno_ret: profile.default_errno_ret,
        architectures,
        flags: profile.flags.clone(),
        listener_path: profile.listener_path.clone(),
        listener_metadata: profile.listener_metadata.clone(),
        syscalls,
    })
}

impl Filter {
    /// All of an `includes` must hold; of the architectures one.
    fn holds(&self, target: &Target<'_>) -> bool {
        (self.arches.is_empty() || self.arches.iter().any(|arch| arch == target.arch))
            && self.caps.iter().all(|cap| target.capabilities.contains(cap))
            && self.min_kernel.as_ref().is_none_or(|min| target.kernel >= kernel(min))
    }

    /// Any of an `excludes` is enough.
    fn excludes(&self, target: &Target<'_>) -> bool {
        self.arches.iter().any(|arch| arch == target.arch)
            || self.caps.iter().any(|cap| target.capabilities.contains(cap))
            || self.min_kernel.as_ref().is_some_and(|min| target.kernel >= kernel(min))
    }
}

fn native(arch: &str) -> Option<&'static str> {
    Some(match arch {
        "amd64" => "SCMP_ARCH_X86_64",
        "386" => "SCMP_ARCH_X86",
        "arm64" => "SCMP_ARCH_AARCH64",
        "arm" => "SCMP_ARCH_ARM",
        "ppc64le" => "SCMP_ARCH_PPC64LE",
        "s390x" => "SCMP_ARCH_S390X",
        "riscv64" => "SCMP_ARCH_RISCV64",
        "loongarch64" => "SCMP_ARCH_LOONGARCH64",
        _ => return None,
    })
}

fn arch_map() -> Vec<ArchMap> {
    let map = |architecture: &str, subs: &[&str]| ArchMap {
        architecture: architecture.into(),
        sub_architectures: subs.iter().map(|sub| (*sub).to_owned()).collect(),
    };
    vec![
        map("SCMP_ARCH_X86_64", &["SCMP_ARCH_X86", "SCMP_ARCH_X32"]),
        map("SCMP_ARCH_AARCH64", &["SCMP_ARCH_ARM"]),
        map("SCMP_ARCH_S390X", &["SCMP_ARCH_S390"]),
        map("SCMP_ARCH_RISCV64", &[]),
        map("SCMP_ARCH_LOONGARCH64", &[]),
    ]
}

/// All calls a resolved profile allows without a condition on arguments; for tests and for telling.
pub fn allowed(seccomp: &Seccomp) -> BTreeMap<&str, bool> {
    let mut calls = BTreeMap::new();
    for rule in &seccomp.syscalls {
        for name in &rule.names {
            let always = rule.args.is_empty() && rule.action == "SCMP_ACT_ALLOW";
            *calls.entry(name.as_str()).or_insert(false) |= always;
        }
    }
    calls
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(capabilities: &[&str], arch: &str) -> Seccomp {
        let capabilities: Vec<String> = capabilities.iter().map(|cap| (*cap).to_owned()).collect();
        let target = Target { arch, capabilities: &capabilities, kernel: (6, 1) };
        resolve(&default(), &target).unwrap()
    }

    fn allows(seccomp: &Seccomp, call: &str) -> bool {
        allowed(seccomp).get(call) == Some(&true)
    }

    #[test]
    fn what_reaches_the_host_is_not_allowed() {
        let seccomp = of(crate::caps::DEFAULT, "amd64");
        for call in [
            "keyctl",
            "add_key",
            "request_key",
            "bpf",
            "perf_event_open",
            "userfaultfd",
            "io_uring_setup",
            "unshare",
            "mount",
            "umount2",
            "setns",
            "open_by_handle_at",
            "kexec_load",
            "init_module",
            "settimeofday",
            "clock_settime",
            "fsopen",
            "open_tree",
            "mbind",
            "quotactl",
            "syslog",
            "iopl",
            "lookup_dcookie",
            "kcmp",
            "fanotify_init",
            "acct",
            "swapon",
            "clone",
            "socket",
            "personality",
            "socketcall",
            "reboot",
            "vhangup",
        ] {
            assert!(!allows(&seccomp, call), "{call}");
        }
        for call in [
            "ptrace",
            "process_vm_readv",
            "landlock_add_rule",
            "memfd_secret",
            "pidfd_open",
            "chroot",
            "read",
            "futex",
        ] {
            assert!(allows(&seccomp, call), "{call}");
        }
        let clone3 = seccomp.syscalls.iter().find(|rule| rule.names == ["clone3"]).unwrap();
        assert_eq!((clone3.action.as_str(), clone3.errno_ret), ("SCMP_ACT_ERRNO", Some(38)));
        assert_eq!(seccomp.architectures, ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]);
    }

    #[test]
    fn socket_families_of_the_kernels_own_are_not_allowed() {
        let seccomp = of(crate::caps::DEFAULT, "amd64");
        let rules: Vec<_> = seccomp.syscalls.iter().filter(|rule| rule.names == ["socket"]).collect();
        let allowed = |family: u64| {
            rules.iter().any(|rule| {
                rule.args.iter().all(|arg| match arg.op.as_str() {
                    "SCMP_CMP_LT" => family < arg.value,
                    "SCMP_CMP_EQ" => family == arg.value,
                    "SCMP_CMP_GT" => family > arg.value,
                    other => panic!("{other}"),
                })
            })
        };
        for family in [1, 2, 10, 16, 17, 37, 39, 41, 44] {
            assert!(allowed(family), "{family}");
        }
        // AF_ALG and AF_VSOCK.
        assert!(!allowed(38) && !allowed(40));
    }

    #[test]
    fn capabilities_open_what_they_guard() {
        let seccomp = of(&["CAP_SYS_ADMIN", "CAP_SYS_TIME"], "arm64");
        for call in ["mount", "bpf", "clone", "clone3", "setns", "clock_settime", "cacheflush"] {
            assert!(allows(&seccomp, call), "{call}");
        }
        for call in ["chroot", "reboot", "arch_prctl"] {
            assert!(!allows(&seccomp, call), "{call}");
        }
        assert!(!seccomp.syscalls.iter().any(|rule| rule.action == "SCMP_ACT_ERRNO"));
    }

    #[test]
    fn profiles_of_the_users() {
        let text = r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":1,"archMap":[{"architecture":"SCMP_ARCH_X86_64","subArchitectures":null}],
            "syscalls":[{"names":["a","b"],"action":"SCMP_ACT_ALLOW","args":[],"comment":"","includes":{},"excludes":{}},
            {"name":"c","action":"SCMP_ACT_ALLOW","includes":{"minKernel":"99.1"}},
            {"name":"d","action":"SCMP_ACT_ALLOW","excludes":{"caps":["CAP_X"]}}]}"#;
        let profile = parse(text).unwrap();
        let capabilities = ["CAP_X".to_owned()];
        let target = Target { arch: "amd64", capabilities: &capabilities, kernel: (6, 1) };
        let seccomp = resolve(&profile, &target).unwrap();
        assert_eq!(seccomp.syscalls.len(), 1);
        assert_eq!(seccomp.syscalls[0].names, ["a", "b"]);
        assert_eq!(resolve(&parse("{}").unwrap(), &target), None);
        assert!(parse("bogus").is_err());
        assert!(parse(r#"{"architectures":["a"],"archMap":[{}]}"#).is_err());
    }

    #[test]
    fn kernels() {
        assert_eq!(kernel("6.18.0-rc1+"), (6, 18));
        assert!(kernel("4.8") < kernel("4.10.1"));
    }
}
