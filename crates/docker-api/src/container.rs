//! What a container is told to be, independent of the host: `Config`, and the request and answer of create.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::common::{Empty, Port, is_empty, is_zero, words};
use crate::endpoint::NetworkingConfig;
use crate::host_config::HostConfig;
use crate::json;

/// `ContainerConfig` of the API.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Config {
    /// The host name inside.
    pub hostname: String,
    /// The domain name inside.
    pub domainname: String,
    /// `user[:group]`, names or numbers; empty is root.
    pub user: String,
    /// Whether the client means to attach to stdin.
    pub attach_stdin: bool,
    /// Whether the client means to attach to stdout.
    pub attach_stdout: bool,
    /// Whether the client means to attach to stderr.
    pub attach_stderr: bool,
    /// Ports the container listens on.
    #[serde(skip_serializing_if = "is_empty")]
    pub exposed_ports: Option<BTreeMap<Port, Empty>>,
    /// Whether the process has a terminal.
    pub tty: bool,
    /// Whether stdin stays open without a client.
    pub open_stdin: bool,
    /// Whether stdin closes after the first client that attached to it.
    pub stdin_once: bool,
    /// `NAME=value`, or `NAME` to take a variable away.
    pub env: Option<Vec<String>>,
    /// The command, or the entry point's arguments.
    #[serde(deserialize_with = "words::deserialize")]
    pub cmd: Option<Vec<String>>,
    /// How to see whether the container is well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<HealthConfig>,
    /// Windows only.
    #[serde(skip_serializing_if = "is_zero")]
    pub args_escaped: bool,
    /// The image as the client named it.
    pub image: String,
    /// Mount points of anonymous volumes.
    pub volumes: Option<BTreeMap<String, Empty>>,
    /// Where the process starts.
    pub working_dir: String,
    /// The program that gets `cmd` as arguments.
    #[serde(deserialize_with = "words::deserialize")]
    pub entrypoint: Option<Vec<String>>,
    /// Whether the container has no network at all.
    #[serde(skip_serializing_if = "is_zero")]
    pub network_disabled: bool,
    /// The hardware address, where clients older than API 1.44 put it; empty once the request was understood.
    #[serde(skip_serializing_if = "is_zero")]
    pub mac_address: String,
    /// Build triggers.
    #[serde(skip_serializing_if = "is_empty")]
    pub on_build: Option<Vec<String>>,
    /// The client's labels.
    pub labels: Option<BTreeMap<String, String>>,
    /// What `stop` sends; empty is SIGTERM.
    #[serde(skip_serializing_if = "is_zero")]
    pub stop_signal: String,
    /// How many seconds `stop` waits before it kills.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_timeout: Option<i64>,
    /// The shell of the shell forms.
    #[serde(skip_serializing_if = "is_empty")]
    pub shell: Option<Vec<String>>,
}

impl Config {
    /// Everything that runs: entry point, then command.
    pub fn argv(&self) -> impl Iterator<Item = &String> {
        self.entrypoint.iter().flatten().chain(self.cmd.iter().flatten())
    }

    /// A label's value.
    pub fn label(&self, name: &str) -> Option<&str> {
        self.labels.as_ref()?.get(name).map(String::as_str)
    }
}

/// `HealthConfig` of the API. Durations are nanoseconds; 0 is the default.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct HealthConfig {
    /// `NONE`, `CMD` and arguments, or `CMD-SHELL` and a line.
    #[serde(skip_serializing_if = "is_empty")]
    pub test: Option<Vec<String>>,
    /// Between checks.
    #[serde(skip_serializing_if = "is_zero")]
    pub interval: i64,
    /// For one check.
    #[serde(skip_serializing_if = "is_zero")]
    pub timeout: i64,
    /// How long failures do not count after a start.
    #[serde(skip_serializing_if = "is_zero")]
    pub start_period: i64,
    /// Between checks in the start period.
    #[serde(skip_serializing_if = "is_zero")]
    pub start_interval: i64,
    /// Failures in a row until the container is unhealthy.
    #[serde(skip_serializing_if = "is_zero")]
    pub retries: i64,
}

/// The body of `POST /containers/create`: `Config` with two more members.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CreateRequest {
    /// What to run; `None` when the body has not a single member.
    pub config: Option<Config>,
    /// How the host runs it.
    pub host_config: HostConfig,
    /// The networks to join.
    pub networking_config: NetworkingConfig,
    /// `HostConfig.Capabilities`, which one API version had and none has any more: only whether it was there.
    pub legacy_capabilities: bool,
}

