//! What this machine's cgroups can limit.

use std::path::Path;
use std::sync::OnceLock;

/// What there is. A limit that is not there is discarded with a warning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "each is the name of the limit")]
pub struct Limits {
    /// Whether the machine has cgroup v2 only.
    pub unified: bool,
    pub memory: bool,
    pub swap: bool,
    pub reservation: bool,
    pub oom_kill_disable: bool,
    pub swappiness: bool,
    pub cpu_shares: bool,
    pub cpu_cfs: bool,
    pub cpu_realtime: bool,
    pub cpuset: bool,
    pub pids: bool,
    pub blkio_weight: bool,
    pub blkio_weight_device: bool,
    pub blkio_throttle: bool,
    /// Processors the engine may use.
    pub cpus: usize,
}

impl Limits {
    /// This machine's; looked up once.
    pub fn of_machine() -> Self {
        static FOUND: OnceLock<Limits> = OnceLock::new();
        *FOUND.get_or_init(|| Self::at(Path::new("/sys/fs/cgroup")))
    }

    fn at(root: &Path) -> Self {
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        if let Ok(controllers) = std::fs::read_to_string(root.join("cgroup.controllers")) {
            let has = |name: &str| controllers.split_whitespace().any(|controller| controller == name);
            return Self {
                unified: true,
                memory: has("memory"),
                swap: has("memory"),
                reservation: has("memory"),
                oom_kill_disable: false,
                swappiness: false,
                cpu_shares: has("cpu"),
                cpu_cfs: has("cpu"),
                cpu_realtime: false,
                cpuset: has("cpuset"),
                pids: has("pids"),
                blkio_weight: has("io"),
                blkio_weight_device: has("io"),
                blkio_throttle: has("io"),
                cpus,
            };
        }
        let has = |controller: &str, file: &str| root.join(controller).join(file).exists();
        Self {
            unified: false,
            memory: has("memory", "memory.limit_in_bytes"),
            swap: has("memory", "memory.memsw.limit_in_bytes"),
            reservation: has("memory", "memory.soft_limit_in_bytes"),
            oom_kill_disable: has("memory", "memory.oom_control"),
            swappiness: has("memory", "memory.swappiness"),
            cpu_shares: has("cpu", "cpu.shares"),
            cpu_cfs: has("cpu", "cpu.cfs_quota_us"),
            cpu_realtime: has("cpu", "cpu.rt_runtime_us"),
            cpuset: has("cpuset", "cpuset.cpus"),
            pids: has("pids", "cgroup.procs"),
            blkio_weight: has("blkio", "blkio.weight"),
            blkio_weight_device: has("blkio", "blkio.weight_device"),
            blkio_throttle: has("blkio", "blkio.throttle.read_bps_device"),
            cpus,
        }
    }
}

/// The processors or memory nodes containers may be bound to: `0-3,5`.
pub fn available(memory: bool) -> String {
    let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let file = match (unified, memory) {
        (true, false) => "/sys/fs/cgroup/cpuset.cpus.effective",
        (true, true) => "/sys/fs/cgroup/cpuset.mems.effective",
        (false, false) => "/sys/fs/cgroup/cpuset/cpuset.cpus",
        (false, true) => "/sys/fs/cgroup/cpuset/cpuset.mems",
    };
    std::fs::read_to_string(file).unwrap_or_default().trim().to_owned()
}

/// Whether every number of `wanted` is in `available`; ranges are compared as ranges, however long. `None` if `wanted` is no such list.
pub fn is_subset(wanted: &str, available: &str) -> Option<bool> {
    let available = ranges(available)?;
    Some(ranges(wanted)?.iter().all(|(from, to)| {
        let mut at = *from;
        // Available ranges are few and sorted as the kernel writes them.
        for (start, end) in &available {
            if (*start..=*end).contains(&at) {
                if end >= to {
                    return true;
                }
                at = end + 1;
            }
        }
        false
    }))
}

fn ranges(text: &str) -> Option<Vec<(u32, u32)>> {
    let number = |text: &str| {
        (!text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()))
            .then(|| text.parse::<u32>().ok())
            .flatten()
    };
    let mut found = Vec::new();
    for part in text.split(',').filter(|_| !text.is_empty()) {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        let (from, to) = (number(from)?, number(to)?);
        if from > to {
            return None;
        }
        found.push((from, to));
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_lists() {
        assert_eq!(is_subset("0-1", "0-3"), Some(true));
        assert_eq!(is_subset("0-5", "0-2,3-5"), Some(true));
        assert_eq!(is_subset("77", "0-1"), Some(false));
        assert_eq!(is_subset("0-4294967295", "0-1"), Some(false));
        for bad in ["abc", "a-b", "1-0", "-1", "1,,2"] {
            assert_eq!(is_subset(bad, "0-1"), None, "{bad}");
        }
    }
}
