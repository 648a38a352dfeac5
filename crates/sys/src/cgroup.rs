//! Control groups: where a process lives, its counters, its freezer, and notice of the out-of-memory killer. Versions 1, 2 and both at once.
//!
//! Everything here tolerates a group that vanishes while it is read: what is gone counts as absent, not as an error.

use std::collections::BTreeMap;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::event::EventfdFlags;
use rustix::fs::inotify;

/// The directories of the groups one process is in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Groups {
    /// Version 1: by controller name (`memory`, `cpuacct`, …).
    pub controllers: BTreeMap<String, PathBuf>,
    /// Version 2.
    pub unified: Option<PathBuf>,
}

/// Which counters a machine keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Version 1 controllers, perhaps with an empty version 2 tree beside them.
    Legacy,
    /// Version 2 alone.
    Unified,
}

impl Groups {
    /// Where process `pid` is now. Fails when it is gone.
    pub fn of(pid: i32) -> io::Result<Groups> {
        let memberships = std::fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
        let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
        Ok(Groups::parse(&memberships, &mounts))
    }

    /// From the text of `/proc/<pid>/cgroup` and `/proc/self/mountinfo`.
    pub fn parse(memberships: &str, mountinfo: &str) -> Groups {
        let mut groups = Groups::default();
        for line in memberships.lines() {
            let mut fields = line.splitn(3, ':');
            let (Some(_), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next())
            else {
                continue;
            };
            if controllers.is_empty() {
                groups.unified = directory(mountinfo, "cgroup2", None, path);
                continue;
            }
            for controller in controllers.split(',') {
                if let Some(found) = directory(mountinfo, "cgroup", Some(controller), path) {
                    groups.controllers.insert(controller.to_owned(), found);
                }
            }
        }
        groups
    }

    /// Which kind of counters to read for this process.
    pub fn mode(&self) -> Mode {
        if self.controllers.keys().any(|name| !name.starts_with("name=")) {
            Mode::Legacy
        } else {
            Mode::Unified
        }
    }

    /// The directory of a version 1 controller.
    pub fn controller(&self, name: &str) -> Option<&Path> {
        self.controllers.get(name).map(PathBuf::as_path)
    }

    /// All processes in the group and below, ascending, each once.
    pub fn processes(&self) -> io::Result<Vec<i32>> {
        // Any hierarchy a runtime puts containers into will do; in a hybrid the version 2 tree may be left alone.
        let candidates = ["pids", "memory", "cpu", "freezer", "devices", "name=systemd"];
        let root = match self.mode() {
            Mode::Unified => self.unified.as_deref(),
            Mode::Legacy => candidates.iter().find_map(|name| self.controller(name)),
        };
        let root = root.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        let mut pids = Vec::new();
        collect_processes(root, &mut pids)?;
        pids.sort_unstable();
        pids.dedup();
        Ok(pids)
    }

    /// Asks the kernel to freeze or thaw the group; [`Groups::is_frozen`] tells how far it is.
    ///
    /// # Errors
    /// `NotFound` where the machine has no freezer, or the group is gone.
    pub fn set_frozen(&self, frozen: bool) -> io::Result<()> {
        let (file, words) = self.freezer()?;
        std::fs::write(file, words[usize::from(frozen)])
    }

    /// Whether every process in the group stands still.
    ///
    /// # Errors
    /// As [`Groups::set_frozen`].
    pub fn is_frozen(&self) -> io::Result<bool> {
        match self.mode() {
            Mode::Legacy => Ok(std::fs::read_to_string(self.freezer()?.0)?.trim() == "FROZEN"),
            Mode::Unified => {
                let events = self.freezer()?.0.with_file_name("cgroup.events");
                Ok(keyed(&events).get("frozen") == Some(&1))
            }
        }
    }

    /// The file that freezes, and its words for no and yes.
    fn freezer(&self) -> io::Result<(PathBuf, [&'static str; 2])> {
        let found = match self.mode() {
            Mode::Legacy => {
                self.controller("freezer").map(|group| (group.join("freezer.state"), ["THAWED", "FROZEN"]))
            }
            Mode::Unified => self.unified.as_ref().map(|group| (group.join("cgroup.freeze"), ["0", "1"])),
        };
        found.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
    }

    /// How often the kernel killed a process of this group for want of memory.
    pub fn oom_kills(&self) -> u64 {
        let (directory, file) = match self.mode() {
            Mode::Legacy => (self.controller("memory"), "memory.oom_control"),
            Mode::Unified => (self.unified.as_deref(), "memory.events"),
        };
        directory.and_then(|directory| keyed(&directory.join(file)).remove("oom_kill")).unwrap_or(0)
    }
}

/// The path of a membership below the mount point of its hierarchy.
fn directory(mountinfo: &str, filesystem: &str, controller: Option<&str>, path: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let mut after = after.split(' ');
        let (kind, options) = (after.next()?, after.nth(1)?);
        if kind != filesystem
            || !controller.is_none_or(|wanted| options.split(',').any(|option| option == wanted))
        {
            return None;
        }
        let mut before = before.split(' ').skip(3);
        let (root, mount_point) = (before.next()?, before.next()?);
        let relative = match root {
            "/" => path,
            root => path.strip_prefix(root).filter(|rest| rest.is_empty() || rest.starts_with('/'))?,
        };
        Some(Path::new(mount_point).join(relative.trim_start_matches('/')))
    })
}

