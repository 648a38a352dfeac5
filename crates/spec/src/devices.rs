//! Device nodes of the host in a container, and the rules of the devices cgroup.

use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use rustix::fs::{major, minor};

use crate::model::{Device, DeviceRule};

/// The rules every container begins with: nothing, then the nodes the runtime makes, and FUSE not.
pub fn default_rules() -> Vec<DeviceRule> {
    let rule = |allow, major, minor| DeviceRule {
        allow,
        kind: "c".into(),
        major: Some(major),
        minor: Some(minor),
        access: "rwm".into(),
    };
    let mut rules = vec![DeviceRule { allow: false, access: "rwm".into(), ..DeviceRule::default() }];
    // zero, null, urandom, random, tty, console.
    rules.extend([(1, 5), (1, 3), (1, 9), (1, 8), (5, 0), (5, 1)].map(|(a, b)| rule(true, a, b)));
    rules.push(rule(false, 10, 229));
    rules
}

/// The rule of a privileged container: everything.
pub fn allow_all() -> DeviceRule {
    DeviceRule { allow: true, access: "rwm".into(), ..DeviceRule::default() }
}

/// Whether a permission is a subset of `rwm` without a letter twice.
pub fn valid_access(access: &str) -> bool {
    let mut seen = Vec::new();
    access.chars().all(|c| {
        let fresh = matches!(c, 'r' | 'w' | 'm') && !seen.contains(&c);
        seen.push(c);
        fresh
    })
}

/// A rule as clients write it: `c 1:3 rwm`, with `*` for any number.
pub fn parse_rule(text: &str) -> Option<DeviceRule> {
    let mut words = text.split(' ');
    let (kind, numbers, access) = (words.next()?, words.next()?, words.next()?);
    if words.next().is_some() || !matches!(kind, "a" | "b" | "c") {
        return None;
    }
    if access.is_empty() || access.len() > 3 || !access.bytes().all(|b| matches!(b, b'r' | b'w' | b'm')) {
        return None;
    }
    let (major, minor) = numbers.split_once(':')?;
    let number = |text: &str| match text {
        "*" => Some(None),
        digits if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) => {
            digits.parse().ok().map(Some)
        }
        _ => None,
    };
    Some(DeviceRule {
        allow: true,
        kind: kind.into(),
        major: number(major)?,
        minor: number(minor)?,
        access: access.into(),
    })
}

/// The device node at `path` of the host, as the container gets it at `inside`.
///
/// # Errors
/// There is none, or it is no device (`None`).
pub fn node(path: &Path, inside: &str) -> io::Result<Option<Device>> {
    let meta = std::fs::metadata(path)?;
    let kind = meta.file_type();
    let kind = if kind.is_block_device() {
        "b"
    } else if kind.is_char_device() {
        "c"
    } else {
        return Ok(None);
    };
    Ok(Some(Device {
        path: inside.to_owned(),
        kind: kind.to_owned(),
        major: i64::from(major(meta.rdev())),
        minor: i64::from(minor(meta.rdev())),
        file_mode: Some(meta.mode() & 0o7777),
        uid: Some(meta.uid()),
        gid: Some(meta.gid()),
    }))
}

/// All devices at or below `dir`, as the container gets them at or below `inside`. What cannot be read is left out; so are the
/// container's own terminals, message queues and shared memory, which it has of its own.
pub fn nodes_below(dir: &Path, inside: &str) -> Vec<Device> {
    let mut found = Vec::new();
    let Ok(entries) = std::fs::read_dir(dir) else { return found };
    let mut entries: Vec<_> = entries.flatten().collect();
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let Ok(name) = entry.file_name().into_string() else { continue };
        let Ok(kind) = entry.file_type() else { continue };
        let target = format!("{}/{name}", inside.trim_end_matches('/'));
        if kind.is_dir() {
            if !matches!(name.as_str(), "pts" | "shm" | "fd" | "mqueue" | ".lxc" | ".lxd-mounts" | ".udev") {
                found.extend(nodes_below(&entry.path(), &target));
            }
        } else if name != "console" && !kind.is_symlink() {
            found.extend(node(&entry.path(), &target).ok().flatten());
        }
    }
    found
}

/// The rule that lets a container use a device.
pub fn rule_for(device: &Device, access: &str) -> DeviceRule {
    DeviceRule {
        allow: true,
        kind: device.kind.clone(),
        major: Some(device.major),
        minor: Some(device.minor),
        access: access.to_owned(),
    }
}

/// Major and minor number of the device at `path`, for limits of block devices.
///
/// # Errors
/// There is none.
pub fn numbers(path: &str) -> io::Result<(i64, i64)> {
    let meta = std::fs::metadata(path)?;
    Ok((i64::from(major(meta.rdev())), i64::from(minor(meta.rdev()))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_read() {
        let rule = parse_rule("c 42:* rm").unwrap();
        assert_eq!(
            (rule.kind.as_str(), rule.major, rule.minor, rule.access.as_str()),
            ("c", Some(42), None, "rm")
        );
        assert_eq!(parse_rule("a *:* rwm").unwrap().major, None);
        for bad in
            ["", "bogus", "c 1 rwm", "c 1:2", "c 1:2 x", "x 1:2 r", "c -1:2 r", "c 1:2  r", "c 1:2 r r"]
        {
            assert_eq!(parse_rule(bad), None, "{bad}");
        }
        assert!(valid_access("rw") && !valid_access("rr") && !valid_access("x"));
    }

    #[test]
    fn a_node_of_the_host() {
        let null = node(Path::new("/dev/null"), "/dev/x").unwrap().unwrap();
        assert_eq!((null.kind.as_str(), null.major, null.minor, null.path.as_str()), ("c", 1, 3, "/dev/x"));
        assert_eq!(node(Path::new("/proc"), "/x").unwrap(), None);
    }
}
