//! Further processes of a container without the runtime: the shim sends a helper, this same program, through the container's namespaces.
//!
//! The runtime takes three processes and tens of milliseconds for what is a handful of system calls once the container exists. The helper does
//! them for the plain case and *declines* whatever else: labels, terminals, user namespaces, anything in the description it does not know, and
//! each failure before the program runs. Nothing has happened then, and the runtime is asked instead; so every error a caller sees is its.
//!
//! ```text
//! shim ── spawn ──► helper: control groups, pid namespace ── fork ──► child: the other namespaces, rights, exec
//!      ◄─ exit 0 ── (pid written, the exec has happened)                (a child of the shim's: siblings)
//! ```
//!
//! Invariant: the child gets the filter of system calls that init has, to the byte ([`sys::enter::filter_of`]), and drops every right before it
//! touches a file by a name of the container's other than `/etc/passwd`. The helper's own file cannot be reached from inside for writing.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::rc::Rc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sys::enter::{self, Capabilities};
use sys::fork::Side;
use sys::pidfd::PidFd;
use sys::reaper::Ended;

use crate::bundle::Spec;
use crate::children::Children;

/// The word that makes this program the helper.
pub const ACTION: &str = "enter";
/// How long the helper may take; it waits for nothing but a program to be loaded.
const PATIENCE: Duration = Duration::from_secs(60);
/// How much of `/etc/passwd` is read.
const PASSWD_MAX: u64 = 4 * 1024 * 1024;
/// The set of a program's first steps, in the order of their numbers.
const CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];
/// Limits by name, in the order of their numbers.
const LIMITS: [&str; 16] = [
    "CPU",
    "FSIZE",
    "DATA",
    "STACK",
    "CORE",
    "RSS",
    "NPROC",
    "NOFILE",
    "MEMLOCK",
    "AS",
    "LOCKS",
    "SIGPENDING",
    "MSGQUEUE",
    "NICE",
    "RTPRIO",
    "RTTIME",
];

/// Why the helper was not sent, or came back without having done it.
#[derive(Debug, thiserror::Error)]
pub enum Declined {
    /// Preparing for it failed.
    #[error("prepare the helper")]
    Prepare(#[from] io::Error),
    /// It said no, or was ended.
    #[error("the helper ended with {0:?}")]
    Helper(Ended),
    /// It did not end.
    #[error("the helper did not end in time")]
    TooSlow,
}

/// Whether and how a container can be entered.
#[derive(Default)]
pub struct Entrance {
    way: Option<Way>,
}

struct Way {
    /// Init's filter, compressed: it is kept for as long as the container lives.
    filter: Option<Vec<u8>>,
    keyring: bool,
    program: OnceCell<OwnedFd>,
}

/// The ends of the new process's streams.
pub struct Ends<'a> {
    /// Standard input, `/dev/null` if absent.
    pub stdin: &'a Option<OwnedFd>,
    /// Standard output, `/dev/null` if absent.
    pub stdout: &'a Option<OwnedFd>,
    /// Standard error, `/dev/null` if absent.
    pub stderr: &'a Option<OwnedFd>,
}

/// What the helper is told, in a file.
#[derive(Debug, Serialize, Deserialize)]
struct Errand {
    init: i32,
    pid_file: PathBuf,
    description: PathBuf,
    filter: Option<PathBuf>,
    keyring: Option<String>,
}

impl Entrance {
    /// Of a container just created, whose init `pid` waits for its start.
    pub fn of(spec: &Spec, pid: i32, new_keyring: bool) -> Entrance {
        let way = || {
            if !spec.is_plain {
                return None;
            }
            let filter = match spec.has_filter {
                // One that is put on late, as with `no_new_privs`, is not there yet: nothing is known then.
                true => Some(compress(&enter::filter_of(pid).ok()??).ok()?),
                false => None,
            };
            Some(Way { filter, keyring: new_keyring, program: OnceCell::new() })
        };
        Entrance { way: way() }
    }

    /// Whether the helper can be tried.
    pub fn is_open(&self) -> bool {
        self.way.is_some()
    }

