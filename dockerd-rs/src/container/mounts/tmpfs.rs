//! Options of tmpfs mounts.

use docker_api::Mount;

use crate::error::{Error, Result};

/// What a tmpfs has unless it asks for something else.
const DEFAULT: [&str; 3] = ["noexec", "nosuid", "nodev"];
/// Options with a value.
const VALUED: &[&str] = &["gid", "mode", "mpol", "nr_blocks", "nr_inodes", "size", "uid"];
/// Options that undo one another.
const PAIRS: &[(&str, &str)] = &[
    ("ro", "rw"),
    ("suid", "nosuid"),
    ("dev", "nodev"),
    ("exec", "noexec"),
    ("sync", "async"),
    ("mand", "nomand"),
    ("atime", "noatime"),
    ("diratime", "nodiratime"),
    ("relatime", "norelatime"),
    ("strictatime", "nostrictatime"),
];
/// Options that stand alone.
const SINGLE: &[&str] = &[
    "bind",
    "defaults",
    "dirsync",
    "private",
    "rbind",
    "remount",
    "rprivate",
    "rshared",
    "rslave",
    "runbindable",
    "shared",
    "slave",
    "unbindable",
];

/// The options of a tmpfs as `--tmpfs` gives them, with the defaults; the last of two that undo one another wins.
///
/// # Errors
/// One is unknown.
pub fn options(text: &str) -> Result<Vec<String>> {
    let mut merged: Vec<String> = DEFAULT.iter().map(|option| (*option).to_owned()).collect();
    for option in text.split(',').filter(|option| !option.is_empty()) {
        let invalid = || Error::invalid(format!("invalid tmpfs option {option:?}"));
        if let Some((name, _)) = option.split_once('=') {
            if !VALUED.contains(&name) {
                return Err(invalid());
            }
            merged.retain(|other| other.split_once('=').is_none_or(|(other, _)| other != name));
        } else if let Some((on, off)) = PAIRS.iter().find(|(on, off)| *on == option || *off == option) {
            merged.retain(|other| other != on && other != off);
        } else if SINGLE.contains(&option) {
            merged.retain(|other| other != option);
        } else {
            return Err(invalid());
        }
        if option != "defaults" {
            merged.push(option.to_owned());
        }
    }
    Ok(merged)
}

/// The options of a tmpfs as `--mount type=tmpfs` gives them.
///
/// # Errors
/// One is unknown.
pub fn of_mount(mount: &Mount) -> Result<String> {
    let mut options = Vec::new();
    if mount.read_only {
        options.push("ro".to_owned());
    }
    if let Some(tmpfs) = &mount.tmpfs_options {
        if tmpfs.mode != 0 {
            options.push(format!("mode={:o}", tmpfs.mode));
        }
        if tmpfs.size_bytes != 0 {
            options.push(format!("size={}", size(tmpfs.size_bytes)));
        }
        for option in tmpfs.options.iter().flatten() {
            match option.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
                [flag @ ("exec" | "noexec")] => options.push((*flag).to_owned()),
                [name, ..] => return Err(Error::invalid(format!("invalid option: {name}"))),
                [] => return Err(Error::invalid("invalid option array length: 0")),
            }
        }
    }
    Ok(options.join(","))
}

/// A size in the largest unit that divides it.
fn size(bytes: i64) -> String {
    for (shift, unit) in [(30, "g"), (20, "m"), (10, "k")] {
        let whole = bytes >> shift;
        if whole > 0 && whole << shift == bytes {
            return format!("{whole}{unit}");
        }
    }
    bytes.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use docker_api::mount::TmpfsOptions;

    #[test]
    fn the_last_option_wins() {
        let read = |text: &str| options(text).map(|options| options.join(","));
        assert_eq!(read("").unwrap(), "noexec,nosuid,nodev");
        assert_eq!(read("size=1m,exec,mode=700,size=2m").unwrap(), "nosuid,nodev,exec,mode=700,size=2m");
        assert_eq!(read("rw,ro").unwrap(), "noexec,nosuid,nodev,ro");
        assert_eq!(read("bogus=1").unwrap_err().message(), "invalid tmpfs option \"bogus=1\"");
        assert_eq!(read("zz").unwrap_err().message(), "invalid tmpfs option \"zz\"");
    }

    #[test]
    fn options_of_a_mount() {
        let tmpfs_options = Some(TmpfsOptions {
            size_bytes: 1_048_576,
            mode: 0o700,
            options: Some(vec![vec!["exec".into()]]),
        });
        let mount = Mount { tmpfs_options, read_only: true, ..Mount::default() };
        assert_eq!(of_mount(&mount).unwrap(), "ro,mode=700,size=1m,exec");
        assert_eq!(size(1_048_577), "1048577");
    }
}