fn collect_processes(directory: &Path, into: &mut Vec<i32>) -> io::Result<()> {
    let listed = std::fs::read_to_string(directory.join("cgroup.procs"))?;
    into.extend(listed.lines().filter_map(|line| line.parse::<i32>().ok()));
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            match collect_processes(&entry.path(), into) {
                Err(err) if err.kind() == io::ErrorKind::NotFound => {}
                other => other?,
            }
        }
    }
    Ok(())
}

/// Where a group of this path exists, in every hierarchy that is mounted whole.
pub fn everywhere(path: &Path) -> Vec<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let relative = path.strip_prefix("/").unwrap_or(path);
    let points =
        mounts.lines().filter(|line| line.contains(" - cgroup")).filter_map(|line| line.split(' ').nth(4));
    let mut found: Vec<PathBuf> =
        points.map(|point| Path::new(point).join(relative)).filter(|directory| directory.is_dir()).collect();
    found.sort();
    found.dedup();
    found
}

/// Kills every process in a group and below and removes the groups, the deepest first. Fails while processes are still on their way out; a group that is not
/// there is no error.
pub fn kill_and_remove(directory: &Path) -> io::Result<()> {
    let gone = |outcome: io::Result<()>| match outcome {
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    };
    let entries = match std::fs::read_dir(directory) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            kill_and_remove(&entry.path())?;
        }
    }
    let listed = std::fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    for pid in listed.lines().filter_map(|line| line.parse().ok()) {
        if let Some(pid) = rustix::process::Pid::from_raw(pid) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
    gone(std::fs::remove_dir(directory))
}

/// A file with one number; `max` is `u64::MAX`. `None` when absent or no number.
pub fn number(path: &Path) -> Option<u64> {
    match std::fs::read_to_string(path).ok()?.trim() {
        "max" => Some(u64::MAX),
        text => text.parse().ok(),
    }
}

/// A file of `key value` lines. Empty when absent; lines that are otherwise are left out.
pub fn keyed(path: &Path) -> BTreeMap<String, u64> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines()
        .filter_map(|line| {
            let (key, value) = line.split_once(' ')?;
            Some((key.to_owned(), value.trim().parse().ok()?))
        })
        .collect()
}

/// Notice of kills for want of memory.
#[derive(Debug)]
pub struct OomNotice {
    fd: OwnedFd,
    /// Version 1: the eventfd counts only while this is open.
    _control: Option<OwnedFd>,
}

impl OomNotice {
    /// Watches the memory group of `groups`. The descriptor is non-blocking and readable after a kill and when the group is removed; compare
    /// [`Groups::oom_kills`] to tell.
    pub fn watch(groups: &Groups) -> io::Result<OomNotice> {
        match groups.mode() {
            Mode::Legacy => {
                let memory =
                    groups.controller("memory").ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
                let control: OwnedFd = std::fs::File::open(memory.join("memory.oom_control"))?.into();
                let fd = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
                let request = format!("{} {}", raw(&fd), raw(&control));
                std::fs::write(memory.join("cgroup.event_control"), request)?;
                Ok(OomNotice { fd, _control: Some(control) })
            }
            Mode::Unified => {
                let group =
                    groups.unified.as_deref().ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
                let fd = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
                inotify::add_watch(&fd, group.join("memory.events"), inotify::WatchFlags::MODIFY)?;
                Ok(OomNotice { fd, _control: None })
            }
        }
    }

    /// Takes what is pending. `WouldBlock` when nothing is.
    pub fn take(&self) -> io::Result<()> {
        let mut buffer = [MaybeUninit::<u8>::uninit(); 512];
        rustix::io::read(&self.fd, &mut buffer)?;
        Ok(())
    }
}

