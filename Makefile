# A change must pass `make checks`. Everything runs in .venv, which scripts/environment makes.

BIN := .venv/bin

.NOTPARALLEL:
.PHONY: checks format lint types test test-oldest quickstart clean

checks: lint types test

lint:
	scripts/environment dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

# mypy derives the names of packages from folders, but sglm.cli lies in cli/ (see package-dir in
# pyproject.toml). So it reads a folder of links with the layout of the installed package.
# pyproject.toml names the packages to check.
types:
	scripts/environment dev
	rm -rf build/types && mkdir -p build/types/sglm
	cd build/types/sglm && ln -s ../../../sglm/* ../../../cli ../../../configs .
	ln -s ../../scripts build/types
	cd build/types && ../../$(BIN)/mypy --config-file ../../pyproject.toml --cache-dir ../../.mypy_cache

# Warnings are errors (see filterwarnings in pyproject.toml).
test:
	scripts/test

# A part of the suite, with the oldest versions that pyproject.toml allows.
test-oldest:
	scripts/test-oldest

format:
	scripts/environment dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

quickstart:
	scripts/quickstart

# Keeps what takes long to make: .venv, data, runs.
clean:
	rm -rf build dist *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache
	find sglm cli configs tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +
