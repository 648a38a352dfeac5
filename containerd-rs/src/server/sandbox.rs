//! `containerd.services.sandbox.v1`: the store of sandbox records, and the controller that runs sandboxes in shims.
//!
//! A sandbox is a shim that offers the sandbox service; tasks of containers that name the sandbox are put into the same shim. The
//! only controller here is containerd's `shim`.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use containerd_api::any::pack;
use containerd_api::error::quote;
use containerd_api::event::{SandboxCreate, SandboxExit, SandboxStart};
use containerd_api::ns::{NAMESPACE_TTRPC, Namespace, validate_identifier};
use containerd_api::sandbox::controller_server::{Controller, ControllerServer};
use containerd_api::sandbox::store_server::{Store, StoreServer};
use containerd_api::sandbox::*;
use containerd_api::types::Sandbox;
use containerd_api::{Error, Kind};
use prost::Message;
use prost_types::Any;
use shim_api::{sandbox as shim, service as names};
use tonic::{Request, Response, Status};
use ttrpc::message::KeyValue;

use crate::daemon::Daemon;
use crate::filters::Filters;
use crate::meta::Reader;
use crate::meta::labels::{self, MaskPath, mask_path};
use crate::runtime::shim::into_error;
use crate::runtime::{CreateTask, Key, Shim};

/// How long a sandbox may take to say what it is, or that it is there.
const QUERY_DEADLINE: Duration = Duration::from_secs(10);

pub struct StoreService(Daemon);
pub struct ControllerService(Daemon);

pub fn store(daemon: &Daemon) -> StoreServer<StoreService> {
    StoreServer::new(StoreService(daemon.clone()))
}

pub fn controller(daemon: &Daemon) -> ControllerServer<ControllerService> {
    ControllerServer::new(ControllerService(daemon.clone()))
}

type Answer<T> = Result<Response<T>, Status>;

fn no_sandbox(id: &str) -> Error {
    Error::not_found("sandbox", id)
}

#[tonic::async_trait]
impl Store for StoreService {
    async fn create(&self, request: Request<StoreCreateRequest>) -> Answer<StoreCreateResponse> {
        let namespace = Namespace::of(request.metadata())?;
        let mut sandbox = request.into_inner().sandbox.unwrap_or_default();
        validate(&sandbox)?;
        let now = Some(SystemTime::now().into());
        (sandbox.created_at, sandbox.updated_at) = (now, now);
        let created = self
            .0
            .db
            .write(move |tx| {
                let id = sandbox.sandbox_id.clone();
                if tx.has::<Sandbox>(namespace.as_str(), &id)? {
                    return Err(Error::already_exists("sandbox", &id));
                }
                tx.put(namespace.as_str(), &id, &sandbox);
                Ok(sandbox)
            })
            .await?;
        Ok(Response::new(StoreCreateResponse { sandbox: Some(created) }))
    }

    async fn update(&self, request: Request<StoreUpdateRequest>) -> Answer<StoreUpdateResponse> {
        let namespace = Namespace::of(request.metadata())?;
        let StoreUpdateRequest { sandbox, fields } = request.into_inner();
        let wanted = sandbox.unwrap_or_default();
        let updated = self
            .0
            .db
            .write(move |tx| {
                let id = wanted.sandbox_id.clone();
                let mut sandbox =
                    tx.get::<Sandbox>(namespace.as_str(), &id)?.ok_or_else(|| no_sandbox(&id))?;
                apply(&mut sandbox, wanted, &fields)?;
                sandbox.updated_at = Some(SystemTime::now().into());
                validate(&sandbox)?;
                tx.put(namespace.as_str(), &id, &sandbox);
                Ok(sandbox)
            })
            .await?;
        Ok(Response::new(StoreUpdateResponse { sandbox: Some(updated) }))
    }

    async fn delete(&self, request: Request<StoreDeleteRequest>) -> Answer<StoreDeleteResponse> {
        let namespace = Namespace::of(request.metadata())?;
        let id = request.into_inner().sandbox_id;
        self.0
            .db
            .write(move |tx| {
                if !tx.has::<Sandbox>(namespace.as_str(), &id)? {
                    return Err(no_sandbox(&id));
                }
                tx.delete::<Sandbox>(namespace.as_str(), &id);
                Ok(())
            })
            .await?;
        Ok(Response::new(StoreDeleteResponse {}))
    }

