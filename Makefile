# One-line set-up and checks. PYTHON chooses the interpreter, VENV where the environment goes.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: help setup demo test test-fast test-long lint format clean

help:
	@echo "make demo       train dense and sparse LeNet-5 on real images, about two minutes"
	@echo "make test       the tests, on the Python that PYTHON= names (default python3)"
	@echo "make test-fast  without the slow ones (whole runs, command lines)"
	@echo "make test-long  the longest ones, which the others leave out: before a release"
	@echo "make lint       format, lint and type checks"

setup: $(BIN)/.ready

# Installed again where the sources of the kernels have changed, which compiles them.
KERNELS := jaxsparse/kernels/build.py $(wildcard jaxsparse/kernels/csrc/* jaxsparse/kernels/csrc/engine/*)

$(BIN)/.ready: pyproject.toml constraints.txt hatch_build.py $(KERNELS)
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and f"jaxsparse needs Python 3.11 or later, {sys.executable} is {v.major}.{v.minor}; try make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: setup
	$(BIN)/python experiments/demo.py

# Workers take stretches of files that stand together: what a file's tests share is compiled once.
test: setup
	$(BIN)/python -m pytest -n auto --dist worksteal --durations=20

test-fast: setup
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not slow and not long"

test-long: setup
	$(BIN)/python -m pytest -n auto --dist worksteal -m long

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis
