//! `start`: a shim for a container, or the one its group already has.
//!
//! The socket is bound before the fork, so a caller can connect as soon as it has the address; the child serves without an exec in between, which keeps
//! it at the pages it touches. Three dialects of the answer exist; what containerd sends tells which it understands.

use std::error::Error;
use std::io::{self, IsTerminal, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use prost::Message;
use sha2::{Digest, Sha256};
use shim_api::bootstrap::{BootstrapParams, BootstrapResult};

use crate::args::Args;
use crate::bundle::Spec;
use crate::server::{self, Config};

/// The task API this shim serves; containerd before 2 is told 2.
const API_VERSION: i32 = 3;
/// Where containerd expects the sockets of shims, whatever its own state directory is.
const SOCKET_DIRECTORY: &str = "/run/containerd/s";
/// What containerd may write to standard input.
const INPUT_MAX: u64 = 10 << 20;
/// The file that tells containerd where the shim of a bundle listens.
const ADDRESS_FILE: &str = "address";

/// How containerd wants to be answered.
#[derive(Debug, PartialEq)]
enum Dialect {
    /// From 2.3 on: protobuf both ways.
    Bootstrap(Box<BootstrapParams>),
    /// 1.7 to 2.2: a JSON object with the API version to speak.
    Json { version: i32 },
    /// Up to 1.6: the bare address; API version 2.
    Plain,
}

impl Dialect {
    /// `input` is what was on standard input, `max_version` the environment's `MAX_SHIM_VERSION`.
    fn choose(input: &[u8], args: &Args, max_version: Option<&str>) -> Dialect {
        // Older ones send the runtime's options, whose first field is a type name and never our id.
        if let Ok(params) = BootstrapParams::decode(input)
            && !args.id.is_empty()
            && params.instance_id == args.id
            && params.namespace == args.namespace
        {
            return Dialect::Bootstrap(Box::new(params));
        }
        match max_version.and_then(|version| version.trim().parse::<i32>().ok()) {
            Some(max) if max >= 2 => Dialect::Json { version: max.min(API_VERSION) },
            _ => Dialect::Plain,
        }
    }

    fn answer(&self, address: &str) -> Vec<u8> {
        match self {
            Dialect::Bootstrap(_) => BootstrapResult {
                version: API_VERSION,
                address: address.to_owned(),
                protocol: "ttrpc".into(),
                metadata: [(crate::info::STDIO_ANNOTATION.to_owned(), "1".to_owned())].into_iter().collect(),
                ..BootstrapResult::default()
            }
            .encode_to_vec(),
            Dialect::Json { version } => {
                format!(r#"{{"version":{version},"address":"{address}","protocol":"ttrpc"}}"#).into_bytes()
            }
            Dialect::Plain => address.as_bytes().to_vec(),
        }
    }
}

/// The socket of the shim for `id`, unique to a containerd (by its address) and a namespace.
pub fn socket_path(containerd: &str, namespace: &str, id: &str) -> PathBuf {
    let key = Path::new(containerd).join(namespace).join(id);
    let digest = Sha256::digest(key.as_os_str().as_encoded_bytes());
    let name: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    Path::new(SOCKET_DIRECTORY).join(name)
}

/// Starts a shim, or finds the one of this container's group, and answers with its address.
pub fn start(args: &Args) -> Result<(), Box<dyn Error>> {
    let mut input = Vec::new();
    let stdin = io::stdin();
    if !stdin.is_terminal() {
        stdin.lock().take(INPUT_MAX).read_to_end(&mut input)?;
    }
    let dialect = Dialect::choose(&input, args, std::env::var("MAX_SHIM_VERSION").ok().as_deref());
    let bundle = match &args.bundle {
        Some(bundle) => bundle.clone(),
        None => std::env::current_dir()?,
    };
    let spec = Spec::read(&bundle)?;
    let owner = spec.group.as_deref().unwrap_or(&args.id);
    let (containerd, ttrpc) = match &dialect {
        Dialect::Bootstrap(params) => {
            (params.containerd_grpc_address.clone(), params.containerd_ttrpc_address.clone())
        }
        _ => (args.address.clone(), std::env::var("TTRPC_ADDRESS").unwrap_or_default()),
    };
    // The flag is what `delete` will be called with; it has to find the same socket.
    let containerd = if args.address.is_empty() { containerd } else { args.address.clone() };
    let ttrpc = match ttrpc.strip_prefix("unix://").unwrap_or(&ttrpc) {
        "" if containerd.is_empty() => None,
        "" => Some(PathBuf::from(format!("{containerd}.ttrpc"))),
        path => Some(PathBuf::from(path)),
    };
    let socket = socket_path(&containerd, &args.namespace, owner);
    let address = format!("unix://{}", socket.display());
    let mut listening = listen(&socket)?;
    if spec.group.is_none()
        && let Listening::Elsewhere(connection) = &listening
    {
        // A container that shares its shim with nobody is started anew: whoever is there is one that containerd has lost.
        crate::cleanup::end_lost(connection, &bundle, &args.id);
        listening = listen(&socket)?;
    }
    let listener = match listening {
        Listening::Ours(listener) => listener,
        Listening::Elsewhere(_) => {
            std::fs::write(bundle.join(ADDRESS_FILE), &address)?;
            return answer(&dialect, &address);
        }
    };
    std::fs::write(bundle.join(ADDRESS_FILE), &address)?;
    let debug = args.debug || matches!(&dialect, Dialect::Bootstrap(params) if params.log_level < 0);
    let shim_cgroup = runtime_options(&dialect, &input).shim_cgroup;
    drop(input);
    // Before the fork: the caller knows of the shim as soon as this process answers, and may signal it.
    sys::reaper::block(&crate::children::IGNORED)?;
    match sys::fork::fork()? {
        sys::fork::Side::Parent(pid) => {
            // The process to wait for before a bundle is reused; nothing depends on it.
            let _ = std::fs::write(bundle.join("shim.pid"), pid.to_string());
            answer(&dialect, &address)
        }
        sys::fork::Side::Child => {
            drop(dialect);
            become_daemon(&shim_cgroup)?;
            let namespace = args.namespace.clone();
            server::run(listener, Config { namespace, id: args.id.clone(), bundle, socket, ttrpc, debug })
        }
    }
}

/// Serves on `-socket` in this process; for running a shim by hand.
pub fn serve_given_socket(args: &Args) -> Result<(), Box<dyn Error>> {
    let Some(socket) = args.socket.clone() else { return Err("no action and no -socket".into()) };
    let listener = sys::unixpath::bind(&socket, 0o600)?;
    let bundle = args.bundle.clone().map_or_else(std::env::current_dir, Ok)?;
    let ttrpc = std::env::var("TTRPC_ADDRESS").ok().filter(|path| !path.is_empty());
    let ttrpc = ttrpc.map(|path| PathBuf::from(path.strip_prefix("unix://").unwrap_or(&path)));
    let config = Config {
        namespace: args.namespace.clone(),
        id: args.id.clone(),
        bundle,
        socket,
        ttrpc,
        debug: args.debug,
    };
    server::run(listener, config)
}

fn runtime_options(dialect: &Dialect, input: &[u8]) -> shim_api::runc_options::Options {
    match dialect {
        Dialect::Bootstrap(params) => params
            .extensions
            .iter()
            .filter_map(|extension| extension.value.as_ref())
            .map(|value| crate::task::runc_options(Some(value)))
            .find(|options| *options != Default::default())
            .unwrap_or_default(),
        _ => crate::task::runc_options(prost_types::Any::decode(input).ok().as_ref()),
    }
}

enum Listening {
    Ours(UnixListener),
    /// Another shim is there and answers.
    Elsewhere(UnixStream),
}

fn listen(socket: &Path) -> io::Result<Listening> {
    if let Some(directory) = socket.parent() {
        std::fs::DirBuilder::new().recursive(true).mode(0o711).create(directory)?;
    }
    for _ in 0..3 {
        match sys::unixpath::bind(socket, 0o600) {
            Ok(listener) => return Ok(Listening::Ours(listener)),
            Err(err) if err.kind() == io::ErrorKind::AddrInUse => {}
            Err(err) => return Err(err),
        }
        if let Ok(connection) = sys::unixpath::connect_nonblocking(socket) {
            return Ok(Listening::Elsewhere(connection));
        }
        // Left by a shim that was killed.
        let _ = std::fs::remove_file(socket);
    }
    Err(io::Error::from(io::ErrorKind::AddrInUse))
}

fn answer(dialect: &Dialect, address: &str) -> Result<(), Box<dyn Error>> {
    let mut output = io::stdout().lock();
    output.write_all(&dialect.answer(address))?;
    output.flush()?;
    Ok(())
}

/// Out of the caller's session, directory, terminal and pipes.
fn become_daemon(shim_cgroup: &str) -> io::Result<()> {
    rustix::process::setsid()?;
    std::env::set_current_dir("/")?;
    let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    // One above containerd's, which we inherited: of the two, rather the shim than containerd.
    if let Ok(score) = std::fs::read_to_string("/proc/self/oom_score_adj")
        && let Ok(score) = score.trim().parse::<i32>()
    {
        let _ = std::fs::write("/proc/self/oom_score_adj", (score + 1).min(1000).to_string());
    }
    if !shim_cgroup.is_empty() {
        join_cgroup(shim_cgroup);
    }
    Ok(())
}

/// Moves this process into the group `path` of every hierarchy that has one or lets it be made.
fn join_cgroup(path: &str) {
    let Ok(mounts) = std::fs::read_to_string("/proc/self/mountinfo") else { return };
    for line in mounts.lines().filter(|line| line.contains(" - cgroup")) {
        if let Some(mount_point) = line.split(' ').nth(4) {
            let group = Path::new(mount_point).join(path.trim_start_matches('/'));
            let _ = std::fs::create_dir_all(&group);
            let _ = std::fs::write(group.join("cgroup.procs"), std::process::id().to_string());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args() -> Args {
        Args::parse("-namespace n -id c start".split(' ').map(str::to_owned)).unwrap()
    }

    #[test]
    fn each_containerd_is_answered_in_its_dialect() {
        let params = BootstrapParams { instance_id: "c".into(), namespace: "n".into(), ..Default::default() };
        let options = prost_types::Any { type_url: "containerd.runc.v1.Options".into(), value: vec![1] };
        let other = BootstrapParams { instance_id: "other".into(), ..params.clone() };
        for (input, max, expected) in [
            (params.encode_to_vec(), Some("4"), Dialect::Bootstrap(Box::new(params.clone()))),
            (options.encode_to_vec(), Some("3"), Dialect::Json { version: 3 }),
            (options.encode_to_vec(), Some("2"), Dialect::Json { version: 2 }),
            (Vec::new(), Some("9"), Dialect::Json { version: 3 }),
            (options.encode_to_vec(), None, Dialect::Plain),
            (vec![0xff; 9], None, Dialect::Plain),
            (Vec::new(), Some("x"), Dialect::Plain),
            (other.encode_to_vec(), None, Dialect::Plain),
        ] {
            assert_eq!(Dialect::choose(&input, &args(), max), expected);
        }
        assert_eq!(Dialect::Plain.answer("unix:///s"), b"unix:///s");
        let json = Dialect::Json { version: 3 }.answer("unix:///s");
        assert_eq!(json, br#"{"version":3,"address":"unix:///s","protocol":"ttrpc"}"#);
    }

    #[test]
    fn sockets_are_named_as_containerd_s_own_shim_names_them() {
        // sha256 of "/run/containerd/containerd.sock/moby/abc".
        let path = socket_path("/run/containerd/containerd.sock", "moby", "abc");
        let digest = Sha256::digest(b"/run/containerd/containerd.sock/moby/abc");
        assert_eq!(path.file_name().unwrap().len(), 64);
        assert!(path.to_str().unwrap().ends_with(&format!("{:02x}", digest[31])));
        assert_ne!(path, socket_path("/other.sock", "moby", "abc"));
        assert_ne!(path, socket_path("/run/containerd/containerd.sock", "k8s.io", "abc"));
    }
}
