//! What a container does not see, and what it cannot write, below /proc and /sys.

use std::path::Path;

/// Hidden. What tells about the host or its other users, or has let containers out.
pub const MASKED: &[&str] = &[
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// Readable only.
pub const READONLY: &[&str] = &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// The default list of hidden paths on this machine: [`MASKED`], and each processor's thermal throttling where there is one.
pub fn masked() -> Vec<String> {
    let mut paths: Vec<String> = MASKED.iter().map(|path| (*path).to_owned()).collect();
    let cpus = std::fs::read_dir("/sys/devices/system/cpu").into_iter().flatten().flatten();
    let mut throttles: Vec<String> = cpus
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let number = name.strip_prefix("cpu")?;
            number.bytes().all(|b| b.is_ascii_digit()).then_some(())?;
            let path = format!("/sys/devices/system/cpu/{name}/thermal_throttle");
            Path::new(&path).exists().then_some(path)
        })
        .collect();
    throttles.sort();
    paths.extend(throttles);
    paths
}

/// The default list of read-only paths.
pub fn readonly() -> Vec<String> {
    READONLY.iter().map(|path| (*path).to_owned()).collect()
}
