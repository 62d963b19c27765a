# The commands that people type. What needs more than a line is a script: tests/all.py, tests/demo.py, models/fetch.py.
PYTHON ?= python3
CARGO ?= cargo
# Seconds that `make test` and `make fuzz` give each fuzz target.
FUZZ_SECONDS ?= 60
VENV = target/venv/bin/python
# Whatever folder the shell or cargo's own settings name: everything here looks for what was built in this one.
export CARGO_TARGET_DIR = $(CURDIR)/target

.DEFAULT_GOAL := help
.PHONY: help demo build test test-quick guests models onnxruntime venv bench bench-peers bench-failover bench-forward bench-rules fuzz test-gpu clean

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: ## Build, start a gateway, deploy a real model over the API, send it a real file
	@$(PYTHON) tests/demo.py

build: ## The gateway: target/release/windrose
	$(CARGO) build --release --locked -p windrose

test: ## Everything that CI runs: lints, unit tests, fuzzers, end-to-end tests
	@FUZZ_SECONDS=$(FUZZ_SECONDS) $(PYTHON) tests/all.py

guests: ## The example modules: target/guests/NAME.wasm
	$(PYTHON) guest-sdk/build.py

models: ## The examples' models: target/models/NAME
	$(PYTHON) models/fetch.py all

onnxruntime: ## ONNX Runtime's shared library, where engine = "auto" finds it
	$(PYTHON) models/onnxruntime.py

venv: ## The Python environment of the tests: target/venv
	$(PYTHON) tests/environment.py

bench: venv onnxruntime models guests ## Windrose beside its floors, as ratios
	$(CARGO) build --release --locked --workspace
	CARGO_PROFILE_RELEASE_OPT_LEVEL=3 $(CARGO) build --release --locked --manifest-path examples/Cargo.toml \
		--target-dir target/guests-native -p pictures --example native
	target/release/windrose-bench

bench-failover: venv build ## What clients see while the nearest of four sites is sick, beside Envoy and HAProxy (root)
	$(CARGO) build --release --locked -p windrose-lab
	$(VENV) tests/bench_failover.py

bench-forward: venv build ## What forwarding a request costs us, Envoy, HAProxy and nginx, in one run
	$(CARGO) build --release --locked -p windrose-lab
	$(VENV) tests/bench_forward.py

bench-peers: venv onnxruntime models guests ## Windrose beside other model servers, as ratios
	$(CARGO) build --release --locked --workspace
	$(PYTHON) benches/peers/run.py

bench-rules: venv build ## Windrose's rule of choice beside others, on real gateways that are unlike each other
	$(CARGO) build --release --locked -p windrose-lab
	$(VENV) tests/bench_rules.py

fuzz: ## The fuzzers, FUZZ_SECONDS=3600 for an hour each
	$(PYTHON) tests/fuzz/run.py all $(FUZZ_SECONDS)

test-gpu: venv onnxruntime models guests build ## Every example on the GPU against the CPU, where there is one
	$(VENV) -m pytest -rs tests/gpu

clean: ## Remove everything that was built or fetched
	rm -rf target