    async fn list(&self, request: Request<StoreListRequest>) -> Answer<StoreListResponse> {
        let namespace = Namespace::of(request.metadata())?;
        let filters = Filters::parse(&request.get_ref().filters)?;
        let found = self.0.db.read(|tx| tx.list::<Sandbox>(namespace.as_str(), ""))?;
        let list = found
            .into_iter()
            .map(|(_, sandbox)| sandbox)
            .filter(|sandbox| filters.matches(sandbox))
            .collect();
        Ok(Response::new(StoreListResponse { list }))
    }

    async fn get(&self, request: Request<StoreGetRequest>) -> Answer<StoreGetResponse> {
        let namespace = Namespace::of(request.metadata())?;
        let id = &request.get_ref().sandbox_id;
        let sandbox = self.0.db.get::<Sandbox>(namespace.as_str(), id)?.ok_or_else(|| no_sandbox(id))?;
        Ok(Response::new(StoreGetResponse { sandbox: Some(sandbox) }))
    }
}

fn validate(sandbox: &Sandbox) -> Result<(), Error> {
    validate_identifier(&sandbox.sandbox_id)?;
    labels::validate(&sandbox.labels)
}

/// Takes what a field mask names from `from`; without a mask everything that may change.
fn apply(sandbox: &mut Sandbox, from: Sandbox, fields: &[String]) -> Result<(), Error> {
    let all: [String; 5] = ["labels", "extensions", "spec", "runtime", "sandboxer"].map(str::to_owned);
    let fields = if fields.is_empty() { &all[..] } else { fields };
    for field in fields {
        match field.as_str() {
            "spec" => sandbox.spec.clone_from(&from.spec),
            "runtime" => sandbox.runtime.clone_from(&from.runtime),
            "sandboxer" => sandbox.sandboxer.clone_from(&from.sandboxer),
            path => match (mask_path(path, "labels"), mask_path(path, "extensions")) {
                (MaskPath::All, _) => labels::replace(&mut sandbox.labels, from.labels.clone()),
                (MaskPath::One(key), _) => labels::update_one(&mut sandbox.labels, &from.labels, key),
                (_, MaskPath::All) => sandbox.extensions.clone_from(&from.extensions),
                (_, MaskPath::One(key)) => update_extension(&mut sandbox.extensions, &from.extensions, key),
                (MaskPath::Other(path), MaskPath::Other(_)) => {
                    let text = format!(
                        "cannot update {} field on sandbox {}",
                        quote(path),
                        quote(&sandbox.sandbox_id)
                    );
                    return Err(Error::of(Kind::InvalidArgument, text));
                }
            },
        }
    }
    Ok(())
}

fn update_extension(extensions: &mut HashMap<String, Any>, from: &HashMap<String, Any>, key: &str) {
    match from.get(key) {
        Some(value) => extensions.insert(key.to_owned(), value.clone()),
        None => extensions.remove(key),
    };
}

impl ControllerService {
    async fn shim(&self, namespace: &Namespace, id: &str) -> Result<Arc<Shim>, Error> {
        let key = Key::new(namespace.as_str(), id);
        self.0.runtime.tasks.get(&key).await.map_err(|_| no_sandbox(id))
    }

    /// Calls the sandbox service of a shim.
    async fn ask<Q: Message, A: Message + Default>(
        &self,
        shim: &Shim,
        method: &str,
        request: &Q,
        deadline: Option<Duration>,
    ) -> Result<A, Error> {
        let namespace = KeyValue { key: NAMESPACE_TTRPC.into(), value: shim.key.namespace.clone() };
        shim.client()
            .unary(names::SANDBOX, method, request, vec![namespace], deadline)
            .await
            .map_err(into_error)
    }

    fn publish(&self, namespace: &Namespace, topic: &'static str, event: Any) {
        if let Err(err) = self.0.events.publish(namespace.as_str(), topic, event) {
            tracing::error!(topic, %err, "cannot publish");
        }
    }
}

/// Only one controller is here; the empty name means it.
fn check_sandboxer(name: &str) -> Result<(), Error> {
    match name {
        "" | "shim" => Ok(()),
        other => Err(Error::of(Kind::NotFound, format_args!("sandbox controller {}", quote(other)))),
    }
}

