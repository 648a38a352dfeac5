//! The record of an exit, which outlives everyone who might forget it.

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// The version of the format.
pub const VERSION: u32 = 1;

/// How a process ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// [`VERSION`].
    pub version: u32,
    /// The container.
    pub id: String,
    /// The exec, empty for init.
    pub exec_id: String,
    /// Its pid.
    pub pid: u32,
    /// As a shell tells it.
    pub exit_code: u32,
    /// What killed it, 0 for nothing.
    pub signal: u32,
    /// When, in RFC 3339.
    pub exited_at: String,
    /// Whether the kernel killed a process of the container for want of memory.
    pub oom_killed: bool,
    /// Log lines that could not be written.
    pub log_dropped: u64,
}

impl Record {
    /// Writes it so that it is there for good.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let mut json = serde_json::to_vec(self).map_err(io::Error::other)?;
        json.push(b'\n');
        sys::atomicfile::write(path, 0o600, &json)
    }
}

/// Reads a record; `None` if there is none or it is of another version.
pub fn read(path: &Path) -> Option<Record> {
    let record: Record = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
    (record.version == VERSION).then_some(record)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_contract_shows() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("exit");
        assert_eq!(read(&path), None);
        let text = r#"{"version":1,"id":"c","exec_id":"","pid":1234,"exit_code":137,"signal":9,"exited_at":"2026-01-02T03:04:05.123456789Z","oom_killed":false,"log_dropped":0}"#;
        std::fs::write(&path, text).unwrap();
        let record = read(&path).unwrap();
        assert_eq!((record.exit_code, record.signal, record.pid), (137, 9, 1234));
        record.write(&path).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), format!("{text}\n"));
        std::fs::write(&path, text.replacen("1", "2", 1)).unwrap();
        assert_eq!(read(&path), None);
    }
}
