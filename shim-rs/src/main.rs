//! `containerd-shim-rs-v2`: starts, serves and cleans up after one container (or one sandbox's several).

fn main() -> std::process::ExitCode {
    shim::run(std::env::args_os())
}