#[tonic::async_trait]
impl Controller for ControllerService {
    async fn create(&self, request: Request<ControllerCreateRequest>) -> Answer<ControllerCreateResponse> {
        let namespace = Namespace::of(request.metadata())?;
        let request = request.into_inner();
        check_sandboxer(&request.sandboxer)?;
        let id = request.sandbox_id.clone();
        let sandbox = match request.sandbox {
            Some(sandbox) => sandbox,
            None => self.0.db.get::<Sandbox>(namespace.as_str(), &id)?.ok_or_else(|| no_sandbox(&id))?,
        };
        validate_identifier(&id)?;
        let runtime = sandbox.runtime.unwrap_or_default();
        let create = CreateTask {
            spec: sandbox.spec.map_or_else(|| b"{}".to_vec(), |spec| spec.value),
            runtime: runtime.name,
            runtime_options: runtime.options,
            ..CreateTask::default()
        };
        let key = Key::new(namespace.as_str(), &id);
        let started = self.0.runtime.tasks.start_shim(key.clone(), create).await?;
        let ask = shim::CreateSandboxRequest {
            sandbox_id: id.clone(),
            bundle_path: started.bundle.path.to_string_lossy().into_owned(),
            rootfs: request.rootfs,
            options: request.options,
            netns_path: request.netns_path,
            annotations: request.annotations.into_iter().collect(),
        };
        let created: Result<shim::CreateSandboxResponse, Error> =
            self.ask(&started, "CreateSandbox", &ask, None).await;
        if let Err(err) = created {
            let _ = self.0.runtime.tasks.shut_down(&key).await;
            return Err(err.context(format_args!("failed to create sandbox {}", quote(&id))).into());
        }
        self.publish(&namespace, "/sandboxes/create", pack(&SandboxCreate { sandbox_id: id.clone() }));
        Ok(Response::new(ControllerCreateResponse { sandbox_id: id }))
    }

    async fn start(&self, request: Request<ControllerStartRequest>) -> Answer<ControllerStartResponse> {
        let namespace = Namespace::of(request.metadata())?;
        let request = request.into_inner();
        check_sandboxer(&request.sandboxer)?;
        let id = request.sandbox_id;
        let shim = self.shim(&namespace, &id).await?;
        let ask = shim::StartSandboxRequest { sandbox_id: id.clone() };
        let answer: shim::StartSandboxResponse = self.ask(&shim, "StartSandbox", &ask, None).await?;
        self.publish(&namespace, "/sandboxes/start", pack(&SandboxStart { sandbox_id: id.clone() }));
        Ok(Response::new(ControllerStartResponse {
            sandbox_id: id,
            pid: answer.pid,
            created_at: answer.created_at,
            address: shim.bootstrap.address.clone(),
            version: shim.bootstrap.version,
            spec: answer.spec,
            ..ControllerStartResponse::default()
        }))
    }

    async fn platform(
        &self,
        request: Request<ControllerPlatformRequest>,
    ) -> Answer<ControllerPlatformResponse> {
        let namespace = Namespace::of(request.metadata())?;
        let request = request.into_inner();
        check_sandboxer(&request.sandboxer)?;
        let shim = self.shim(&namespace, &request.sandbox_id).await?;
        let ask = shim::PlatformRequest { sandbox_id: request.sandbox_id };
        let answer: shim::PlatformResponse = self.ask(&shim, "Platform", &ask, Some(QUERY_DEADLINE)).await?;
        Ok(Response::new(ControllerPlatformResponse { platform: answer.platform }))
    }

    async fn stop(&self, request: Request<ControllerStopRequest>) -> Answer<ControllerStopResponse> {
        let namespace = Namespace::of(request.metadata())?;
        let request = request.into_inner();
        check_sandboxer(&request.sandboxer)?;
        let shim = self.shim(&namespace, &request.sandbox_id).await?;
        let ask =
            shim::StopSandboxRequest { sandbox_id: request.sandbox_id, timeout_secs: request.timeout_secs };
        let _: shim::StopSandboxResponse = self.ask(&shim, "StopSandbox", &ask, None).await?;
        Ok(Response::new(ControllerStopResponse {}))
    }

