//! Refusals, word for word.

use docker_api::container::CreateRequest;
use expect_test::{Expect, expect};

use super::{check_config, check_host, check_modes, resources};
use crate::container::limits::Limits;

const MACHINE: Limits = Limits {
    unified: false,
    memory: true,
    swap: true,
    reservation: true,
    oom_kill_disable: true,
    swappiness: true,
    cpu_shares: true,
    cpu_cfs: true,
    cpu_realtime: false,
    cpuset: false,
    pids: true,
    blkio_weight: false,
    blkio_weight_device: false,
    blkio_throttle: true,
    cpus: 2,
};

fn check(body: &str, expect: Expect) {
    let request = CreateRequest::parse(format!("{{\"Image\":\"x\",{body}}}").as_bytes()).unwrap();
    let (config, mut host) = (request.config.unwrap(), request.host_config);
    let outcome = check_config(&config)
        .and_then(|()| check_host(&host))
        .and_then(|()| resources::check_with(&mut host, false, &MACHINE))
        .and_then(|warnings| check_modes(&config, &host).map(|()| warnings));
    expect.assert_eq(&match outcome {
        Ok(warnings) if warnings.is_empty() => "accepted".to_owned(),
        Ok(warnings) => warnings.join("\n"),
        Err(err) => format!("{} {}", err.kind().status().as_u16(), err.message()),
    });
}

fn host(body: &str, expect: Expect) {
    check(&format!("\"HostConfig\":{{{body}}}"), expect);
}

