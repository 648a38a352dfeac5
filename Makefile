# dockerd-rs. Two commands for a fresh Debian machine with a Rust toolchain:
#   sudo make run     build, start the engine on a private socket under build/, run hello-world
#   sudo make test    everything that is tested
# Also: make compat (real clients), make stop, make install, make bench, make check (format, lints, docs, licences).

SHELL := /bin/bash
# Under sudo the toolchain is usually the calling user's.
CARGO ?= $(shell command -v cargo || ls /home/$(SUDO_USER)/.cargo/bin/cargo /root/.cargo/bin/cargo 2>/dev/null | head -1)
export PATH := $(PATH):$(dir $(CARGO))
ifdef SUDO_USER
export RUSTUP_HOME ?= $(wildcard /home/$(SUDO_USER)/.rustup)
endif
ifeq ($(RUSTUP_HOME),)
unexport RUSTUP_HOME
endif
BUILD := build
BIN := $(BUILD)/bin
PREFIX ?= /usr/local

.PHONY: all build deps run stop install uninstall test unit e2e compat check bench clean

all: build

# What the system must have to build and to run containers. Quiet when all is there.
deps:
	@packaging/deps.sh build

# What `docker version` shows of where the programs come from.
build: export SOURCE_REVISION := $(shell git rev-parse --short HEAD 2> /dev/null)
build: export SOURCE_TIME := $(shell git log -1 --format=%cI 2> /dev/null)
build: deps
	$(CARGO) build --release --locked -p dockerd-rs -p containerd-rs -p docker-rs
	$(CARGO) build --profile shim --locked -p shim-rs
	@mkdir -p $(BIN)
	@install -m 0755 target/release/dockerd-rs target/release/containerd-rs target/release/docker-rs target/shim/containerd-shim-rs-v2 $(BIN)/

run: build
	@packaging/engine.sh start $(BUILD)
	@$(BIN)/docker-rs -H unix://$(CURDIR)/$(BUILD)/engine/docker.sock run --rm hello-world
	@packaging/engine.sh hint $(BUILD)

stop:
	@packaging/engine.sh stop $(BUILD)

install: build
	install -D -m 0755 -t $(DESTDIR)$(PREFIX)/bin $(BIN)/dockerd-rs $(BIN)/containerd-rs $(BIN)/docker-rs $(BIN)/containerd-shim-rs-v2
	install -d $(DESTDIR)/etc/systemd/system
	for unit in packaging/systemd/*; do sed 's#@PREFIX@#$(PREFIX)#g' $$unit > $(DESTDIR)/etc/systemd/system/$$(basename $$unit); done
	@if [ -z "$(DESTDIR)" ]; then getent group docker > /dev/null || groupadd --system docker; fi
	@if [ -z "$(DESTDIR)" ] && [ -d /run/systemd/system ]; then systemctl daemon-reload; echo "now: systemctl enable --now dockerd-rs.socket"; fi

uninstall:
	rm -f $(addprefix $(DESTDIR)$(PREFIX)/bin/,dockerd-rs containerd-rs docker-rs containerd-shim-rs-v2)
	rm -f $(DESTDIR)/etc/systemd/system/dockerd-rs.service $(DESTDIR)/etc/systemd/system/dockerd-rs.socket

# Format, lints, docs and licences: everything that looks at the code without running it.
check:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --document-private-items --locked
	python3 .ci/licences.py

unit:
	@packaging/deps.sh test
	$(CARGO) test --workspace --locked --exclude e2e-tests

# Real daemons, real runc, a real registry, the stock clients; the leak checker brackets the run.
e2e: build
	@packaging/deps.sh test
	$(CARGO) build -p e2e-tests --locked
	@tests/run.sh $(abspath $(BUILD))

# Unmodified clients from their registries against this engine: the CLI, Compose, SDKs, Testcontainers, ctr.
compat: build
	@packaging/deps.sh compat
	$(CARGO) build -p compat-clients --locked
	@compat-tests/run --engine ours

test: check unit e2e

bench: build
	@benches/run.sh $(abspath $(BUILD))

clean:
	@packaging/engine.sh stop $(BUILD)
	rm -rf $(BUILD)
	$(CARGO) clean