/// The answer of `POST /containers/create`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct CreateResponse {
    /// The new container.
    pub id: String,
    /// What the client should know.
    pub warnings: Vec<String>,
}

/// The members of a create request that are not `Config`'s.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Beside {
    host_config: Option<HostConfig>,
    networking_config: Option<NetworkingConfig>,
}

impl CreateRequest {
    /// Reads the body. The three parts share one JSON object.
    ///
    /// # Errors
    /// The text is not one JSON document, or not of this shape.
    pub fn parse(body: &[u8]) -> Result<Self, json::Error> {
        let value = json::value(body)?;
        let object = match &value {
            serde_json::Value::Object(object) => object,
            serde_json::Value::Null => return Ok(Self::default()),
            _ => return json::from_value::<Unshaped>(value).map(|_| Self::default()),
        };
        let fields = json::fields_of::<Config>();
        let has_config = object.keys().any(|key| fields.iter().any(|field| field.eq_ignore_ascii_case(key)));
        let legacy_capabilities = object
            .iter()
            .filter(|(key, _)| key.eq_ignore_ascii_case("HostConfig"))
            .filter_map(|(_, value)| value.as_object())
            .any(|host| host.iter().any(|(key, v)| key.eq_ignore_ascii_case("Capabilities") && !v.is_null()));
        let config = json::from_value::<Config>(value.clone())?;
        let beside: Beside = json::from_value(value)?;
        Ok(Self {
            config: has_config.then_some(config),
            host_config: beside.host_config.unwrap_or_default(),
            networking_config: beside.networking_config.unwrap_or_default(),
            legacy_capabilities,
        })
    }
}

/// Anything but an object is refused in the request's own name.
#[derive(Deserialize)]
#[serde(expecting = "struct CreateRequest")]
struct Unshaped {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_three_things_in_one_object() {
        let body = br#"{"image":"a","cmd":"ls","Env":null,"hostconfig":{"memory":7,"Dns":null,"PortBindings":{"80/tcp":null}},
            "NetworkingConfig":{"EndpointsConfig":{"n":null}}}"#;
        let read = CreateRequest::parse(body).unwrap();
        let config = read.config.unwrap();
        assert_eq!((config.image.as_str(), config.cmd), ("a", Some(vec!["ls".to_owned()])));
        assert_eq!(read.host_config.memory, 7);
        assert_eq!(read.host_config.port_bindings.unwrap()[&Port::new(80, "tcp")], None);
        assert_eq!(read.networking_config.endpoints_config.unwrap()["n"], None);
    }

    #[test]
    fn a_request_without_config() {
        for body in ["{}", "null", r#"{"HostConfig":{}}"#] {
            assert_eq!(CreateRequest::parse(body.as_bytes()).unwrap().config, None, "{body}");
        }
    }

    #[test]
    fn refusals_read_like_gos() {
        let text = |body: &str| CreateRequest::parse(body.as_bytes()).unwrap_err().to_string();
        let of = |what: &str| format!("invalid JSON: json: cannot unmarshal {what}");
        assert_eq!(text("[]"), of("array into Go value of type container.CreateRequest"));
        assert_eq!(text(r#"{"Image":1}"#), of("number into Go struct field .Image of type string"));
        assert_eq!(
            text(r#"{"HostConfig":{"Memory":"x"}}"#),
            of("string into Go struct field .HostConfig.Memory of type int64")
        );
        assert_eq!(
            text("{bad"),
            "invalid JSON: invalid character 'b' looking for beginning of object key string"
        );
        assert_eq!(text(r#"{} {}"#), "unexpected content after JSON");
    }

    #[test]
    fn what_go_omits_is_omitted() {
        let text = serde_json::to_string(&Config::default()).unwrap();
        assert_eq!(
            text,
            r#"{"Hostname":"","Domainname":"","User":"","AttachStdin":false,"AttachStdout":false,"AttachStderr":false,"Tty":false,"OpenStdin":false,"StdinOnce":false,"Env":null,"Cmd":null,"Image":"","Volumes":null,"WorkingDir":"","Entrypoint":null,"Labels":null}"#
        );
    }
}
