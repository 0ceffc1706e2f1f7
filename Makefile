# Everything runs in one environment, made on first use and kept until setup.cfg or
# constraints.txt change. It is not named .venv: tox 4 writes a file of that name.

PYTHON ?= python3
ENV ?= .env-make
ARGS ?=

BIN := $(ENV)/bin
STAMP := $(ENV)/.installed
SINGLE := OMP_NUM_THREADS=1

.DEFAULT_GOAL := help
.PHONY: help demo test slow lint format typing env clean

help: ## Show this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

demo: $(STAMP) ## Watch Ranum save a training run that goes NaN
	$(BIN)/python examples/demo.py $(ARGS)

test: $(STAMP) ## Run the tests (ARGS="tests/guards -x" to choose)
	$(SINGLE) $(BIN)/python -m pytest -m "not slow" $(ARGS)

slow: $(STAMP) ## Run the slow tests
	$(SINGLE) $(BIN)/python -m pytest -m slow $(ARGS)

lint: $(STAMP) ## Check style and formatting
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .

format: $(STAMP) ## Repair style and formatting
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

typing: $(STAMP) ## Check types
	$(BIN)/python -m mypy

env: $(STAMP) ## Only make the environment

clean: ## Remove the environment, caches and build results
	rm -rf $(ENV) .tox build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is written last, so a failed or interrupted installation is tried again.
$(STAMP): setup.cfg constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Ranum needs Python 3.11 or newer. Name one: make $(MAKECMDGOALS) PYTHON=python3.11" >&2; \
	  exit 1; }
	@echo "Setting up $(ENV), once. PyTorch is large: this takes a few minutes."
	@rm -f $@
	$(PYTHON) -m venv $(ENV)
	$(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@
