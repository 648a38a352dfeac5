//! From a runtime's name to the shim binary that serves it.
//!
//! `io.containerd.runc.v2` is `containerd-shim-runc-v2`, looked for in `PATH` and then beside our own executable; an absolute path is
//! taken as it is. Clients name that runtime when their user names none: where its shim is not installed, ours stands in for it.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use containerd_api::{Error, Kind};

/// What clients ask for by default.
const STOCK_SHIM: &str = "containerd-shim-runc-v2";
/// What stands in for it.
const OUR_SHIM: &str = "containerd-shim-rs-v2";

/// The shim that serves `runtime`.
///
/// # Errors
/// For a name that is none and for a binary that is not there. containerd classifies neither.
pub fn resolve(runtime: &str) -> Result<PathBuf, Error> {
    let context = |err: Error| err.context("failed to resolve runtime path");
    if runtime.starts_with('/') {
        let path = PathBuf::from(runtime);
        if is_executable(&path) {
            return Ok(path);
        }
        let text = format!("invalid custom binary path: stat {runtime}: no such file or directory");
        return Err(context(Error::new(Kind::Unknown, text)));
    }
    let Some(binary) = binary_name(runtime) else {
        let text = format!(
            "invalid runtime name {runtime}, correct runtime name should be either format like `io.containerd.runc.v2` or a \
             full path to the binary"
        );
        return Err(context(Error::new(Kind::Unknown, text)));
    };
    let mut dirs: Vec<PathBuf> =
        std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).collect();
    dirs.extend(std::env::current_exe().ok().and_then(|exe| exe.parent().map(Path::to_path_buf)));
    find(&binary, &dirs).ok_or_else(|| {
        let text = format!("runtime \"{runtime}\" binary not installed \"{binary}\": file does not exist");
        context(Error::new(Kind::Unknown, text))
    })
}

/// The first of `dirs` that has the binary, or else one that can take its place: ours reads the same options as runc's.
fn find(binary: &str, dirs: &[PathBuf]) -> Option<PathBuf> {
    let installed = |name: &str| dirs.iter().map(|dir| dir.join(name)).find(|path| is_executable(path));
    installed(binary).or_else(|| (binary == STOCK_SHIM).then(|| installed(OUR_SHIM)).flatten())
}

/// `a.b.name.version` is `containerd-shim-name-version`. `None` for what does not look like that.
fn binary_name(runtime: &str) -> Option<String> {
    let mut parts = runtime.rsplit('.');
    let version = parts.next().filter(|part| !part.is_empty())?;
    let name = parts.next().filter(|part| !part.is_empty())?;
    if runtime.starts_with('.') || runtime.contains('/') || runtime.contains('\0') {
        return None;
    }
    Some(format!("containerd-shim-{name}-{version}"))
}

fn is_executable(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_binaries() {
        for (runtime, binary) in [
            ("io.containerd.runc.v2", Some("containerd-shim-runc-v2")),
            ("io.containerd.rs.v2", Some("containerd-shim-rs-v2")),
            ("kata.v2", Some("containerd-shim-kata-v2")),
            ("runc", None),
            ("", None),
            (".v2", None),
            ("a..v2", None),
            ("../x.v2", None),
            ("io.containerd.runc.", None),
        ] {
            assert_eq!(binary_name(runtime).as_deref(), binary, "{runtime:?}");
        }
    }

    #[test]
    fn our_shim_stands_in_for_the_stock_one_where_that_is_not_installed() {
        let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let dirs = [first.path().to_path_buf(), second.path().to_path_buf()];
        let install = |dir: &Path, name: &str| {
            std::fs::write(dir.join(name), "").unwrap();
            std::fs::set_permissions(dir.join(name), std::fs::Permissions::from_mode(0o755)).unwrap();
        };
        assert_eq!(find(STOCK_SHIM, &dirs), None);
        install(first.path(), OUR_SHIM);
        assert_eq!(find(STOCK_SHIM, &dirs), Some(first.path().join(OUR_SHIM)));
        assert_eq!(find("containerd-shim-kata-v2", &dirs), None);
        install(second.path(), STOCK_SHIM);
        assert_eq!(find(STOCK_SHIM, &dirs), Some(second.path().join(STOCK_SHIM)));
    }

    #[test]
    fn what_is_not_there_is_said_in_containerds_words() {
        for (runtime, words) in [
            (
                "io.containerd.nothing.v9",
                "binary not installed \"containerd-shim-nothing-v9\": file does not exist",
            ),
            (
                "/nonexistent/shim",
                "invalid custom binary path: stat /nonexistent/shim: no such file or directory",
            ),
            ("nonsense", "invalid runtime name nonsense, correct runtime name should be"),
        ] {
            let err = resolve(runtime).unwrap_err();
            assert!(err.message().contains(words), "{err}");
        }
        assert!(resolve("/bin/sh").is_ok());
    }
}
