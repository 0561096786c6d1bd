# Type `make` for the list of targets. Nothing but Python 3.11-3.13, make and git is needed beforehand.

VENV     := .venv
BIN      := $(VENV)/bin
STAMP    := $(VENV)/.installed
PEERS    := .venv-peers
INDEXERS := .venv-peers-index .venv-peers-autofaiss
PROGRAM  := $(BIN)/python -m cluster
PYTEST   := $(BIN)/python -m pytest
# The first interpreter of a version we support; `make PYTHON=/path/to/python3.12 setup` overrules it.
SUITABLE := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PYTHON   ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
              $$p -c '$(SUITABLE)' 2>/dev/null && echo $$p && break; done)

.DEFAULT_GOAL := help
.PHONY: help setup check fix test test-all demo ui docs screenshots lock clean
.PHONY: bench bench-peers bench-accuracy

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## make .venv with the pinned dependencies (instant when nothing changed)

$(STAMP): pyproject.toml constraints.txt
	@.ci/preflight '$(PYTHON)'
	$(PYTHON) -m venv $(VENV)
	@echo 'Installing the pinned dependencies: some minutes, once.'
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[demo]' --group dev
	@touch $@

check: setup ## formatting, lint, types, layering, spelling: under a minute
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell

fix: setup docs ## format, repair what ruff can repair, renew generated pages
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: setup ## the tests that a change must pass: under 12 minutes on 2 cores
	$(PYTEST) -m 'not slow and not bench'

test-all: setup ## the slow tests as well
	$(PYTEST) -m 'not bench'

demo: setup ## scan, pretrain, embed, index and evaluate the OpenMoji pictures, then open the UI
	$(PROGRAM) demo

ui: setup ## open the web UI on what is in ./workspace
	$(PROGRAM) ui

bench: bench-peers ## the measurements behind our speed claims: three hours on 2 quiet cores
	$(BIN)/python -m benchmarks.augmentation
	$(BIN)/python -m benchmarks.simclr_end_to_end
	$(BIN)/python -m benchmarks.train_overhead
	$(BIN)/python -m benchmarks.losses
	$(BIN)/python -m benchmarks.batch_chunks
	$(BIN)/python -m benchmarks.filters
	$(BIN)/python -m benchmarks.index_curves
	$(BIN)/python -m benchmarks.index_curves --source encoder
	$(BIN)/python -m benchmarks.embedding
	$(BIN)/python -m benchmarks.scaled_decoding
	$(BIN)/python -m benchmarks.growth
	$(PYTEST) -m bench benchmarks
	$(BIN)/python -m benchmarks.page

bench-accuracy: bench-peers ## accuracy in equal time: five hours; run again, it does what is missing
	$(BIN)/python -m benchmarks.accuracy_equal_time --speeds
	$(BIN)/python -m benchmarks.accuracy_equal_time --sweep
	$(BIN)/python -m benchmarks.accuracy_equal_time
	$(BIN)/python -m benchmarks.page

bench-peers: setup $(PEERS)/.installed $(INDEXERS:%=%/.installed) ## make .venv-peers* with the libraries that we compare with

$(PEERS)/.installed: benchmarks/peers.txt
	$(PYTHON) -m venv $(PEERS)
	@echo 'Installing the libraries that we compare with: some minutes and 5.5 GB, once.'
	$(PEERS)/bin/python -m pip install --quiet --requirement benchmarks/peers.txt
	@touch $@

# One has to be compiled (hnswlib), and one wants an older numpy than all others (autofaiss).
.venv-%/.installed: benchmarks/%.txt
	$(PYTHON) -m venv .venv-$*
	.venv-$*/bin/python -m pip install --quiet --requirement $<
	@touch $@

docs: setup ## renew the pages that are generated: settings and benchmarks
	$(BIN)/python docs/configuration.py
	$(BIN)/python -m benchmarks.page

screenshots: setup ## renew docs/screenshots from the running UI
	$(BIN)/python docs/screenshots.py

lock: ## renew constraints.txt from a fresh environment with the newest versions allowed
	.ci/lock '$(PYTHON)'

clean: ## remove .venv and caches; workspace/ stays
	rm -rf $(VENV) $(PEERS) $(INDEXERS) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
