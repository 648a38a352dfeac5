//! The gRPC services, one thin file each: parse, ask a part, answer.

use containerd_api::{DESCRIPTORS, MAX_MESSAGE_BYTES};
use tonic::service::Routes;

use crate::daemon::Daemon;

mod containers;
mod content;
mod diff;
mod events;
mod images;
mod introspection;
mod leases;
mod namespaces;
mod sandbox;
pub(crate) mod shim_events;
mod snapshots;
mod streaming;
mod tasks;
mod transfer;
mod version;

/// All services of `daemon`.
pub fn routes(daemon: &Daemon) -> Routes {
    /// Raises the limits of a generated server to what the configuration says.
    macro_rules! limits {
        ($server:expr) => {
            $server
                .max_decoding_message_size(daemon.config.grpc.max_recv_message_size.max(MAX_MESSAGE_BYTES))
                .max_encoding_message_size(daemon.config.grpc.max_send_message_size.max(MAX_MESSAGE_BYTES))
        };
    }
    let mut routes = Routes::builder();
    routes
        .add_service(limits!(containers::service(daemon)))
        .add_service(limits!(content::service(daemon)))
        .add_service(limits!(diff::service(daemon)))
        .add_service(limits!(events::service(daemon)))
        .add_service(limits!(images::service(daemon)))
        .add_service(limits!(introspection::service(daemon)))
        .add_service(limits!(leases::service(daemon)))
        .add_service(limits!(namespaces::service(daemon)))
        .add_service(limits!(tasks::service(daemon)))
        .add_service(limits!(sandbox::store(daemon)))
        .add_service(limits!(sandbox::controller(daemon)))
        .add_service(limits!(snapshots::service(daemon)))
        .add_service(limits!(streaming::service(daemon)))
        .add_service(limits!(transfer::service(daemon)))
        .add_service(limits!(version::service()));
    health(&mut routes);
    reflection(&mut routes);
    routes.routes()
}

/// `grpc.health.v1.Health`: the daemon serves, or nobody answers.
fn health(routes: &mut tonic::service::RoutesBuilder) {
    let (_, service) = tonic_health::server::health_reporter();
    routes.add_service(service);
}

/// Server reflection, both versions clients ask for.
fn reflection(routes: &mut tonic::service::RoutesBuilder) {
    use containerd_api as api;
    // What is served: the protocol files describe services of later versions too.
    const SERVED: &[&str] = &[
        api::containers::containers_server::SERVICE_NAME,
        api::content::content_server::SERVICE_NAME,
        api::diff::diff_server::SERVICE_NAME,
        api::events::events_server::SERVICE_NAME,
        api::images::images_server::SERVICE_NAME,
        api::introspection::introspection_server::SERVICE_NAME,
        api::leases::leases_server::SERVICE_NAME,
        api::namespaces::namespaces_server::SERVICE_NAME,
        api::sandbox::controller_server::SERVICE_NAME,
        api::sandbox::store_server::SERVICE_NAME,
        api::snapshots::snapshots_server::SERVICE_NAME,
        api::streaming::streaming_server::SERVICE_NAME,
        api::tasks::tasks_server::SERVICE_NAME,
        api::transfer::transfer_server::SERVICE_NAME,
        api::version::version_server::SERVICE_NAME,
        tonic_health::pb::health_server::SERVICE_NAME,
    ];
    let builder = || {
        let builder = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET);
        SERVED.iter().fold(builder, |builder, name| builder.with_service_name(*name))
    };
    match (builder().build_v1(), builder().build_v1alpha()) {
        (Ok(v1), Ok(v1alpha)) => {
            routes.add_service(v1).add_service(v1alpha);
        }
        (Err(err), _) | (_, Err(err)) => tracing::error!(%err, "server reflection is not available"),
    }
}
