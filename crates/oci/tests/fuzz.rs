//! The fuzz targets' functions on generated inputs.

#[path = "../fuzz/entry.rs"]
mod entry;
#[path = "../../../tests/mutate.rs"]
mod mutate;

use mutate::{mutated, mutated_text};
use proptest::prelude::*;

const REFERENCES: &[&str] = &[
    "busybox",
    "docker.io/library/busybox:latest",
    "registry.test:5000/a/b-c__d.e:v1.2_3",
    "[fd00::1]:5000/x@sha256:9fc3d84131a43c5fa02763411c5199d547caba0dbedd40e434ef6607ed64a45d",
    "sha256:9fc3d84131a43c5fa02763411c5199d547caba0dbedd40e434ef6607ed64a45d",
    "linux(10.0)/arm/v7",
    "localhost/x:1@sha512:00",
];
const REFERENCE_WORDS: &[&str] =
    &[":", "/", "@", "//", "sha256:", "library/", ".", "_", "__", "[::1]", "A", "linux/"];

const MANIFESTS: &[&str] = &[
    r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:9fc3d84131a43c5fa02763411c5199d547caba0dbedd40e434ef6607ed64a45d","size":7},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"sha256:9fc3d84131a43c5fa02763411c5199d547caba0dbedd40e434ef6607ed64a45d","size":9,"urls":["http://x"],"annotations":{"a":"b"}}],"annotations":{"c":"d"}}"#,
    r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:9fc3d84131a43c5fa02763411c5199d547caba0dbedd40e434ef6607ed64a45d","size":5,"platform":{"os":"linux","architecture":"arm64","variant":"v8","os.features":["x"]}}]}"#,
    r#"{"architecture":"amd64","os":"linux","config":{"Env":["A=b"],"Cmd":["sh"],"ExposedPorts":{"80/tcp":{}}},"rootfs":{"type":"layers","diff_ids":["sha256:9fc3d84131a43c5fa02763411c5199d547caba0dbedd40e434ef6607ed64a45d"]},"history":[{"created":"2026-01-01T00:00:00Z","empty_layer":true}]}"#,
    r#"{"schemaVersion":1,"name":"a","tag":"b","fsLayers":[{"blobSum":"sha256:00"}],"history":[{"v1Compatibility":"{}"}]}"#,
];
const MANIFEST_WORDS: &[&str] = &[
    "null",
    "-1",
    "18446744073709551616",
    "1e400",
    "\"\"",
    "{}",
    "[]",
    "\"digest\"",
    "\"size\":",
    "\"layers\":[",
    "\\u0000",
    "\\ud800",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];

proptest! {
    #[test]
    fn references(text in mutated_text(REFERENCES, REFERENCE_WORDS)) {
        entry::reference(&text);
    }

    #[test]
    fn manifests(bytes in mutated(MANIFESTS.iter().map(|text| text.as_bytes().to_vec()).collect(), MANIFEST_WORDS)) {
        entry::manifest(&bytes);
    }
}
