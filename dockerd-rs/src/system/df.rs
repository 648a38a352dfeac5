//! `GET /system/df`: what is on the disk.

use std::sync::Arc;

use docker_api::filters::Filters;
use docker_api::volume::UsageData;
use serde_json::{Map, Value, json};

use crate::api::ApiVersion;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::image::ListOptions;

/// Which kinds of objects are asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kinds {
    pub containers: bool,
    pub images: bool,
    pub volumes: bool,
    pub build_cache: bool,
}

impl Kinds {
    /// Reads the `type` parameters; none means all.
    ///
    /// # Errors
    /// 400 for an unknown one.
    pub fn parse<'a>(types: impl Iterator<Item = &'a str>) -> Result<Self> {
        let mut kinds = Self::default();
        let mut any = false;
        for kind in types {
            any = true;
            match kind {
                "container" => kinds.containers = true,
                "image" => kinds.images = true,
                "volume" => kinds.volumes = true,
                "build-cache" => kinds.build_cache = true,
                other => return Err(Error::invalid(format!("unknown object type: {other}"))),
            }
        }
        Ok(if any {
            kinds
        } else {
            Self { containers: true, images: true, volumes: true, build_cache: true }
        })
    }
}

/// The answer. From 1.52 there are summaries; `verbose` leaves the older lists out.
///
/// # Errors
/// containerd refused.
pub async fn disk_usage(
    engine: &Arc<Engine>,
    kinds: Kinds,
    verbose: bool,
    version: ApiVersion,
) -> Result<Value> {
    let mut answer = Map::new();
    let summaries = version.at_least(52);
    let lists = !summaries || !verbose;
    if kinds.images {
        let view = engine.runtime.view().await?;
        let layers = engine.images.disk(&view).await?;
        let options = ListOptions { shared_size: true, manifests: false };
        let images =
            engine.images.list(&Filters::default(), options, version.max(ApiVersion::minor(51))).await?;
        let in_use = |image: &Value| image["Containers"].as_i64().unwrap_or(0) > 0;
        let active = images.iter().filter(|image| in_use(image)).count();
        let reclaimable: u64 = images
            .iter()
            .filter(|image| !in_use(image))
            .map(|image| {
                image["Size"].as_u64().unwrap_or(0).saturating_sub(image["SharedSize"].as_u64().unwrap_or(0))
            })
            .sum();
        if summaries {
            let summary = usage(active, images.len(), reclaimable, layers, &images);
            answer.insert("ImageUsage".into(), summary);
        }
        if lists {
            answer.insert("LayersSize".into(), json!(layers));
            let mut images = images;
            if !version.at_least(44) {
                for image in &mut images {
                    image["VirtualSize"] = image["Size"].clone();
                }
            }
            answer.insert("Images".into(), Value::Array(images));
        }
    }
    if kinds.containers {
        let containers = containers(engine, version).await?;
        let size = |container: &Value| container["SizeRw"].as_u64().unwrap_or(0);
        let is_active = |container: &Value| {
            matches!(container["State"].as_str(), Some("running" | "paused" | "restarting"))
        };
        let active = containers.iter().filter(|container| is_active(container)).count();
        let total: u64 = containers.iter().map(size).sum();
        let reclaimable: u64 = containers.iter().filter(|container| !is_active(container)).map(size).sum();
        if summaries {
            let summary = usage(active, containers.len(), reclaimable, total, &containers);
            answer.insert("ContainerUsage".into(), summary);
        }
        if lists {
            answer.insert("Containers".into(), Value::Array(containers));
        }
    }
    if kinds.volumes {
        let mut volumes = Vec::new();
        let (mut active, mut total, mut reclaimable) = (0, 0, 0);
        // What a volume with options mounts is not on a disk of the engine's.
        for volume in engine.volumes.list().into_iter().filter(|volume| volume.is_plain()) {
            let users = engine.volumes.users(&volume.name).len();
            let size = engine.volumes.usage(&volume).await;
            active += usize::from(users > 0);
            total += size;
            reclaimable += if users > 0 { 0 } else { size };
            let mut wire = volume.to_wire();
            wire.usage_data = Some(UsageData { ref_count: users as i64, size: size.cast_signed() });
            volumes.push(json!(wire));
        }
        if summaries {
            let summary = usage(active, volumes.len(), reclaimable, total, &volumes);
            answer.insert("VolumeUsage".into(), summary);
        }
        if lists {
            answer.insert("Volumes".into(), Value::Array(volumes));
        }
    }
    if kinds.build_cache {
        if summaries {
            answer.insert("BuildCacheUsage".into(), json!({}));
        }
        if lists {
            answer.insert("BuildCache".into(), json!([]));
        }
    }
    Ok(Value::Object(answer))
}

/// A summary. Zeros are left out, as Go's `omitempty` does.
fn usage(active: usize, count: usize, reclaimable: u64, total: u64, items: &[Value]) -> Value {
    let mut summary = Map::new();
    let mut put = |key: &str, number: u64| {
        if number > 0 {
            summary.insert(key.into(), json!(number));
        }
    };
    put("ActiveCount", active as u64);
    put("TotalCount", count as u64);
    put("Reclaimable", reclaimable);
    put("TotalSize", total);
    if !items.is_empty() {
        summary.insert("Items".into(), json!(items));
    }
    Value::Object(summary)
}

/// Containers as their list shows them, with sizes.
async fn containers(engine: &Arc<Engine>, version: ApiVersion) -> Result<Vec<Value>> {
    let query = crate::container::list::Query { all: true, size: true, ..Default::default() };
    // This list has one shape for all versions: that of 1.52, without the manifest.
    let list = crate::container::list::list(engine, &query, version.max(ApiVersion::minor(52))).await?;
    let shown = |summary| {
        let mut shown =
            serde_json::to_value(summary).map_err(|err| Error::system(format!("encode container: {err}")))?;
        if let Value::Object(shown) = &mut shown {
            shown.remove("ImageManifestDescriptor");
        }
        Ok(shown)
    };
    list.iter().map(shown).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types() {
        let all = Kinds { containers: true, images: true, volumes: true, build_cache: true };
        assert_eq!(Kinds::parse(std::iter::empty()).unwrap(), all);
        let two = Kinds::parse(["container", "volume"].into_iter()).unwrap();
        assert!(two.containers && two.volumes && !two.images && !two.build_cache);
        assert_eq!(Kinds::parse(["bogus"].into_iter()).unwrap_err().message(), "unknown object type: bogus");
    }
}
