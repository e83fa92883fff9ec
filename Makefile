# SPDX-License-Identifier: Apache-2.0
#
# Entry point for all tasks. Whatever needs a kernel with IPVS runs under integration/guest/run, which uses this
# machine's kernel if it has IPVS and a guest otherwise.

SHELL := /bin/bash
comma := ,
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

TARGET := $(or $(CARGO_TARGET_DIR),target)
GUEST := integration/guest/run
CORPUS ?= ../shared/conformance
# Scenarios of CORPUS to run, comma separated. Empty: all.
ONLY ?=
# `make fuzz`: seconds for all targets together, and the targets, comma separated. Empty: all.
SECONDS ?= 300
FUZZ ?=
# `make benchmarks`: numbers of Services, comma separated; modes.
BENCH_SIZES ?= 100,300,1000,3000,10000,30000,50000
BENCH_TIMEOUT ?= 3600
BENCH_MODES ?= iptables-addresses iptables-route nftables-addresses nftables-route
# `make test-kernels`: Debian suites, oldest kernel first.
KERNELS ?= bullseye bookworm trixie sid
# `make demo`: the rules mode. Empty: that of the configuration.
MODE ?=
# `make chaos`: number of agents to kill, and the random seed.
KILLS ?= 25
SEED ?= 1

# `make build`, `image`, `release-files`: the architecture, amd64 or arm64. One that is not this machine's is cross-compiled.
HOST_ARCH := $(if $(filter aarch64 arm64,$(shell uname -m)),arm64,amd64)
ARCH ?= $(HOST_ARCH)
$(if $(filter amd64 arm64,$(ARCH)),,$(error ARCH is amd64 or arm64, not $(ARCH)))
# `make release-assemble`: the architectures that are built.
ARCHES ?= amd64 arm64

.PHONY: help build image release-files release-assemble release-dry-run pages site manifests tools check test demo parity test-kernels smoke-kernels chaos bench-programs bench bench-quick benchmarks fuzz-program fuzz fuzz-corpus clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

# The binary is linked statically, so the tests and the image use the same file. The flags affect only the last step:
# all other build results are shared with the other programs. Each of these takes a twentieth of the size or more: packed
# relocations, optimisation of the whole program at once, and, on x86-64, lld, which folds functions of the same code.
FOLD := -C link-arg=-Wl$(comma)--icf=all
CROSS := $(filter-out $(HOST_ARCH),$(ARCH))
TRIPLE := $(if $(filter arm64,$(ARCH)),aarch64,x86_64)-unknown-linux-gnu
GNU := $(if $(filter arm64,$(ARCH)),aarch64,x86_64)-linux-gnu
# The lld that comes with rustc links for every architecture; gcc finds it in this folder. The C library is that of Debian's
# libc6-dev:ARCH, which gets security updates, unlike the one that comes with the cross compiler.
SYSROOT = $(shell rustc --print sysroot)/lib/rustlib/$(shell rustc -vV | sed -n 's/^host: //p')
LINKER = $(if $(CROSS),-C linker=$(GNU)-gcc -C link-arg=-fuse-ld=lld -C link-arg=-B$(SYSROOT)/bin/gcc-ld \
	-C link-arg=-B/usr/lib/$(GNU) -C link-arg=-L/usr/lib/$(GNU) $(FOLD),$(if $(filter amd64,$(ARCH)),$(FOLD)))
BINARY := $(TARGET)/$(if $(CROSS),$(TRIPLE)/)release/kube-ipvs
IMAGES := $(TARGET)/image$(if $(CROSS),/$(ARCH))
DIST := $(TARGET)/dist

build: ## Build the agent: target/release/kube-ipvs; make build [ARCH=arm64]
	cargo rustc --release --locked -p kube-ipvs --bin kube-ipvs $(if $(CROSS),--target $(TRIPLE)) -- \
		-C target-feature=+crt-static -C lto=fat -C link-arg=-Wl,-z,pack-relative-relocs $(LINKER)

