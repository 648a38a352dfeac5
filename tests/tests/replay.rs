//! Recorded exchanges of Docker Engine, played again: `data/replay/exchanges.jsonl` was recorded from 29.7 (API 1.55), and from 28.5 (API
//! 1.51) where a path has a version that 29.7 does not serve any more.
//!
//! What differs on purpose is in the table *Replayed exchanges* of compat-tests/differences.md; a line there that is not needed is an
//! error, too. With `REPLAY_SOCKET` and `REPLAY_API` another engine is asked, with `REPLAY_DATA` about something else, and everything
//! in which it differs is printed.

use e2e_tests::Engine;
use e2e_tests::replay::{Differences, Target, play};

fn bind_source(dir: &std::path::Path) {
    std::fs::create_dir_all(dir.join("bindsrc")).expect("a folder");
    std::fs::write(dir.join("bindsrc/f"), "bind\n").expect("a file");
}

/// A file of the workspace: not built in, so that a recording can be changed without building.
fn read(path: &str) -> String {
    let path = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/..")).join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|err| panic!("{}: {err}", path.display()))
}

#[test]
fn recorded_exchanges_come_out_the_same() {
    let tmp = tempfile::Builder::new().prefix("e2e-").tempdir().expect("a folder");
    bind_source(tmp.path());
    let tmp = tmp.path().display().to_string();
    if let Ok(socket) = std::env::var("REPLAY_SOCKET") {
        let api = std::env::var("REPLAY_API").unwrap_or_else(|_| "1.51".into());
        let data = std::env::var("REPLAY_DATA").expect("what to replay");
        let root = std::env::var("REPLAY_ROOT").expect("the directory of the other engine");
        let recording = std::fs::read_to_string(data).expect("a recording");
        let (played, found) = play(&recording, &Target { socket: socket.into(), root, tmp, api });
        let found: Vec<String> = found.iter().map(ToString::to_string).collect();
        panic!("{played} exchanges, {} differences\n{}", found.len(), found.join("\n"));
    }
    let engine = Engine::start();
    // What `host-gateway` and published ports are about: an address that is not the loopback's.
    for args in [
        &["link", "add", "up0", "type", "bridge"][..],
        &["addr", "add", "198.51.100.2/24", "dev", "up0"],
        &["link", "set", "up0", "up"],
    ] {
        let done = engine.netns().command("ip").args(args).status().expect("ip runs");
        assert!(done.success());
    }
    // The recorded engine carried no image.
    engine.docker(&["rmi", "hello-world"]).ok();
    let target = Target {
        socket: engine.socket(),
        root: engine.path("").display().to_string().trim_end_matches('/').to_owned(),
        tmp,
        api: "1.55".into(),
    };
    let (played, found) = play(&read("tests/data/replay/exchanges.jsonl"), &target);
    let table = Differences::parse(&read("compat-tests/differences.md"));
    let wrong = table.judge(&found);
    assert!(wrong.is_empty(), "{} of {played} exchanges' places:\n{}", wrong.len(), wrong.join("\n"));
}
