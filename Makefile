# Everything a newcomer needs; `make` lists it. Each target sets up what it runs in.
.DEFAULT_GOAL := help
.PHONY: help setup demo up down test test-kafka test-clients test-compose test-alone bench-overhead bench-engine check lint types proto pins format clean
SHELL := /bin/bash

PYTHON ?= python3
TORCH ?= cpu
# The one address in this repository's tooling: where CPU builds of torch are when pip's own
# find-links have none.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready-$(TORCH)

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## make .venv with the versions of constraints.txt (TORCH=cuda for the CUDA build)

$(READY): constraints.txt infra/scripts/setup_env.py $(wildcard libs/*/pyproject.toml services/*/pyproject.toml)
	@$(PYTHON) infra/scripts/setup_env.py $(VENV) --torch $(TORCH) --torch-index $(TORCH_INDEX)
	@rm -f $(VENV)/.ready-* && touch $@

demo: $(READY) ## bring up a mesh with the demo model, ask it twice over HTTP, take it down
	@$(BIN)/banyan demo

up: $(READY) ## start all services with the demo model: make up ARGS="--prefill 2 --decode 2"
	@$(BIN)/banyan up $(ARGS)

down: $(READY) ## stop what `make up` started
	@$(BIN)/banyan down

PYTEST_ARGS ?= -n 2 --dist loadfile
test: $(READY) ## every test of the default run
	@$(BIN)/pytest $(PYTEST_ARGS)

test-kafka: $(READY) ## the bus on real brokers of Kafka: contract, outages, security, a mesh
	@$(BIN)/pytest tests/kafka

test-clients: $(READY) ## real clients in environments of their own, against a running mesh
	@$(BIN)/pytest tests/clients

test-compose: $(READY) ## build the images, run the composed mesh, kill and scale its containers
	@$(BIN)/pytest tests/compose --timeout 900

test-alone: $(READY) ## install each service by itself, with only what it declares, and import it
	@$(BIN)/python infra/scripts/test_alone.py

bench-engine: $(READY) ## the engine beside the roofs, transformers, llama.cpp; 12 minutes on a quiet machine
	@$(BIN)/python load-tests/bench_engine.py

bench-overhead: $(READY) ## what Banyan costs beside doing without it; 15 minutes on a quiet machine
	@$(BIN)/python load-tests/bench_overhead.py

check: $(READY) lint types ## lint, types, import contracts, declared imports, stubs equal to proto/
	@$(BIN)/lint-imports
	@$(BIN)/python infra/scripts/check_imports.py
	@$(BIN)/python infra/scripts/proto.py check
	@$(BIN)/python infra/scripts/dashboard.py check

lint: $(READY)
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check

types: $(READY)
	@$(BIN)/mypy

proto: $(READY) ## regenerate the stubs and the descriptor set from proto/
	@$(BIN)/python infra/scripts/proto.py write

format: $(READY) ## format the code and sort its imports
	@$(BIN)/ruff check --fix-only --quiet
	@$(BIN)/ruff format

pins: $(READY) ## resolve every package's ranges anew into constraints.txt
	@$(BIN)/python infra/scripts/pins.py --torch-index $(TORCH_INDEX)

clean: ## remove .venv and what tools left
	@rm -rf $(VENV) .banyan .clients .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
