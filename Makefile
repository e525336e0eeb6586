# Everything a contributor or a reader runs. `make` alone lists it.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

BIN := bin/uadt-train
GO_FILES := $(shell find . -name '*.go' -not -path './.*')
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
FUZZTIME ?= 10s
RUN ?= quickstart

.PHONY: help build quickstart base test test-go test-race test-python test-vllm test-browser test-full lint fuzz bench bench-gpu clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: $(BIN) ## build bin/uadt-train

$(BIN): $(GO_FILES) go.mod go.sum
	go build -o $@ ./cmd/uadt-train

quickstart: build ## the whole ring on this machine: a policy learns in minutes
	$(BIN) --config configs/quickstart.yaml --run $(RUN) --fresh

base: build ## make the stage-1 checkpoint again that the quickstart starts from
	scripts/make-base.sh

test: lint test-go test-race test-python test-vllm test-browser ## everything that CI runs

test-go: ## unit and property tests, and the seeds of every fuzz target
	go test ./...

test-race: ## the same under the race detector, numerics on tiny shapes
	go test -race -short ./...

test-python: build ## agreement with transformers and PyTorch, the PyTorch trainer, the ledger in other tools
	scripts/test-python.sh

test-vllm: build ## the Fleet conformance suite and agreement on real vLLM (CPU)
	scripts/test-vllm.sh

test-browser: ## the report of an evaluation, opened in headless Chromium
	scripts/test-browser.sh

test-full: build ## five seeds, five kills; writes docs/measurements.md's numbers to runs/full
	scripts/test-full.sh

lint: ## gofmt, go vet, staticcheck, ruff
	@unformatted=$$(gofmt -l $$(git ls-files '*.go')); test -z "$$unformatted" || { echo "gofmt: $$unformatted"; exit 1; }
	go vet ./...
	go vet -tags browser ./cmd/uadt-train
	go run $(STATICCHECK) ./...
	$$(.ci/python-env) -m ruff check trainer/pytorch tests/python
	$$(.ci/python-env) -m ruff format --check trainer/pytorch tests/python

fuzz: ## run every fuzz target for FUZZTIME each
	scripts/fuzz.sh $(FUZZTIME)

bench: build ## the numbers of docs/measurements.md that need no GPU, as JSON lines
	scripts/bench.sh

bench-gpu: ## the GPU numbers, on a machine that has one, as JSON lines
	scripts/bench-gpu.sh

clean: ## remove what was built, never a run
	rm -rf bin
