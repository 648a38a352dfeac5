//! What the runtimes say about themselves. Asked once per set of runtimes: a program is started for each answer.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::process::Command;

use crate::config::{Live, RuntimeEntry};

/// How long a runtime may take to say its version.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is known of one runtime.
#[derive(Clone, Debug)]
pub struct Program {
    /// The program.
    pub path: String,
    /// Version and commit, or why there is none.
    pub version: Result<(String, String), String>,
    /// What `features` printed, on one line.
    pub features: Option<String>,
}

/// Runtimes by name.
pub type Found = Arc<BTreeMap<String, Program>>;

/// The answers, kept.
#[derive(Default)]
pub struct Programs {
    kept: Mutex<Option<(BTreeMap<String, RuntimeEntry>, Found)>>,
}

impl Programs {
    /// The runtimes of `live`; asks each that was not asked before.
    pub async fn look(&self, live: &Live) -> Found {
        {
            let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some((runtimes, found)) = kept.as_ref()
                && *runtimes == live.runtimes
                // One that was missing may have been installed since.
                && found.values().all(|program| program.version.is_ok())
            {
                return Arc::clone(found);
            }
        }
        let mut by_path: BTreeMap<String, Program> = BTreeMap::new();
        let mut found = BTreeMap::new();
        for (name, entry) in live.runtimes.iter().filter(|(_, entry)| !entry.path.is_empty()) {
            if !by_path.contains_key(&entry.path) {
                by_path.insert(entry.path.clone(), ask(&entry.path).await);
            }
            if let Some(program) = by_path.get(&entry.path) {
                found.insert(name.clone(), program.clone());
            }
        }
        let found = Arc::new(found);
        *self.kept.lock().unwrap_or_else(PoisonError::into_inner) =
            Some((live.runtimes.clone(), Arc::clone(&found)));
        found
    }
}

async fn ask(path: &str) -> Program {
    let version = output(path, "--version").await.map(|text| parse_version(&text));
    let features = match &version {
        Ok(_) => output(path, "features").await.ok().and_then(|text| {
            let value: serde_json::Value = serde_json::from_str(&text).ok()?;
            Some(value.to_string())
        }),
        Err(_) => None,
    };
    Program { path: path.to_owned(), version, features }
}

async fn output(path: &str, argument: &str) -> Result<String, String> {
    let mut command = Command::new(path);
    command.arg(argument).stdin(Stdio::null()).kill_on_drop(true);
    match tokio::time::timeout(PATIENCE, command.output()).await {
        Ok(Ok(output)) if output.status.success() => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        Ok(Ok(output)) => Err(format!("{path} {argument}: {}", output.status)),
        Ok(Err(err)) => Err(format!("{path}: {}", crate::error::sys_text(&err))),
        Err(_) => Err(format!("{path} {argument} did not end within {} s", PATIENCE.as_secs())),
    }
}

/// `runc version 1.1.5\ncommit: v1.1.5-0-g…\nspec: …`.
fn parse_version(text: &str) -> (String, String) {
    let version =
        text.lines().find_map(|line| line.split_once("version ").map(|(_, version)| version.trim()));
    let commit = text.lines().find_map(|line| line.strip_prefix("commit:").map(str::trim));
    (version.unwrap_or_default().to_owned(), commit.unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        let text = "runc version 1.1.5+ds1\ncommit: 1.1.5+ds1-1+deb12u1\nspec: 1.0.2-dev\ngo: go1.19.8\n";
        assert_eq!(parse_version(text), ("1.1.5+ds1".into(), "1.1.5+ds1-1+deb12u1".into()));
        assert_eq!(parse_version("crun version 1.8.1\ncommit: abc"), ("1.8.1".into(), "abc".into()));
        assert_eq!(parse_version(""), (String::new(), String::new()));
    }

    #[tokio::test]
    async fn a_missing_runtime_says_so() {
        let program = ask("/nonexistent/runc").await;
        assert_eq!(program.version, Err("/nonexistent/runc: no such file or directory".into()));
    }
}