image: build ## Build the images target/image/kube-ipvs.tar and kube-ipvs-nftables.tar, for docker load, podman load or ctr images import
	image/base-root $(IMAGES)/base $(ARCH)
	image/pack $(IMAGES)/base $(BINARY) $(IMAGES)/kube-ipvs.tar
	image/pack --scratch $(BINARY) $(IMAGES)/kube-ipvs-nftables.tar

# Files of a release have the time of the last commit. The page of a command and its completion are the same everywhere.
release-files: image pages ## Build the release files of one architecture in target/dist: make release-files [ARCH=arm64]
	@mkdir -p $(DIST)
	release/package $(ARCH) $(BINARY) $(TARGET)/pages $(DIST)
	release/python release/sbom $(BINARY) $(IMAGES)/base $(DIST) $(IMAGES)/kube-ipvs.tar $(IMAGES)/kube-ipvs-nftables.tar

release-assemble: ## Merge the images of all ARCHES, pack the chart, write release notes and checksums: target/dist
	release/assemble $(if $(DRAFT),--draft) $(DIST) $(foreach arch,$(ARCHES),$(TARGET)/image$(if $(filter-out $(HOST_ARCH),$(arch)),/$(arch)))

release-dry-run: ## Build everything of a release that works on this machine, and list it: target/dist
	release/dry-run

pages: ## Write the man pages and the completion scripts of bash, zsh and fish: target/pages
	cargo run --quiet --locked -p kube-ipvs --example pages -- $(TARGET)/pages

site: ## Build the documentation as a site, with every link checked: target/site/book
	integration/checks/site

tools:
	@integration/guest/install.sh
	@cargo nextest --version >/dev/null 2>&1 || cargo install --locked cargo-nextest

manifests: ## Render manifests/ into manifests/install, the table of the chart, and pictures of the dashboards; needs kubectl
	@integration/guest/install.sh --promtool
	integration/checks/manifests --render
	integration/checks/chart --render
	integration/checks/dashboards --render