    /// Runs the process described by the file `description` in container `id`, whose first process is `init`, and writes its pid to `pid_file`.
    /// It is a child of the caller's then, and its program runs.
    pub async fn run(
        &self,
        children: &Rc<Children>,
        (id, init): (&str, i32),
        description: &Path,
        pid_file: &Path,
        ends: Ends<'_>,
    ) -> Result<(), Declined> {
        let Some(way) = &self.way else { return Err(Declined::Helper(Ended::Code(1))) };
        let program = match way.program.get() {
            Some(program) => program,
            None => {
                let sealed = enter::sealed_program()?;
                way.program.get_or_init(|| sealed)
            }
        };
        let filter = match &way.filter {
            Some(filter) => {
                let path = description.with_extension("filter");
                std::fs::write(&path, expand(filter)?)?;
                Some(path)
            }
            None => None,
        };
        let errand = Errand {
            init,
            pid_file: pid_file.to_owned(),
            description: description.to_owned(),
            filter: filter.clone(),
            keyring: way.keyring.then(|| format!("_ses.{id}")),
        };
        let path = description.with_extension("errand");
        std::fs::write(&path, serde_json::to_vec(&errand).map_err(io::Error::other)?)?;
        let sent = send(children, program, &path, ends).await;
        let _ = std::fs::remove_file(&path);
        if let Some(filter) = filter {
            let _ = std::fs::remove_file(filter);
        }
        sent
    }
}

async fn send(
    children: &Rc<Children>,
    program: &OwnedFd,
    errand: &Path,
    ends: Ends<'_>,
) -> Result<(), Declined> {
    let stream = |end: &Option<OwnedFd>| match end {
        Some(end) => end.try_clone().map(Stdio::from),
        None => Ok(Stdio::null()),
    };
    let mut command = Command::new(format!("/proc/self/fd/{}", program.as_raw_fd()));
    command.arg(ACTION).arg(errand).env_clear();
    command.stdin(stream(ends.stdin)?).stdout(stream(ends.stdout)?).stderr(stream(ends.stderr)?);
    sys::fork::die_with_parent(sys::fork::clear_signal_mask(&mut command));
    let (pid, mut ended) = children.spawn(&mut command)?;
    drop(command);
    match tokio::time::timeout(PATIENCE, &mut ended).await {
        Ok(Ok(exit)) if exit.how == Ended::Code(0) => Ok(()),
        Ok(exit) => Err(Declined::Helper(exit.map_or(Ended::Code(1), |exit| exit.how))),
        Err(_) => {
            if let Some(pid) = rustix::process::Pid::from_raw(pid) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
            Err(Declined::TooSlow)
        }
    }
}

fn compress(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(bytes)?;
    encoder.finish()
}

fn expand(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    flate2::read::DeflateDecoder::new(bytes).read_to_end(&mut out)?;
    Ok(out)
}

