//! What a container takes over from its image.

use std::collections::BTreeMap;

use docker_api::common::{Empty, Port};
use docker_api::{Config, HealthConfig};
use oci::config::ExecConfig;

use crate::error::{Error, Result};

/// Fills in what the client left open.
///
/// # Errors
/// An image's port is none.
pub fn merge(config: &mut Config, image: &ExecConfig) -> Result<()> {
    if config.user.is_empty() {
        config.user.clone_from(&image.user);
    }
    if let Some(ports) = &image.exposed_ports {
        let exposed = config.exposed_ports.get_or_insert_default();
        for port in ports.keys() {
            exposed.insert(port.parse::<Port>().map_err(Error::invalid)?, Empty);
        }
    }
    merge_env(config, image);
    if let Some(labels) = &image.labels {
        let own = config.labels.get_or_insert_default();
        for (name, value) in labels {
            own.entry(name.clone()).or_insert_with(|| value.clone());
        }
    }
    if config.labels.is_none() {
        config.labels = Some(BTreeMap::new());
    }
    let nothing = |words: &Option<Vec<String>>| words.as_ref().is_none_or(Vec::is_empty);
    if nothing(&config.entrypoint) {
        if nothing(&config.cmd) {
            config.cmd.clone_from(&image.cmd);
            config.args_escaped = image.args_escaped;
        }
        // `[""]` is how a client takes the image's entry point away.
        if config.entrypoint.is_none() {
            config.entrypoint.clone_from(&image.entrypoint);
        }
    }
    if config.entrypoint.as_ref().is_some_and(|words| words.iter().eq([""].iter())) {
        config.entrypoint = None;
    }
    if let Some(image) = &image.healthcheck {
        merge_health(config, image);
    }
    if config.working_dir.is_empty() {
        config.working_dir.clone_from(&image.working_dir);
    }
    let theirs = image.volumes.as_ref().map(|volumes| volumes.keys().map(|path| (path.clone(), Empty)));
    match (config.volumes.as_mut().filter(|own| !own.is_empty()), theirs) {
        (Some(own), Some(theirs)) => own.extend(theirs),
        (Some(_), None) => {}
        (None, theirs) => config.volumes = theirs.map(Iterator::collect),
    }
    if config.stop_signal.is_empty() {
        config.stop_signal.clone_from(&image.stop_signal);
    }
    if config.stop_timeout.is_none() {
        config.stop_timeout = image.stop_timeout;
    }
    if config.shell.is_none() {
        config.shell.clone_from(&image.shell);
    }
    Ok(())
}

/// The image's variables go behind the client's, unless it has them.
fn merge_env(config: &mut Config, image: &ExecConfig) {
    let Some(variables) = &image.env else { return };
    let Some(own) = config.env.as_mut().filter(|own| !own.is_empty()) else {
        config.env = Some(variables.clone());
        return;
    };
    let name = |entry: &str| entry.split('=').next().unwrap_or_default().to_owned();
    let names: std::collections::HashSet<String> = own.iter().map(|entry| name(entry)).collect();
    own.extend(variables.iter().filter(|entry| !names.contains(&name(entry))).cloned());
}

fn merge_health(config: &mut Config, image: &oci::config::Healthcheck) {
    let Some(own) = &mut config.healthcheck else {
        config.healthcheck = Some(HealthConfig {
            test: image.test.clone(),
            interval: image.interval,
            timeout: image.timeout,
            start_period: image.start_period,
            start_interval: image.start_interval,
            retries: image.retries,
        });
        return;
    };
    if own.test.as_ref().is_none_or(Vec::is_empty) {
        own.test.clone_from(&image.test);
    }
    for (mine, theirs) in [
        (&mut own.interval, image.interval),
        (&mut own.timeout, image.timeout),
        (&mut own.start_period, image.start_period),
        (&mut own.start_interval, image.start_interval),
        (&mut own.retries, image.retries),
    ] {
        if *mine == 0 {
            *mine = theirs;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Option<Vec<String>> {
        Some(text.split_whitespace().map(str::to_owned).collect())
    }

    fn image() -> ExecConfig {
        ExecConfig {
            env: words("PATH=/bin A=image"),
            cmd: words("image-cmd"),
            entrypoint: words("image-entry"),
            working_dir: "/w".into(),
            ..ExecConfig::default()
        }
    }

    #[test]
    fn the_clients_words_win() {
        let mut config = Config { env: words("A=mine"), cmd: words("mine"), ..Config::default() };
        merge(&mut config, &image()).unwrap();
        assert_eq!(config.env, words("A=mine PATH=/bin"));
        assert_eq!((config.cmd, config.entrypoint), (words("mine"), words("image-entry")));
        assert_eq!(config.working_dir, "/w");
    }

    #[test]
    fn an_entry_point_drops_the_images_command() {
        let mut config = Config { entrypoint: words("mine"), ..Config::default() };
        merge(&mut config, &image()).unwrap();
        assert_eq!((config.cmd, config.entrypoint), (None, words("mine")));
    }

    #[test]
    fn an_empty_entry_point_takes_the_images_away() {
        let mut config =
            Config { entrypoint: Some(vec![String::new()]), cmd: words("mine"), ..Config::default() };
        merge(&mut config, &image()).unwrap();
        assert_eq!((config.cmd, config.entrypoint), (words("mine"), None));
    }
}