check: ## Check formatting, lints, documentation, house rules, licences, manifests, the site, releases
	@integration/guest/install.sh --promtool
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked --quiet
	integration/checks/house-rules
	integration/checks/unused-dependencies
	integration/checks/parity-doc
	integration/checks/licences
	integration/checks/site
	integration/checks/release
	@# cargo takes packages of an earlier run for those of this one: they have the same version.
	@rm -rf $${CARGO_HOME:-$$HOME/.cargo}/registry/src/-* $(TARGET)/packages/debug/.fingerprint/*-netlink-* \
		$(TARGET)/packages/debug/.fingerprint/netlink-batch-* $(TARGET)/packages/debug/.fingerprint/dummy-iface-*
	cargo package -p netlink-batch -p ipvs-netlink -p nftables-netlink -p dummy-iface --allow-dirty --locked --offline \
		--quiet --target-dir $(TARGET)/packages
	integration/checks/manifests
	integration/checks/chart
	integration/checks/dashboards

test: tools image ## Run every test: on this machine, then under a kernel with IPVS
	cargo test --workspace --doc --locked --quiet
	cargo nextest run --locked --workspace
	KUBE_IPVS_RULES=nftables integration/guest/nextest --locked
	KUBE_IPVS_RULES=nftables KUBE_IPVS_WITHOUT_IPTABLES=yes integration/guest/nextest --locked
	integration/guest/nextest --locked

# In rules mode nftables the node has neither iptables nor ipset.
demo: tools build ## Balance real connections on a node made of network namespaces: make demo [MODE=nftables]
	cargo build --release --locked -p integration --bin demo
	$(if $(filter nftables,$(MODE)),KUBE_IPVS_WITHOUT_IPTABLES=yes) \
		$(GUEST) $(if $(MODE),--env KUBE_IPVS_RULES=$(MODE)) -- $(TARGET)/release/demo

parity: tools build ## Compare with recordings of kube-proxy: make parity CORPUS=DIR [ONLY=NAME,NAME]
	cargo build --release --locked -p integration --bin parity
	$(TARGET)/release/parity --corpus "$(CORPUS)" $(if $(ONLY),--only $(ONLY)) --faults
	@# The guest sees this folder, but not all others: it has its own /tmp.
	@test -d "$(CORPUS)" || { echo "parity: no folder $(CORPUS): make parity CORPUS=DIR" >&2; exit 2; }
	@rm -rf $(TARGET)/guest/corpus && cp -rL --no-preserve=mode "$(CORPUS)" $(TARGET)/guest/corpus
	$(GUEST) --timeout 3000 -- $(TARGET)/release/parity --corpus $(TARGET)/guest/corpus $(if $(ONLY),--only $(ONLY))
	@# In rules mode nftables everything but the rules of iptables is equal.
	$(GUEST) --timeout 3000 --env KUBE_IPVS_RULES=nftables -- $(TARGET)/release/parity \
		--corpus $(TARGET)/guest/corpus $(if $(ONLY),--only $(ONLY)) --sources files

# The oldest and the newest supported kernel, and two between them.
test-kernels: tools build ## Run every kernel test and recording on Linux 5.10, 6.1, 6.12 and 7.x: about an hour
	cargo build --release --locked -p integration --bin parity
	integration/guest/kernels --corpus "$(CORPUS)" $(KERNELS)

smoke-kernels: tools build ## Run a few kernel tests and recordings on the oldest and the newest kernel
	cargo build --release --locked -p integration --bin parity
	integration/guest/kernels --smoke --corpus "$(CORPUS)" $(firstword $(KERNELS)) $(lastword $(KERNELS))

# The same SEED makes the same changes and faults.
chaos: tools build ## Kill agents and inject failures while traffic flows: make chaos [KILLS=1000] [SEED=2]
	cargo build --release --locked -p integration --bin chaos
	$(GUEST) --timeout 7200 -- $(TARGET)/release/chaos --kills $(KILLS) --seed $(SEED)

bench-programs: tools build
	cargo build --release --locked -p integration --bin bench

# The second guest runs even if the first one fails. Both write rows for one table.
BENCH_ROWS := $(TARGET)/guest/out/bench-clock.json $(TARGET)/guest/out/bench-instructions.json
bench: bench-programs ## Measure costs and compare them with their limits: about 20 minutes
	@rm -f $(BENCH_ROWS); mkdir -p $(TARGET)/guest/out; code=0; \
	$(GUEST) --timeout 1800 -- $(TARGET)/release/bench table --rows $(word 1,$(BENCH_ROWS)) || code=$$?; \
	$(GUEST) --icount --timeout 1200 -- $(TARGET)/release/bench instructions --rows $(word 2,$(BENCH_ROWS)) || code=$$?; \
	$(TARGET)/release/bench show $(BENCH_ROWS) || code=$$?; \
	exit $$code

bench-quick: bench-programs ## Compare counts with their limits: below 3 minutes
	$(GUEST) --timeout 180 -- $(TARGET)/release/bench quick

benchmarks: bench-programs ## Regenerate docs/benchmarks of BENCH_MODES at BENCH_SIZES, with a clock that counts instructions: about half an hour
	mkdir -p docs/benchmarks
	set -e; for mode in $(BENCH_MODES); do \
		rm -f $(TARGET)/guest/out/costs-$$mode.csv; \
		$(GUEST) --icount --timeout $(BENCH_TIMEOUT) -- $(TARGET)/release/bench series \
			--mode $$mode --sizes $(BENCH_SIZES) --csv $(TARGET)/guest/out/costs-$$mode.csv; \
		cp $(TARGET)/guest/out/costs-$$mode.csv docs/benchmarks/costs-$$mode.csv; \
		$(TARGET)/release/bench plot --mode $$mode docs/benchmarks/costs-$$mode.csv docs/benchmarks/costs-$$mode.svg; \
	done

fuzz-program:
	@integration/guest/install.sh --compiler

fuzz: fuzz-program ## Fuzz the decoders of external input: make fuzz [SECONDS=n] [FUZZ=TARGET,TARGET]
	fuzz/run $(SECONDS) $(FUZZ)

fuzz-corpus: fuzz-program ## Add inputs of `make fuzz` that reach new code to fuzz/corpus
	fuzz/run --merge $(FUZZ)

clean: ## Remove all build results, including the guest kernel
	cargo clean
