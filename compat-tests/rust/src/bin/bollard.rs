//! bollard, as a Rust program that manages containers uses it.

use std::collections::HashMap;
use std::error::Error;
use std::io::Read;

use bollard::Docker;
use bollard::container::LogOutput;
use bollard::errors::Error as Refused;
use bollard::exec::{CreateExecOptions, StartExecOptions, StartExecResults};
use bollard::models::{
    ContainerConfig, ContainerCreateBody, ContainerUpdateBody, EndpointSettings, HostConfig,
    NetworkConnectRequest, NetworkCreateRequest, NetworkDisconnectRequest, PortBinding, VolumeCreateRequest,
};
use bollard::query_parameters::{
    AttachContainerOptionsBuilder, CommitContainerOptionsBuilder, CreateContainerOptionsBuilder,
    DownloadFromContainerOptionsBuilder, EventsOptionsBuilder, ListContainersOptionsBuilder,
    LogsOptionsBuilder, RemoveContainerOptionsBuilder, RemoveImageOptionsBuilder, RemoveVolumeOptions,
    StatsOptionsBuilder, StopContainerOptionsBuilder, TagImageOptionsBuilder,
    UploadToContainerOptionsBuilder, WaitContainerOptionsBuilder,
};
use compat_clients::{BUSYBOX, Outcome, equal, has, report, until};
use futures_util::{Stream, StreamExt, TryStreamExt};
use tokio::io::AsyncWriteExt;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let docker =
        Docker::connect_with_unix(&std::env::var("DOCKER_HOST")?, 120, bollard::API_DEFAULT_VERSION)?
            .negotiate_version()
            .await?;
    report("the engine", engine(&docker)).await;
    report("containers", containers(&docker)).await;
    report("wait with a condition", wait(&docker)).await;
    report("exec", exec(&docker)).await;
    report("attach both ways", attach(&docker)).await;
    report("logs follow", logs(&docker)).await;
    report("events", events(&docker)).await;
    report("stats", stats(&docker)).await;
    report("archive", archive(&docker)).await;
    report("images", images(&docker)).await;
    report("networks", networks(&docker)).await;
    report("volumes", volumes(&docker)).await;
    report("errors", errors(&docker)).await;
    Ok(())
}

/// A container that runs `script` in a shell, made but not started.
async fn create(
    docker: &Docker,
    name: &str,
    script: &str,
    more: ContainerCreateBody,
) -> Result<String, Refused> {
    let body = ContainerCreateBody {
        image: Some(BUSYBOX.into()),
        cmd: Some(vec!["sh".into(), "-c".into(), script.into()]),
        ..more
    };
    Ok(docker
        .create_container(Some(CreateContainerOptionsBuilder::default().name(name).build()), body)
        .await?
        .id)
}

async fn start(docker: &Docker, name: &str, script: &str) -> Result<String, Refused> {
    let id = create(docker, name, script, ContainerCreateBody::default()).await?;
    docker.start_container(&id, None).await?;
    Ok(id)
}

async fn remove(docker: &Docker, name: &str) -> Result<(), Refused> {
    docker
        .remove_container(name, Some(RemoveContainerOptionsBuilder::default().force(true).v(true).build()))
        .await
}

/// The exit code; bollard makes an error of one that is not zero.
async fn exit_code(docker: &Docker, id: &str) -> Result<i64, Box<dyn Error>> {
    match docker.wait_container(id, Some(WaitContainerOptionsBuilder::default().build())).next().await {
        Some(Ok(answer)) => Ok(answer.status_code),
        Some(Err(Refused::DockerContainerWaitError { code, .. })) => Ok(code),
        other => Err(format!("no exit code: {other:?}").into()),
    }
}

/// What came on stdout and on stderr.
async fn both(
    mut stream: impl Stream<Item = Result<LogOutput, Refused>> + Unpin,
) -> Result<(String, String), Refused> {
    let (mut out, mut err) = (String::new(), String::new());
    while let Some(part) = stream.try_next().await? {
        match part {
            LogOutput::StdErr { message } => err += &String::from_utf8_lossy(&message),
            other => out += &String::from_utf8_lossy(&other.into_bytes()),
        }
    }
    Ok((out, err))
}

