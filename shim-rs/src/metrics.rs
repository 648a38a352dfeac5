//! A container's counters, in containerd's messages for cgroup version 1 and 2.

use std::collections::BTreeMap;
use std::path::Path;

use prost_types::Any;
use shim_api::{cgroup1, cgroup2};
use sys::cgroup::{Groups, Mode, keyed, number};

/// Clock ticks per second of `cpuacct.stat`: fixed in the kernel's interface to programs.
const TICKS: u64 = 100;

/// Reads everything there is. `None` when the group is gone.
pub fn read(groups: &Groups) -> Option<Any> {
    match groups.mode() {
        Mode::Legacy => {
            let any = groups.controllers.values().any(|directory| directory.is_dir());
            any.then(|| shim_api::any::pack(&legacy(groups)))
        }
        Mode::Unified => {
            let directory = groups.unified.as_deref().filter(|directory| directory.is_dir())?;
            Some(shim_api::any::pack(&unified(directory)))
        }
    }
}

fn legacy(groups: &Groups) -> cgroup1::Metrics {
    let mut metrics = cgroup1::Metrics::default();
    if let Some(directory) = groups.controller("pids") {
        metrics.pids = Some(cgroup1::PidsStat {
            current: number(&directory.join("pids.current")).unwrap_or(0),
            limit: limit(&directory.join("pids.max")),
        });
    }
    if let Some(directory) = groups.controller("cpuacct") {
        metrics.cpu.get_or_insert_default().usage = Some(cpu_usage(directory));
    }
    if let Some(directory) = groups.controller("cpu") {
        let stat = keyed(&directory.join("cpu.stat"));
        metrics.cpu.get_or_insert_default().throttling = Some(cgroup1::Throttle {
            periods: value(&stat, "nr_periods"),
            throttled_periods: value(&stat, "nr_throttled"),
            throttled_time: value(&stat, "throttled_time"),
        });
    }
    if let Some(directory) = groups.controller("memory") {
        metrics.memory = Some(memory(directory));
        let control = keyed(&directory.join("memory.oom_control"));
        metrics.memory_oom_control = Some(cgroup1::MemoryOomControl {
            oom_kill_disable: value(&control, "oom_kill_disable"),
            under_oom: value(&control, "under_oom"),
            oom_kill: value(&control, "oom_kill"),
        });
    }
    if let Some(directory) = groups.controller("blkio") {
        metrics.blkio = Some(block_io(directory));
    }
    if let Some(directory) = groups.controller("hugetlb") {
        metrics.hugetlb = page_sizes(directory, ".usage_in_bytes")
            .into_iter()
            .map(|pagesize| {
                let read =
                    |what: &str| number(&directory.join(format!("hugetlb.{pagesize}.{what}"))).unwrap_or(0);
                cgroup1::HugetlbStat {
                    usage: read("usage_in_bytes"),
                    max: read("max_usage_in_bytes"),
                    failcnt: read("failcnt"),
                    pagesize,
                }
            })
            .collect();
    }
    if let Some(directory) = groups.controller("rdma") {
        let entries = |file: &str| -> Vec<cgroup1::RdmaEntry> {
            rdma(&directory.join(file))
                .into_iter()
                .map(|(device, hca_handles, hca_objects)| cgroup1::RdmaEntry {
                    device,
                    hca_handles,
                    hca_objects,
                })
                .collect()
        };
        metrics.rdma =
            Some(cgroup1::RdmaStat { current: entries("rdma.current"), limit: entries("rdma.max") });
    }
    metrics
}

/// A limit; none is 0, as containerd's cgroup library reports it for pids.
fn limit(path: &Path) -> u64 {
    number(path).filter(|limit| *limit != u64::MAX).unwrap_or(0)
}

fn value(table: &BTreeMap<String, u64>, key: &str) -> u64 {
    table.get(key).copied().unwrap_or(0)
}

fn cpu_usage(directory: &Path) -> cgroup1::CpuUsage {
    let ticks = keyed(&directory.join("cpuacct.stat"));
    let per_cpu = std::fs::read_to_string(directory.join("cpuacct.usage_percpu")).unwrap_or_default();
    cgroup1::CpuUsage {
        total: number(&directory.join("cpuacct.usage")).unwrap_or(0),
        kernel: value(&ticks, "system") * (1_000_000_000 / TICKS),
        user: value(&ticks, "user") * (1_000_000_000 / TICKS),
        per_cpu: per_cpu.split_whitespace().filter_map(|text| text.parse().ok()).collect(),
    }
}

fn memory(directory: &Path) -> cgroup1::MemoryStat {
    let stat = keyed(&directory.join("memory.stat"));
    let get = |key: &str| value(&stat, key);
    let entry = |prefix: &str| {
        let read = |what: &str| number(&directory.join(format!("memory{prefix}.{what}")));
        read("usage_in_bytes").map(|usage| cgroup1::MemoryEntry {
            limit: read("limit_in_bytes").unwrap_or(0),
            usage,
            max: read("max_usage_in_bytes").unwrap_or(0),
            failcnt: read("failcnt").unwrap_or(0),
        })
    };
    cgroup1::MemoryStat {
        cache: get("cache"),
        rss: get("rss"),
        rss_huge: get("rss_huge"),
        mapped_file: get("mapped_file"),
        dirty: get("dirty"),
        writeback: get("writeback"),
        pg_pg_in: get("pgpgin"),
        pg_pg_out: get("pgpgout"),
        pg_fault: get("pgfault"),
        pg_maj_fault: get("pgmajfault"),
        inactive_anon: get("inactive_anon"),
        active_anon: get("active_anon"),
        inactive_file: get("inactive_file"),
        active_file: get("active_file"),
        unevictable: get("unevictable"),
        hierarchical_memory_limit: get("hierarchical_memory_limit"),
        hierarchical_swap_limit: get("hierarchical_memsw_limit"),
        total_cache: get("total_cache"),
        total_rss: get("total_rss"),
        total_rss_huge: get("total_rss_huge"),
        total_mapped_file: get("total_mapped_file"),
        total_dirty: get("total_dirty"),
        total_writeback: get("total_writeback"),
        total_pg_pg_in: get("total_pgpgin"),
        total_pg_pg_out: get("total_pgpgout"),
        total_pg_fault: get("total_pgfault"),
        total_pg_maj_fault: get("total_pgmajfault"),
        total_inactive_anon: get("total_inactive_anon"),
        total_active_anon: get("total_active_anon"),
        total_inactive_file: get("total_inactive_file"),
        total_active_file: get("total_active_file"),
        total_unevictable: get("total_unevictable"),
        usage: entry(""),
        swap: entry(".memsw"),
        kernel: entry(".kmem"),
        kernel_tcp: entry(".kmem.tcp"),
    }
}

fn block_io(directory: &Path) -> cgroup1::BlkIoStat {
    let read = |file: &str| block_entries(&directory.join(format!("blkio.{file}")));
    let bytes = read("io_service_bytes_recursive");
    // Without a scheduler that accounts for itself only the throttling layer counts.
    if bytes.is_empty() {
        return cgroup1::BlkIoStat {
            io_service_bytes_recursive: read("throttle.io_service_bytes_recursive"),
            io_serviced_recursive: read("throttle.io_serviced_recursive"),
            ..Default::default()
        };
    }
    cgroup1::BlkIoStat {
        io_service_bytes_recursive: bytes,
        io_serviced_recursive: read("io_serviced_recursive"),
        io_queued_recursive: read("io_queued_recursive"),
        io_service_time_recursive: read("io_service_time_recursive"),
        io_wait_time_recursive: read("io_wait_time_recursive"),
        io_merged_recursive: read("io_merged_recursive"),
        io_time_recursive: read("time_recursive"),
        sectors_recursive: read("sectors_recursive"),
    }
}

/// Lines of `major:minor Operation value`, where the operation may be missing.
fn block_entries(path: &Path) -> Vec<cgroup1::BlkIoEntry> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let entries = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let (major, minor) = words.next()?.split_once(':')?;
        let (major, minor) = (major.parse().ok()?, minor.parse().ok()?);
        let rest: Vec<&str> = words.collect();
        let (op, value) = match rest.as_slice() {
            [value] => ("", value),
            [op, value] => (*op, value),
            _ => return None,
        };
        Some(cgroup1::BlkIoEntry {
            op: op.to_owned(),
            device: device_name(major, minor),
            major,
            minor,
            value: value.parse().ok()?,
        })
    });
    entries.collect()
}

fn device_name(major: u64, minor: u64) -> String {
    let link = std::fs::read_link(format!("/sys/dev/block/{major}:{minor}")).unwrap_or_default();
    link.file_name().map(|name| format!("/dev/{}", name.to_string_lossy())).unwrap_or_default()
}

/// The sizes of huge pages a group has files for.
fn page_sizes(directory: &Path, suffix: &str) -> Vec<String> {
    let names = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let mut sizes: Vec<String> = names
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let size = name.strip_prefix("hugetlb.")?.strip_suffix(suffix)?;
            (!size.contains('.')).then(|| size.to_owned())
        })
        .collect();
    sizes.sort();
    sizes
}

/// Lines of `device hca_handle=N hca_object=N`, where a number may be `max`.
fn rdma(path: &Path) -> Vec<(String, u32, u32)> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let entries = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let device = words.next()?.to_owned();
        let mut count = |key: &str| {
            let text = words.next()?.strip_prefix(key)?;
            Some(if text == "max" { u32::MAX } else { text.parse().ok()? })
        };
        Some((device, count("hca_handle=")?, count("hca_object=")?))
    });
    entries.collect()
}

fn unified(directory: &Path) -> cgroup2::Metrics {
    let read = |file: &str| number(&directory.join(file));
    let cpu = keyed(&directory.join("cpu.stat"));
    let events = keyed(&directory.join("memory.events"));
    let entries = |file: &str| -> Vec<cgroup2::RdmaEntry> {
        rdma(&directory.join(file))
            .into_iter()
            .map(|(device, hca_handles, hca_objects)| cgroup2::RdmaEntry { device, hca_handles, hca_objects })
            .collect()
    };
    cgroup2::Metrics {
        pids: Some(cgroup2::PidsStat {
            current: read("pids.current").unwrap_or(0),
            limit: limit(&directory.join("pids.max")),
        }),
        cpu: Some(cgroup2::CpuStat {
            usage_usec: value(&cpu, "usage_usec"),
            user_usec: value(&cpu, "user_usec"),
            system_usec: value(&cpu, "system_usec"),
            nr_periods: value(&cpu, "nr_periods"),
            nr_throttled: value(&cpu, "nr_throttled"),
            throttled_usec: value(&cpu, "throttled_usec"),
            psi: pressure(&directory.join("cpu.pressure")),
            nr_bursts: value(&cpu, "nr_bursts"),
            burst_usec: value(&cpu, "burst_usec"),
        }),
        memory: Some(memory_unified(directory)),
        rdma: Some(cgroup2::RdmaStat { current: entries("rdma.current"), limit: entries("rdma.max") }),
        io: Some(cgroup2::IoStat {
            usage: io_unified(directory),
            psi: pressure(&directory.join("io.pressure")),
        }),
        hugetlb: page_sizes(directory, ".current")
            .into_iter()
            .map(|pagesize| cgroup2::HugeTlbStat {
                current: read(&format!("hugetlb.{pagesize}.current")).unwrap_or(0),
                max: read(&format!("hugetlb.{pagesize}.max")).unwrap_or(0),
                pagesize,
            })
            .collect(),
        memory_events: Some(cgroup2::MemoryEvents {
            low: value(&events, "low"),
            high: value(&events, "high"),
            max: value(&events, "max"),
            oom: value(&events, "oom"),
            oom_kill: value(&events, "oom_kill"),
        }),
        network: Vec::new(),
    }
}

fn memory_unified(directory: &Path) -> cgroup2::MemoryStat {
    let stat = keyed(&directory.join("memory.stat"));
    let get = |key: &str| value(&stat, key);
    let read = |file: &str| number(&directory.join(file)).unwrap_or(0);
    cgroup2::MemoryStat {
        anon: get("anon"),
        file: get("file"),
        kernel_stack: get("kernel_stack"),
        slab: get("slab"),
        sock: get("sock"),
        shmem: get("shmem"),
        file_mapped: get("file_mapped"),
        file_dirty: get("file_dirty"),
        file_writeback: get("file_writeback"),
        anon_thp: get("anon_thp"),
        inactive_anon: get("inactive_anon"),
        active_anon: get("active_anon"),
        inactive_file: get("inactive_file"),
        active_file: get("active_file"),
        unevictable: get("unevictable"),
        slab_reclaimable: get("slab_reclaimable"),
        slab_unreclaimable: get("slab_unreclaimable"),
        pgfault: get("pgfault"),
        pgmajfault: get("pgmajfault"),
        workingset_nodereclaim: get("workingset_nodereclaim"),
        pgrefill: get("pgrefill"),
        pgscan: get("pgscan"),
        pgsteal: get("pgsteal"),
        pgactivate: get("pgactivate"),
        pgdeactivate: get("pgdeactivate"),
        pglazyfree: get("pglazyfree"),
        pglazyfreed: get("pglazyfreed"),
        thp_fault_alloc: get("thp_fault_alloc"),
        thp_collapse_alloc: get("thp_collapse_alloc"),
        workingset_refault: get("workingset_refault_anon") + get("workingset_refault_file"),
        workingset_activate: get("workingset_activate_anon") + get("workingset_activate_file"),
        usage: read("memory.current"),
        usage_limit: read("memory.max"),
        swap_usage: read("memory.swap.current"),
        swap_limit: read("memory.swap.max"),
        max_usage: read("memory.peak"),
        swap_max_usage: read("memory.swap.peak"),
        psi: pressure(&directory.join("memory.pressure")),
    }
}

/// Lines of `major:minor rbytes=N wbytes=N rios=N wios=N …`.
fn io_unified(directory: &Path) -> Vec<cgroup2::IoEntry> {
    let text = std::fs::read_to_string(directory.join("io.stat")).unwrap_or_default();
    let entries = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let (major, minor) = words.next()?.split_once(':')?;
        let counts: BTreeMap<&str, u64> = words
            .filter_map(|word| word.split_once('='))
            .filter_map(|(key, text)| Some((key, text.parse().ok()?)))
            .collect();
        let get = |key: &str| counts.get(key).copied().unwrap_or(0);
        Some(cgroup2::IoEntry {
            major: major.parse().ok()?,
            minor: minor.parse().ok()?,
            rbytes: get("rbytes"),
            wbytes: get("wbytes"),
            rios: get("rios"),
            wios: get("wios"),
        })
    });
    entries.collect()
}

/// Lines of `some|full avg10=F avg60=F avg300=F total=N`. `None` where the kernel does not measure.
fn pressure(path: &Path) -> Option<cgroup2::PsiStats> {
    let text = std::fs::read_to_string(path).ok()?;
    let mut stats = cgroup2::PsiStats::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let kind = words.next();
        let mut data = cgroup2::PsiData::default();
        for (key, text) in words.filter_map(|word| word.split_once('=')) {
            match key {
                "avg10" => data.avg10 = text.parse().ok()?,
                "avg60" => data.avg60 = text.parse().ok()?,
                "avg300" => data.avg300 = text.parse().ok()?,
                "total" => data.total = text.parse().ok()?,
                _ => {}
            }
        }
        match kind {
            Some("some") => stats.some = Some(data),
            Some("full") => stats.full = Some(data),
            _ => {}
        }
    }
    Some(stats)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(directory: &Path, name: &str, text: &str) {
        std::fs::write(directory.join(name), text).unwrap();
    }

    #[test]
    fn version_1_files_become_metrics() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        file(
            path,
            "memory.stat",
            "cache 10\nrss 20\ntotal_inactive_file 3\nhierarchical_memory_limit 99\npgpgin 7\n",
        );
        file(path, "memory.usage_in_bytes", "30\n");
        file(path, "memory.limit_in_bytes", "9223372036854771712\n");
        file(path, "memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n");
        file(path, "pids.current", "4\n");
        file(path, "pids.max", "max\n");
        file(path, "blkio.throttle.io_service_bytes_recursive", "7:0 Read 5\n7:0 Write 6\nTotal 11\n");
        file(path, "cpuacct.stat", "user 3\nsystem 4\n");
        file(path, "cpuacct.usage", "12345\n");
        let names = ["memory", "pids", "blkio", "cpuacct"];
        let controllers = names.iter().map(|name| ((*name).to_owned(), path.to_owned())).collect();
        let metrics = legacy(&Groups { controllers, unified: None });
        let memory = metrics.memory.unwrap();
        assert_eq!((memory.cache, memory.rss, memory.total_inactive_file, memory.pg_pg_in), (10, 20, 3, 7));
        assert_eq!(memory.usage.unwrap().usage, 30);
        assert_eq!(memory.swap, None);
        assert_eq!(metrics.memory_oom_control.unwrap().oom_kill, 2);
        assert_eq!(metrics.pids.unwrap(), cgroup1::PidsStat { current: 4, limit: 0 });
        let blkio = metrics.blkio.unwrap().io_service_bytes_recursive;
        assert_eq!(
            blkio.iter().map(|entry| (entry.op.as_str(), entry.value)).collect::<Vec<_>>(),
            [("Read", 5), ("Write", 6)]
        );
        let usage = metrics.cpu.unwrap().usage.unwrap();
        assert_eq!((usage.total, usage.user, usage.kernel), (12345, 30_000_000, 40_000_000));
    }

    #[test]
    fn version_2_files_become_metrics() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        file(path, "cpu.stat", "usage_usec 5\nuser_usec 3\nsystem_usec 2\n");
        file(
            path,
            "cpu.pressure",
            "some avg10=1.50 avg60=0.00 avg300=0.00 total=77\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n",
        );
        file(path, "memory.current", "100\n");
        file(path, "memory.max", "max\n");
        file(path, "memory.events", "low 0\noom_kill 1\n");
        file(path, "memory.stat", "anon 1\nworkingset_refault_anon 2\nworkingset_refault_file 3\n");
        file(path, "io.stat", "259:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n");
        let metrics = unified(path);
        let memory = metrics.memory.unwrap();
        assert_eq!(
            (memory.usage, memory.usage_limit, memory.anon, memory.workingset_refault),
            (100, u64::MAX, 1, 5)
        );
        assert_eq!(metrics.io.unwrap().usage[0].wios, 4);
        let cpu = metrics.cpu.unwrap();
        assert_eq!((cpu.usage_usec, cpu.psi.unwrap().some.unwrap().total), (5, 77));
        assert_eq!(metrics.memory_events.unwrap().oom_kill, 1);
    }
}