#[test]
fn limits() {
    host(r#""Memory":1048576"#, expect!["400 Minimum memory limit allowed is 6MB"]);
    host(r#""Memory":-1"#, expect!["400 Minimum memory limit allowed is 6MB"]);
    host(
        r#""Memory":16777216,"MemorySwap":8388608"#,
        expect!["400 Minimum memoryswap limit should be larger than memory limit, see usage"],
    );
    host(
        r#""MemorySwap":33554432"#,
        expect!["400 You should always set the Memory limit when using Memoryswap limit, see usage"],
    );
    host(
        r#""Memory":16777216,"MemoryReservation":33554432"#,
        expect!["400 Minimum memory limit can not be less than memory reservation limit, see usage"],
    );
    host(
        r#""MemorySwappiness":101"#,
        expect!["400 Invalid value: 101, valid memory swappiness range is 0-100"],
    );
    host(
        r#""NanoCpus":999000000000"#,
        expect!["400 range of CPUs is from 0.01 to 2.00, as there are only 2 CPUs available"],
    );
    host(
        r#""NanoCpus":-1"#,
        expect!["400 range of CPUs is from 0.01 to 2.00, as there are only 2 CPUs available"],
    );
    host(
        r#""NanoCpus":500000000,"CpuQuota":50000"#,
        expect!["400 Conflicting options: Nano CPUs and CPU Quota cannot both be set"],
    );
    host(
        r#""CpuPeriod":10"#,
        expect!["400 CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)"],
    );
    host(r#""CpuQuota":10"#, expect!["400 CPU cfs quota can not be less than 1ms (i.e. 1000)"]);
    host(r#""CpuShares":-1"#, expect!["400 invalid CPU shares (-1): value must be a positive integer"]);
    host(
        r#""BlkioWeight":5"#,
        expect![
            "Your kernel does not support Block I/O weight or the cgroup is not mounted. Weight discarded."
        ],
    );
    host(r#""PidsLimit":-5"#, expect!["accepted"]);
    host(
        r#""OomKillDisable":true"#,
        expect![
            "OOM killer is disabled for the container, but no memory limit is set, this can result in the system running out of resources."
        ],
    );
    host(
        r#""OomScoreAdj":5000"#,
        expect!["400 Invalid value 5000, range for oom score adj is [-1000, 1000]"],
    );
    host(r#""ShmSize":-1"#, expect!["400 SHM size can not be less than 0"]);
    host(r#""Ulimits":[{"Name":"bogus","Soft":1,"Hard":1}]"#, expect!["400 invalid ulimit type: bogus"]);
    host(
        r#""Ulimits":[{"Name":"nofile","Soft":2,"Hard":1}]"#,
        expect!["400 ulimit soft limit must be less than or equal to hard limit: 2 > 1"],
    );
    host(r#""Ulimits":[{"Name":"nofile","Soft":2,"Hard":-1}]"#, expect!["accepted"]);
}

#[test]
fn policies_and_namespaces() {
    host(
        r#""RestartPolicy":{"Name":"sometimes"}"#,
        expect![
            "400 invalid restart policy: unknown policy 'sometimes'; use one of 'no', 'always', 'on-failure', or 'unless-stopped'"
        ],
    );
    host(
        r#""RestartPolicy":{"Name":"always","MaximumRetryCount":3}"#,
        expect!["400 invalid restart policy: maximum retry count can only be used with 'on-failure'"],
    );
    host(
        r#""RestartPolicy":{"Name":"on-failure","MaximumRetryCount":-1}"#,
        expect!["400 invalid restart policy: maximum retry count cannot be negative"],
    );
    host(
        r#""RestartPolicy":{"Name":"always"},"AutoRemove":true"#,
        expect!["400 can't create 'AutoRemove' container with restart policy"],
    );
    host(r#""IpcMode":"bogus""#, expect!["400 invalid IPC mode: bogus"]);
    host(r#""PidMode":"bogus""#, expect!["400 invalid PID mode: bogus"]);
    host(r#""UTSMode":"bogus""#, expect!["400 invalid UTS mode: bogus"]);
    host(r#""CgroupnsMode":"bogus""#, expect!["400 invalid cgroup namespace mode: bogus"]);
    host(r#""Isolation":"hyperv""#, expect!["400 invalid isolation (hyperv): linux only supports 'default'"]);
    host(
        r#""Annotations":{"":"x"}"#,
        expect!["400 invalid Annotations: the empty string is not permitted as an annotation key"],
    );
    host(r#""CapAdd":["BOGUS"]"#, expect![[r#"400 invalid CapAdd: unknown capability: "CAP_BOGUS""#]]);
    host(r#""SecurityOpt":["bogus"]"#, expect![[r#"400 invalid --security-opt 1: "bogus""#]]);
    host(r#""Tmpfs":{"x":""}"#, expect!["400 invalid mount path: 'x' mount path must be absolute"]);
    host(r#""ExtraHosts":["bogus"]"#, expect![[r#"400 bad format for add-host: "bogus""#]]);
    host(r#""ExtraHosts":["a:b"]"#, expect![[r#"400 invalid IP address in add-host: "b""#]]);
    host(r#""ExtraHosts":["a:::1","b=[fe80::1]","c:host-gateway"]"#, expect!["accepted"]);
    host(
        r#""Sysctls":{"kernel.core_pattern":"x"}"#,
        expect![[r#"400 sysctl "kernel.core_pattern" is not in a separate kernel namespace"#]],
    );
    host(
        r#""Sysctls":{"net.ipv4.ip_forward":"1","kernel.shmmax":"1","fs.mqueue.msg_max":"5"}"#,
        expect!["accepted"],
    );
    host(
        r#""PortBindings":{"80/tcp":[{"HostPort":"abc"}]}"#,
        expect![[r#"400 invalid port specification: "abc""#]],
    );
    host(r#""PortBindings":{"80/tcp":[{"HostPort":"8000-8010"},{"HostPort":""}]}"#, expect!["accepted"]);
}

#[test]
fn the_container_itself() {
    check(
        r#""WorkingDir":"rel""#,
        expect!["400 the working directory 'rel' is invalid, it needs to be an absolute path"],
    );
    check(r#""Env":["=x"]"#, expect!["400 invalid environment variable: =x"]);
    check(r#""StopSignal":"BOGUS""#, expect!["400 invalid signal: BOGUS"]);
    for signal in ["SIGTERM", "kill", "9", "RTMIN+3"] {
        check(&format!(r#""StopSignal":"{signal}""#), expect!["accepted"]);
    }
    check(
        r#""Healthcheck":{"Interval":1000}"#,
        expect!["400 Interval in Healthcheck cannot be less than 1ms"],
    );
    check(r#""Healthcheck":{"Retries":-1}"#, expect!["400 Retries in Healthcheck cannot be negative"]);
    for user in ["4294967296", "-1", "1:99999999999"] {
        check(&format!(r#""User":"{user}""#), expect!["400 uids and gids must be in range 0-2147483647"]);
    }
    check(r#""User":"nosuch:1000""#, expect!["accepted"]);
}

#[test]
fn a_shared_network_is_the_others_to_set_up() {
    let shared = |more: &str, expect: Expect| {
        check(&format!(r#""HostConfig":{{"NetworkMode":"container:a"{more}"#), expect);
    };
    shared(r#"},"Hostname":"x""#, expect!["400 conflicting options: hostname and the network mode"]);
    shared(
        r#","Links":["a:b"]}"#,
        expect![
            "400 conflicting options: container type network can't be used with links. This would result in undefined behavior"
        ],
    );
    shared(r#","Dns":["192.0.2.1"]}"#, expect!["400 conflicting options: dns and the network mode"]);
    shared(
        r#","PortBindings":{"80/tcp":null}}"#,
        expect!["400 conflicting options: port publishing and the container type network mode"],
    );
    shared(
        r#"},"ExposedPorts":{"80/tcp":{}}"#,
        expect!["400 conflicting options: port exposing and the container type network mode"],
    );
    host(
        r#""NetworkMode":"container:""#,
        expect!["400 invalid network mode: invalid container format container:<name|id>"],
    );
    host(
        r#""NetworkMode":"host","Links":["a:b"]"#,
        expect![
            "400 conflicting options: host type networking can't be used with links. This would result in undefined behavior"
        ],
    );
}