/// The status and the message of a call that must be refused.
fn refusal<T>(result: Result<T, Refused>) -> Result<(u16, String), Box<dyn Error>> {
    match result {
        Err(Refused::DockerResponseServerError { status_code, message }) => Ok((status_code, message)),
        Err(other) => Err(other.into()),
        Ok(_) => Err("it was not refused".into()),
    }
}

async fn engine(docker: &Docker) -> Outcome {
    equal(docker.ping().await?, "OK".to_owned())?;
    equal(docker.version().await?.os, Some("linux".to_owned()))?;
    let info = docker.info().await?;
    equal((info.id.is_some(), info.driver.is_some(), info.ncpu.unwrap_or(0) > 0), (true, true, true))?;
    docker.df(None).await?;
    Ok(())
}

async fn containers(docker: &Docker) -> Outcome {
    let more = ContainerCreateBody {
        env: Some(vec!["A=b".into()]),
        labels: Some(HashMap::from([("kind".to_owned(), "rust".to_owned())])),
        host_config: Some(HostConfig { memory: Some(64 << 20), init: Some(true), ..HostConfig::default() }),
        ..ContainerCreateBody::default()
    };
    let id = create(docker, "rs-one", "sleep 1000", more).await?;
    docker.start_container(&id, None).await?;
    let found = docker.inspect_container("rs-one", None).await?;
    equal(found.id.clone(), Some(id.clone()))?;
    equal(found.host_config.and_then(|host| host.memory), Some(64 << 20))?;
    let filters = HashMap::from([("label", vec!["kind=rust"])]);
    let listed = docker
        .list_containers(Some(ListContainersOptionsBuilder::default().filters(&filters).build()))
        .await?;
    equal(
        listed.iter().filter_map(|item| item.names.clone()).flatten().collect::<Vec<_>>(),
        vec!["/rs-one".to_owned()],
    )?;
    has(&format!("{:?}", docker.top_processes(&id, None).await?), "sleep 1000")?;
    docker.pause_container(&id).await?;
    docker.unpause_container(&id).await?;
    docker
        .update_container(
            &id,
            ContainerUpdateBody { memory: Some(128 << 20), memory_swap: Some(-1), ..Default::default() },
        )
        .await?;
    docker.stop_container(&id, Some(StopContainerOptionsBuilder::default().t(5).build())).await?;
    equal(exit_code(docker, &id).await?, 143)?;
    docker.start_container(&id, None).await?;
    docker.kill_container(&id, None).await?;
    equal(exit_code(docker, &id).await?, 137)?;
    remove(docker, &id).await?;
    equal(refusal(docker.inspect_container(&id, None).await)?.0, 404)
}

async fn wait(docker: &Docker) -> Outcome {
    let options = || Some(WaitContainerOptionsBuilder::default().condition("not-running").build());
    let id = start(docker, "rs-wait", "sleep 0.5; exit 9").await?;
    let code = docker.wait_container(&id, options()).next().await;
    equal(matches!(code, Some(Err(Refused::DockerContainerWaitError { code: 9, .. }))), true)?;
    remove(docker, &id).await?;
    let gone = docker.wait_container(&id, options()).next().await;
    equal(matches!(gone, Some(Err(Refused::DockerResponseServerError { status_code: 404, .. }))), true)
}

