//! What a container may ask for: refusals and warnings, in Docker's words.
//!
//! Everything that can be known without running anything is refused here, at create, also where Docker accepts and then fails to start.
//! Nothing here looks at other containers, images or volumes.

mod config;
mod host;
mod network;
mod resources;

use docker_api::{Config, HostConfig};

pub use self::config::check_config;
pub use self::host::check_host;
pub(in crate::container) use self::host::check_restart;
pub use self::network::{check_endpoints, check_modes, parse_host_ports};
pub use self::resources::check_resources;

use crate::error::Result;

/// Checks a request as a whole and takes limits out that the machine has not; gives the warnings.
///
/// # Errors
/// A refusal.
pub fn check(config: &Config, host: &mut HostConfig) -> Result<Vec<String>> {
    check_config(config)?;
    check_host(host)?;
    let warnings = check_resources(host, false)?;
    check_modes(config, host)?;
    Ok(warnings)
}

#[cfg(test)]
mod tests;
