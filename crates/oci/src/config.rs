//! The image configuration, with the fields Docker adds to the OCI image specification.
//!
//! Invariant: reading is tolerant (unknown keys and Go's `null` for empty are fine), writing has moby's key order:
//! the platform and history first, `config` last. The original bytes stay the identity of an image; this type is
//! for looking into one and for making new ones.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::digest::Digest;
use crate::manifest::{MAX_CONFIG_BYTES, null_is_empty};
use crate::platform::Platform;

/// What an image is and how its containers start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageConfig {
    /// RFC 3339, as found.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "null_is_empty")]
    pub author: String,
    #[serde(deserialize_with = "null_is_empty")]
    pub architecture: String,
    #[serde(deserialize_with = "null_is_empty")]
    pub os: String,
    #[serde(
        rename = "os.version",
        skip_serializing_if = "String::is_empty",
        deserialize_with = "null_is_empty"
    )]
    pub os_version: String,
    #[serde(
        rename = "os.features",
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "null_is_empty"
    )]
    pub os_features: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "null_is_empty")]
    pub variant: String,
    #[serde(deserialize_with = "null_is_empty")]
    pub rootfs: RootFs,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_empty")]
    pub history: Vec<History>,
    #[serde(deserialize_with = "null_is_empty")]
    pub config: ExecConfig,
}

/// The layers by the digests of their uncompressed tars, lowest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RootFs {
    #[serde(rename = "type", deserialize_with = "null_is_empty")]
    pub kind: String,
    #[serde(deserialize_with = "null_is_empty")]
    pub diff_ids: Vec<Digest>,
}

/// How one step of the image came to be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct History {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "null_is_empty")]
    pub created_by: String,
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "null_is_empty")]
    pub author: String,
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "null_is_empty")]
    pub comment: String,
    #[serde(skip_serializing_if = "std::ops::Not::not", deserialize_with = "null_is_empty")]
    pub empty_layer: bool,
}

/// Defaults of containers made from the image. An absent list and an empty one differ for `Cmd` and `Entrypoint`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ExecConfig {
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "null_is_empty")]
    pub user: String,
    /// `80/tcp` to an empty object, as Go writes a set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exposed_ports: Option<BTreeMap<String, Value>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub env: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entrypoint: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cmd: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volumes: Option<BTreeMap<String, Value>>,
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "null_is_empty")]
    pub working_dir: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub labels: Option<BTreeMap<String, String>>,
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "null_is_empty")]
    pub stop_signal: String,
    #[serde(skip_serializing_if = "std::ops::Not::not", deserialize_with = "null_is_empty")]
    pub args_escaped: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<Healthcheck>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_build: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shell: Option<Vec<String>>,
    /// Seconds; written by `docker commit` of a container that had one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_timeout: Option<i64>,
}

/// How health is probed. Durations are nanoseconds, as Go's `time.Duration` is written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Healthcheck {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub test: Option<Vec<String>>,
    #[serde(skip_serializing_if = "is_zero")]
    pub interval: i64,
    #[serde(skip_serializing_if = "is_zero")]
    pub timeout: i64,
    #[serde(skip_serializing_if = "is_zero")]
    pub start_period: i64,
    #[serde(skip_serializing_if = "is_zero")]
    pub start_interval: i64,
    #[serde(skip_serializing_if = "is_zero")]
    pub retries: i64,
}

fn is_zero(n: &i64) -> bool {
    *n == 0
}

/// Why bytes are not an image configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("{0}")]
    Json(#[from] serde_json::Error),
    #[error("image configuration of {0} bytes is larger than the {MAX_CONFIG_BYTES} allowed")]
    TooLarge(u64),
    #[error("invalid rootfs in image configuration")]
    RootFs,
}

impl ImageConfig {
    /// Reads a configuration.
    pub fn read(bytes: &[u8]) -> Result<Self, ConfigError> {
        if bytes.len() as u64 > MAX_CONFIG_BYTES {
            return Err(ConfigError::TooLarge(bytes.len() as u64));
        }
        Ok(serde_json::from_slice(bytes)?)
    }

    /// Reads a configuration of something that is to be unpacked: it must say what its layers are.
    pub fn read_with_layers(bytes: &[u8]) -> Result<Self, ConfigError> {
        let config = Self::read(bytes)?;
        if config.rootfs.kind != "layers"
            && !(config.rootfs.kind.is_empty() && config.rootfs.diff_ids.is_empty())
        {
            return Err(ConfigError::RootFs);
        }
        Ok(config)
    }

