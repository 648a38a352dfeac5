//! What the shim reads from a bundle and what it leaves there for the `delete` action that may have to follow it.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Name of [`Left`]'s file.
const LEFT: &str = "shim-rs.json";

/// The few things of `config.json` a shim needs.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Spec {
    /// The id of the shim that this container shares with others, where the annotations name one.
    pub group: Option<String>,
    /// The control group it asks for.
    pub cgroups_path: Option<String>,
    /// Whether the container has process ids of its own, so that all its processes end with the first.
    pub has_own_pids: bool,
    /// Whether its processes get a filter of system calls.
    pub has_filter: bool,
    /// Whether all that a further process needs to know is in its own description, in init's filter and in the kernel.
    pub is_plain: bool,
}

#[derive(Deserialize, Default)]
struct WireSpec {
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
    #[serde(default)]
    linux: Option<WireLinux>,
}

#[derive(Deserialize, Default)]
struct WireLinux {
    #[serde(default)]
    namespaces: Option<Vec<WireNamespace>>,
    #[serde(default, rename = "cgroupsPath")]
    cgroups_path: Option<String>,
    #[serde(default)]
    seccomp: Option<WireFilter>,
    #[serde(default)]
    personality: Option<serde::de::IgnoredAny>,
    #[serde(default, rename = "intelRdt")]
    intel_rdt: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
struct WireFilter {
    #[serde(default, rename = "listenerPath")]
    listener: String,
}

#[derive(Deserialize)]
struct WireNamespace {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    path: String,
}

impl Spec {
    /// Reads `config.json` of `bundle`. A bundle without one is a sandbox without a container of its own: nothing is known.
    pub fn read(bundle: &Path) -> io::Result<Spec> {
        match std::fs::read(bundle.join("config.json")) {
            Ok(bytes) => Spec::parse(&bytes).map_err(|err| io::Error::new(io::ErrorKind::InvalidData, err)),
            Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(Spec::default()),
            Err(err) => Err(err),
        }
    }

    fn parse(bytes: &[u8]) -> Result<Spec, serde_json::Error> {
        let wire: WireSpec = serde_json::from_slice(bytes)?;
        let annotations = wire.annotations.unwrap_or_default();
        // The order is containerd's: an explicit group wins over the pod.
        let group = ["io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id"]
            .iter()
            .find_map(|name| annotations.get(*name))
            .filter(|id| !id.is_empty())
            .cloned();
        let linux = wire.linux.unwrap_or_default();
        let namespaces = linux.namespaces.unwrap_or_default();
        let has_own_pids =
            namespaces.iter().any(|namespace| namespace.kind == "pid" && namespace.path.is_empty());
        let has_users = namespaces.iter().any(|namespace| namespace.kind == "user");
        let listened = linux.seccomp.as_ref().is_some_and(|filter| !filter.listener.is_empty());
        let is_plain = !has_users && !listened && linux.personality.is_none() && linux.intel_rdt.is_none();
        let has_filter = linux.seccomp.is_some();
        Ok(Spec { group, cgroups_path: linux.cgroups_path, has_own_pids, has_filter, is_plain })
    }
}

/// How to clean up after this container, should the shim not live to do it.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Left {
    /// The runtime's program.
    pub binary: String,
    /// Its state directory, namespace included.
    pub root: PathBuf,
    /// Whether it was told to use systemd for cgroups.
    pub systemd_cgroup: bool,
    /// Where the native mode would record the exit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_record: Option<PathBuf>,
    /// The native mode's attach socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attach_socket: Option<PathBuf>,
}

impl Left {
    /// Leaves this in `bundle`. Not synced: bundles lie in memory and nothing needs cleaning after a reboot.
    pub fn write(&self, bundle: &Path) -> io::Result<()> {
        let temporary = bundle.join(format!("{LEFT}.tmp"));
        std::fs::write(&temporary, serde_json::to_vec(self).map_err(io::Error::other)?)?;
        std::fs::rename(&temporary, bundle.join(LEFT))
    }

    /// What a shim left, `None` if it did not get that far.
    pub fn read(bundle: &Path) -> io::Result<Option<Left>> {
        match std::fs::read(bundle.join(LEFT)) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|err| io::Error::new(io::ErrorKind::InvalidData, err)),
            Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(err) => Err(err),
        }
    }
}

/// A pid file as runtimes write them.
pub fn read_pid(path: &Path) -> io::Result<i32> {
    let text = std::fs::read_to_string(path)?;
    match text.trim().parse() {
        Ok(pid) if pid > 0 => Ok(pid),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, format!("{text:?} is no process id"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_group_and_the_pid_namespace() {
        for (json, group, own) in [
            ("{}", None, false),
            (
                r#"{"linux":{"namespaces":[{"type":"pid"},{"type":"network"}]},"root":{"path":"rootfs"}}"#,
                None,
                true,
            ),
            (r#"{"linux":{"namespaces":[{"type":"pid","path":"/proc/1/ns/pid"}]}}"#, None, false),
            (r#"{"annotations":{"io.kubernetes.cri.sandbox-id":"pod"},"linux":null}"#, Some("pod"), false),
            (
                r#"{"annotations":{"io.kubernetes.cri.sandbox-id":"pod","io.containerd.runc.v2.group":"g"}}"#,
                Some("g"),
                false,
            ),
            (r#"{"annotations":null,"linux":{"namespaces":null}}"#, None, false),
        ] {
            let expected = Spec {
                group: group.map(str::to_owned),
                has_own_pids: own,
                is_plain: true,
                ..Spec::default()
            };
            assert_eq!(Spec::parse(json.as_bytes()).unwrap(), expected, "{json}");
        }
        for (linux, has_filter, is_plain) in [
            (r#"{"seccomp":{"defaultAction":"SCMP_ACT_ERRNO"}}"#, true, true),
            (r#"{"seccomp":{"listenerPath":"/x"}}"#, true, false),
            (r#"{"namespaces":[{"type":"user"}]}"#, false, false),
            (r#"{"personality":{"domain":"LINUX32"}}"#, false, false),
            (r#"{"intelRdt":{}}"#, false, false),
        ] {
            let spec = Spec::parse(format!(r#"{{"linux":{linux}}}"#).as_bytes()).unwrap();
            assert_eq!((spec.has_filter, spec.is_plain), (has_filter, is_plain), "{linux}");
        }
        let spec = Spec::parse(br#"{"linux":{"cgroupsPath":"/docker/x"}}"#).unwrap();
        assert_eq!(spec.cgroups_path.as_deref(), Some("/docker/x"));
        assert!(Spec::parse(b"{").is_err());
        assert_eq!(Spec::read(Path::new("/nonexistent")).unwrap(), Spec::default());
    }

    #[test]
    fn what_is_left_is_found_again() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(Left::read(directory.path()).unwrap(), None);
        let left =
            Left { binary: "runc".into(), root: "/r/n".into(), systemd_cgroup: true, ..Left::default() };
        left.write(directory.path()).unwrap();
        assert_eq!(Left::read(directory.path()).unwrap(), Some(left));
    }

    #[test]
    fn pid_files() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pid");
        for (text, pid) in
            [("12", Some(12)), ("12\n", Some(12)), ("", None), ("-1", None), ("0", None), ("x", None)]
        {
            std::fs::write(&path, text).unwrap();
            assert_eq!(read_pid(&path).ok(), pid, "{text:?}");
        }
    }
}
