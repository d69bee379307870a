# Everything a newcomer needs: `make demo` and `make test`. Both set up what they use, into .venv.

# That of .venv; before there is one, the first of those at hand. Another one: make PYTHON=/path/to/python3.13 ...
PYTHON ?= $(or $(wildcard .venv/bin/python),$(word 2,$(shell .ci/pythons | head -n 1)),none)
PYTHON := $(PYTHON)
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
# .venv belongs to the Python that made it; another one has .venv-3.13 or the like.
VENV := $(if $(filter-out python$(VERSION),$(notdir $(wildcard .venv/lib/python*))),.venv-$(VERSION),.venv)
BIN := $(VENV)/bin
SYNC := UV_PROJECT_ENVIRONMENT=$(VENV) $(BIN)/uv sync --quiet --frozen --inexact --python $(BIN)/python
UV_VERSION := 0.13.8
WORKERS ?= 2   # processes that share the tests, file by file
IN_PARTS := -n $(strip $(WORKERS)) --dist loadfile --no-loadscope-reorder
WITH_HOROVOD := setting up, Horovod's build included: a few minutes the first time
WITHOUT_HOROVOD := Python $(VERSION): without Horovod, which needs Python 3.11 and TensorFlow 2.18; its tests are skipped
export MPLBACKEND := Agg

.PHONY: help setup setup-test demo test test-examples test-slow test-short test-python test-newest check bench notebooks docs wheel clean
.DEFAULT_GOAL := help

help:            ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-12s  %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(BIN)/uv:
	$(if $(filter 3.11 3.12 3.13,$(VERSION)),,$(error Python 3.11, 3.12 or 3.13 is needed, got $(PYTHON)$(if $(VERSION), ($(VERSION))): name one, make PYTHON=/path/to/python3.13))
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)

$(VENV)/.setup: $(BIN)/uv pyproject.toml uv.lock
	$(SYNC)
	@touch $@

$(VENV)/.setup-test: $(BIN)/uv pyproject.toml uv.lock Makefile
	@echo "$(if $(filter 3.11,$(VERSION)),$(WITH_HOROVOD),$(WITHOUT_HOROVOD))"
	$(SYNC) --extra horovod --extra formats --extra openvino --extra notebooks --extra dev
	@touch $@ $(VENV)/.setup

$(VENV)/.setup-docs: $(BIN)/uv pyproject.toml uv.lock Makefile
	$(SYNC) --extra docs
	@touch $@ $(VENV)/.setup

setup: $(VENV)/.setup             ## the package and what it needs, into .venv

setup-test: $(VENV)/.setup-test   ## the same with the tools for tests and, on Python 3.11, Horovod

demo: $(VENV)/.setup              ## the main job on handwritten digits, into runs/demo
	@$(BIN)/tfp-bprune demo --out runs/demo

test: $(VENV)/.setup-test         ## the fast tests, WORKERS=2 files at once
	$(BIN)/python -m pytest $(IN_PARTS) -m "not slow" -rs --durations=15

test-slow: $(VENV)/.setup-test    ## the slow checks on real data; TFDS_DATA_DIR names the data
	$(BIN)/python -m pytest -m slow --timeout 5400

test-python:                      ## the fast tests on each of Python 3.11, 3.12 and 3.13 that is found, and their sums
	@.ci/test-python

test-newest:                      ## the fast tests on the newest Python that is found, with the newest TensorFlow
	$(MAKE) test PYTHON=$(or $(lastword $(shell .ci/pythons | sort -V)),none)

test-short: demo $(VENV)/.setup-test   ## the demo, and from training to a reloaded export with each predictive
	$(BIN)/python -m pytest -m short

check: $(VENV)/.setup-test        ## format, lint, types, and the tests that need no training
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -m "not slow and not horovod" tests/test_architecture.py tests/files tests/layers tests/pruning

# MLServer has an environment of its own: it brings web servers that this package has no use for.
.venv-mlserver/.setup: $(VENV)/.setup-test
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python .venv-mlserver
	$(BIN)/uv pip install --quiet --python .venv-mlserver/bin/python mlserver==1.7.1 \
	  "$$($(BIN)/uv pip freeze --python $(BIN)/python | grep '^tensorflow==')"
	@touch $@

examples/browser/node_modules: examples/browser/package.json
	npm install --silent --no-package-lock --prefix examples/browser
	@touch $@

test-examples: .venv-mlserver/.setup examples/browser/node_modules   ## serving: MLServer, and a page in headless Chromium (needs npm)
	BPRUNE_MLSERVER_PYTHON=.venv-mlserver/bin/python $(BIN)/python -m pytest tests/examples -rs

mutate: $(VENV)/.setup-test       ## put known bugs in, one at a time: the tests must see each
	$(BIN)/python tests/mutate.py

bench: $(VENV)/.setup-test        ## the benchmarks that need no data, into benchmarks/results: minutes on a quiet machine
	$(BIN)/python benchmarks/train_step.py
	$(BIN)/python benchmarks/networks.py

notebooks: $(VENV)/.setup-test    ## execute the notebooks in place: some minutes
	$(BIN)/python notebooks/execute.py

docs: $(VENV)/.setup-docs         ## the documentation site, into docs/_build/html; warnings are errors
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

wheel: $(VENV)/.setup-test        ## the wheel, into dist/
	$(BIN)/uv build --quiet --wheel

clean:                            ## remove environments, runs and caches
	rm -rf .venv .venv-* examples/browser/node_modules runs dist docs/_build docs/reference docs/notebooks docs/benchmarks .mypy_cache .ruff_cache .hypothesis
