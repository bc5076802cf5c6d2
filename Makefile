# Every target sets up what it needs: `make demo` and `make test` work on a fresh machine.

# The first Python of at least 3.11 that runs; 3.11 comes first because constraints.txt was made with it.
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3.14 python3; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$python; break; }; done)
BIN := .venv/bin
STAMP := .venv/.installed
BENCH_STAMP := .venv/.bench-installed

# More arguments for pytest, for example: make test PYTEST_ARGS="-k codecs"
PYTEST_ARGS ?=

# How many processes run the tests. A file is of one process, since importing and compiling takes longer than most tests.
WORKERS ?= auto

# More arguments for the benchmarks, for example: make bench BENCH_ARGS="--cases codec --rounds 3"
BENCH_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint format vectors crash-campaign bitflip-campaign fault-campaign run-campaign peers weights bench clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP)  ## make .venv with all extras and the development tools

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python" >&2; exit 1; }
	@echo "Setting up .venv (the first time takes some minutes)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[all,dev]'
	@touch $@

demo: $(STAMP)  ## run the tour in examples/demo.py
	$(BIN)/python examples/demo.py

test: $(STAMP)  ## run the tests (not those marked slow)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(PYTEST_ARGS)

lint: $(STAMP)  ## check style, format, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pyright
	$(BIN)/lint-imports

format: $(STAMP)  ## format the code and apply the safe fixes
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

vectors: $(STAMP)  ## write the test vectors of the specification anew
	$(BIN)/python spec/generate.py

crash-campaign: $(STAMP)  ## replay every crash state of a save
	$(BIN)/python -m pytest -m slow tests/campaigns/test_crash_states.py $(PYTEST_ARGS)

bitflip-campaign: $(STAMP)  ## flip every bit of checkpoint files
	$(BIN)/python -m pytest -m slow tests/campaigns/test_bit_flips.py $(PYTEST_ARGS)

fault-campaign: $(STAMP)  ## inject system-call faults into saves
	$(BIN)/python -m pytest -m slow tests/campaigns/test_faults.py $(PYTEST_ARGS)

run-campaign: $(STAMP)  ## trainings ended at any time; the manager against a model, for long
	$(BIN)/python -m pytest -m slow tests/run tests/incremental $(PYTEST_ARGS)

peers: $(STAMP)  ## put other checkpoint formats through the same torture
	$(BIN)/python benchmarks/torture.py

weights: $(STAMP)  ## fetch the real weights that tests marked weights use
	$(BIN)/python tools/fetch_weights.py .cache/weights

# Apart from the other extras, because of a C compiler that one of the peers needs.
$(BENCH_STAMP): $(STAMP)
	@echo "Installing what is compared and matplotlib"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[bench]'
	@touch $@

bench: $(BENCH_STAMP)  ## measure speed, size and memory against other formats (about an hour)
	$(BIN)/python -m benchmarks.suite $(BENCH_ARGS)

clean:  ## remove caches and builds (.venv and .cache stay)
	rm -rf build dist htmlcov .coverage .coverage.* coverage.xml .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . \( -name .git -o -name .venv -o -name .cache \) -prune -o -name __pycache__ -type d -exec rm -rf {} +