impl AsFd for OomNotice {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl std::os::fd::AsRawFd for OomNotice {
    fn as_raw_fd(&self) -> i32 {
        raw(&self.fd)
    }
}

fn raw(fd: &OwnedFd) -> i32 {
    std::os::fd::AsRawFd::as_raw_fd(fd)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
30 23 0:26 / /sys/fs/cgroup ro,nosuid - tmpfs tmpfs ro,mode=755
31 30 0:27 / /sys/fs/cgroup/unified rw shared:5 - cgroup2 cgroup2 rw
32 30 0:28 / /sys/fs/cgroup/memory rw shared:6 - cgroup cgroup rw,memory
33 30 0:29 / /sys/fs/cgroup/cpu,cpuacct rw shared:7 master:1 - cgroup cgroup rw,cpu,cpuacct
34 30 0:30 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
";

    #[test]
    fn finds_each_controller_of_a_hybrid() {
        let groups = Groups::parse(
            "3:memory:/docker/abc\n2:cpu,cpuacct:/docker/abc\n1:name=systemd:/\n0::/x\n",
            HYBRID,
        );
        assert_eq!(groups.controller("memory"), Some(Path::new("/sys/fs/cgroup/memory/docker/abc")));
        assert_eq!(groups.controller("cpuacct"), Some(Path::new("/sys/fs/cgroup/cpu,cpuacct/docker/abc")));
        assert_eq!(groups.unified.as_deref(), Some(Path::new("/sys/fs/cgroup/unified/x")));
        assert_eq!(groups.mode(), Mode::Legacy);
    }

    #[test]
    fn finds_the_only_group_of_version_2_below_a_bound_root() {
        let mounts = "31 30 0:27 /outer /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n";
        let groups = Groups::parse("0::/outer/inner/a:b\n", mounts);
        assert_eq!(groups.unified.as_deref(), Some(Path::new("/sys/fs/cgroup/inner/a:b")));
        assert_eq!(groups.mode(), Mode::Unified);
        // Another tree that merely starts with the same letters is not below the mount.
        assert_eq!(Groups::parse("0::/outermost\n", mounts).unified, None);
    }

    #[test]
    fn nonsense_is_absent() {
        assert_eq!(Groups::parse("\n1\n2:x\n:::", "a - b\n - \nx y - cgroup"), Groups::default());
        assert!(Groups::of(i32::MAX).is_err());
    }

    #[test]
    fn a_group_is_ended_with_everything_below() {
        // Needs root and a mounted hierarchy; every machine that runs containers has both.
        let name = format!("sys-test-{}", std::process::id());
        let roots = everywhere(Path::new("/"));
        let Some(root) = roots.iter().find(|root| std::fs::create_dir(root.join(&name)).is_ok()) else {
            return;
        };
        let (group, inner) = (root.join(&name), root.join(&name).join("inner"));
        std::fs::create_dir(&inner).unwrap();
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        std::fs::write(inner.join("cgroup.procs"), child.id().to_string()).unwrap();
        assert!(everywhere(Path::new("/").join(&name).as_path()).contains(&group));
        let _ = kill_and_remove(&group);
        assert!(!child.wait().unwrap().success());
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(5);
        while kill_and_remove(&group).is_err() {
            assert!(std::time::Instant::now() < deadline);
        }
        assert!(!group.exists());
        kill_and_remove(&group).unwrap();
    }

    #[test]
    fn a_group_is_frozen_and_thawed() {
        let name = format!("sys-frozen-{}", std::process::id());
        let mine = Groups::of(std::process::id() as i32).unwrap();
        let mut groups = Groups::default();
        // A group of our own in the hierarchy that freezes; needs root, as every machine that runs containers gives.
        match mine.mode() {
            Mode::Legacy => {
                let Some(root) = mine.controller("freezer") else { return };
                groups.controllers.insert("freezer".into(), root.join(&name));
            }
            Mode::Unified => groups.unified = mine.unified.map(|root| root.join(&name)),
        }
        let group = groups.freezer().unwrap().0.parent().unwrap().to_owned();
        if std::fs::create_dir(&group).is_err() {
            return;
        }
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        std::fs::write(group.join("cgroup.procs"), child.id().to_string()).unwrap();
        for frozen in [true, false] {
            groups.set_frozen(frozen).unwrap();
            let deadline = std::time::Instant::now() + std::time::Duration::from_secs(5);
            while groups.is_frozen().unwrap() != frozen {
                assert!(std::time::Instant::now() < deadline);
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();
        std::fs::remove_dir(&group).unwrap();
        assert!(groups.set_frozen(true).is_err());
        assert!(Groups::default().set_frozen(true).is_err());
    }

    #[test]
    fn numbers_and_tables() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("f");
        for (text, value) in [("12\n", Some(12)), ("max\n", Some(u64::MAX)), ("", None), ("-1\n", None)] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(number(&path), value, "{text:?}");
        }
        std::fs::write(&path, "low 0\noom_kill 3\nbad x\nlonely\n").unwrap();
        assert_eq!(keyed(&path), BTreeMap::from([("low".into(), 0), ("oom_kill".into(), 3)]));
        assert!(keyed(Path::new("/nonexistent")).is_empty());
    }

    #[test]
    fn this_process_is_in_its_own_group() {
        let groups = Groups::of(std::process::id() as i32).unwrap();
        if let Ok(pids) = groups.processes() {
            assert!(pids.contains(&(std::process::id() as i32)));
        }
    }
}