    /// The platform the image is for.
    pub fn platform(&self) -> Platform {
        Platform {
            architecture: self.architecture.clone(),
            os: self.os.clone(),
            os_version: self.os_version.clone(),
            os_features: self.os_features.clone(),
            variant: self.variant.clone(),
        }
    }

    /// The bytes to store for a new image.
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("strings, numbers and maps with string keys always serialise")
    }
}

/// The chain id of a stack of layers: what a snapshot of them all together is called.
///
/// `chain([a]) = a`, `chain([…, x]) = sha256(chain(…) + " " + x)`. `None` for no layers.
pub fn chain_id(diff_ids: &[Digest]) -> Option<Digest> {
    let (first, rest) = diff_ids.split_first()?;
    Some(rest.iter().fold(first.clone(), |chain, diff| Digest::of(format!("{chain} {diff}").as_bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_what_docker_wrote_and_keeps_its_own_fields() {
        let text = r#"{"architecture":"amd64","config":{"Hostname":"","AttachStdin":false,"Env":["A=1"],"Cmd":null,
            "Image":"sha256:1","Volumes":{"/v":{}},"OnBuild":["RUN x"],"Shell":["/bin/sh","-c"],"Labels":null,
            "Healthcheck":{"Test":["CMD","true"],"Interval":1000000000},"StopSignal":"SIGINT","StopTimeout":7},
            "created":"2024-01-01T00:00:00Z","docker_version":"x","history":[{"created_by":"a","empty_layer":true}],
            "os":"linux","rootfs":{"type":"layers","diff_ids":null}}"#;
        let config = ImageConfig::read_with_layers(text.as_bytes()).unwrap();
        assert_eq!(config.config.cmd, None);
        assert_eq!(config.config.stop_timeout, Some(7));
        assert_eq!(config.config.healthcheck.as_ref().unwrap().interval, 1_000_000_000);
        assert_eq!(
            String::from_utf8(config.to_bytes()).unwrap(),
            r#"{"created":"2024-01-01T00:00:00Z","architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]},"history":[{"created_by":"a","empty_layer":true}],"config":{"Env":["A=1"],"Volumes":{"/v":{}},"StopSignal":"SIGINT","Healthcheck":{"Test":["CMD","true"],"Interval":1000000000},"OnBuild":["RUN x"],"Shell":["/bin/sh","-c"],"StopTimeout":7}}"#
        );
    }

    #[test]
    fn refusals() {
        assert!(matches!(
            ImageConfig::read_with_layers(br#"{"rootfs":{"type":"other"}}"#),
            Err(ConfigError::RootFs)
        ));
        assert!(ImageConfig::read(b"not json").is_err());
        assert!(ImageConfig::read(br#"{"config":{"Cmd":[1]}}"#).is_err());
        let big = vec![b' '; 9 << 20];
        assert!(matches!(ImageConfig::read(&big), Err(ConfigError::TooLarge(_))));
    }

    #[test]
    fn chains_are_folded_from_the_bottom() {
        let (a, b, c) = (Digest::of(b"a"), Digest::of(b"b"), Digest::of(b"c"));
        assert_eq!(chain_id(&[]), None);
        assert_eq!(chain_id(std::slice::from_ref(&a)), Some(a.clone()));
        let ab = Digest::of(format!("{a} {b}").as_bytes());
        assert_eq!(chain_id(&[a.clone(), b.clone()]), Some(ab.clone()));
        assert_eq!(chain_id(&[a, b, c.clone()]), Some(Digest::of(format!("{ab} {c}").as_bytes())));
    }

    proptest! {
        #[test]
        fn bytes_never_panic(bytes: Vec<u8>) {
            let _ = ImageConfig::read_with_layers(&bytes);
        }

        #[test]
        fn what_is_written_reads_back(user in "\\PC{0,9}", env in proptest::option::of(proptest::collection::vec("\\PC{0,9}", 0..3)), stop in proptest::option::of(0i64..99)) {
            let mut config = ImageConfig { os: "linux".into(), ..ImageConfig::default() };
            config.config = ExecConfig { user, env, stop_timeout: stop, ..ExecConfig::default() };
            prop_assert_eq!(ImageConfig::read(&config.to_bytes()).unwrap(), config);
        }
    }
}
