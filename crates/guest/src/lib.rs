//! The programs the engine carries into containers.
//!
//! Both are static, a few KB, and use nothing but system calls, so they run in any image, also an empty one.

/// `hello-world`'s program: prints what the engine just did and exits 0.
pub const HELLO: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/hello"));

/// The init of `--init`: `init -- COMMAND [ARG…]` runs the command as its child, passes signals on, reaps orphans, and exits as the command did.
pub const INIT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/init"));

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;
    use std::process::{Command, Output};

    struct Program {
        path: PathBuf,
        _dir: tempfile::TempDir,
    }

    fn program(bytes: &[u8]) -> Program {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("program");
        let mut file = std::fs::File::create(&path).unwrap();
        file.write_all(bytes).unwrap();
        file.set_permissions(std::fs::Permissions::from_mode(0o755)).unwrap();
        Program { path, _dir: dir }
    }

    fn init(args: &[&str]) -> Output {
        let program = program(super::INIT);
        // Another test's fork may still hold the file open for writing: ETXTBSY. A shell in between does not help; a copy by rename does not either.
        loop {
            match Command::new(&program.path).arg("--").args(args).output() {
                Err(err) if err.kind() == std::io::ErrorKind::ExecutableFileBusy => std::thread::yield_now(),
                other => return other.unwrap(),
            }
        }
    }

    #[test]
    fn hello_is_small_and_says_so() {
        assert!(super::HELLO.len() < 16 << 10, "{} bytes", super::HELLO.len());
        let program = program(super::HELLO);
        let output = loop {
            match Command::new(&program.path).output() {
                Err(err) if err.kind() == std::io::ErrorKind::ExecutableFileBusy => std::thread::yield_now(),
                other => break other.unwrap(),
            }
        };
        assert!(output.status.success());
        assert!(String::from_utf8(output.stdout).unwrap().starts_with("\nHello from Docker-RS!\n"));
    }

    #[test]
    fn init_exits_as_the_command_did() {
        assert_eq!(init(&["/bin/sh", "-c", "exit 42"]).status.code(), Some(42));
        assert_eq!(init(&["sh", "-c", "kill -9 $$"]).status.code(), Some(137));
        assert_eq!(init(&["true"]).status.code(), Some(0));
    }

    #[test]
    fn init_reports_a_missing_command() {
        let output = init(&["/no/such/command"]);
        assert_eq!(output.status.code(), Some(127));
        assert!(
            String::from_utf8_lossy(&output.stderr)
                .contains("exec /no/such/command failed: No such file or directory")
        );
        assert_eq!(init(&["/etc"]).status.code(), Some(126));
    }

    #[test]
    fn init_passes_signals_on() {
        let output =
            init(&["sh", "-c", "trap 'exit 7' TERM; kill -TERM $PPID; while :; do read x < /dev/null; done"]);
        assert_eq!(output.status.code(), Some(7));
    }
}
