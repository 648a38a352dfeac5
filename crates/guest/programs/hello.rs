//! The program of the image `hello-world` that the engine carries.
#![no_std]
#![no_main]

#[path = "rt.rs"]
#[allow(dead_code)]
mod rt;

const TEXT: &str = "
Hello from Docker-RS!
This line was written by a process in a container of its own. To get here:

 1. The client sent POST /containers/create and POST /containers/{id}/start to dockerd-rs, over the Docker Engine API.
 2. dockerd-rs found the image \"hello-world\", which the engine carries itself, gave the container a name, an address
    and a network namespace, and asked containerd-rs for the rest over containerd's gRPC API.
 3. containerd-rs prepared the root file system as an overlay snapshot and started one containerd-shim-rs-v2.
 4. The shim called runc, which built the namespaces and cgroups, started this program and was gone.
 5. The shim read this text, wrote it to the container's log and passed it on to your terminal.

Try something bigger:
 $ docker-rs run -it debian bash

Kill the daemons while it runs: the container will not notice.

";

#[unsafe(no_mangle)]
extern "C" fn begin(_stack: *const usize) -> ! {
    rt::write_all(1, TEXT.as_bytes());
    rt::exit(0)
}
