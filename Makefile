# Each target makes .venv and installs what it needs: no other step comes before it.
PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
STAMPS := $(VENV)/.stamps
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: help demo test lint bench clean
.DELETE_ON_ERROR:

help:
	@echo "make demo    trains a network on simulated electron diffraction, on 2 processes, and draws what it learnt"
	@echo "make test    runs the tests"
	@echo "make lint    formatting, types, import layers, licences"
	@echo "make bench   runs the benchmarks; results go to bench/"
	@echo "make clean   removes .venv and what was built"

$(STAMPS)/venv:
	$(PYTHON) -m venv $(VENV)
	$(PIP) pip
	@mkdir -p $(STAMPS)
	@touch $@

# All extras: the tests use them, and their licences are checked.
$(STAMPS)/core: $(STAMPS)/venv pyproject.toml constraints.txt
	$(PIP) --build-constraint constraints.txt --editable ".[microscopy,mpi,tensorboard]"
	@touch $@

$(STAMPS)/test: $(STAMPS)/core
	$(PIP) --group test
	@touch $@

$(STAMPS)/lint: $(STAMPS)/test
	$(PIP) --group lint
	@touch $@

demo: $(STAMPS)/core
	$(BIN)/exafield train microscopy --ranks 2 --gate

test: $(STAMPS)/test
	$(BIN)/python -m pytest

lint: $(STAMPS)/lint
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/licences.py

bench: $(STAMPS)/core
	@mkdir -p bench
	for script in benchmarks/*.py; do \
	    $(BIN)/python $$script --json bench/$$(basename $$script .py).json || exit 1; \
	done

clean:
	rm -rf $(VENV) build dist bench
