# What an operator or a contributor types. Needs Python 3.11 or later, git, make and gcc; everything else goes to .venv.
# `up` needs the node's own packages only; `test`, `lint` and `bench` install what they need in addition, once.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
PORT ?= 3300
NODES ?= 3
BUCKET ?= dir
RATE ?= 50
SIZES ?=
BENCH ?=
KIT ?= ../shared/bench/recall
DATA ?= $(wildcard $(KIT)/dev-*.json)
PEERS ?=
FIT ?=
FACTS := tests/retrieval/facts.json

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
STAMP := .venv/.installed

.PHONY: help setup up down status demo-failover test lint docs docs-check bench bench-join bench-recall fit clean
.DEFAULT_GOAL := help

help: ## this list
	@grep -hE '^[a-z-]+:.*##' Makefile | sed -E 's/^([a-z-]+):[^#]*## ?(.*)/  make \1|\2/' | awk -F'|' '{printf "%-20s %s\n", $$1, $$2}'

setup: $(STAMP)-node model ## the node's environment in .venv and the model in its cache

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or later is needed"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or later is needed, $(PYTHON) is older"; exit 1; }
	@echo "Creating .venv ..."
	@$(PYTHON) -m venv .venv

$(STAMP)-node: pyproject.toml $(wildcard dakera_cluster/native/*.[ch]) | $(BIN)/python
	@echo "Installing the node's packages ..."
	@$(PIP) install -e .
	@touch $@

$(STAMP)-test $(STAMP)-lint $(STAMP)-bench $(STAMP)-stack $(STAMP)-stack-s3: $(STAMP)-%: pyproject.toml | $(STAMP)-node
	@echo "Installing the packages for $* ..."
	@$(PIP) install -e '.[$*]'
	@touch $@

.PHONY: model
model: $(STAMP)-node
	@$(BIN)/dakera models pull minilm > .venv/model.log 2>&1 || { cat .venv/model.log; exit 1; }

# What the stack needs beside the node: a balancer, and an S3 server when one is asked for and MinIO is not installed.
MINIO = $(wildcard $(BIN)/minio $(HOME)/go/bin/minio)$(shell command -v minio)
STACK := $(STAMP)-$(if $(filter 1,$(NODES)),node,stack) $(if $(filter s3,$(BUCKET)),$(if $(MINIO),,$(STAMP)-stack-s3))

up: $(STACK) model ## start three nodes behind Traefik and show how to store and recall (NODES=1 PORT=3300 BUCKET=s3)
	@$(BIN)/python -m ops.local up --port $(PORT) --nodes $(NODES) --bucket $(BUCKET)

down: ## stop it; data/ stays
	@test ! -x $(BIN)/python || $(BIN)/python -m ops.local down

status: ## what of it runs
	@test ! -x $(BIN)/python || $(BIN)/python -m ops.local status

demo-failover: ## kill the leader under load, watch, and count what was lost (RATE=50)
	@$(BIN)/python -m ops.local demo-failover --rate $(RATE)

test: $(STAMP)-test model ## all tests
	$(BIN)/python -m pytest

lint: $(STAMP)-lint $(STAMP)-test ## style, types and the import law
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict
	$(BIN)/lint-imports

docs: $(STAMP)-node ## regenerate what is generated: the README's configuration tables, docs/openapi.json
	$(BIN)/python -m ops.config_table
	$(BIN)/python -m ops.openapi_file

docs-check: $(STAMP)-node
	$(BIN)/python -m ops.config_table --check
	$(BIN)/python -m ops.openapi_file --check

bench: $(STAMP)-bench model ## store, recall, memory and start-up beside chromadb; what replication costs (SIZES=1k,10k, BENCH=--full)
	$(BIN)/python -m ops.bench $(if $(SIZES),--sizes $(SIZES)) $(BENCH)
	$(BIN)/python -m ops.bench.peer_transport --json bench-out/peer_transport.json
	$(BIN)/python -m ops.bench.replication --json bench-out/replication.json

bench-join: $(STAMP)-bench model ## a fourth node joins three that hold 100,000 memories, under load, and leaves again
	$(BIN)/python -m ops.bench.join --json bench-out/join.json

bench-recall: $(STAMP)-bench model ## does recall bring back the right turns (DATA=file.json ... KIT=dir PEERS=bm25,rrf)
	@test -n "$(DATA)" || { echo "make bench-recall DATA=<file.json> KIT=<directory of locomo.py>"; exit 1; }
	@$(foreach file,$(DATA),$(BIN)/python -m ops.bench.recall --kit $(KIT) --data $(file) --peers "$(PEERS)" &&) true

fit: $(STAMP)-node model ## fit the weights of recall and say how well they hold (DATA=a.json b.json ..., FIT=--write); our own facts are a kind too
	@test -n "$(DATA)" || { echo "make fit DATA=<file.json ...>"; exit 1; }
	$(BIN)/python -m ops.fit_recall --data $(DATA) $(FACTS) $(FIT)

clean: down ## remove the environment and everything built; data/ stays
	rm -rf .venv build dist bench-out *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
