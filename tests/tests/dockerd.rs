//! The real dockerd on containerd-rs, with our shim and with the stock one.

use e2e_tests::containerd::Containerd;
use e2e_tests::{Ran, image, peer_dir, wait_for};

const CLOCK: &str = "n=0; trap 'exit 7' TERM; while :; do n=$((n+1)); echo line $n; sleep 0.1; done";

struct Docker(Containerd);

impl Docker {
    /// A real dockerd, with the busybox image.
    fn start(features: &str, stock_shim: bool) -> Self {
        let mut containerd = Containerd::start_with(stock_shim.then(|| peer_dir().join("shim")).as_deref());
        std::fs::write(containerd.path("daemon.json"), features).expect("a configuration");
        std::fs::write(containerd.path("image.tar"), image::busybox()).expect("an image");
        let mut command = containerd.command("dockerd");
        command
            .args([
                "--config-file",
                "daemon.json",
                "--userland-proxy=false",
                "--pidfile",
                "docker.pid",
                "--data-root",
            ])
            .arg(containerd.path("docker/data"))
            .arg("--exec-root")
            .arg(containerd.path("docker/exec"))
            .args(["--cgroup-parent", &format!("/{}", containerd.namespace())])
            .arg("-H")
            .arg(format!("unix://{}", containerd.path("docker.sock").display()))
            .arg("--containerd")
            .arg(containerd.socket())
            // The runtime's own records lie in one place for all daemons, apart by this.
            .args(["--containerd-namespace", containerd.namespace()])
            .stdout(std::process::Stdio::null())
            .stderr(std::fs::File::create(containerd.path("dockerd.log")).expect("a log"));
        containerd.with(command);
        let docker = Self(containerd);
        wait_for("dockerd to answer", || docker.run("docker version").code == 0);
        assert!(docker.run("docker load -q -i image.tar").ok().contains("busybox:latest"));
        docker
    }

    fn run(&self, script: &str) -> Ran {
        let host = format!("export DOCKER_HOST=unix://{}\n", self.0.path("docker.sock").display());
        self.0.sh(&format!("{host}{script}"))
    }

    /// A container's life, and the death of containerd-rs in it.
    fn expect_service(mut self) {
        let ran = self.run("docker run --rm busybox sh -c 'echo out; exit 3'");
        assert_eq!((ran.code, ran.stdout.as_str()), (3, "out\n"), "{ran:?}");
        assert_eq!(self.run("echo in | docker run -i --rm busybox cat").ok(), "in");
        self.run(&format!("docker run -d --name c1 busybox sh -c \"{}\"", CLOCK.replace('$', "\\$"))).ok();
        wait_for("the log", || self.run("docker logs c1").stdout.contains("line 2\n"));
        let ran = self.run("docker exec c1 sh -c 'echo exec; exit 4'");
        assert_eq!((ran.code, ran.stdout.as_str()), (4, "exec\n"), "{ran:?}");
        self.run("docker pause c1 && docker unpause c1 && docker top c1").ok();
        self.run("docker stop c1").ok();
        assert_eq!(self.state(), "exited 7");
        self.run("docker start c1 && docker restart -t 5 c1").ok();
        self.run("docker commit c1 second").ok();
        assert_eq!(self.run("docker run --rm second echo committed").ok(), "committed");

        self.0.kill();
        self.0.spawn();
        assert_eq!(self.state(), "running 0");
        wait_for("exec to work again", || self.run("docker exec c1 true").code == 0);
        let lines = self.run("docker logs c1").stdout.lines().count();
        wait_for("more lines", || self.run("docker logs c1").stdout.lines().count() > lines);
        assert_eq!(self.run("docker run --rm busybox echo new").ok(), "new");

        // The end that nobody saw.
        let pid = self.run("docker inspect -f '{{.State.Pid}}' c1").ok().to_owned();
        self.0.kill();
        self.run(&format!("kill -9 {pid}")).ok();
        self.0.spawn();
        wait_for("the end to be known", || self.state() == "exited 137");
        self.run("docker rm c1 && docker network prune -f").ok();
        assert_eq!(self.run("ctr containers ls -q; docker ps -aq").ok(), "");
    }

    fn state(&self) -> String {
        self.run("docker inspect -f '{{.State.Status}} {{.State.ExitCode}}' c1").ok().to_owned()
    }
}

#[test]
fn the_real_dockerd_runs_on_it() {
    Docker::start("{}", false).expect_service();
}

#[test]
fn the_real_dockerd_keeps_its_images_in_it_and_the_stock_shim_runs_under_it() {
    Docker::start(r#"{"features": {"containerd-snapshotter": true}}"#, true).expect_service();
}