async fn exec(docker: &Docker) -> Outcome {
    let id = start(docker, "rs-exec", "trap 'exit 0' TERM; while true; do sleep 0.1; done").await?;
    let make = |script: &str| CreateExecOptions {
        attach_stdin: Some(true),
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        env: Some(vec!["A=x".to_owned()]),
        cmd: Some(vec!["sh".to_owned(), "-c".to_owned(), script.to_owned()]),
        ..CreateExecOptions::default()
    };
    let made = docker.create_exec(&id, make("read line; echo $A $line; echo bad >&2; exit 4")).await?;
    let StartExecResults::Attached { output, mut input } = docker.start_exec(&made.id, None).await? else {
        return Err("it is detached".into());
    };
    input.write_all(b"typed\n").await?;
    equal(both(output).await?, ("x typed\n".to_owned(), "bad\n".to_owned()))?;
    let ended = docker.inspect_exec(&made.id).await?;
    equal((ended.exit_code, ended.running), (Some(4), Some(false)))?;
    let made = docker.create_exec(&id, make("true")).await?;
    let detached = StartExecOptions { detach: true, ..StartExecOptions::default() };
    equal(matches!(docker.start_exec(&made.id, Some(detached)).await?, StartExecResults::Detached), true)?;
    remove(docker, &id).await?;
    Ok(())
}

async fn attach(docker: &Docker) -> Outcome {
    let more = ContainerCreateBody {
        open_stdin: Some(true),
        attach_stdin: Some(true),
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        ..ContainerCreateBody::default()
    };
    let id = create(docker, "rs-attach", "read line; echo got $line; echo bad >&2", more).await?;
    let options =
        AttachContainerOptionsBuilder::default().stdin(true).stdout(true).stderr(true).stream(true).build();
    let mut attached = docker.attach_container(&id, Some(options)).await?;
    docker.start_container(&id, None).await?;
    attached.input.write_all(b"word\n").await?;
    equal(both(attached.output).await?, ("got word\n".to_owned(), "bad\n".to_owned()))?;
    equal(exit_code(docker, &id).await?, 0)?;
    remove(docker, &id).await?;
    Ok(())
}

async fn logs(docker: &Docker) -> Outcome {
    let id = start(
        docker,
        "rs-logs",
        "echo one; echo two >&2; while [ ! -e /go ]; do sleep 0.1; done; echo three",
    )
    .await?;
    let options = || LogsOptionsBuilder::default().stdout(true).stderr(true);
    let mut follow = docker.logs(&id, Some(options().follow(true).build()));
    let mut seen = vec![
        follow.try_next().await?.ok_or("no line")?.to_string(),
        follow.try_next().await?.ok_or("no line")?.to_string(),
    ];
    let made = docker
        .create_exec(
            &id,
            CreateExecOptions { cmd: Some(vec!["touch", "/go"]), ..CreateExecOptions::default() },
        )
        .await?;
    docker
        .start_exec(&made.id, Some(StartExecOptions { detach: true, ..StartExecOptions::default() }))
        .await?;
    while let Some(line) = follow.try_next().await? {
        seen.push(line.to_string());
    }
    seen.sort();
    equal(seen, vec!["one\n".to_owned(), "three\n".to_owned(), "two\n".to_owned()])?;
    let (out, _) =
        both(docker.logs(&id, Some(options().stderr(false).tail("1").timestamps(true).build()))).await?;
    has(&out, "Z three\n")?;
    remove(docker, &id).await?;
    Ok(())
}

async fn events(docker: &Docker) -> Outcome {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs().to_string();
    let filters = HashMap::from([("container", vec!["rs-events"])]);
    let mut stream =
        docker.events(Some(EventsOptionsBuilder::default().since(&now).filters(&filters).build()));
    let id = start(docker, "rs-events", "exit 3").await?;
    exit_code(docker, &id).await?;
    remove(docker, &id).await?;
    let (mut actions, mut code) = (Vec::new(), None);
    while actions.last().is_none_or(|action| action != "destroy") {
        let event = stream.try_next().await?.ok_or("the stream ended")?;
        let action = event.action.unwrap_or_default();
        if action == "die" {
            code = event
                .actor
                .and_then(|actor| actor.attributes)
                .and_then(|attributes| attributes.get("exitCode").cloned());
        }
        actions.push(action);
    }
    equal(actions.join(" "), "create start die destroy".to_owned())?;
    equal(code, Some("3".to_owned()))
}

