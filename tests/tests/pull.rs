//! What a pull makes of a registry that lies.

use std::path::Path;

use e2e_tests::containerd::Containerd;
use e2e_tests::peer_dir;

#[test]
fn a_lying_registry_gets_the_right_answers_and_leaves_nothing() {
    let containerd = Containerd::start();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("registry/evil.py");
    let out = containerd
        .command("python3")
        .arg(script)
        .arg("--address")
        .arg(containerd.socket())
        .arg("--ctr")
        .arg(peer_dir().join("ctr"))
        .output()
        .expect("python3 runs");
    let said = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success(), "{said}{}", String::from_utf8_lossy(&out.stderr));
    assert!(said.lines().filter(|line| line.starts_with("ok ")).count() > 55, "{said}");
}
