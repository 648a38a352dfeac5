//! Compiles the freestanding programs in `programs/` for the machine the engine is built for.

use std::path::PathBuf;
use std::process::Command;

fn main() {
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let rustc = std::env::var_os("RUSTC").expect("cargo sets RUSTC");
    let target = std::env::var("TARGET").expect("cargo sets TARGET");
    for program in ["hello", "init"] {
        let source = format!("programs/{program}.rs");
        println!("cargo::rerun-if-changed={source}");
        let status = Command::new(&rustc)
            .args(["--edition", "2024", "--crate-type", "bin", "--crate-name", program, "--target", &target])
            .args(["-C", "opt-level=s", "-C", "panic=abort", "-C", "strip=symbols", "-C", "relocation-model=static"])
            .args(["-C", "codegen-units=1", "-C", "target-feature=+crt-static", "-C", "default-linker-libraries=no"])
            .args(["-C", "link-args=-nostartfiles -nostdlib -static -no-pie -Wl,--build-id=none -Wl,-z,noseparate-code -Wl,--gc-sections"])
            .arg("-o")
            .arg(out.join(program))
            .arg(&source)
            .status();
        match status {
            Ok(status) if status.success() => {}
            other => panic!("compiling {source}: {other:?}"),
        }
    }
    println!("cargo::rerun-if-changed=programs/rt.rs");
    println!("cargo::rerun-if-changed=build.rs");
}
