//! The processes of a container, as the host's `ps` shows them.

use std::collections::HashSet;
use std::process::Stdio;
use std::time::Duration;

use serde::Serialize;

use super::Container;
use super::record::State;
use crate::engine::Engine;
use crate::error::{Error, Result};

/// How long `ps` may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// `ContainerTopResponse` of the API.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Top {
    processes: Vec<Vec<String>>,
    titles: Vec<String>,
}

/// Asks `ps` with `args` (`-ef` when empty) and keeps the container's processes.
///
/// # Errors
/// The container does not run, or `ps` does not understand.
pub async fn top(engine: &Engine, container: &Container, args: &str) -> Result<Top> {
    let record = container.settled().await;
    if record.life.state == State::Restarting {
        return Err(Error::conflict(format!(
            "Container {} is restarting, wait until the container is running",
            record.id
        )));
    }
    if record.pid().is_none() {
        return Err(Error::conflict(format!("container {} is not running", record.id)));
    }
    let pids: HashSet<u32> = engine.runtime.pids(&record.id).await?.into_iter().collect();
    let args = if args.is_empty() { "-ef" } else { args };
    // The words go to ps as they are: no shell.
    let ran = tokio::process::Command::new("ps")
        .args(args.split_whitespace())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let ran = tokio::time::timeout(PATIENCE, ran)
        .await
        .map_err(|_| Error::system("ps: timed out"))?
        .map_err(|err| Error::system(format!("ps: {}", crate::error::sys_text(&err))))?;
    if !ran.status.success() {
        let text = String::from_utf8_lossy(&ran.stderr);
        let first = text.lines().next().unwrap_or_default().trim();
        // Docker answers 500; it is the caller's arguments that are wrong.
        return Err(Error::invalid(format!("ps: {first}")));
    }
    read(&String::from_utf8_lossy(&ran.stdout), &pids)
}

fn read(text: &str, pids: &HashSet<u32>) -> Result<Top> {
    let mut lines = text.lines();
    let titles: Vec<String> =
        lines.next().unwrap_or_default().split_ascii_whitespace().map(str::to_owned).collect();
    let column = titles
        .iter()
        .position(|title| title == "PID")
        .ok_or_else(|| Error::invalid("Couldn't find PID field in ps output"))?;
    let mut processes = Vec::new();
    for line in lines {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let pid = words.get(column).and_then(|word| word.parse::<u32>().ok());
        if !pid.is_some_and(|pid| pids.contains(&pid)) {
            continue;
        }
        // The last column may have spaces in it.
        let last = titles.len() - 1;
        let mut row: Vec<String> = words.iter().take(last).map(|word| (*word).to_owned()).collect();
        row.push(words.get(last..).unwrap_or_default().join(" "));
        processes.push(row);
    }
    Ok(Top { processes, titles })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_containers_rows_are_kept() {
        let text = "UID          PID    PPID  CMD\nroot           1       0  /sbin/init  x\nroot          27       1 sh -c  sleep 1\n";
        let top = read(text, &HashSet::from([27])).unwrap();
        assert_eq!(top.titles, ["UID", "PID", "PPID", "CMD"]);
        assert_eq!(top.processes, [["root", "27", "1", "sh -c sleep 1"]]);
        assert_eq!(
            read("COMMAND\nsh\n", &HashSet::new()).unwrap_err().message(),
            "Couldn't find PID field in ps output"
        );
    }
}
