# Two commands matter: `make run` and `make test`. Both set up what they need.
PYTHON ?= python3
# A CUDA build of torch is what PyPI has for most platforms. For the smaller CPU build where pip
# does not choose it by itself: make run TORCH_PIP_ARGS='--index-url <PyTorch CPU index>'
TORCH_PIP_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --disable-pip-version-check -q -c constraints.txt

# The line of transformers before the one that is used here, and its environment.
VENV4 := .venv4

.PHONY: fuzz span run test lint types unit unit-random e2e compat clean

run: $(VENV)/.installed
	$(BIN)/fedshield model fetch
	$(BIN)/fedshield run examples/quickstart.yaml

test: lint types unit

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

# Cores that this process may use, and no more than memory has place for: a worker takes up to 2 GB.
WORKERS ?= $(shell $(PYTHON) -c 'import os; n = getattr(os, "sched_getaffinity", None); print(min(8, len(n(0)) if n else os.cpu_count()))')

# One process for each core, one thread each; the tests of a file stay together.
unit: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -q -m "not slow" -n $(WORKERS) --dist loadfile $(PYTEST_ARGS)

# In random order: of the folders' files, and within each file. The first line names the seed:
# PYTEST_ARGS=--random-order-seed=N repeats that order.
unit-random: $(VENV)/.installed-dev
	OMP_NUM_THREADS=2 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -q -m "not slow" --random-order $(PYTEST_ARGS)

# Long runs: kills at many moments, the embedded model, the quickstart, transformers 4.
e2e: $(VENV)/.installed-dev $(VENV4)/.installed
	$(BIN)/fedshield model fetch
	OMP_NUM_THREADS=2 $(BIN)/python -m pytest -q -m slow

# Merged models loaded by transformers 4.57, in an environment of its own.
compat: $(VENV)/.installed-dev $(VENV4)/.installed
	OMP_NUM_THREADS=2 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -q -m slow tests/model/test_merge.py

# Every parser against mutated messages: 100,000 of them.
fuzz: $(VENV)/.installed-dev
	FEDSHIELD_FUZZ_CASES=100000 $(BIN)/python -m pytest -q tests/protocol/test_fuzz.py

# The rules across sums against random histories: 100,000 steps. FEDSHIELD_SPAN_SEED=N repeats a run.
span: $(VENV)/.installed-dev
	FEDSHIELD_SPAN_STEPS=100000 $(BIN)/python -m pytest -q tests/ledger/test_span.py

clean:
	rm -rf $(VENV) $(VENV4) .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(f"expected Python 3.11 or newer, got {v[0]}.{v[1]}; run make PYTHON=python3.11" if v < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

# torch first: other packages would otherwise choose its build.
$(VENV)/.torch: $(VENV)/bin/python constraints.txt
	$(PIP) $(TORCH_PIP_ARGS) torch
	touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml constraints.txt
	$(PIP) -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.torch pyproject.toml constraints.txt
	$(PIP) -e '.[dev,flare]'
	touch $@ $(VENV)/.installed

# The same torch, by the same way.
$(VENV4)/.installed: $(VENV)/.torch constraints.txt
	$(PYTHON) -m venv $(VENV4)
	$(VENV4)/bin/pip install --disable-pip-version-check -q $(TORCH_PIP_ARGS) "$$(grep ^torch== constraints.txt)"
	$(VENV4)/bin/pip install --disable-pip-version-check -q 'transformers>=4.57,<5' safetensors
	touch $@
