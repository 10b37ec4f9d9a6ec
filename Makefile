# kwaaid: `make` shows what there is.

GO     ?= go
BIN    := bin/kwaaid
TOOL   := $(GO) tool -modfile=.ci/tools/go.mod
# buf needs another protobuf than the generator that is pinned, so it has a module file of its own.
BUF    := $(GO) tool -modfile=../.ci/tools/buf.mod buf

# One set of flags for all that is built, so that building, testing and linting share what they compile. Only the race
# detector needs cgo.
export CGO_ENABLED := 0
export GOFLAGS     := $(shell $(GO) env GOFLAGS) -trimpath

# The version comes from what the linker notes about the commit; outside of a clone, or without git, there is none.
VCS := $(shell git rev-parse --git-dir >/dev/null 2>&1 && echo true || echo false)

# Where generated files lie.
GENERATED := proto configs internal/kernel

# RACE=auto takes the race detector where there is a C compiler; RACE=always fails without one.
RACE ?= auto

PYTHON     ?= python3
PYTHON_ENV := examples/transformers/.venv

.DEFAULT_GOAL := help

.PHONY: help
help: ## show this
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build
build: ## the static binary bin/kwaaid
	$(GO) build -buildvcs=$(VCS) -ldflags='-s -w' -o $(BIN) ./cmd/kwaaid

.PHONY: demo
demo: build ## a whole swarm on this machine: hosts, calls, figures (DEMO='--nodes 6 --seconds 30')
	$(BIN) demo $(DEMO)

.PHONY: test
test: ## all tests, with -race where there is a C compiler
	@if command -v "$$($(GO) env CC | cut -d' ' -f1)" >/dev/null; then \
	  CGO_ENABLED=1 $(GO) test -race -shuffle=on -timeout 10m ./...; \
	elif [ "$(RACE)" = always ]; then \
	  echo 'no C compiler here: the race detector needs one' >&2; exit 1; \
	else \
	  echo 'no C compiler here: testing without the race detector'; \
	  $(GO) test -shuffle=on -timeout 10m ./...; \
	fi

.PHONY: race
race: ## the same, and fail where there is no C compiler
	@$(MAKE) --no-print-directory test RACE=always

.PHONY: e2e
e2e: build ## the end-to-end tests, on bin/kwaaid
	KWAAID_BINARY=$(CURDIR)/$(BIN) $(GO) test -count=1 -timeout 10m ./cmd/kwaaid

.PHONY: python
python: build ## the Python client and its tests, in a virtual environment of their own; needs Python 3.10 and a package index
	test -d $(PYTHON_ENV) || $(PYTHON) -m venv $(PYTHON_ENV)
	$(PYTHON_ENV)/bin/python -m pip install --quiet --editable 'examples/transformers[test]'
	cd examples/transformers && KWAAID_BINARY=$(CURDIR)/$(BIN) .venv/bin/python -m pytest $(PYTEST)

.PHONY: bench
bench: build ## protocol and DHT, each figure beside its limit; at last two processes beside a bare echo
	$(GO) test -run '^$$' -bench 'RawEcho|RemoteIdentity' ./internal/rpc
	$(GO) test -run '^$$' -bench 'Find|Declare' ./internal/discovery
	.ci/bench

.PHONY: layers
layers: build ## what a layer costs whose experts are at four hosts, beside the same layer at one; takes 4 GB of memory
	KWAAID_BINARY=$(CURDIR)/$(BIN) KWAAID_MEASURE=1 $(GO) test -count=1 -timeout 30m -v -run 'TestMeasureLayer' ./cmd/kwaaid

.PHONY: chaos
chaos: build ## how long the slowest answer takes while the host in use is killed or frozen, ten times each, with and without load
	KWAAID_BINARY=$(CURDIR)/$(BIN) KWAAID_MEASURE=1 $(GO) test -count=1 -timeout 30m -v -run 'TestMeasure_' ./cmd/kwaaid

.PHONY: soak
soak: build ## ten minutes of calls while hosts come and go; no failure, no wrong answer, nothing left behind (SOAK=1h)
	KWAAID_BINARY=$(CURDIR)/$(BIN) KWAAID_SOAK=$(or $(SOAK),10m) $(GO) test -count=1 -timeout 0 -v -run 'TestSoak' ./cmd/kwaaid

.PHONY: fuzz-smoke
fuzz-smoke: ## every fuzz target on some thousand inputs (FUZZ=1000000x)
	.ci/fuzz $(FUZZ)

.PHONY: lint
lint: ## golangci-lint, with the rules and reasons of .golangci.yml, and buf
	$(TOOL) golangci-lint run --allow-serial-runners
	cd proto && $(BUF) lint && $(BUF) format --diff --exit-code

.PHONY: fmt
fmt: ## format everything
	$(TOOL) golangci-lint fmt
	cd proto && $(BUF) format -w

.PHONY: gen
gen: ## generate everything that is generated
	cd proto && $(BUF) generate
	$(GO) generate ./...
	$(GO) run ./cmd/kwaaid config default > configs/kwaaid.yaml.new
	mv configs/kwaaid.yaml.new configs/kwaaid.yaml

.PHONY: verify-gen
verify-gen: ## fail if generated files are not what would be generated now
	@before=$$(mktemp); trap 'rm -f "$$before"' EXIT; \
	find $(GENERATED) -type f | sort | xargs sha256sum > "$$before"; \
	$(MAKE) --no-print-directory gen && \
	find $(GENERATED) -type f | sort | xargs sha256sum | diff "$$before" - || \
	  { echo 'generated files were out of date; they are written anew: look at them and commit' >&2; exit 1; }

.PHONY: image
image: build ## a container image around bin/kwaaid; needs docker, podman or buildah, and no registry
	.ci/image $(IMAGE)

.PHONY: ci
ci: ## what must pass before a change is taken
	.ci/run

.PHONY: clean
clean: ## remove what was built
	rm -rf bin dist
