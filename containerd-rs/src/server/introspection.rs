//! `containerd.services.introspection.v1`.

use containerd_api::introspection::introspection_server::{Introspection, IntrospectionServer};
use containerd_api::introspection::{
    PluginInfoRequest, PluginInfoResponse, PluginsRequest, PluginsResponse, ServerResponse,
};
use containerd_api::{Error, Kind};
use tonic::{Request, Response, Status};

use crate::daemon::Daemon;
use crate::filters::Filters;

pub struct Service(Daemon);

pub fn service(daemon: &Daemon) -> IntrospectionServer<Service> {
    IntrospectionServer::new(Service(daemon.clone()))
}

#[tonic::async_trait]
impl Introspection for Service {
    async fn plugins(&self, request: Request<PluginsRequest>) -> Result<Response<PluginsResponse>, Status> {
        let filters = Filters::parse(&request.into_inner().filters)?;
        let plugins = self.0.plugins.iter().filter(|plugin| filters.matches(*plugin)).cloned().collect();
        Ok(Response::new(PluginsResponse { plugins }))
    }

    async fn server(&self, _: Request<()>) -> Result<Response<ServerResponse>, Status> {
        Ok(Response::new(ServerResponse {
            uuid: self.0.uuid.clone(),
            pid: u64::from(std::process::id()),
            pidns: pid_namespace(),
            deprecations: Vec::new(),
        }))
    }

    async fn plugin_info(
        &self,
        request: Request<PluginInfoRequest>,
    ) -> Result<Response<PluginInfoResponse>, Status> {
        let PluginInfoRequest { r#type, id, options } = request.into_inner();
        let plugin = self.0.plugins.iter().find(|plugin| plugin.r#type == r#type && plugin.id == id);
        let plugin = plugin.ok_or_else(|| Error::of(Kind::NotFound, format_args!("plugin {type}.{id}")))?;
        let extra = match r#type.as_str() {
            "io.containerd.runtime.v2" => self.0.runtime.plugin_info(options).await?,
            _ => None,
        };
        Ok(Response::new(PluginInfoResponse { plugin: Some(plugin.clone()), extra }))
    }
}

/// The inode of our pid namespace; 0 if it cannot be seen.
fn pid_namespace() -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata("/proc/self/ns/pid").map_or(0, |metadata| metadata.ino())
}
