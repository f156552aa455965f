# Every command a person runs. `make` alone lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
.PHONY: help up down status kubeconfig build images crds test verify test-compile test-unit test-simulation test-clients test-e2e soak fuzz chaos chaos-bugs failover fix \
  bench bench-quick bench-fleet deps clients rocksdb audit fmt lint docs deny generated scripts chart

# Builds and downloads stay outside of the checkout, so that a fresh clone starts warm (scripts/env.sh).
CACHE := $(or $(MILLRACE_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/millrace)
export PATH := $(PATH):$(HOME)/.cargo/bin:/usr/local/go/bin
export CARGO_TARGET_DIR ?= $(CACHE)/target
# Every checkout shares that directory and would leave gigabytes of these in it; without them a fresh clone builds faster
export CARGO_INCREMENTAL ?= 0
export ROCKSDB_LIB_DIR := $(shell scripts/rocksdb.sh path)
export ROCKSDB_STATIC := 1
export MILLRACE_KUBECONFIG ?= $(CACHE)/run-state/kubeconfig
# MILLRACE_CLIENTS_PYTHON and MILLRACE_KAFKA_LIBS: what the tests use of other people's Kafka clients
$(foreach pair,$(shell scripts/clients.sh env),$(eval export $(pair)))
# make up CLUSTER=current IMAGE_REGISTRY=…: into the current context, through a registry its nodes can pull from
export CLUSTER IMAGE_REGISTRY
export SEED MINUTES ROUNDS BUGS CHAOS_ARGUMENTS SEEDS FIRST

# Broker and load generator as they ship; brokers write to the cache's disk, as /tmp may be in memory.
BUILD_BENCH = cargo build --release --locked -p millrace-broker -p millrace-bench
BENCH = $(CARGO_TARGET_DIR)/release/millrace-bench
BENCH_FOLDER = --work-dir $(CACHE)/bench

# Assertions on, and a broker that is fast enough for thousands of runs.
SOAK = cargo test --workspace --locked --lib --config 'profile.dev.package.millrace-broker.opt-level=1'

help: # lists the commands
	@awk -F ':[^#]*# ' '/^[a-z0-9-]+:.*# / { printf "make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

up: # starts a Kubernetes, the operator and a Kafka cluster of three brokers on localhost:30092; again: brings up to date
	@e2e/cluster/up.sh

down: # removes all of that; caches stay
	@e2e/cluster/down.sh

status: # shows the fleet: nodes, Kafka clusters, topics, pods, latest events
	@e2e/cluster/status.sh

kubeconfig: # prints the path of the cluster's kubeconfig
	@echo $(MILLRACE_KUBECONFIG)

build: rocksdb # compiles everything, for debugging
	cargo build --workspace

images: rocksdb # builds the images of broker and operator, as archives
	@scripts/images.sh

crds: rocksdb # writes the CRDs' YAML anew from their Rust types
	cargo run --quiet -p millrace-operator -- crds --output-dir crds/generated

test: # runs every test, from a fresh clone too; makes a cluster for it and removes it again
	@scripts/test.sh

verify: fmt lint docs deny generated scripts chart test-unit # runs what needs no cluster and changes nothing: the gate before a commit

test-compile: rocksdb # compiles every test
	cargo test --workspace --locked --no-run --tests

test-unit: rocksdb # runs unit, property and documentation tests
	@scripts/cargo-test.sh unit

test-simulation: rocksdb # takes simulated fleets through the faults of 200 seeds, and finds five bugs made on purpose; SEEDS=50 FIRST=201: others
	@scripts/cargo-test.sh simulation

test-clients: rocksdb clients # runs the broker's protocol tests, with real Kafka clients
	@scripts/cargo-test.sh clients

test-e2e: rocksdb clients # runs the tests on the cluster that `make up` started
	@scripts/cargo-test.sh e2e

soak: rocksdb # ten thousand runs of each random crash test of the record store and of simulated fleets, each time others; takes hours
	MILLRACE_CRASH_RUNS=10000 $(SOAK) -- --nocapture \
	  crashes_and_power_losses an_end_during_any_operation damage_is_refused_or_reported
	MILLRACE_SIMULATION_SEEDS=10000 MILLRACE_SIMULATION_FIRST=$${FIRST:-$$((RANDOM * 10000 + 1))} \
	  $(SOAK) -- --nocapture --ignored whatever_happens_to_a_fleet

fuzz: rocksdb # gives each decoder of the wire and the disk random bytes for five minutes; needs a nightly compiler
	@scripts/fuzz.sh

chaos: rocksdb # hurts brokers under load and proves that nothing is lost, one minute and a half; SEED=7 MINUTES=10: longer, repeatable (root)
	@scripts/chaos.sh run

chaos-bugs: rocksdb # has brokers make three bugs of the past, each until the fault laboratory finds it; ROUNDS=60: tries longer (root)
	@scripts/chaos.sh bugs

failover: rocksdb # measures how long producers wait when a broker goes, about half an hour; prints a table (root)
	@scripts/chaos.sh failover

bench: rocksdb clients # compares with Apache Kafka, in turn: more than three hours; writes bench/results/latest.json
	$(BUILD_BENCH)
	@$(BENCH) compare $(BENCH_FOLDER) --output bench/results/latest.json $(BENCH_ARGUMENTS)

bench-quick: rocksdb clients # compares a few figures with Apache Kafka, in under three minutes
	$(BUILD_BENCH)
	@$(BENCH) compare $(BENCH_FOLDER) --quick $(BENCH_ARGUMENTS)

bench-fleet: rocksdb clients # compares fleets of three brokers with Apache Kafka's, more than an hour; writes bench/results/fleet.json
	$(BUILD_BENCH)
	@$(BENCH) fleet $(BENCH_FOLDER) --output bench/results/fleet.json $(BENCH_ARGUMENTS)

fix: rocksdb # rewrites what verify complains about where a tool can: format, lints, generated files
	cargo clippy --workspace --all-targets --fix --allow-dirty --allow-staged
	cargo fmt --all
	@$(MAKE) crds

deps: # installs by apt what the machine lacks; without root it says what that is
	@scripts/deps.sh

clients: # installs the Kafka clients the tests use: kcat, three for Python, Apache Kafka's own
	@scripts/clients.sh

rocksdb: # builds RocksDB once, as a library that every build links
	@scripts/rocksdb.sh

audit: # looks the dependencies up in the advisory database, which it downloads, and lists duplicates
	@scripts/cargo-deny.sh check advisories bans

fmt: # checks the format
	cargo fmt --all --check

lint: rocksdb # clippy, with warnings as errors
	cargo clippy --quiet --workspace --all-targets --locked -- -D warnings

docs: rocksdb # builds the documentation, with broken links as errors
	RUSTDOCFLAGS="-D warnings" cargo doc --quiet --workspace --no-deps --document-private-items --locked

deny: # checks licences, sources and versions of the dependencies
	@scripts/cargo-deny.sh --offline --log-level error check --hide-inclusion-graph licenses bans sources

generated: rocksdb # checks that generated files are up to date
	@scripts/generated.sh

scripts: # checks the shell scripts
	shellcheck .ci/run scripts/*.sh e2e/cluster/*.sh e2e/cluster/node/*.sh e2e/cluster/runc-without-sys-resource e2e/cluster/node/iptables-flavour

chart: # lints the operator's chart and checks what it renders against the schemas of Kubernetes
	@e2e/cluster/chart.sh lint
	@e2e/cluster/chart.sh check