    async fn wait(&self, request: Request<ControllerWaitRequest>) -> Answer<ControllerWaitResponse> {
        let namespace = Namespace::of(request.metadata())?;
        let request = request.into_inner();
        check_sandboxer(&request.sandboxer)?;
        let id = request.sandbox_id;
        let shim = self.shim(&namespace, &id).await?;
        let ask = shim::WaitSandboxRequest { sandbox_id: id.clone() };
        let answer: shim::WaitSandboxResponse = self.ask(&shim, "WaitSandbox", &ask, None).await?;
        let event =
            SandboxExit { sandbox_id: id, exit_status: answer.exit_status, exited_at: answer.exited_at };
        self.publish(&namespace, "/sandboxes/exit", pack(&event));
        Ok(Response::new(ControllerWaitResponse {
            exit_status: answer.exit_status,
            exited_at: answer.exited_at,
        }))
    }

    async fn status(&self, request: Request<ControllerStatusRequest>) -> Answer<ControllerStatusResponse> {
        let namespace = Namespace::of(request.metadata())?;
        let request = request.into_inner();
        check_sandboxer(&request.sandboxer)?;
        let shim = self.shim(&namespace, &request.sandbox_id).await?;
        let ask = shim::SandboxStatusRequest { sandbox_id: request.sandbox_id, verbose: request.verbose };
        let answer: shim::SandboxStatusResponse =
            self.ask(&shim, "SandboxStatus", &ask, Some(QUERY_DEADLINE)).await?;
        Ok(Response::new(ControllerStatusResponse {
            sandbox_id: answer.sandbox_id,
            pid: answer.pid,
            state: answer.state,
            info: answer.info.into_iter().collect(),
            created_at: answer.created_at,
            exited_at: answer.exited_at,
            extra: answer.extra,
            address: shim.bootstrap.address.clone(),
            version: shim.bootstrap.version,
        }))
    }

    async fn shutdown(
        &self,
        request: Request<ControllerShutdownRequest>,
    ) -> Answer<ControllerShutdownResponse> {
        let namespace = Namespace::of(request.metadata())?;
        let request = request.into_inner();
        check_sandboxer(&request.sandboxer)?;
        let shim = self.shim(&namespace, &request.sandbox_id).await?;
        let ask = shim::ShutdownSandboxRequest { sandbox_id: request.sandbox_id };
        let answer: Result<shim::ShutdownSandboxResponse, Error> =
            self.ask(&shim, "ShutdownSandbox", &ask, Some(QUERY_DEADLINE)).await;
        match answer {
            Ok(_) => {}
            // It ended before it could say so.
            Err(err) if err.kind() == Kind::Unavailable => {}
            Err(err) => return Err(err.into()),
        }
        self.0
            .runtime
            .tasks
            .shut_down(&shim.key)
            .await
            .or_else(|err| if err.is_not_found() { Ok(()) } else { Err(err) })?;
        Ok(Response::new(ControllerShutdownResponse {}))
    }

    async fn metrics(&self, request: Request<ControllerMetricsRequest>) -> Answer<ControllerMetricsResponse> {
        let namespace = Namespace::of(request.metadata())?;
        let request = request.into_inner();
        check_sandboxer(&request.sandboxer)?;
        let shim = self.shim(&namespace, &request.sandbox_id).await?;
        let ask = shim::SandboxMetricsRequest { sandbox_id: request.sandbox_id };
        let answer: shim::SandboxMetricsResponse =
            self.ask(&shim, "SandboxMetrics", &ask, Some(QUERY_DEADLINE)).await?;
        Ok(Response::new(ControllerMetricsResponse { metrics: answer.metrics }))
    }

    async fn update(&self, request: Request<ControllerUpdateRequest>) -> Answer<ControllerUpdateResponse> {
        let namespace = Namespace::of(request.metadata())?;
        let request = request.into_inner();
        check_sandboxer(&request.sandboxer)?;
        let shim = self.shim(&namespace, &request.sandbox_id).await?;
        let wanted = request.sandbox.unwrap_or_default();
        let ask = shim::UpdateSandboxRequest {
            sandbox_id: request.sandbox_id,
            resources: wanted.spec,
            annotations: wanted.labels,
        };
        let _: shim::UpdateSandboxResponse = self.ask(&shim, "UpdateSandbox", &ask, None).await?;
        Ok(Response::new(ControllerUpdateResponse {}))
    }
}
