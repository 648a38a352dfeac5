//! containerd shim v2: owns one container's processes and streams.
//!
//! Invariant: nothing any daemon or client does, or fails to do, holds a container up, and what happened to it is on disk before anyone is told.
//! One thread runs everything; state is `Rc` and `RefCell`, and no borrow lasts across an await.
//!
//! ```text
//! main ─ args ─┬─ start   bootstrap: bind the socket, fork, answer ──► server
//!              ├─ delete  cleanup: after a shim that died
//!              ├─ enter   the helper that becomes an exec of a container
//!              └─ -info   info
//! server: ttrpc ─► task (containers, processes) ─► runc, stdio (fifo | file | binary | native)
//!                    ▲ children: who ended            events ─► containerd
//! ```

pub mod args;
pub mod bootstrap;
pub mod bundle;
pub mod children;
pub mod cleanup;
pub mod clock;
pub mod enter;
pub mod events;
pub mod info;
pub mod log;
pub mod metrics;
pub mod mounts;
pub mod native;
pub mod oom;
pub mod readiness;
pub mod runc;
pub mod server;
pub mod stdio;
pub mod task;

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use args::{Action, Args};

/// The version of this shim, as `-v` and containerd's introspection show it.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Does what the command line asks for. `start` comes back twice: in the caller's process with the answer written, and, when it is all over,
/// in the process that served.
pub fn run(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    // Whatever the caller left open would otherwise live as long as the container.
    let _ = sys::fork::close_inherited();
    let mut arguments = arguments.map(|argument| argument.to_string_lossy().into_owned()).peekable();
    let program = arguments.next().unwrap_or_default();
    let program = program.rsplit('/').next().unwrap_or_default().to_owned();
    if arguments.next_if(|first| first == enter::ACTION).is_some() {
        return enter::help(std::path::Path::new(&arguments.next().unwrap_or_default()));
    }
    let arguments = match Args::parse(arguments) {
        Ok(arguments) => arguments,
        Err(err) => return fail(&program, &err.to_string(), 2),
    };
    let outcome = match arguments.action {
        Action::Help => {
            print!("{}", args::usage(&program));
            Ok(())
        }
        Action::Version => {
            println!("{program}:\n  Version:  {VERSION}\n  Revision: \n");
            Ok(())
        }
        Action::Info => info::answer(std::io::stdin().lock(), std::io::stdout().lock()),
        Action::Start => bootstrap::start(&arguments),
        Action::Delete => cleanup::delete(&arguments),
        Action::Serve => bootstrap::serve_given_socket(&arguments),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => fail(&program, &chain(&*err), 1),
    }
}

/// An error and its causes, outermost first.
pub fn chain(err: &dyn std::error::Error) -> String {
    let mut text = err.to_string();
    let mut source = err.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

fn fail(program: &str, message: &str, code: u8) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "{program}: {message}");
    ExitCode::from(code)
}
