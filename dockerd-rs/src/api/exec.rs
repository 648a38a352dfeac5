//! Routes of execs: making them, running them, looking at them.

use std::sync::Arc;

use http::StatusCode;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt;

use super::hijack;
use super::lifecycle::size;
use super::request::Ctx;
use super::{Answer, Reply, Router};
use crate::container::Container;
use crate::container::detach::DetachKeys;
use crate::container::exec::{self, Exec, ExecConfig, ExecState};
use crate::container::io::Wanted;
use crate::container::life::decide;
use crate::container::relay::{self, Over};
use crate::engine::Engine;
use crate::error::{Error, Result};

/// Registers the routes.
pub fn routes(router: &mut Router) {
    router.post("/containers/{name*}/exec", create);
    router.post("/exec/{id*}/start", start);
    router.post("/exec/{id*}/resize", resize);
    router.get("/exec/{id*}/json", inspect);
}

/// The body of `POST /containers/{id}/exec`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct CreateBody {
    user: String,
    privileged: bool,
    tty: bool,
    console_size: Option<[u64; 2]>,
    attach_stdin: bool,
    attach_stderr: bool,
    attach_stdout: bool,
    detach_keys: String,
    env: Option<Vec<String>>,
    working_dir: String,
    cmd: Option<Vec<String>>,
}

/// `POST /containers/{id}/exec` (ContainerExec).
async fn create(mut ctx: Ctx) -> Answer {
    #[derive(Serialize)]
    #[serde(rename_all = "PascalCase")]
    struct Created<'a> {
        id: &'a str,
    }
    let body = ctx.json::<CreateBody>().await?.unwrap_or_default();
    let name = ctx.capture("name");
    if body.cmd.as_ref().is_none_or(Vec::is_empty) {
        return Err(Error::invalid("No exec command specified"));
    }
    // Before the keys are looked at, as Docker does.
    ctx.engine.containers.get(name)?;
    if DetachKeys::parse(&body.detach_keys).is_err() {
        return Err(Error::system(format!("Invalid escape keys ({}) provided", body.detach_keys)));
    }
    let console_size = ctx.version.at_least(42).then_some(body.console_size).flatten();
    let config = ExecConfig {
        cmd: body.cmd.unwrap_or_default(),
        tty: body.tty,
        console_size: console_size.map(|[height, width]| (height, width)),
        stdin: body.attach_stdin,
        stdout: body.attach_stdout,
        stderr: body.attach_stderr,
        detach_keys: body.detach_keys,
        env: body.env.unwrap_or_default(),
        user: body.user,
        working_dir: body.working_dir,
        privileged: body.privileged,
    };
    let exec = exec::create(&ctx.engine, name, config).await?;
    Ok(Reply::json(StatusCode::CREATED, &Created { id: &exec.id }))
}

/// The body of `POST /exec/{id}/start`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct StartBody {
    detach: bool,
    tty: bool,
    console_size: Option<[u64; 2]>,
}

/// `POST /exec/{id}/start` (ExecStart).
async fn start(mut ctx: Ctx) -> Answer {
    let body = ctx.json::<StartBody>().await?.unwrap_or_default();
    let (exec, container) = exec::find(&ctx.engine, ctx.capture("id"))?;
    let exec = with_size(&ctx, &body, exec)?;
    decide::exec(&container.record().life.state, &container.id, &container.id).proceed()?;
    if body.detach {
        exec::claim(&exec)?;
        exec::start(&ctx.engine, &container, &exec, None).await?;
        return Ok(Reply::status(StatusCode::OK));
    }
    let engine = Arc::clone(&ctx.engine);
    let content_type = hijack::content_type(&ctx, exec.config.tty);
    let reply = hijack::upgrade(&mut ctx, content_type, move |client| async move {
        attached(&engine, &container, &exec, client).await;
    })?;
    Ok(reply.with_standard_headers())
}

/// A size given only now counts too.
fn with_size(ctx: &Ctx, body: &StartBody, exec: Arc<Exec>) -> Result<Arc<Exec>> {
    if let Some([height, width]) = body.console_size {
        if !body.tty && !exec.config.tty {
            return Err(Error::invalid("console size is only supported when TTY is enabled"));
        }
        if ctx.version.at_least(42) {
            exec.set_console_size(height, width);
        }
    }
    Ok(exec)
}

