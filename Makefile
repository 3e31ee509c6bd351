# Each target makes .venv and installs what it needs: no other step comes before it.
PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
STAMPS := $(VENV)/.stamps
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

# What the tests use, and whose licences `make lint` looks at; `make test-engines` does so with all there are.
EXTRAS := microscopy,climate,subsurface,mpi,tensorboard,light,dask

.PHONY: help demo test test-engines engine-packages lint bench clean
.DELETE_ON_ERROR:

help:
	@echo "make demo    trains a network on simulated electron diffraction, on 2 processes, and draws what it learnt"
	@echo "make test    runs the tests"
	@echo "make test-engines   installs every programming system there is an adapter for, and tests them all"
	@echo "make engine-packages   installs by apt what some of them need: Java, Redis, StarPU (as root)"
	@echo "make lint    formatting, types, import layers, licences"
	@echo "make bench   runs the benchmarks; results go to bench/"
	@echo "make clean   removes .venv and what was built"

$(STAMPS)/venv:
	$(PYTHON) -m venv $(VENV)
	$(PIP) pip
	@mkdir -p $(STAMPS)
	@touch $@

$(STAMPS)/core: $(STAMPS)/venv pyproject.toml constraints.txt
	$(PIP) --build-constraint constraints.txt --editable ".[$(EXTRAS)]"
	@touch $@

$(STAMPS)/test: $(STAMPS)/core
	$(PIP) --group test
	@touch $@

$(STAMPS)/engines: $(STAMPS)/test
	$(PIP) --build-constraint constraints.txt --editable ".[$(EXTRAS),engines]"
	@touch $@

$(STAMPS)/lint: $(STAMPS)/test
	$(PIP) --group lint
	@touch $@

demo: $(STAMPS)/core
	$(BIN)/exafield train microscopy --ranks 2 --gate

# Two files at a time: many tests wait for processes that start.
test: $(STAMPS)/test
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-engines: $(STAMPS)/engines
	$(BIN)/python -m pytest --engines tests/engine
	$(BIN)/python tools/licences.py

engine-packages:
	@if [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then \
	    apt-get update --quiet && \
	    apt-get install --quiet --yes --no-install-recommends default-jre-headless redis-server libstarpu-dev; \
	else \
	    echo "needs apt, and to be root; to be had otherwise: Java 17, Redis, StarPU. What is missing is skipped."; \
	fi

lint: $(STAMPS)/lint
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/licences.py --extras $(EXTRAS)

bench: $(STAMPS)/core
	@mkdir -p bench
	for script in benchmarks/*.py; do \
	    $(BIN)/python $$script --json bench/$$(basename $$script .py).json || exit 1; \
	done

clean:
	rm -rf $(VENV) build dist bench