/// A process description as far as the helper can carry it out. A field it does not know makes it decline.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Description {
    #[serde(default)]
    terminal: bool,
    #[serde(default)]
    console_size: Option<serde::de::IgnoredAny>,
    user: User,
    args: Vec<String>,
    #[serde(default)]
    env: Option<Vec<String>>,
    cwd: String,
    capabilities: WireCapabilities,
    #[serde(default)]
    rlimits: Option<Vec<Limit>>,
    #[serde(default)]
    no_new_privileges: bool,
    #[serde(default)]
    apparmor_profile: String,
    #[serde(default)]
    selinux_label: String,
    #[serde(default)]
    oom_score_adj: Option<i32>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct User {
    uid: u32,
    gid: u32,
    #[serde(default)]
    umask: Option<u32>,
    #[serde(default)]
    additional_gids: Option<Vec<u32>>,
    #[serde(default)]
    #[allow(dead_code, reason = "known, and without meaning here")]
    username: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct WireCapabilities {
    #[serde(default)]
    bounding: Option<Vec<String>>,
    #[serde(default)]
    effective: Option<Vec<String>>,
    #[serde(default)]
    permitted: Option<Vec<String>>,
    #[serde(default)]
    inheritable: Option<Vec<String>>,
    #[serde(default)]
    ambient: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Limit {
    #[serde(rename = "type")]
    kind: String,
    hard: u64,
    soft: u64,
}

/// The description, checked: everything that can be known before the container is entered.
#[derive(Debug)]
struct Plan {
    user: User,
    arguments: Vec<String>,
    environment: Vec<String>,
    path: Option<String>,
    has_home: bool,
    directory: String,
    capabilities: Capabilities,
    limits: Vec<(u32, u64, u64)>,
    no_new_privileges: bool,
    oom_score: Option<i32>,
}

fn declined(why: &str) -> io::Error {
    io::Error::other(why.to_owned())
}

impl Plan {
    fn of(bytes: &[u8]) -> io::Result<Plan> {
        let wire: Description = serde_json::from_slice(bytes)?;
        if wire.terminal || !wire.apparmor_profile.is_empty() || !wire.selinux_label.is_empty() {
            return Err(declined("a terminal or a label"));
        }
        let _ = wire.console_size;
        if wire.args.first().is_none_or(String::is_empty) || !wire.cwd.starts_with('/') {
            return Err(declined("no program or no directory"));
        }
        let set = |names: Option<Vec<String>>| {
            let number = |name: &String| {
                let name = name.strip_prefix("CAP_")?;
                CAPABILITIES.iter().position(|known| *known == name)
            };
            let mut set = 0u64;
            for name in names.unwrap_or_default() {
                set |= 1 << number(&name).ok_or_else(|| declined("an unknown capability"))?;
            }
            Ok::<u64, io::Error>(set)
        };
        let capabilities = Capabilities {
            bounding: set(wire.capabilities.bounding)?,
            effective: set(wire.capabilities.effective)?,
            permitted: set(wire.capabilities.permitted)?,
            inheritable: set(wire.capabilities.inheritable)?,
            ambient: set(wire.capabilities.ambient)?,
        };
        let mut limits = Vec::new();
        for limit in wire.rlimits.unwrap_or_default() {
            let name = limit.kind.strip_prefix("RLIMIT_").unwrap_or_default();
            let number = LIMITS.iter().position(|known| *known == name);
            let number = number.ok_or_else(|| declined("an unknown limit"))?;
            limits.push((number as u32, limit.soft, limit.hard));
        }
        // As a shell would have it: the last value of a name counts, its first place stays.
        let mut environment: Vec<String> = Vec::new();
        let mut places = BTreeMap::new();
        for pair in wire.env.unwrap_or_default() {
            let Some((name, _)) = pair.split_once('=').filter(|(name, _)| !name.is_empty()) else {
                return Err(declined("a variable without a name or a value"));
            };
            match places.get(name) {
                Some(place) => environment[*place] = pair,
                None => {
                    places.insert(name.to_owned(), environment.len());
                    environment.push(pair);
                }
            }
        }
        let value =
            |name: &str| places.get(name).map(|place| environment[*place][name.len() + 1..].to_owned());
        Ok(Plan {
            path: value("PATH"),
            has_home: value("HOME").is_some_and(|home| !home.is_empty()),
            user: wire.user,
            arguments: wire.args,
            environment,
            directory: wire.cwd,
            capabilities,
            limits,
            no_new_privileges: wire.no_new_privileges,
            oom_score: wire.oom_score_adj,
        })
    }
}

/// The helper's whole life.
pub fn help(errand: &Path) -> ExitCode {
    // Told by the exit code alone: standard error is the container's. The runtime will say what is wrong.
    match carry_out(errand) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn carry_out(errand: &Path) -> io::Result<()> {
    enter::hide()?;
    let errand: Errand = serde_json::from_slice(&std::fs::read(errand)?)?;
    let plan = Plan::of(&std::fs::read(&errand.description)?)?;
    let filter = errand.filter.as_deref().map(std::fs::read).transpose()?;
    let init = PidFd::open(errand.init)?;
    let kinds = kinds_to_join(errand.init)?;
    if let Some(score) = plan.oom_score {
        let file = "/proc/self/oom_score_adj";
        let now = std::fs::read_to_string(file)?;
        if now.trim() != score.to_string() {
            std::fs::write(file, score.to_string())?;
        }
    }
    join_groups(errand.init)?;
    if kinds & libc::CLONE_NEWPID != 0 {
        enter::join(&init, libc::CLONE_NEWPID)?;
    }
    let (mut told, tell) = io::pipe()?;
    match enter::fork_sibling()? {
        Side::Parent(pid) => {
            drop(tell);
            std::fs::write(&errand.pid_file, pid.to_string())?;
            let mut byte = [0];
            // The end without a word is exec's doing.
            match told.read(&mut byte)? {
                0 => Ok(()),
                _ => Err(declined("not executed")),
            }
        }
        Side::Child => {
            let mut tell = tell;
            let _ = become_it(&init, kinds & !libc::CLONE_NEWPID, &plan, filter.as_deref(), errand.keyring);
            let _ = tell.write_all(&[1]);
            std::process::exit(1);
        }
    }
}

/// The namespaces of init that are not ours. A user namespace is the runtime's business, and so is a container that has our own mounts.
fn kinds_to_join(init: i32) -> io::Result<i32> {
    let mut kinds = 0;
    for (name, kind) in enter::NAMESPACES {
        let inode = |of: &str| std::fs::metadata(format!("/proc/{of}/ns/{name}")).map(|found| found.ino());
        let (ours, theirs) = match (inode("self"), inode(&init.to_string())) {
            (Ok(ours), Ok(theirs)) => (ours, theirs),
            // A kind this kernel does not have.
            (Err(err), _) if err.kind() == io::ErrorKind::NotFound => continue,
            (Err(err), _) | (_, Err(err)) => return Err(err),
        };
        if ours != theirs {
            kinds |= kind;
        }
    }
    if kinds & libc::CLONE_NEWUSER != 0 || kinds & libc::CLONE_NEWNS == 0 {
        return Err(declined("a user namespace, or no mounts of its own"));
    }
    Ok(kinds)
}

/// Goes where init is, in every hierarchy in which it is elsewhere.
fn join_groups(init: i32) -> io::Result<()> {
    let (ours, theirs) =
        (sys::cgroup::Groups::of(std::process::id() as i32)?, sys::cgroup::Groups::of(init)?);
    let mut joined = Vec::new();
    let pairs = theirs
        .controllers
        .iter()
        .map(|(name, group)| (group, ours.controllers.get(name)))
        .chain(theirs.unified.iter().map(|group| (group, ours.unified.as_ref())));
    for (group, own) in pairs {
        if own != Some(group) && !joined.contains(&group) {
            std::fs::write(group.join("cgroup.procs"), "0")?;
            joined.push(group);
        }
    }
    Ok(())
}

/// In the child: comes back only if it failed.
fn become_it(
    init: &PidFd,
    kinds: i32,
    plan: &Plan,
    filter: Option<&[u8]>,
    keyring: Option<String>,
) -> io::Result<()> {
    rustix::process::setsid()?;
    enter::join(init, kinds)?;
    if let Some(name) = keyring {
        enter::join_keyring(&name)?;
    }
    for (kind, soft, hard) in &plan.limits {
        enter::set_limit(*kind, *soft, *hard)?;
    }
    let mut environment = plan.environment.clone();
    if !plan.has_home {
        environment.retain(|pair| !pair.starts_with("HOME="));
        environment.push(format!("HOME={}", home_of(plan.user.uid)));
    }
    give_streams(plan.user.uid);
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(plan.user.umask.unwrap_or(0o022)));
    // Root may come where the user does not, and the other way round: both are tried.
    let there = std::env::set_current_dir(&plan.directory).is_ok();
    enter::reset_signals();
    if plan.no_new_privileges {
        enter::forbid_new_privileges()?;
    }
    if let Some(filter) = filter.filter(|_| !plan.no_new_privileges) {
        enter::set_filter(filter)?;
    }
    enter::bound(&plan.capabilities)?;
    let groups = plan.user.additional_gids.as_deref().unwrap_or_default();
    enter::become_user(plan.user.uid, plan.user.gid, groups)?;
    if !there {
        std::env::set_current_dir(&plan.directory)?;
    }
    // A directory outside of the root has no path in it.
    if !std::env::current_dir()?.is_absolute() {
        return Err(declined("not in the container"));
    }
    enter::restrict(&plan.capabilities)?;
    let program = find(&plan.arguments[0], plan.path.as_deref())?;
    if let Some(filter) = filter.filter(|_| plan.no_new_privileges) {
        enter::set_filter(filter)?;
    }
    Err(enter::execute(&program, &plan.arguments, &environment))
}

/// Where the program is. Only names that cannot be meant otherwise.
fn find(program: &str, path: Option<&str>) -> io::Result<String> {
    let runs = |path: &str| {
        std::fs::metadata(path).is_ok_and(|found| found.is_file())
            && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok()
    };
    if program.contains('/') {
        return if runs(program) { Ok(program.to_owned()) } else { Err(declined("not to be run")) };
    }
    for directory in path.unwrap_or_default().split(':') {
        if !directory.starts_with('/') {
            return Err(declined("a path that depends on the directory"));
        }
        let candidate = format!("{}/{program}", directory.trim_end_matches('/'));
        if runs(&candidate) {
            return Ok(candidate);
        }
    }
    Err(declined("not found"))
}

/// The home of a user as the container's own file has it; `/` where it does not say.
fn home_of(uid: u32) -> String {
    let read = || {
        let file = File::options()
            .read(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_CLOEXEC)
            .open("/etc/passwd")?;
        if !file.metadata()?.is_file() {
            return Err(declined("no file"));
        }
        let mut bytes = Vec::new();
        file.take(PASSWD_MAX).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    read()
        .ok()
        .and_then(|passwd| home_in(&String::from_utf8_lossy(&passwd), uid))
        .unwrap_or_else(|| "/".into())
}

fn home_in(passwd: &str, uid: u32) -> Option<String> {
    passwd.lines().find_map(|line| {
        let mut fields = line.trim().split(':').skip(2);
        let found = fields.next()?.parse::<u32>().ok()? == uid;
        let home = fields.nth(2)?;
        (found && !home.is_empty()).then(|| home.to_owned())
    })
}

/// Makes the streams the user's, so that they can be opened again by name. What cannot be given stays as it is, `/dev/null` always.
fn give_streams(uid: u32) {
    let null = std::fs::metadata("/dev/null").map(|found| found.rdev()).ok();
    let streams = [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()];
    for stream in streams {
        let Ok(found) = rustix::fs::fstat(stream) else { continue };
        if found.st_uid != uid && Some(found.st_rdev) != null {
            let _ = rustix::fs::fchown(stream, Some(rustix::fs::Uid::from_raw(uid)), None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: &str = r#"{"user":{"uid":5,"gid":6,"additionalGids":[7]},"args":["a"],"env":["A=1","B=2","A=3","PATH=/x"],
        "cwd":"/","capabilities":{"bounding":["CAP_CHOWN","CAP_KILL"],"effective":[],"permitted":["CAP_BPF"]},
        "rlimits":[{"type":"RLIMIT_NOFILE","hard":20,"soft":10}],"noNewPrivileges":true}"#;

    #[test]
    fn a_plain_description_is_understood() {
        let plan = Plan::of(PLAIN.as_bytes()).unwrap();
        assert_eq!(plan.environment, ["A=3", "B=2", "PATH=/x"]);
        assert_eq!((plan.path.as_deref(), plan.has_home), (Some("/x"), false));
        assert_eq!(plan.limits, [(7, 10, 20)]);
        let set = Capabilities { bounding: 0b10_0001, permitted: 1 << 39, ..Capabilities::default() };
        assert_eq!((plan.capabilities, plan.no_new_privileges), (set, true));
    }

    #[test]
    fn what_it_does_not_know_is_left_to_the_runtime() {
        let with = |from: &str, to: &str| Plan::of(PLAIN.replacen(from, to, 1).as_bytes());
        for (from, to) in [
            (r#""cwd""#, r#""scheduler":{"policy":"SCHED_FIFO"},"cwd""#),
            (r#""cwd""#, r#""terminal":true,"cwd""#),
            (r#""cwd""#, r#""apparmorProfile":"docker-default","cwd""#),
            (r#""cwd""#, r#""selinuxLabel":"x","cwd""#),
            (r#""cwd":"/""#, r#""cwd":"x""#),
            (r#""a""#, r#""""#),
            ("CAP_BPF", "CAP_NEWER"),
            ("CAP_BPF", "BPF"),
            ("RLIMIT_NOFILE", "RLIMIT_BOGUS"),
            (r#""A=1""#, r#""A""#),
            (r#""uid":5"#, r#""uid":5,"more":1"#),
            (r#""capabilities""#, r#""capabilitiez""#),
        ] {
            assert!(with(from, to).is_err(), "{to}");
        }
        assert!(with("\"A=1\"", "\"A=\"").is_ok());
    }

    #[test]
    fn homes() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nbroken\nodd:x:7:7::\nuser:x:1000:1000::/home/user:\n";
        assert_eq!(home_in(passwd, 0).as_deref(), Some("/root"));
        assert_eq!(home_in(passwd, 1000).as_deref(), Some("/home/user"));
        assert_eq!(home_in(passwd, 7), None);
        assert_eq!(home_in(passwd, 8), None);
    }

    #[test]
    fn programs_are_found_by_absolute_paths_only() {
        assert_eq!(find("sh", Some("/nonexistent:/bin/")).unwrap(), "/bin/sh");
        assert_eq!(find("/bin/sh", None).unwrap(), "/bin/sh");
        for (program, path) in
            [("sh", Some("")), ("sh", Some(".:/bin")), ("sh", None), ("/", None), ("/etc/passwd", None)]
        {
            assert!(find(program, path).is_err(), "{program} {path:?}");
        }
    }

    #[test]
    fn a_filter_survives_its_keeping() {
        let filter: Vec<u8> = (0..8000u32).flat_map(|at| (at / 64).to_ne_bytes()).collect();
        let kept = compress(&filter).unwrap();
        assert!(kept.len() < filter.len() / 8);
        assert_eq!(expand(&kept).unwrap(), filter);
    }
}
