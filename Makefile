# make checks is what a change must pass. Everything runs in the environment of scripts/environment.

BIN := .venv/bin
# Scripts that run from the command line, with what they import.
SCRIPTS := bench.py bench_kernels.py bench_scoring.py chaos.py cost_curves.py fuzz_targets.py memory.py scaling.py search.py soak.py long_memory.py
MYPY := ../../$(BIN)/mypy --config-file ../../pyproject.toml --cache-dir ../../.mypy_cache

.NOTPARALLEL:
.PHONY: checks format lint types test test-oldest quickstart clean

checks: lint types test

lint:
	scripts/environment dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

# The type checker reads a package where it lies, and sglm.cli lies in cli/ (see package-dir in
# pyproject.toml): it gets a folder of links that looks like the installed package.
types:
	scripts/environment dev
	rm -rf build/types && mkdir -p build/types/sglm
	cd build/types/sglm && ln -s ../../../sglm/* ../../../cli ../../../configs .
	cd build/types && $(MYPY)
	cd build/types && $(MYPY) $(addprefix ../../scripts/,$(SCRIPTS))

# Warnings are errors: filterwarnings in pyproject.toml.
test:
	scripts/test

# With the oldest versions that pyproject.toml allows.
test-oldest:
	scripts/test-oldest

format:
	scripts/environment dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

quickstart:
	scripts/quickstart

# Leaves what took long to make: .venv, data, runs.
clean:
	rm -rf build dist *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache
	find sglm cli configs tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +
