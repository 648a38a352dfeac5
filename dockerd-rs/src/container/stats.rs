//! What a container uses: one sample or a stream of them, in Docker's shape.
//!
//! containerd gives the control group's counters (v1 or v2); network counters are those of the first process' namespace; the machine's CPU time
//! is read beside them, because clients want a ratio. Zero values are left out where Docker leaves them out.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use containerd_api::any;
use jiff::Timestamp;
use serde::Serialize;
use shim_api::{cgroup1, cgroup2};
use tokio::sync::mpsc;

use super::{Container, Record};
use crate::engine::Engine;
use crate::error::Result;

/// Between two samples.
const INTERVAL: Duration = Duration::from_secs(1);
/// Clock ticks per second in /proc/stat: `USER_HZ`, the same on every Linux.
const TICKS: u64 = 100;
const ZERO_TIME: &str = "0001-01-01T00:00:00Z";

fn is_zero(value: &u64) -> bool {
    *value == 0
}

#[derive(Clone, Debug, Default, Serialize)]
struct CpuUsage {
    total_usage: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    percpu_usage: Vec<u64>,
    usage_in_kernelmode: u64,
    usage_in_usermode: u64,
}

#[derive(Clone, Debug, Default, Serialize)]
struct Throttling {
    periods: u64,
    throttled_periods: u64,
    throttled_time: u64,
}

/// CPU time used.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Cpu {
    cpu_usage: CpuUsage,
    #[serde(skip_serializing_if = "is_zero")]
    system_cpu_usage: u64,
    #[serde(skip_serializing_if = "is_zero")]
    online_cpus: u64,
    throttling_data: Throttling,
}

#[derive(Clone, Debug, Default, Serialize)]
struct Memory {
    #[serde(skip_serializing_if = "is_zero")]
    usage: u64,
    #[serde(skip_serializing_if = "is_zero")]
    max_usage: u64,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    stats: BTreeMap<&'static str, u64>,
    #[serde(skip_serializing_if = "is_zero")]
    failcnt: u64,
    #[serde(skip_serializing_if = "is_zero")]
    limit: u64,
}

#[derive(Clone, Debug, Default, Serialize)]
struct Network {
    rx_bytes: u64,
    rx_packets: u64,
    rx_errors: u64,
    rx_dropped: u64,
    tx_bytes: u64,
    tx_packets: u64,
    tx_errors: u64,
    tx_dropped: u64,
}

#[derive(Clone, Debug, Default, Serialize)]
struct Pids {
    #[serde(skip_serializing_if = "is_zero")]
    current: u64,
    #[serde(skip_serializing_if = "is_zero")]
    limit: u64,
}

#[derive(Clone, Debug, Serialize)]
struct BlockEntry {
    major: u64,
    minor: u64,
    op: String,
    value: u64,
}

type BlockEntries = Option<Vec<BlockEntry>>;

#[derive(Clone, Debug, Default, Serialize)]
struct Block {
    io_service_bytes_recursive: BlockEntries,
    io_serviced_recursive: BlockEntries,
    io_queue_recursive: BlockEntries,
    io_service_time_recursive: BlockEntries,
    io_wait_time_recursive: BlockEntries,
    io_merged_recursive: BlockEntries,
    io_time_recursive: BlockEntries,
    sectors_recursive: BlockEntries,
}

#[derive(Serialize)]
struct Empty {}

/// One sample. The default is that of a container that does not run.
#[derive(Clone, Debug, Default)]
pub struct Sample {
    read: Option<Timestamp>,
    cpu: Cpu,
    memory: Memory,
    networks: Option<BTreeMap<String, Network>>,
    pids: Pids,
    block: Block,
    before: Option<(Timestamp, Cpu)>,
}

/// A sample as clients read it.
#[derive(Serialize)]
pub struct Document<'a> {
    id: &'a str,
    name: String,
    os_type: &'static str,
    read: String,
    cpu_stats: Cpu,
    memory_stats: Memory,
    #[serde(skip_serializing_if = "Option::is_none")]
    networks: Option<BTreeMap<String, Network>>,
    pids_stats: Pids,
    blkio_stats: Block,
    num_procs: u32,
    storage_stats: Empty,
    preread: String,
    precpu_stats: Cpu,
}

/// The wire's form of a sample.
pub fn document(record: &Record, sample: Sample) -> Document<'_> {
    let time = |at: Option<Timestamp>| at.map_or_else(|| ZERO_TIME.to_owned(), |at| at.to_string());
    let (before, cpu_before) = sample.before.map_or((None, Cpu::default()), |(at, cpu)| (Some(at), cpu));
    Document {
        id: &record.id,
        name: format!("/{}", record.name),
        os_type: "linux",
        read: time(sample.read),
        cpu_stats: sample.cpu,
        memory_stats: sample.memory,
        networks: sample.networks,
        pids_stats: sample.pids,
        blkio_stats: sample.block,
        num_procs: 0,
        storage_stats: Empty {},
        preread: time(before),
        precpu_stats: cpu_before,
    }
}

/// One sample; unless `one_shot`, with another from a second before. A container that does not run has an empty one.
///
/// # Errors
/// containerd is away.
pub async fn once(engine: &Arc<Engine>, container: &Arc<Container>, one_shot: bool) -> Result<Sample> {
    let Some(first) = take(engine, container).await? else { return Ok(Sample::default()) };
    if one_shot {
        return Ok(first);
    }
    tokio::time::sleep(INTERVAL).await;
    let Some(mut second) = take(engine, container).await? else { return Ok(Sample::default()) };
    second.before = first.read.map(|at| (at, first.cpu));
    Ok(second)
}

/// Sends a sample each second until the client goes or the container does.
pub async fn stream(
    engine: &Arc<Engine>,
    container: &Arc<Container>,
    one_shot: bool,
    to: mpsc::Sender<Bytes>,
) {
    let mut ends = container.live.ends();
    let mut ticks = tokio::time::interval(INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut before = None;
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = to.closed() => return,
            _ = ends.wait_for(|ends| ends.removed) => return,
        }
        let mut sample = match take(engine, container).await {
            Ok(Some(sample)) => sample,
            // Nothing to tell while it does not run, or while containerd is away.
            Ok(None) | Err(_) => {
                before = None;
                continue;
            }
        };
        sample.before = if one_shot { None } else { before.take() };
        before = sample.read.map(|at| (at, sample.cpu.clone()));
        let record = container.record();
        let Ok(mut line) = serde_json::to_vec(&document(&record, sample)) else { return };
        line.push(b'\n');
        if to.send(line.into()).await.is_err() {
            return;
        }
    }
}

async fn take(engine: &Arc<Engine>, container: &Arc<Container>) -> Result<Option<Sample>> {
    let record = container.record();
    let Some(pid) = record.pid() else { return Ok(None) };
    let (data, at) = match engine.runtime.metrics(&container.id).await {
        Ok(metrics) => metrics,
        // It ended just now.
        Err(_) if container.record().pid() != Some(pid) => return Ok(None),
        Err(err) => return Err(err),
    };
    let mut sample = Sample { read: at.or_else(|| Some(Timestamp::now())), ..Sample::default() };
    if let Ok(Some(metrics)) = any::unpack::<cgroup1::Metrics>(&data) {
        fill_v1(&mut sample, metrics);
    } else if let Ok(Some(metrics)) = any::unpack::<cgroup2::Metrics>(&data) {
        fill_v2(&mut sample, metrics);
    }
    let own_network = !matches!(record.host_config.network_mode.as_str(), "host" | "none");
    let machine = tokio::task::spawn_blocking(move || {
        let network =
            own_network.then(|| std::fs::read_to_string(format!("/proc/{pid}/net/dev")).ok()).flatten();
        (std::fs::read_to_string("/proc/stat").unwrap_or_default(), network, total_memory())
    });
    let (stat, network, total) = machine.await.unwrap_or_default();
    (sample.cpu.system_cpu_usage, sample.cpu.online_cpus) = machine_cpu(&stat);
    let online = usize::try_from(sample.cpu.online_cpus).unwrap_or(usize::MAX);
    sample.cpu.cpu_usage.percpu_usage.truncate(online);
    // No limit is a number larger than any memory; clients divide by it.
    if total > 0 && (sample.memory.limit > total || sample.memory.limit == 0) {
        sample.memory.limit = total;
    }
    sample.networks = network.map(|text| parse_network(&text)).filter(|networks| !networks.is_empty());
    Ok(Some(sample))
}

fn fill_v1(sample: &mut Sample, metrics: cgroup1::Metrics) {
    if let Some(pids) = metrics.pids {
        sample.pids = Pids { current: pids.current, limit: pids.limit };
    }
    if let Some(cpu) = metrics.cpu {
        if let Some(usage) = cpu.usage {
            sample.cpu.cpu_usage = CpuUsage {
                total_usage: usage.total,
                percpu_usage: usage.per_cpu,
                usage_in_kernelmode: usage.kernel,
                usage_in_usermode: usage.user,
            };
        }
        if let Some(throttling) = cpu.throttling {
            sample.cpu.throttling_data = Throttling {
                periods: throttling.periods,
                throttled_periods: throttling.throttled_periods,
                throttled_time: throttling.throttled_time,
            };
        }
    }
    if let Some(memory) = metrics.memory {
        let usage = memory.usage.unwrap_or_default();
        sample.memory = Memory {
            usage: usage.usage,
            max_usage: usage.max,
            failcnt: usage.failcnt,
            limit: usage.limit,
            stats: BTreeMap::from([
                ("cache", memory.cache),
                ("rss", memory.rss),
                ("rss_huge", memory.rss_huge),
                ("mapped_file", memory.mapped_file),
                ("dirty", memory.dirty),
                ("writeback", memory.writeback),
                ("pgpgin", memory.pg_pg_in),
                ("pgpgout", memory.pg_pg_out),
                ("pgfault", memory.pg_fault),
                ("pgmajfault", memory.pg_maj_fault),
                ("inactive_anon", memory.inactive_anon),
                ("active_anon", memory.active_anon),
                ("inactive_file", memory.inactive_file),
                ("active_file", memory.active_file),
                ("unevictable", memory.unevictable),
                ("hierarchical_memory_limit", memory.hierarchical_memory_limit),
                ("hierarchical_memsw_limit", memory.hierarchical_swap_limit),
                ("total_cache", memory.total_cache),
                ("total_rss", memory.total_rss),
                ("total_rss_huge", memory.total_rss_huge),
                ("total_mapped_file", memory.total_mapped_file),
                ("total_dirty", memory.total_dirty),
                ("total_writeback", memory.total_writeback),
                ("total_pgpgin", memory.total_pg_pg_in),
                ("total_pgpgout", memory.total_pg_pg_out),
                ("total_pgfault", memory.total_pg_fault),
                ("total_pgmajfault", memory.total_pg_maj_fault),
                ("total_inactive_anon", memory.total_inactive_anon),
                ("total_active_anon", memory.total_active_anon),
                ("total_inactive_file", memory.total_inactive_file),
                ("total_active_file", memory.total_active_file),
                ("total_unevictable", memory.total_unevictable),
            ]),
        };
    }
    if let Some(block) = metrics.blkio {
        let entries = |list: Vec<cgroup1::BlkIoEntry>| -> BlockEntries {
            let entry = |entry: cgroup1::BlkIoEntry| BlockEntry {
                major: entry.major,
                minor: entry.minor,
                op: entry.op.to_ascii_lowercase(),
                value: entry.value,
            };
            Some(list.into_iter().map(entry).collect())
        };
        sample.block = Block {
            io_service_bytes_recursive: entries(block.io_service_bytes_recursive),
            io_serviced_recursive: entries(block.io_serviced_recursive),
            io_queue_recursive: entries(block.io_queued_recursive),
            io_service_time_recursive: entries(block.io_service_time_recursive),
            io_wait_time_recursive: entries(block.io_wait_time_recursive),
            io_merged_recursive: entries(block.io_merged_recursive),
            io_time_recursive: entries(block.io_time_recursive),
            sectors_recursive: entries(block.sectors_recursive),
        };
    }
}

fn fill_v2(sample: &mut Sample, metrics: cgroup2::Metrics) {
    if let Some(pids) = metrics.pids {
        sample.pids = Pids { current: pids.current, limit: pids.limit };
    }
    if let Some(cpu) = metrics.cpu {
        sample.cpu.cpu_usage = CpuUsage {
            total_usage: cpu.usage_usec.saturating_mul(1000),
            percpu_usage: Vec::new(),
            usage_in_kernelmode: cpu.system_usec.saturating_mul(1000),
            usage_in_usermode: cpu.user_usec.saturating_mul(1000),
        };
        sample.cpu.throttling_data = Throttling {
            periods: cpu.nr_periods,
            throttled_periods: cpu.nr_throttled,
            throttled_time: cpu.throttled_usec.saturating_mul(1000),
        };
    }
    if let Some(memory) = metrics.memory {
        sample.memory = Memory {
            usage: memory.usage,
            max_usage: 0,
            failcnt: metrics.memory_events.map_or(0, |events| events.oom),
            limit: memory.usage_limit,
            stats: BTreeMap::from([
                ("anon", memory.anon),
                ("file", memory.file),
                ("kernel_stack", memory.kernel_stack),
                ("slab", memory.slab),
                ("sock", memory.sock),
                ("shmem", memory.shmem),
                ("file_mapped", memory.file_mapped),
                ("file_dirty", memory.file_dirty),
                ("file_writeback", memory.file_writeback),
                ("anon_thp", memory.anon_thp),
                ("inactive_anon", memory.inactive_anon),
                ("active_anon", memory.active_anon),
                ("inactive_file", memory.inactive_file),
                ("active_file", memory.active_file),
                ("unevictable", memory.unevictable),
                ("slab_reclaimable", memory.slab_reclaimable),
                ("slab_unreclaimable", memory.slab_unreclaimable),
                ("pgfault", memory.pgfault),
                ("pgmajfault", memory.pgmajfault),
                ("workingset_refault", memory.workingset_refault),
                ("workingset_activate", memory.workingset_activate),
                ("workingset_nodereclaim", memory.workingset_nodereclaim),
                ("pgrefill", memory.pgrefill),
                ("pgscan", memory.pgscan),
                ("pgsteal", memory.pgsteal),
                ("pgactivate", memory.pgactivate),
                ("pgdeactivate", memory.pgdeactivate),
                ("pglazyfree", memory.pglazyfree),
                ("pglazyfreed", memory.pglazyfreed),
                ("thp_fault_alloc", memory.thp_fault_alloc),
                ("thp_collapse_alloc", memory.thp_collapse_alloc),
            ]),
        };
    }
    if let Some(io) = metrics.io {
        let mut bytes = Vec::new();
        let mut operations = Vec::new();
        for entry in io.usage {
            let of =
                |op: &str, value| BlockEntry { major: entry.major, minor: entry.minor, op: op.into(), value };
            bytes.extend([of("read", entry.rbytes), of("write", entry.wbytes)]);
            operations.extend([of("read", entry.rios), of("write", entry.wios)]);
        }
        sample.block.io_service_bytes_recursive = Some(bytes);
        sample.block.io_serviced_recursive = Some(operations);
    }
}

/// The machine's CPU time in nanoseconds, and how many CPUs it has.
fn machine_cpu(stat: &str) -> (u64, u64) {
    let mut total = 0;
    let mut online = 0;
    for line in stat.lines() {
        let mut words = line.split_ascii_whitespace();
        match words.next() {
            Some("cpu") => {
                let ticks: u64 = words.take(7).filter_map(|word| word.parse::<u64>().ok()).sum();
                total = ticks.saturating_mul(1_000_000_000 / TICKS);
            }
            Some(word) if word.starts_with("cpu") => online += 1,
            _ => {}
        }
    }
    (total, online)
}

fn total_memory() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kilobytes = line.and_then(|line| line.split_ascii_whitespace().next()?.parse::<u64>().ok());
    kilobytes.unwrap_or(0).saturating_mul(1024)
}

/// The interfaces of `/proc/net/dev` but the loopback.
fn parse_network(text: &str) -> BTreeMap<String, Network> {
    let mut networks = BTreeMap::new();
    for line in text.lines().skip(2) {
        let Some((name, counters)) = line.split_once(':') else { continue };
        let name = name.trim();
        let counters: Vec<u64> =
            counters.split_ascii_whitespace().filter_map(|word| word.parse().ok()).collect();
        let [
            rx_bytes,
            rx_packets,
            rx_errors,
            rx_dropped,
            _,
            _,
            _,
            _,
            tx_bytes,
            tx_packets,
            tx_errors,
            tx_dropped,
            ..,
        ] = counters[..]
        else {
            continue;
        };
        if name != "lo" {
            let network = Network {
                rx_bytes,
                rx_packets,
                rx_errors,
                rx_dropped,
                tx_bytes,
                tx_packets,
                tx_errors,
                tx_dropped,
            };
            networks.insert(name.to_owned(), network);
        }
    }
    networks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machines_numbers() {
        let stat = "cpu  10 20 30 40 50 60 70 80 90 0\ncpu0 1 2\ncpu1 3 4\nintr 5\n";
        assert_eq!(machine_cpu(stat), (2_800_000_000, 2));
        assert!(total_memory() > 0);
    }

    #[test]
    fn interfaces() {
        let text = "Inter-|   Receive\n face |bytes\n    lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n  eth0: 2190 37 0 1 0 0 0 0 126 3 0 2 0 0 0 0\n";
        let networks = parse_network(text);
        assert_eq!(networks.len(), 1);
        let eth = &networks["eth0"];
        assert_eq!((eth.rx_bytes, eth.rx_packets, eth.rx_dropped), (2190, 37, 1));
        assert_eq!((eth.tx_bytes, eth.tx_packets, eth.tx_dropped), (126, 3, 2));
    }

    #[test]
    fn the_empty_sample_is_that_of_the_real_engine() {
        let sample = Sample::default();
        let cpu = serde_json::to_string(&sample.cpu).unwrap();
        assert_eq!(
            cpu,
            r#"{"cpu_usage":{"total_usage":0,"usage_in_kernelmode":0,"usage_in_usermode":0},"throttling_data":{"periods":0,"throttled_periods":0,"throttled_time":0}}"#
        );
        assert_eq!(serde_json::to_string(&sample.memory).unwrap(), "{}");
        assert!(
            serde_json::to_string(&sample.block)
                .unwrap()
                .starts_with(r#"{"io_service_bytes_recursive":null,"#)
        );
    }
}
