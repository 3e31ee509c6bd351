# Each target makes .venv and installs what it needs: no other step comes before it.
PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
STAMPS := $(VENV)/.stamps
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test lint bench clean
.DELETE_ON_ERROR:

$(STAMPS)/venv:
	$(PYTHON) -m venv $(VENV)
	@mkdir -p $(STAMPS)
	$(PIP) "pip>=25.1"
	@touch $@

$(STAMPS)/core: $(STAMPS)/venv pyproject.toml constraints.txt
	$(PIP) -e ".[microscopy]"
	@touch $@

$(STAMPS)/test: $(STAMPS)/core
	$(PIP) --group test
	@touch $@

$(STAMPS)/lint: $(STAMPS)/core
	$(PIP) --group lint --group test
	@touch $@

demo: $(STAMPS)/core
	$(BIN)/exafield train microscopy --ranks 2

test: $(STAMPS)/test
	$(BIN)/python -m pytest

lint: $(STAMPS)/lint
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) build dist
