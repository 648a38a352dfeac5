//! Facts of the machine, read from the kernel's files when asked.

use std::path::Path;

/// The kernel's release.
pub fn kernel() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

/// The machine's name for its architecture (`x86_64`).
pub fn machine() -> String {
    rustix::system::uname().machine().to_string_lossy().into_owned()
}

/// The machine's own name.
pub fn hostname() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// Name and version of the distribution.
pub fn os() -> (String, String) {
    let text =
        ["/etc/os-release", "/usr/lib/os-release"].iter().find_map(|path| std::fs::read_to_string(path).ok());
    let text = text.unwrap_or_default();
    let field = |key: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
            .map(|value| value.trim_matches(['"', '\'']).to_owned())
    };
    let name = field("PRETTY_NAME").or_else(|| field("NAME")).unwrap_or_else(|| "Linux".into());
    (name, field("VERSION_ID").unwrap_or_default())
}

/// Bytes of memory.
pub fn memory() -> i64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = text
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next()?.parse::<i64>().ok());
    kib.unwrap_or(0) * 1024
}

/// Processors this process may use.
pub fn processors() -> i64 {
    std::thread::available_parallelism().map_or(1, |n| n.get() as i64)
}

/// Open descriptors of this process.
pub fn open_files() -> i64 {
    std::fs::read_dir("/proc/self/fd").map_or(-1, |entries| entries.count() as i64)
}

/// Threads of this process: what comes closest to goroutines.
pub fn threads() -> i64 {
    std::fs::read_dir("/proc/self/task").map_or(-1, |entries| entries.count() as i64)
}

/// Whether the kernel forwards IPv4.
pub fn forwards_ipv4() -> bool {
    std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").is_ok_and(|text| text.trim() == "1")
}

/// Which limits the control groups of this machine can set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cgroups {
    pub version: u8,
    pub memory: bool,
    pub swap: bool,
    pub cpu_shares: bool,
    pub cfs_period: bool,
    pub cfs_quota: bool,
    pub cpuset: bool,
    pub pids: bool,
    pub oom_kill_disable: bool,
}

/// Looks at `/sys/fs/cgroup`.
pub fn cgroups() -> Cgroups {
    let root = Path::new("/sys/fs/cgroup");
    if let Ok(controllers) = std::fs::read_to_string(root.join("cgroup.controllers")) {
        let has = |name: &str| controllers.split_whitespace().any(|controller| controller == name);
        return Cgroups {
            version: 2,
            memory: has("memory"),
            // The root has no memory.swap.max; every kernel with the memory controller and swap accounting has it below.
            swap: has("memory") && Path::new("/proc/swaps").exists(),
            cpu_shares: has("cpu"),
            cfs_period: has("cpu"),
            cfs_quota: has("cpu"),
            cpuset: has("cpuset"),
            pids: has("pids"),
            oom_kill_disable: false,
        };
    }
    let has = |path: &str| root.join(path).exists();
    Cgroups {
        version: 1,
        memory: has("memory/memory.limit_in_bytes"),
        swap: has("memory/memory.memsw.limit_in_bytes"),
        cpu_shares: has("cpu/cpu.shares"),
        cfs_period: has("cpu/cpu.cfs_period_us"),
        cfs_quota: has("cpu/cpu.cfs_quota_us"),
        cpuset: has("cpuset/cpuset.cpus"),
        pids: has("pids"),
        oom_kill_disable: has("memory/memory.oom_control"),
    }
}

/// Whether systemd runs this machine.
pub fn has_systemd() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

/// What protects containers: seccomp, AppArmor, cgroup namespaces.
pub fn security_options(
    seccomp_profile: &str,
    default_cgroupns: Option<&str>,
    cgroup_version: u8,
) -> Vec<String> {
    let mut options = Vec::new();
    if Path::new("/sys/kernel/security/apparmor").is_dir() {
        options.push("name=apparmor".to_owned());
    }
    if std::fs::read_to_string("/proc/self/status").is_ok_and(|text| text.contains("\nSeccomp:")) {
        options.push(format!("name=seccomp,profile={seccomp_profile}"));
    }
    let private = default_cgroupns.map_or(cgroup_version == 2, |mode| mode == "private");
    if private {
        options.push("name=cgroupns".into());
    }
    options
}
