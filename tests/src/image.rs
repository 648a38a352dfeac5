//! Images made here: a busybox from the system's static binary, as `docker save` would write it.

use serde_json::json;

/// Where Debian's busybox-static puts its program.
const BUSYBOX: &str = "/bin/busybox";
const APPLETS: &[&str] = &[
    "sh",
    "cat",
    "echo",
    "ls",
    "seq",
    "sleep",
    "true",
    "false",
    "id",
    "env",
    "pwd",
    "ps",
    "kill",
    "head",
    "tail",
    "wc",
    "grep",
    "sed",
    "awk",
    "dd",
    "yes",
    "touch",
    "mkdir",
    "rm",
    "cp",
    "mv",
    "ln",
    "chmod",
    "chown",
    "mount",
    "umount",
    "hostname",
    "ip",
    "ping",
    "nc",
    "wget",
    "nslookup",
    "httpd",
    "md5sum",
    "sha256sum",
    "date",
    "stat",
    "readlink",
    "find",
    "sort",
    "uniq",
    "tr",
    "cut",
    "tee",
    "test",
    "[",
    "printf",
    "usleep",
    "stty",
    "tty",
    "whoami",
    "df",
    "du",
    "top",
    "free",
    "uname",
    "nproc",
    "xargs",
    "telnet",
    "ifconfig",
    "route",
    "netstat",
    "vi",
    "tar",
    "gzip",
    "gunzip",
    "sync",
    "trap",
    "timeout",
    "setsid",
    "nohup",
    "mkfifo",
];

/// The bytes of a docker-archive with the image `busybox:latest`.
///
/// # Panics
/// The system has no static busybox.
pub fn busybox() -> Vec<u8> {
    archive("busybox:latest", &busybox_layer(), &json!({"Cmd": ["sh"], "Env": [PATH]}))
}

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The one layer of [`busybox`].
///
/// # Panics
/// As [`busybox`].
pub fn busybox_layer() -> Vec<u8> {
    let program = std::fs::read(BUSYBOX).expect("busybox-static is installed");
    let mut tar = tar::Builder::new(Vec::new());
    for (dir, mode) in
        [("bin", 0o755), ("etc", 0o755), ("root", 0o700), ("tmp", 0o1777), ("var", 0o755), ("home", 0o755)]
    {
        let mut header = header(0, mode);
        header.set_entry_type(tar::EntryType::Directory);
        tar.append_data(&mut header, format!("{dir}/"), std::io::empty()).expect("memory");
    }
    tar.append_data(&mut header(program.len(), 0o755), "bin/busybox", program.as_slice()).expect("memory");
    for applet in APPLETS {
        let mut header = header(0, 0o777);
        header.set_entry_type(tar::EntryType::Symlink);
        tar.append_link(&mut header, format!("bin/{applet}"), "busybox").expect("memory");
    }
    let passwd = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/home:/bin/false\nuser:x:1000:1000:user:/home:/bin/sh\n";
    let group = "root:x:0:\nnogroup:x:65534:\nuser:x:1000:\nwheel:x:10:root,user\n";
    for (name, text) in [("etc/passwd", passwd), ("etc/group", group)] {
        tar.append_data(&mut header(text.len(), 0o644), name, text.as_bytes()).expect("memory");
    }
    tar.into_inner().expect("memory")
}

/// The layer of the image that was used when the exchanges of `data/replay` were recorded: less than [`busybox_layer`], and a file.
///
/// # Panics
/// As [`busybox`].
pub fn recorded_layer() -> Vec<u8> {
    const APPLETS: &str = "sh sleep echo cat ls true false ps id env stat head tail dd printf kill stty mkdir rm ln touch hostname wget \
                           nc ip seq test tty date sync grep wc mount chmod chown";
    let program = std::fs::read(BUSYBOX).expect("busybox-static is installed");
    let mut tar = tar::Builder::new(Vec::new());
    for dir in ["bin", "etc", "tmp", "root", "data", "proc", "sys", "dev"] {
        let mut header = header(0, if dir == "tmp" { 0o1777 } else { 0o755 });
        header.set_entry_type(tar::EntryType::Directory);
        tar.append_data(&mut header, dir, std::io::empty()).expect("memory");
    }
    tar.append_data(&mut header(program.len(), 0o755), "bin/busybox", program.as_slice()).expect("memory");
    for applet in APPLETS.split_whitespace() {
        let mut header = header(0, 0o777);
        header.set_entry_type(tar::EntryType::Symlink);
        tar.append_link(&mut header, format!("bin/{applet}"), "busybox").expect("memory");
    }
    let passwd = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n";
    let group = "root:x:0:\nnobody:x:65534:\n";
    for (name, text) in
        [("etc/passwd", passwd), ("etc/group", group), ("data/hello.txt", "hello from image\n")]
    {
        tar.append_data(&mut header(text.len(), 0o644), name, text.as_bytes()).expect("memory");
    }
    tar.into_inner().expect("memory")
}

/// A docker-archive with one image of one layer.
///
/// # Panics
/// Never: it is written to memory.
pub fn archive(name: &str, layer: &[u8], config: &serde_json::Value) -> Vec<u8> {
    layered(name, &[layer], config)
}

/// A docker-archive with one image.
///
/// # Panics
/// Never: it is written to memory.
pub fn layered(name: &str, layers: &[&[u8]], config: &serde_json::Value) -> Vec<u8> {
    let ids: Vec<String> = layers.iter().map(|layer| sha256(layer)).collect();
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let history = json!({"created": "2026-01-01T00:00:00Z", "created_by": "made by the tests"});
    let config = json!({
        "architecture": architecture, "os": "linux", "created": "2026-01-01T00:00:00Z", "config": config,
        "rootfs": {"type": "layers", "diff_ids": ids.iter().map(|id| format!("sha256:{id}")).collect::<Vec<_>>()},
        "history": vec![history; layers.len()],
    })
    .to_string();
    let config_name = format!("{}.json", sha256(config.as_bytes()));
    let names: Vec<String> = ids.iter().map(|id| format!("{id}/layer.tar")).collect();
    let manifest = json!([{"Config": config_name, "RepoTags": [name], "Layers": names}]).to_string();
    let mut tar = tar::Builder::new(Vec::new());
    let documents = [(config_name.as_str(), config.as_bytes()), ("manifest.json", manifest.as_bytes())];
    let layers = names.iter().map(String::as_str).zip(layers.iter().copied());
    for (path, bytes) in documents.into_iter().chain(layers) {
        tar.append_data(&mut header(bytes.len(), 0o644), path, bytes).expect("memory");
    }
    tar.into_inner().expect("memory")
}

/// A layer that nothing packs: one file of noise, the same for the same seed, and some small ones.
///
/// # Panics
/// Never: it is written to memory.
pub fn noise_layer(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let mut noise = Vec::with_capacity(bytes + 8);
    while noise.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        noise.extend(state.to_le_bytes());
    }
    let mut tar = tar::Builder::new(Vec::new());
    tar.append_data(&mut header(noise.len(), 0o644), format!("noise{seed}"), noise.as_slice())
        .expect("memory");
    for small in 0..300 {
        tar.append_data(&mut header(0, 0o644), format!("small{seed}-{small}"), std::io::empty())
            .expect("memory");
    }
    tar.into_inner().expect("memory")
}

fn header(size: usize, mode: u32) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_size(u64::try_from(size).expect("a size"));
    header.set_mode(mode);
    header.set_mtime(1_767_225_600);
    header.set_uid(0);
    header.set_gid(0);
    header
}

fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest;
    hex::encode(sha2::Sha256::digest(bytes))
}
