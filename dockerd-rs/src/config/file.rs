//! daemon.json: reading, unknown keys, and keys that are also flags.
//!
//! The texts are dockerd's, because packaging scripts and people look for them.

use std::path::Path;

use serde_json::{Map, Value};

use super::options::{self, Form};
use crate::error::sys_text;

/// Reads the file. `None` when it is not there and nobody asked for it by name.
///
/// # Errors
/// The file cannot be read or is no JSON object; the text names the file.
pub fn read(path: &Path, asked_for: bool) -> Result<Option<Map<String, Value>>, String> {
    let wrapped =
        |why: String| format!("unable to configure the Docker daemon with file {}: {why}", path.display());
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(err) if err.kind() == std::io::ErrorKind::NotFound && !asked_for => return Ok(None),
        Err(err) => return Err(wrapped(format!("open {}: {}", path.display(), sys_text(&err)))),
    };
    // An empty file is one that says nothing.
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Ok(Some(Map::new()));
    }
    match docker_api::json::value(&bytes) {
        Ok(Value::Object(map)) => Ok(Some(map)),
        Ok(_) => {
            Err(wrapped("invalid JSON: json: cannot unmarshal into Go value of type config.Config".into()))
        }
        Err(err) => Err(wrapped(err.to_string())),
    }
}

/// Puts the file's values and the flags' together.
///
/// # Errors
/// The file has keys nobody knows, or says what a flag says too.
pub fn merge(file: Map<String, Value>, flags: &Map<String, Value>) -> Result<Map<String, Value>, String> {
    let mut unknown: Vec<&str> =
        file.keys().map(String::as_str).filter(|key| options::by_key(key).is_none()).collect();
    if !unknown.is_empty() {
        unknown.sort_unstable();
        return Err(format!(
            "the following directives don't match any configuration option: {}",
            unknown.join(", ")
        ));
    }
    let mut conflicts: Vec<String> = Vec::new();
    for (key, from_flag) in flags {
        let Some(from_file) = file.get(key) else { continue };
        // Runtimes are a set: those of the file and those of the flags are all registered.
        if options::by_key(key).is_some_and(|opt| opt.form == Form::Runtimes) {
            continue;
        }
        conflicts.push(format!("{key}: (from flag: {}, from file: {})", shown(from_flag), shown(from_file)));
    }
    if !conflicts.is_empty() {
        conflicts.sort_unstable();
        return Err(format!(
            "the following directives are specified both as a flag and in the configuration file: {}",
            conflicts.join(", ")
        ));
    }
    let mut merged = file;
    for (key, value) in flags {
        match (merged.get_mut(key), value) {
            (Some(Value::Object(there)), Value::Object(more)) => there.extend(more.clone()),
            _ => {
                merged.insert(key.clone(), value.clone());
            }
        }
    }
    // Proxies have an object of their own in the file.
    if let Some(Value::Object(proxies)) = merged.remove("proxies") {
        for (key, value) in proxies {
            merged.entry(key).or_insert(value);
        }
    }
    Ok(merged)
}

/// A value as Go prints it with `%v`.
fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(items) => format!("[{}]", items.iter().map(shown).collect::<Vec<_>>().join(" ")),
        Value::Object(map) => {
            let items: Vec<String> =
                map.iter().map(|(key, value)| format!("{key}:{}", shown(value))).collect();
            format!("map[{}]", items.join(" "))
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn map(value: Value) -> Map<String, Value> {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn what_is_said_twice_or_unknown_is_refused_in_dockerds_words() {
        let check = |file: Value, flags: Value| merge(map(file), &map(flags));
        assert_eq!(
            check(json!({"log-level": "info", "bogus": 1, "also": 2}), json!({})).unwrap_err(),
            "the following directives don't match any configuration option: also, bogus"
        );
        assert_eq!(
            check(
                json!({"log-level": "info", "hosts": ["unix:///x"]}),
                json!({"hosts": ["unix:///y"], "log-level": "debug"})
            )
            .unwrap_err(),
            "the following directives are specified both as a flag and in the configuration file: hosts: (from flag: [unix:///y], from file: [unix:///x]), log-level: (from flag: debug, from file: info)"
        );
    }

    #[test]
    fn the_two_sides_are_put_together() {
        let merged = merge(
            map(json!({"runtimes": {"a": {"path": "/a"}}, "icc": false, "proxies": {"http-proxy": "p"}})),
            &map(json!({"runtimes": {"b": {"path": "/b"}}, "mtu": 1400})),
        );
        let want = json!({
            "runtimes": {"a": {"path": "/a"}, "b": {"path": "/b"}}, "icc": false, "mtu": 1400, "http-proxy": "p"
        });
        assert_eq!(Value::Object(merged.unwrap()), want);
    }

    #[test]
    fn a_missing_file_is_an_error_only_when_it_was_asked_for() {
        let path = Path::new("/nonexistent/daemon.json");
        assert_eq!(read(path, false), Ok(None));
        assert_eq!(
            read(path, true).unwrap_err(),
            "unable to configure the Docker daemon with file /nonexistent/daemon.json: open /nonexistent/daemon.json: no such file or directory"
        );
    }
}