/// The client's connection was taken over: failures are told in the stream from here on.
async fn attached(
    engine: &Arc<Engine>,
    container: &Arc<Container>,
    exec: &Arc<Exec>,
    mut client: hijack::Stream,
) {
    let config = &exec.config;
    let wanted = Wanted { stdin: config.stdin, stdout: config.stdout, stderr: config.stderr };
    let started = match exec::claim(exec) {
        Ok(()) => exec::start(engine, container, exec, Some(wanted)).await,
        Err(err) => Err(err),
    };
    match started {
        Ok(Some(shim)) => {
            let keys = (config.tty && config.stdin)
                .then(|| DetachKeys::parse(&config.detach_keys).unwrap_or_default());
            match relay::run(&mut client, shim, config.stdin, keys).await {
                Over::Output => {
                    // Clients ask for the exit code as soon as the stream ends.
                    exec::wait(engine, container, exec).await;
                }
                Over::Detached => {
                    container.publish(engine, "exec_detach", &[("execID", &exec.id)]);
                }
                Over::Client => {}
            }
        }
        Ok(None) => {}
        Err(err) => {
            let text = format!("{err}\r\n");
            let mut frame = Vec::new();
            if !config.tty {
                frame.extend_from_slice(&[1, 0, 0, 0]);
                frame.extend_from_slice(&u32::try_from(text.len()).unwrap_or(0).to_be_bytes());
            }
            frame.extend_from_slice(text.as_bytes());
            // A client that is gone does not read it.
            let _ = client.write_all(&frame).await;
        }
    }
    let _ = client.shutdown().await;
}

/// `POST /exec/{id}/resize` (ExecResize).
async fn resize(mut ctx: Ctx) -> Answer {
    ctx.read_form().await?;
    let (height, width) = size(&ctx)?;
    let (exec, _) = exec::find(&ctx.engine, ctx.capture("id"))?;
    exec::resize(&ctx.engine, &exec, width, height).await?;
    Ok(Reply::status(StatusCode::OK))
}

#[derive(Serialize)]
struct Inspect<'a> {
    #[serde(rename = "ID")]
    id: &'a str,
    #[serde(rename = "Running")]
    running: bool,
    #[serde(rename = "ExitCode")]
    exit_code: Option<i32>,
    #[serde(rename = "ProcessConfig")]
    process: ProcessConfig<'a>,
    #[serde(rename = "OpenStdin")]
    stdin: bool,
    #[serde(rename = "OpenStderr")]
    stderr: bool,
    #[serde(rename = "OpenStdout")]
    stdout: bool,
    #[serde(rename = "CanRemove")]
    can_remove: bool,
    #[serde(rename = "ContainerID")]
    container: &'a str,
    #[serde(rename = "DetachKeys")]
    detach_keys: &'a str,
    #[serde(rename = "Pid")]
    pid: u32,
}

#[derive(Serialize)]
struct ProcessConfig<'a> {
    tty: bool,
    entrypoint: &'a str,
    arguments: &'a [String],
    privileged: bool,
    #[serde(skip_serializing_if = "str::is_empty")]
    user: &'a str,
}

/// `GET /exec/{id}/json` (ExecInspect).
async fn inspect(ctx: Ctx) -> Answer {
    let (exec, _) = exec::find(&ctx.engine, ctx.capture("id"))?;
    let config = &exec.config;
    let (running, exit_code, pid) = match exec.state() {
        ExecState::Created => (false, None, 0),
        ExecState::Starting => (true, None, 0),
        ExecState::Running { pid } => (true, None, pid),
        ExecState::Ended { pid, code } => (false, Some(code), pid),
    };
    let (entrypoint, arguments) =
        config.cmd.split_first().map_or(("", &[][..]), |(first, rest)| (first, rest));
    Ok(Reply::ok(&Inspect {
        id: &exec.id,
        running,
        exit_code,
        process: ProcessConfig {
            tty: config.tty,
            entrypoint,
            arguments,
            privileged: config.privileged,
            user: &config.user,
        },
        stdin: config.stdin,
        stderr: config.stderr,
        stdout: config.stdout,
        can_remove: false,
        container: &exec.container,
        detach_keys: &config.detach_keys,
        pid,
    }))
}
