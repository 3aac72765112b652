# make checks is what a change must pass. Everything runs in the environment of scripts/environment.

BIN := .venv/bin

.NOTPARALLEL:
.PHONY: checks format lint types test test-oldest quickstart clean

checks: lint types test

lint:
	scripts/environment dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

# The type checker reads packages where they lie, and sglm.cli lies in cli/ (see package-dir in
# pyproject.toml): it gets a folder of links that looks like what is imported. Which packages,
# pyproject.toml says.
types:
	scripts/environment dev
	rm -rf build/types && mkdir -p build/types/sglm
	cd build/types/sglm && ln -s ../../../sglm/* ../../../cli ../../../configs .
	ln -s ../../scripts build/types
	cd build/types && ../../$(BIN)/mypy --config-file ../../pyproject.toml --cache-dir ../../.mypy_cache

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
