# Everything a newcomer needs: `make demo` and `make test`. Both set up what they use, into .venv.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
UV := UV_PROJECT_ENVIRONMENT=$(VENV) $(BIN)/uv
UV_VERSION := 0.13.8
TF_NEWEST := 2.21.0
WORKERS ?= 2   # processes that share the tests, file by file
IN_PARTS := -n $(strip $(WORKERS)) --dist loadfile
export MPLBACKEND := Agg

.PHONY: help setup setup-test demo test test-slow test-newest check bench notebooks wheel clean
.DEFAULT_GOAL := help

help:            ## list the targets
	@grep -hE '^[a-z-]+: .*##|^[a-z-]+:  *##' $(MAKEFILE_LIST) | sed -E 's/:.*##/ :/' | column -t -s:

$(BIN)/uv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { echo "Python 3.11 is needed; name yours: make PYTHON=/path/to/python3.11"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)

$(VENV)/.setup: $(BIN)/uv pyproject.toml uv.lock
	$(UV) sync --quiet --frozen --inexact
	@touch $@

$(VENV)/.setup-test: $(BIN)/uv pyproject.toml uv.lock Makefile
	@echo "setting up, Horovod's build included: a few minutes the first time"
	$(UV) sync --quiet --frozen --inexact --extra horovod --extra formats --extra notebooks --extra dev
	@touch $@ $(VENV)/.setup

setup: $(VENV)/.setup             ## the package and what it needs, into .venv

setup-test: $(VENV)/.setup-test   ## the same with Horovod and the tools for tests

demo: $(VENV)/.setup              ## the main job on handwritten digits, into runs/demo
	@$(BIN)/tfp-bprune demo --out runs/demo

test: $(VENV)/.setup-test         ## the fast tests, WORKERS=2 files at once
	$(BIN)/python -m pytest $(IN_PARTS) -m "not slow" --durations=15

test-slow: $(VENV)/.setup-test    ## the slow checks on real data; TFDS_DATA_DIR names the data
	$(BIN)/python -m pytest -m slow --timeout 5400

test-newest: $(BIN)/uv            ## the fast tests but Horovod's on the newest TensorFlow, in an environment of its own
	$(BIN)/uv venv --quiet --allow-existing --python $(BIN)/python .venv-newest
	$(BIN)/uv pip install --quiet --no-config --python .venv-newest/bin/python -e '.[dev,formats,notebooks]' tensorflow==$(TF_NEWEST) tf-keras==$(TF_NEWEST)
	.venv-newest/bin/python -m pytest $(IN_PARTS) -m "not slow and not horovod"

check: $(VENV)/.setup-test        ## format, lint, types, and the tests that need no training
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -m "not slow and not horovod" tests/test_architecture.py tests/test_runs.py tests/layers tests/prune

bench: $(VENV)/.setup-test        ## the benchmarks that need no data, into benchmarks/results: minutes on a quiet machine
	$(BIN)/python benchmarks/train_step.py
	$(BIN)/python benchmarks/networks.py

notebooks: $(VENV)/.setup-test    ## execute the notebooks in place: some minutes
	$(BIN)/python notebooks/execute.py

wheel: $(VENV)/.setup-test        ## the wheel, into dist/
	$(BIN)/uv build --quiet --wheel

clean:                            ## remove environments, runs and caches
	rm -rf .venv .venv-newest runs dist .mypy_cache .ruff_cache .hypothesis
