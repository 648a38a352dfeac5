//! Docker's CLI plugins (compose, buildx): `docker-NAME` in the plugin folders, run with our own flags in front.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;

use crate::context::Global;

/// Where Docker looks for plugins, after the user's own folder.
const SYSTEM: [&str; 4] = [
    "/usr/local/lib/docker/cli-plugins",
    "/usr/local/libexec/docker/cli-plugins",
    "/usr/lib/docker/cli-plugins",
    "/usr/libexec/docker/cli-plugins",
];

/// Becomes the plugin `words[0]`, or returns `None` if there is none, or the exit code if it cannot be run.
pub fn run(global: &Global, words: &[String]) -> Option<i32> {
    let name = &words[0];
    if name.contains('/') || name.is_empty() {
        return None;
    }
    let extra = global.config_file().ok().and_then(|file| {
        let dirs = file["cliPluginsExtraDirs"].as_array()?.iter();
        Some(dirs.filter_map(|dir| dir.as_str().map(PathBuf::from)).collect::<Vec<_>>())
    });
    let mut dirs = vec![global.config_dir().join("cli-plugins")];
    dirs.extend(extra.unwrap_or_default());
    dirs.extend(SYSTEM.iter().map(PathBuf::from));
    let path = dirs.into_iter().map(|dir| dir.join(format!("docker-{name}"))).find(|path| path.is_file())?;
    let mut command = std::process::Command::new(&path);
    // A plugin reads the global flags from its own command line, as docker hands them over.
    if let Some(host) = &global.host {
        command.args(["--host", host]);
    }
    if let Some(context) = &global.context {
        command.args(["--context", context]);
    }
    if let Some(config) = &global.config {
        command.arg("--config").arg(config);
    }
    command.args(words);
    command.env("DOCKER_CLI_PLUGIN_ORIGINAL_CLI_COMMAND", std::env::args().next().unwrap_or_default());
    let err = command.exec();
    eprintln!("docker: {}: {err}", path.display());
    Some(1)
}
