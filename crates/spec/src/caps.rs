//! Capabilities: which there are, which a container has unless it asks, and what adding and dropping makes of that.

use std::collections::BTreeSet;

/// All capabilities, by their number in the kernel.
#[rustfmt::skip]
pub const ALL: &[&str] = &[
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID", "CAP_SETUID",
    "CAP_SETPCAP", "CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST", "CAP_NET_ADMIN", "CAP_NET_RAW",
    "CAP_IPC_LOCK", "CAP_IPC_OWNER", "CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_CHROOT", "CAP_SYS_PTRACE", "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE", "CAP_SYS_RESOURCE", "CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_MKNOD",
    "CAP_LEASE", "CAP_AUDIT_WRITE", "CAP_AUDIT_CONTROL", "CAP_SETFCAP", "CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG",
    "CAP_WAKE_ALARM", "CAP_BLOCK_SUSPEND", "CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE",
];

/// What a container has unless it asks for something else.
#[rustfmt::skip]
pub const DEFAULT: &[&str] = &[
    "CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE", "CAP_NET_RAW", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT",
];

const EVERY: &str = "ALL";

/// The capabilities a process of ours can hand on: those in its own bounding set (the fifth mask of `/proc/self/status`).
pub fn of_mask(mask: u64) -> Vec<&'static str> {
    ALL.iter().enumerate().filter(|(bit, _)| mask >> bit & 1 == 1).map(|(_, name)| *name).collect()
}

/// Names as clients write them (`net_admin`, `CAP_NET_ADMIN`, `all`), in the kernel's form.
///
/// # Errors
/// The first that is none, in that form and quoted.
pub fn normalize(names: &[String]) -> Result<Vec<String>, String> {
    let mut known = Vec::with_capacity(names.len());
    for name in names {
        let upper = name.to_ascii_uppercase();
        if upper == EVERY {
            known.push(upper);
            continue;
        }
        let full = if upper.starts_with("CAP_") { upper } else { format!("CAP_{upper}") };
        if !ALL.contains(&full.as_str()) {
            return Err(format!("unknown capability: \"{full}\""));
        }
        known.push(full);
    }
    Ok(known)
}

/// A container's capabilities, sorted. `available` are those the engine has itself; `add` and `drop` are normalized.
pub fn tweak(available: &[&str], add: &[String], drop: &[String], privileged: bool) -> Vec<String> {
    let has = |list: &[String]| list.iter().any(|name| name == EVERY);
    let named = |list: &[String]| -> BTreeSet<String> {
        list.iter().filter(|name| *name != EVERY).cloned().collect()
    };
    let all = || available.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
    let default = || DEFAULT.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
    let set: BTreeSet<String> = if privileged {
        all()
    } else if has(add) {
        // All but the dropped ones.
        &all() - &named(drop)
    } else if has(drop) {
        // None but the added ones.
        named(add)
    } else {
        &(&default() - &named(drop)) | &named(add)
    };
    set.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};

    fn list(text: &str) -> Vec<String> {
        normalize(&text.split_whitespace().map(str::to_owned).collect::<Vec<_>>()).unwrap()
    }

    fn check(add: &str, drop: &str, privileged: bool, expect: Expect) {
        let available = ["CAP_BPF", "CAP_CHOWN", "CAP_KILL", "CAP_SYS_ADMIN"];
        expect
            .assert_eq(&tweak(&available, &list(add), &list(drop), privileged).join(" ").replace("CAP_", ""));
    }

    #[test]
    fn adding_and_dropping() {
        check(
            "",
            "",
            false,
            expect![
                "AUDIT_WRITE CHOWN DAC_OVERRIDE FOWNER FSETID KILL MKNOD NET_BIND_SERVICE NET_RAW SETFCAP SETGID SETPCAP SETUID SYS_CHROOT"
            ],
        );
        check(
            "net_admin",
            "MKNOD net_raw CAP_CHOWN",
            false,
            expect![
                "AUDIT_WRITE DAC_OVERRIDE FOWNER FSETID KILL NET_ADMIN NET_BIND_SERVICE SETFCAP SETGID SETPCAP SETUID SYS_CHROOT"
            ],
        );
        check("", "all", false, expect![""]);
        check("sys_time", "ALL", false, expect!["SYS_TIME"]);
        check("ALL", "KILL", false, expect!["BPF CHOWN SYS_ADMIN"]);
        check("", "KILL", true, expect!["BPF CHOWN KILL SYS_ADMIN"]);
    }

    #[test]
    fn unknown_names_are_told() {
        assert_eq!(normalize(&["bogus".to_owned()]), Err("unknown capability: \"CAP_BOGUS\"".to_owned()));
    }

    #[test]
    fn masks() {
        assert_eq!(of_mask(0b10_0001), ["CAP_CHOWN", "CAP_KILL"]);
        assert_eq!(of_mask(u64::MAX).len(), ALL.len());
    }
}
