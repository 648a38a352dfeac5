//! Volumes of a driver that is a plugin: each operation is a call to it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{Error, Result};
use crate::plugin::Plugin;

/// A volume driver.
pub struct Driver(Plugin);

/// What a driver tells of a volume.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Told {
    /// Where it is on the host; empty while it is nowhere.
    pub mountpoint: Option<String>,
    /// Whatever the driver wants to be known.
    pub status: Option<BTreeMap<String, Value>>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Ask<'a> {
    name: &'a str,
    #[serde(rename = "ID", skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    opts: Option<BTreeMap<String, String>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Answer {
    mountpoint: Option<String>,
    volume: Option<Told>,
    capabilities: Option<Capabilities>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Capabilities {
    scope: String,
}

impl Driver {
    /// The driver of that name.
    ///
    /// # Errors
    /// 404 if there is none.
    pub async fn find(name: &str) -> Result<Self> {
        let found = Plugin::find(name, "VolumeDriver").await;
        found.map(Self).map_err(|err| err.context(format!("error looking up volume plugin {name}")))
    }

    async fn call(
        &self,
        method: &str,
        name: &str,
        id: Option<&str>,
        opts: Option<BTreeMap<String, String>>,
    ) -> Result<Answer> {
        self.0.call(&format!("VolumeDriver.{method}"), &Ask { name, id, opts }).await
    }

    /// Makes a volume.
    pub async fn create(&self, name: &str, opts: Option<BTreeMap<String, String>>) -> Result<()> {
        self.call("Create", name, None, Some(opts.unwrap_or_default())).await.map(drop)
    }

    /// Removes a volume.
    pub async fn remove(&self, name: &str) -> Result<()> {
        self.call("Remove", name, None, None).await.map(drop)
    }

    /// Makes a volume's content available to the user `id`; gives its directory on the host.
    pub async fn mount(&self, name: &str, id: &str) -> Result<PathBuf> {
        directory(self.call("Mount", name, Some(id), None).await?)
    }

    /// Where a volume that is mounted is.
    pub async fn path(&self, name: &str) -> Result<PathBuf> {
        directory(self.call("Path", name, None, None).await?)
    }

    /// Ends what [`Driver::mount`] began.
    pub async fn unmount(&self, name: &str, id: &str) -> Result<()> {
        self.call("Unmount", name, Some(id), None).await.map(drop)
    }

    /// What the driver knows of a volume.
    pub async fn get(&self, name: &str) -> Result<Told> {
        Ok(self.call("Get", name, None, None).await?.volume.unwrap_or_default())
    }

    /// `local` or `global`. A driver that does not know the question is local.
    pub async fn scope(&self) -> String {
        match self.0.call::<_, Answer>("VolumeDriver.Capabilities", &serde_json::json!({})).await {
            Ok(Answer { capabilities: Some(told), .. }) if told.scope.eq_ignore_ascii_case("global") => {
                "global".into()
            }
            _ => "local".into(),
        }
    }
}

/// A driver's answer becomes the source of a mount: it has to be a path.
fn directory(answer: Answer) -> Result<PathBuf> {
    match answer.mountpoint {
        Some(path) if path.starts_with('/') => Ok(path.into()),
        other => Err(Error::system(format!(
            "the volume driver gave no mount point: {:?}",
            other.unwrap_or_default()
        ))),
    }
}
