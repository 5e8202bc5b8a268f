.DEFAULT_GOAL := help

.PHONY: help demo test up down bench bench-agents bench-http bench-line chaos check check-ops image fmt clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## Show the fleet at work: services, two workers and some hundreds of jobs, one worker killed
	ops/dev/demo

# No test cuts the power: what Postgres has written outlives its own death and that of every process without fsync.
test: ## Build and test everything against a real RabbitMQ, Postgres and Kubernetes API server
	HARNESS_DEV_POSTGRES_CONF='fsync = off' ops/dev/services run -- ops/dev/test

up: ## Start the services and a fleet, and leave them running
	ops/dev/fleet up

down: ## Stop what `make up` started
	ops/dev/fleet down

bench: ## Measure throughput and latency (release build)
	cargo build --release --locked -p worker -p tests --bin worker --bin bench
	ops/dev/services run -- target/release/bench

bench-agents: ## Measure a worker's agents: commits of an iteration, memory of 1,000 sessions (release build)
	cargo build --release --locked -p worker -p tests --bin worker --bin bench
	ops/dev/services run -- target/release/bench agents

bench-line: ## Measure pools with a line: admissions, and what fair turns are for (release build)
	cargo build --release --locked -p worker -p producer -p tests --bin worker --bin producer --bin bench
	ops/dev/services run -- target/release/bench line

bench-http: ## Measure the HTTP API: rates, latencies, and the memory of idle streams (release build)
	cargo build --release --locked -p worker -p producer -p tests --bin worker --bin producer --bin bench
	ops/dev/services run -- target/release/bench http

# It uses the debug build, which has overflow checks and debug assertions, and which `make test` has built already.
chaos: ## Break a fleet in every way we know, and count what is lost or done twice (about 12 minutes)
	cargo build --locked --workspace --all-targets
	ops/dev/services run -- target/debug/chaos

check: ## Check format, lints and licences, as CI does before it tests
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	@if cargo deny --version >/dev/null 2>&1; then \
		echo 'cargo deny --locked check bans licenses sources'; \
		cargo deny --locked check bans licenses sources; \
	else \
		echo 'cargo-deny is not installed: bans, licences and sources are left to CI (cargo install --locked cargo-deny)'; \
	fi

check-ops: ## Check ops/, spelling and words with established tools, one line of output each
	ops/check

image: ## Build harness-fleet:dev, the image with the three programs, with Docker or buildah
	ops/image/build

fmt: ## Format the code
	cargo fmt --all

clean: ## Stop the fleet and the services, and remove their data and all build output
	ops/dev/fleet down
	ops/dev/services stop --wipe
	rm -rf .dev
	cargo clean
