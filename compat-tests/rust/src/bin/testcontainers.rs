//! Testcontainers for Rust, as a test suite uses it: real servers, wait strategies, mapped ports, parallel tests.

use std::error::Error;
use std::time::Duration;

use bollard::Docker;
use compat_clients::{Outcome, equal, has, report};
use testcontainers::core::{CmdWaitFor, ExecCommand, IntoContainerPort, Mount, WaitFor};
use testcontainers::runners::AsyncRunner;
use testcontainers::{ContainerAsync, GenericImage, ImageExt};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

const REDIS_PORT: u16 = 6379;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    report("Redis", redis()).await;
    report("PostgreSQL", postgres()).await;
    report("wait strategies", strategies()).await;
    report("exec, copy, mounts", exec_and_copy()).await;
    report("containers on one network", network()).await;
    report("tests in parallel", parallel()).await;
    report("a dropped container is gone", dropped()).await;
    Ok(())
}

async fn start_redis() -> Result<ContainerAsync<GenericImage>, Box<dyn Error>> {
    let image = GenericImage::new("compat-redis", "1")
        .with_exposed_port(REDIS_PORT.tcp())
        .with_wait_for(WaitFor::message_on_stdout("Ready to accept connections"));
    Ok(image.start().await?)
}

/// One command to a Redis, its answer's first line.
async fn ask(container: &ContainerAsync<GenericImage>, command: &str) -> Result<String, Box<dyn Error>> {
    let port = container.get_host_port_ipv4(REDIS_PORT).await?;
    let stream = TcpStream::connect((container.get_host().await?.to_string(), port)).await?;
    let mut stream = BufReader::new(stream);
    stream.write_all(format!("{command}\r\n").as_bytes()).await?;
    let mut line = String::new();
    stream.read_line(&mut line).await?;
    Ok(line.trim_end().to_owned())
}

async fn redis() -> Outcome {
    let container = start_redis().await?;
    equal(ask(&container, "SET a 1").await?, "+OK".to_owned())?;
    equal(ask(&container, "INCR a").await?, ":2".to_owned())?;
    container.stop().await?;
    container.start().await?;
    equal(container.is_running().await?, true)
}

async fn postgres() -> Outcome {
    let container = GenericImage::new("compat-postgres", "1")
        .with_exposed_port(5432.tcp())
        .with_wait_for(WaitFor::message_on_stderr("database system is ready to accept connections"))
        .with_env_var("POSTGRES_DB", "shop")
        .with_env_var("POSTGRES_USER", "me")
        .with_env_var("POSTGRES_PASSWORD", "secret")
        .start()
        .await?;
    let query = ["psql", "-h", "127.0.0.1", "-U", "me", "-d", "shop", "-Atc", "select 6 * 7"];
    let command = ExecCommand::new(query).with_env_vars([("PGPASSWORD", "secret")]);
    let mut done = container.exec(command).await?;
    equal(String::from_utf8(done.stdout_to_vec().await?)?, "42\n".to_owned())?;
    TcpStream::connect(("127.0.0.1", container.get_host_port_ipv4(5432).await?)).await?;
    Ok(())
}

async fn strategies() -> Outcome {
    let container = GenericImage::new("compat-busybox", "1")
        .with_exposed_port(8080.tcp())
        .with_wait_for(WaitFor::message_on_stderr("ready"))
        .with_wait_for(WaitFor::healthcheck())
        .with_health_check(
            testcontainers::core::Healthcheck::cmd_shell("test -e /well")
                .with_interval(Duration::from_millis(300))
                .with_retries(50),
        )
        .with_cmd(["sh", "-c", "sleep 0.3; echo ready >&2; touch /well; exec httpd -f -p 8080 -h /etc"])
        .with_startup_timeout(Duration::from_secs(60))
        .start()
        .await?;
    has(&String::from_utf8(container.stderr_to_vec().await?)?, "ready\n")?;
    let done = GenericImage::new("compat-busybox", "1")
        .with_wait_for(WaitFor::exit(testcontainers::core::wait::ExitWaitStrategy::new().with_exit_code(5)))
        .with_cmd(["sh", "-c", "exit 5"])
        .start()
        .await?;
    equal(done.exit_code().await?, Some(5))
}

async fn exec_and_copy() -> Outcome {
    let container = GenericImage::new("compat-busybox", "1")
        .with_cmd(["sleep", "1000"])
        .with_copy_to("/sent/file", b"sent".to_vec())
        .with_mount(Mount::tmpfs_mount("/scratch"))
        .with_env_var("A", "b")
        .start()
        .await?;
    let mut done = container
        .exec(
            ExecCommand::new(["sh", "-c", "cat /sent/file; echo $A >&2; exit 3"])
                .with_cmd_ready_condition(CmdWaitFor::exit_code(3)),
        )
        .await?;
    equal(done.stdout_to_vec().await?, b"sent".to_vec())?;
    equal(done.stderr_to_vec().await?, b"b\n".to_vec())?;
    equal(done.exit_code().await?, Some(3))?;
    let mut got = Vec::new();
    container.copy_file_from("/sent/file", &mut got).await?;
    equal(got, b"sent".to_vec())
}

async fn network() -> Outcome {
    let server = GenericImage::new("compat-redis", "1")
        .with_wait_for(WaitFor::message_on_stdout("Ready to accept connections"))
        .with_network("tc-rust-net")
        .with_container_name("tc-rust-server")
        .start()
        .await?;
    let client = GenericImage::new("compat-redis", "1")
        .with_entrypoint("redis-cli")
        .with_network("tc-rust-net")
        .with_cmd(["-h", "tc-rust-server", "ping"])
        .start()
        .await?;
    let mut line = String::new();
    client.stdout(true).read_line(&mut line).await?;
    equal(line, "PONG\n".to_owned())?;
    drop(server);
    Ok(())
}

async fn parallel() -> Outcome {
    let started = futures_util::future::join_all((0..4).map(|_| start_redis())).await;
    let mut ports = Vec::new();
    for container in started {
        let container = container?;
        equal(ask(&container, "PING").await?, "+PONG".to_owned())?;
        ports.push(container.get_host_port_ipv4(REDIS_PORT).await?);
    }
    ports.sort_unstable();
    ports.dedup();
    equal(ports.len(), 4)
}

async fn dropped() -> Outcome {
    let container = start_redis().await?;
    let id = container.id().to_owned();
    container.rm().await?;
    let docker =
        Docker::connect_with_unix(&std::env::var("DOCKER_HOST")?, 120, bollard::API_DEFAULT_VERSION)?;
    equal(docker.inspect_container(&id, None).await.is_err(), true)
}
