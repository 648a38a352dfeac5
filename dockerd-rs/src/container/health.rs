//! Health checks: running the probe, judging what it says, and telling whoever wants to know.
//!
//! [`judge`] is pure: a result and the record's health in, the new health out. [`watch`] runs one task per container that has a check; it
//! ends with the run and pauses with the container.

use std::sync::Arc;
use std::time::Duration;

use docker_api::inspect::{Health, HealthcheckResult};
use docker_api::{Config, HealthConfig};
use tokio::io::AsyncReadExt;

use super::Container;
use super::exec::{self, ExecConfig};
use super::io::Wanted;
use crate::engine::Engine;

/// Results kept.
const KEPT: usize = 5;
/// Bytes of a probe's output kept.
const OUTPUT: usize = 4096;
const INTERVAL: Duration = Duration::from_secs(30);
const TIMEOUT: Duration = Duration::from_secs(30);
const START_INTERVAL: Duration = Duration::from_secs(5);
const RETRIES: i64 = 3;

/// A container's check, with defaults filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    argv: Vec<String>,
    interval: Duration,
    timeout: Duration,
    start_period: Duration,
    start_interval: Duration,
    retries: i64,
}

impl Check {
    /// The check of a container, if it has one.
    pub fn of(config: &Config) -> Option<Self> {
        let health: &HealthConfig = config.healthcheck.as_ref()?;
        let test = health.test.as_deref().unwrap_or_default();
        let argv = match test.split_first() {
            Some((kind, argv)) if kind == "CMD" => argv.to_vec(),
            Some((kind, argv)) if kind == "CMD-SHELL" => {
                let shell = config.shell.clone().filter(|shell| !shell.is_empty());
                let mut all = shell.unwrap_or_else(|| vec!["/bin/sh".into(), "-c".into()]);
                all.extend(argv.iter().cloned());
                all
            }
            _ => return None,
        };
        let or = |nanos: i64, default: Duration| match u64::try_from(nanos) {
            Ok(nanos) if nanos > 0 => Duration::from_nanos(nanos),
            _ => default,
        };
        Some(Self {
            argv,
            interval: or(health.interval, INTERVAL),
            timeout: or(health.timeout, TIMEOUT),
            start_period: or(health.start_period, Duration::ZERO),
            start_interval: or(health.start_interval, START_INTERVAL),
            retries: if health.retries > 0 { health.retries } else { RETRIES },
        })
    }

    /// How long until the next probe.
    fn pause(&self, status: &str, since_start: Duration) -> Duration {
        if status == "starting" && since_start < self.start_period {
            self.start_interval
        } else {
            self.interval
        }
    }
}

/// The health of a run that just began. Earlier results stay to be seen.
pub fn fresh(config: &Config, before: Option<Health>) -> Option<Health> {
    let log = Some(before.and_then(|health| health.log).unwrap_or_default());
    Check::of(config).map(|_| Health { status: "starting".into(), failing_streak: 0, log })
}

/// What a result does to the health: the new one, and whether its status changed.
pub fn judge(
    check: &Check,
    health: &Health,
    result: HealthcheckResult,
    since_start: Duration,
) -> (Health, bool) {
    let mut next = health.clone();
    let log = next.log.get_or_insert_default();
    let code = result.exit_code;
    log.push(result);
    let surplus = log.len().saturating_sub(KEPT);
    log.drain(..surplus);
    if code == 0 {
        next.failing_streak = 0;
        next.status = "healthy".into();
    } else {
        let in_start_period = since_start < check.start_period && health.status == "starting";
        if !in_start_period {
            next.failing_streak += 1;
            if next.failing_streak >= check.retries {
                next.status = "unhealthy".into();
            }
        }
    }
    let changed = next.status != health.status;
    (next, changed)
}

/// Begins to watch a running container's health, if it has a check. A watcher that was there before goes.
pub fn watch(engine: &Arc<Engine>, container: &Arc<Container>) {
    let record = container.record();
    let Some(check) = Check::of(&record.config) else {
        container.live.set_health(None);
        return;
    };
    let Some(pid) = record.pid() else { return };
    let watcher = tokio::spawn(keep_probing(Arc::clone(engine), Arc::clone(container), check, pid));
    container.live.set_health(Some(watcher.abort_handle()));
}

async fn keep_probing(engine: Arc<Engine>, container: Arc<Container>, check: Check, pid: u32) {
    loop {
        let record = container.record();
        let Some(health) = record.health.clone().filter(|_| record.pid() == Some(pid)) else { return };
        let since_start = || {
            let started = record.life.started_at.unwrap_or_default();
            Duration::try_from(jiff::Timestamp::now().duration_since(started)).unwrap_or_default()
        };
        tokio::time::sleep(check.pause(&health.status, since_start())).await;
        let result = probe(&engine, &container, &check).await;
        if container.record().pid() != Some(pid) {
            return;
        }
        let (next, changed) = judge(&check, &health, result, since_start());
        let status = next.status.clone();
        if changed {
            let saved = container.update(move |record| {
                record.health = Some(next);
                Ok(())
            });
            if let Err(err) = saved.await {
                tracing::warn!(container = %container.id, error = %err, "save its health");
            }
            container.publish(&engine, format!("health_status: {status}"), &[]);
        } else {
            container.update_unsaved(|record| record.health = Some(next)).await;
        }
    }
}

