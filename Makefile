# The commands of this repository. `make help` lists them.

SHELL := /bin/bash
# Found also when no shell file names it; first, because a distribution's own cargo is mostly too old.
export PATH := $(or $(CARGO_HOME),$(HOME)/.cargo)/bin:$(PATH)
.DEFAULT_GOAL := help
.PHONY: help run check deny test chaos bench setup setup-test

help: ## lists the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## */  make \1\t/' | expand -t 16

run: setup ## builds a release and runs the example job on a local cluster
	cargo run --locked --release -- run abnormal-detection --local

check: setup-test ## formatting, lints and documentation, all warnings denied
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps --document-private-items

deny: ## licences, bans and sources of all dependencies, by deny.toml (needs cargo install cargo-deny)
	cargo deny --locked check bans licenses sources

TARGET := $(or $(CARGO_TARGET_DIR),target)

# The binary first, and a copy of it: built alone it has the features of a release, while the tests' build has fault points in it.
test: check ## check, then every test, against a real S3 server that it starts and stops
	cargo build --locked -p perennial --bins
	mkdir -p $(TARGET)/alone && cp -f $(TARGET)/debug/perennial $(TARGET)/alone/perennial
	PERENNIAL_BINARY=$$(realpath $(TARGET)/alone/perennial) scripts/s3-server run cargo test --locked --workspace --no-fail-fast

# The binary alone again, with the features of a release. Results add up over calls; everything after ARGS= goes to the command.
chaos: setup-test ## breaks a release cluster for MINUTES=10 and writes .perennial/chaos/report.html
	cargo build --locked --release -p perennial --bins
	mkdir -p $(TARGET)/alone && cp -f $(TARGET)/release/perennial $(TARGET)/alone/perennial-release
	cargo build --locked --release -p perennial-chaos --bins
	scripts/s3-server run $(TARGET)/release/perennial-chaos campaign --resume --minutes $(or $(MINUTES),10) --binary $(TARGET)/alone/perennial-release $(ARGS)

# The node alone, with the features of a release; what runs it has fault points linked in. ARGS: see `perennial-bench --help`.
bench: setup ## measures Perennial beside Flink and a bare loop, PROFILE=quick (5 minutes) or full; writes .perennial/bench
	cargo build --locked --release -p perennial-bench --no-default-features --bin perennial-bench-node
	mkdir -p $(TARGET)/alone && cp -f $(TARGET)/release/perennial-bench-node $(TARGET)/alone/perennial-bench-node
	cargo build --locked --release -p perennial-bench --bin perennial-bench
	$(TARGET)/release/perennial-bench $(or $(PROFILE),quick) --node $(TARGET)/alone/perennial-bench-node $(ARGS)

setup:
	@scripts/setup run

setup-test:
	@scripts/setup test