async fn stats(docker: &Docker) -> Outcome {
    let id = start(docker, "rs-stats", "sleep 1000").await?;
    let mut stream = docker.stats(&id, Some(StatsOptionsBuilder::default().stream(true).build()));
    let first = stream.try_next().await?.ok_or("no sample")?;
    let second = stream.try_next().await?.ok_or("no sample")?;
    equal(first.memory_stats.is_some_and(|memory| memory.usage.unwrap_or(0) > 0), true)?;
    equal(
        second.precpu_stats.and_then(|cpu| cpu.system_cpu_usage),
        first.cpu_stats.and_then(|cpu| cpu.system_cpu_usage),
    )?;
    drop(stream);
    remove(docker, &id).await?;
    Ok(())
}

async fn archive(docker: &Docker) -> Outcome {
    let id = create(docker, "rs-archive", "true", ContainerCreateBody::default()).await?;
    let mut header = tar::Header::new_gnu();
    header.set_size(5);
    header.set_mode(0o640);
    header.set_uid(12);
    let mut builder = tar::Builder::new(Vec::new());
    builder.append_data(&mut header, "dir/file", &b"hello"[..])?;
    let body = bollard::body_full(builder.into_inner()?.into());
    docker
        .upload_to_container(&id, Some(UploadToContainerOptionsBuilder::default().path("/tmp").build()), body)
        .await?;
    let parts: Vec<_> = docker
        .download_from_container(
            &id,
            Some(DownloadFromContainerOptionsBuilder::default().path("/tmp/dir/file").build()),
        )
        .try_collect()
        .await?;
    let bytes = parts.concat();
    let mut archive = tar::Archive::new(&bytes[..]);
    let mut entry = archive.entries()?.next().ok_or("an empty archive")??;
    let mut text = String::new();
    entry.read_to_string(&mut text)?;
    equal((entry.header().uid()?, text), (12, "hello".to_owned()))?;
    let changes = docker.container_changes(&id).await?.unwrap_or_default();
    equal(changes.iter().any(|change| change.path == "/tmp/dir/file"), true)?;
    remove(docker, &id).await?;
    Ok(())
}

async fn images(docker: &Docker) -> Outcome {
    let found = docker.inspect_image(BUSYBOX).await?;
    docker
        .tag_image(BUSYBOX, Some(TagImageOptionsBuilder::default().repo("rs-image").tag("two").build()))
        .await?;
    equal(docker.inspect_image("rs-image:two").await?.id, found.id)?;
    let id = start(docker, "rs-commit", "echo new > /new").await?;
    exit_code(docker, &id).await?;
    let options = CommitContainerOptionsBuilder::default()
        .container(&id)
        .repo("rs-image")
        .tag("three")
        .comment("why")
        .build();
    docker.commit_container(options, ContainerConfig::default()).await?;
    equal(
        docker.image_history("rs-image:three").await?.first().map(|layer| layer.comment.clone()),
        Some("why".to_owned()),
    )?;
    remove(docker, &id).await?;
    let saved: Vec<_> = docker.export_image("rs-image:three").try_collect().await?;
    for tag in ["two", "three"] {
        docker
            .remove_image(
                &format!("rs-image:{tag}"),
                Some(RemoveImageOptionsBuilder::default().build()),
                None,
            )
            .await?;
    }
    let options = bollard::query_parameters::ImportImageOptionsBuilder::default().build();
    let loaded: Vec<_> =
        docker.import_image(options, bollard::body_full(saved.concat().into()), None).try_collect().await?;
    has(&format!("{loaded:?}"), "Loaded image: rs-image:three")?;
    docker.remove_image("rs-image:three", Some(RemoveImageOptionsBuilder::default().build()), None).await?;
    equal(refusal(docker.inspect_image("rs-image:three").await)?.0, 404)
}