/// Runs the check once.
async fn probe(engine: &Arc<Engine>, container: &Arc<Container>, check: &Check) -> HealthcheckResult {
    let start = Some(jiff::Timestamp::now());
    let config = ExecConfig { cmd: check.argv.clone(), stdout: true, stderr: true, ..ExecConfig::default() };
    let exec = exec::register(engine, container, config);
    let mut output = Vec::new();
    let run = async {
        exec::claim(&exec)?;
        let wanted = Wanted { stdin: false, stdout: true, stderr: true };
        if let Some(mut stream) = exec::start(engine, container, &exec, Some(wanted)).await? {
            read_frames(&mut stream, &mut output).await;
        }
        Ok::<_, crate::error::Error>(exec::wait(engine, container, &exec).await)
    };
    let ran = tokio::time::timeout(check.timeout, run).await;
    let (exit_code, output) = match ran {
        Ok(Ok(code)) => (i64::from(code), String::from_utf8_lossy(&output).into_owned()),
        Ok(Err(err)) => (-1, err.message().to_owned()),
        Err(_) => {
            let _ = engine.runtime.kill(&container.id, &exec.id, 9, false).await;
            let text = format!("Health check exceeded timeout ({})", go_duration(check.timeout));
            let heard = String::from_utf8_lossy(&output);
            (-1, if heard.is_empty() { text } else { format!("{text}: {heard}") })
        }
    };
    HealthcheckResult { start, end: Some(jiff::Timestamp::now()), exit_code, output }
}

/// Collects the payload of Docker's frames up to the limit, and reads on to the end so that the probe does not wait.
async fn read_frames(stream: &mut tokio::net::UnixStream, output: &mut Vec<u8>) {
    let mut header = [0; 8];
    while stream.read_exact(&mut header).await.is_ok() {
        let [.., a, b, c, d] = header;
        let length = u64::from(u32::from_be_bytes([a, b, c, d]));
        let mut frame = (&mut *stream).take(length);
        let mut chunk = [0; 1024];
        loop {
            match frame.read(&mut chunk).await {
                Ok(0) => break,
                Ok(count) => {
                    let room = OUTPUT.saturating_sub(output.len()).min(count);
                    output.extend_from_slice(&chunk[..room]);
                }
                Err(_) => return,
            }
        }
    }
}

/// A duration as Go prints it, for whole milliseconds and up.
fn go_duration(duration: Duration) -> String {
    let (seconds, millis) = (duration.as_secs(), duration.subsec_millis());
    if seconds == 0 {
        return format!("{millis}ms");
    }
    let fraction =
        if millis == 0 { String::new() } else { format!(".{:03}", millis).trim_end_matches('0').to_owned() };
    let (hours, minutes, rest) = (seconds / 3600, seconds % 3600 / 60, seconds % 60);
    match (hours, minutes) {
        (0, 0) => format!("{rest}{fraction}s"),
        (0, _) => format!("{minutes}m{rest}{fraction}s"),
        _ => format!("{hours}h{minutes}m{rest}{fraction}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(test: &[&str]) -> Option<Check> {
        let test = Some(test.iter().map(|word| (*word).to_owned()).collect());
        let health =
            HealthConfig { test, retries: 2, start_period: 1_000_000_000, ..HealthConfig::default() };
        Check::of(&Config { healthcheck: Some(health), ..Config::default() })
    }

    #[test]
    fn forms() {
        assert_eq!(check(&["CMD", "a", "b"]).unwrap().argv, ["a", "b"]);
        assert_eq!(check(&["CMD-SHELL", "a b"]).unwrap().argv, ["/bin/sh", "-c", "a b"]);
        assert_eq!(check(&["NONE"]), None);
        assert_eq!(check(&[]), None);
        let check = check(&["CMD", "x"]).unwrap();
        assert_eq!((check.interval, check.timeout, check.retries), (INTERVAL, TIMEOUT, 2));
        assert_eq!(check.pause("starting", Duration::ZERO), START_INTERVAL);
        assert_eq!(check.pause("starting", Duration::from_secs(2)), INTERVAL);
        assert_eq!(check.pause("healthy", Duration::ZERO), INTERVAL);
    }

    #[test]
    fn judgements() {
        let check = check(&["CMD", "x"]).unwrap();
        let (early, late) = (Duration::ZERO, Duration::from_secs(2));
        let mut health = fresh(
            &Config {
                healthcheck: Some(HealthConfig {
                    test: Some(vec!["CMD".into(), "x".into()]),
                    ..HealthConfig::default()
                }),
                ..Config::default()
            },
            None,
        )
        .unwrap();
        let mut seen = String::new();
        for (code, when) in
            [(1, early), (1, early), (1, late), (1, late), (1, late), (0, late), (1, late), (0, late)]
        {
            let result = HealthcheckResult { exit_code: code, ..HealthcheckResult::default() };
            let (next, changed) = judge(&check, &health, result, when);
            seen.push_str(&format!("{code}: {} {} {changed}\n", next.status, next.failing_streak));
            health = next;
        }
        expect_test::expect![[r#"
            1: starting 0 false
            1: starting 0 false
            1: starting 1 false
            1: unhealthy 2 true
            1: unhealthy 3 false
            0: healthy 0 true
            1: healthy 1 false
            0: healthy 0 false
        "#]]
        .assert_eq(&seen);
        assert_eq!(health.log.unwrap().len(), KEPT);
    }

    #[test]
    fn durations_as_go_prints_them() {
        let text = |millis| go_duration(Duration::from_millis(millis));
        assert_eq!(
            [text(500), text(1500), text(30_000), text(90_000), text(3_600_000)],
            ["500ms", "1.5s", "30s", "1m30s", "1h0m0s"]
        );
    }
}