async fn networks(docker: &Docker) -> Outcome {
    docker
        .create_network(NetworkCreateRequest { name: "rs-net".into(), ..NetworkCreateRequest::default() })
        .await?;
    let more = ContainerCreateBody {
        host_config: Some(HostConfig {
            port_bindings: Some(HashMap::from([(
                "80/tcp".to_owned(),
                Some(vec![PortBinding { host_ip: Some("127.0.0.1".into()), host_port: Some(String::new()) }]),
            )])),
            ..HostConfig::default()
        }),
        ..ContainerCreateBody::default()
    };
    let server =
        create(docker, "rs-server", "mkdir /w; echo found > /w/x; exec httpd -f -h /w", more).await?;
    let endpoint = EndpointSettings { aliases: Some(vec!["site".into()]), ..EndpointSettings::default() };
    let request = NetworkConnectRequest { container: server.clone(), endpoint_config: Some(endpoint) };
    docker.connect_network("rs-net", request).await?;
    docker.start_container(&server, None).await?;
    let more = ContainerCreateBody {
        host_config: Some(HostConfig { network_mode: Some("rs-net".into()), ..HostConfig::default() }),
        ..ContainerCreateBody::default()
    };
    let client = create(
        docker,
        "rs-client",
        "for i in 1 2 3 4 5 6 7 8 9; do wget -qO- http://site/x && exit; sleep 0.3; done; exit 1",
        more,
    )
    .await?;
    docker.start_container(&client, None).await?;
    equal(exit_code(docker, &client).await?, 0)?;
    let ports = docker
        .inspect_container(&server, None)
        .await?
        .network_settings
        .and_then(|settings| settings.ports)
        .unwrap_or_default();
    let port: u16 = ports
        .get("80/tcp")
        .cloned()
        .flatten()
        .and_then(|list| list.first()?.host_port.clone())
        .ok_or("no port")?
        .parse()?;
    until("an open port", || async move { tokio::net::TcpStream::connect(("127.0.0.1", port)).await.ok() })
        .await?;
    let request = NetworkDisconnectRequest { container: server.clone(), force: Some(true) };
    docker.disconnect_network("rs-net", request).await?;
    remove(docker, &client).await?;
    remove(docker, &server).await?;
    docker.remove_network("rs-net").await?;
    equal(refusal(docker.inspect_network("rs-net", None).await)?.0, 404)
}

async fn volumes(docker: &Docker) -> Outcome {
    docker
        .create_volume(VolumeCreateRequest { name: Some("rs-vol".into()), ..VolumeCreateRequest::default() })
        .await?;
    let more = ContainerCreateBody {
        host_config: Some(HostConfig { binds: Some(vec!["rs-vol:/v".into()]), ..HostConfig::default() }),
        ..ContainerCreateBody::default()
    };
    let id = create(docker, "rs-volume", "echo kept > /v/x", more).await?;
    docker.start_container(&id, None).await?;
    exit_code(docker, &id).await?;
    equal(refusal(docker.remove_volume("rs-vol", None::<RemoveVolumeOptions>).await)?.0, 409)?;
    remove(docker, &id).await?;
    docker.remove_volume("rs-vol", None::<RemoveVolumeOptions>).await?;
    equal(refusal(docker.inspect_volume("rs-vol").await)?.0, 404)
}

async fn errors(docker: &Docker) -> Outcome {
    let (status, message) = refusal(docker.inspect_container("nosuch", None).await)?;
    equal((status, message), (404, "No such container: nosuch".to_owned()))?;
    let id = create(docker, "rs-twice", "true", ContainerCreateBody::default()).await?;
    let (status, message) =
        refusal(create(docker, "rs-twice", "true", ContainerCreateBody::default()).await)?;
    equal(status, 409)?;
    has(&message, "is already in use by container")?;
    equal(refusal(docker.pause_container(&id).await)?.0, 409)?;
    remove(docker, &id).await?;
    let more = ContainerCreateBody {
        entrypoint: Some(vec!["nosuch-program".into()]),
        ..ContainerCreateBody::default()
    };
    let id = create(docker, "rs-bad", "", more).await?;
    let (status, message) = refusal(docker.start_container(&id, None).await)?;
    equal(status, 400)?;
    has(&message, "executable file not found in $PATH")?;
    remove(docker, &id).await?;
    Ok(())
}
